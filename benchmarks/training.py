"""Training on processor cores: this library against plain `trl.SFTTrainer`, and against padding every row to 2,048.

    python benchmarks/training.py --data ROWS.jsonl [--steps 6] [--batch 2] [--rounds 1] [--json]

ROWS are `{prompt, response}`, such as a real teacher's. Each trainer makes the same optimizer steps with the same rows,
base (smollm2-135m-instruct), rank, learning rate and sequence length, in a process of its own, in turn:

- ours: `LoRATrainer` at the plan's settings;
- trl: `SFTTrainer` with its defaults on prompt and completion. They compute in bfloat16, which a processor without
  instructions for it does very slowly; therefore
- trl_float32: the same in float32;
- padded: transformers' `Trainer`, each row padded to 2,048 tokens, every token of it under the loss.

A rate is answer tokens of the rows per second of steps, the first step aside. `ratio_trl`, `ratio_trl_float32` and
`ratio_padded` are ours over theirs, the medians of the rounds; `heldout_loss` is the mean loss of our adapter over the
answers of rows that no run saw, `heldout_losses` that of each, computed by transformers and peft.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from po_distill.artifacts import write_jsonl
from po_distill.weights.checkpoint import locate
from po_distill.weights.tokenization import TokenizedRow, load_tokenizer, tokenize_file

PARTS = ("ours", "trl", "trl_float32", "padded")
LENGTH, RANK, ALPHA, DROPOUT, RATE = 2048, 32, 64.0, 0.05, 6e-4
HELD_OUT = 8


def main() -> None:
    given = arguments()
    if given.part:
        part, folder = given.part, Path(given.folder)
        print(json.dumps(PART_WORK[part](folder, given.base, given.steps, given.batch)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(given, Path(scratch))
    if given.json:
        print(json.dumps(found))
        return
    for part in PARTS:
        print(
            f"{part:>11}: {found[f'{part}_answer_tokens_per_s']} answer tokens per second, "
            f"held-out loss {found['heldout_losses'][part]}"
        )
    print(", ".join(f"ours over {part} {found[f'ratio_{part}']}" for part in PARTS[1:]))


def compare(given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    base = locate(given.base).path
    prepare(given, base, scratch)
    rates: dict[str, list[float]] = {part: [] for part in PARTS}
    losses: dict[str, float] = {}
    for number in range(given.rounds):
        for part in PARTS:
            folder = scratch / f"{part}{number}"
            folder.mkdir()
            for name in ("train.jsonl", "held_out.jsonl"):
                (folder / name).symlink_to(scratch / name)
            command = [sys.executable, __file__, "--part", part, "--folder", str(folder), "--base", given.base]
            command += ["--steps", str(given.steps), "--batch", str(given.batch)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            rates[part].append(told["answer_tokens"] / told["seconds"])
            losses[part] = heldout_loss(base, folder / "adapter", scratch / "held_out.jsonl")
    rate = {part: statistics.median(rates[part]) for part in PARTS}
    return {
        **{f"{part}_answer_tokens_per_s": round(rate[part], 1) for part in PARTS},
        **{f"ratio_{part}": round(rate["ours"] / rate[part], 3) for part in PARTS[1:]},
        "heldout_loss": round(losses["ours"], 4),
        "heldout_losses": {part: round(loss, 4) for part, loss in losses.items()},
        "heldout_before": round(heldout_loss(base, None, scratch / "held_out.jsonl"), 4),
        "steps": given.steps,
        "batch": given.batch,
        "rounds": given.rounds,
        "spread": {part: [round(one, 1) for one in rates[part]] for part in PARTS},
    }


def prepare(given: argparse.Namespace, base: Path, scratch: Path) -> None:
    """Rows for one pass of the steps, and others that are held out, both spread over the file."""
    tokenizer = load_tokenizer(base)
    lines = [json.loads(line) for line in Path(given.data).read_text().splitlines() if line.strip()]
    plain = [{"prompt": row["prompt"], "response": row["response"]} for row in lines if "response" in row]
    path = scratch / "all.jsonl"
    write_jsonl(path, plain)
    fitting = [row for row in tokenize_file(path, tokenizer, max_seq_len=1 << 20) if len(row.input_ids) <= LENGTH]
    wanted = given.steps * given.batch + HELD_OUT
    if len(fitting) < wanted:
        sys.exit(f"{given.data} has {len(fitting)} rows of up to {LENGTH} tokens; {wanted} are needed.")
    chosen = [plain[row.line - 1] for row in fitting[:: len(fitting) // wanted][:wanted]]
    held_out = chosen[:: wanted // HELD_OUT][:HELD_OUT]
    write_jsonl(scratch / "held_out.jsonl", held_out)
    write_jsonl(scratch / "train.jsonl", [row for row in chosen if row not in held_out][: given.steps * given.batch])


def rows_of(path: Path, base: Path) -> list[TokenizedRow]:
    return tokenize_file(path, load_tokenizer(base), max_seq_len=LENGTH)


def heldout_loss(base: Path, adapter: Path | None, path: Path) -> float:
    """Mean cross-entropy of the answers, by transformers and peft alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for row in rows_of(path, base):
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, row.prompt_tokens - 1 : -1]
            answer = torch.tensor(row.input_ids[row.prompt_tokens :])
            total += torch.nn.functional.cross_entropy(logits, answer, reduction="sum").item()
            tokens += row.answer_tokens
    return total / tokens


# --- the trainers ---------------------------------------------------------------------------------


def ours(folder: Path, base: str, steps: int, batch: int) -> dict[str, float]:
    from po_distill.records import LoRASettings
    from po_distill.stages.lora_trainer import LoRATrainer

    lora = LoRASettings(rank=RANK, alpha=ALPHA, dropout=DROPOUT)
    trainer = LoRATrainer(
        base=base, lora=lora, epochs=1, batch=batch, learning_rate=RATE, max_seq_len=LENGTH, max_steps=steps,
        evaluate_every=0,
    )  # fmt: skip
    trainer.train(folder / "train.jsonl", folder)
    history = json.loads((folder / "adapter/trainer_state.json").read_text())["log_history"]
    times = [entry["step_s"] for entry in history if "step_s" in entry]
    return rated(folder, base, times, batch, steps)


def trl(folder: Path, base: str, steps: int, batch: int, **settings_of_ours: bool) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    data = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["response"]}],
            }
            for row in rows
        ]
    )
    settings = SFTConfig(
        output_dir=str(folder / "out"), max_steps=steps, per_device_train_batch_size=batch, learning_rate=RATE,
        max_length=LENGTH, report_to="none", save_strategy="no", disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),  # without it SFTConfig refuses a machine without a GPU
        **settings_of_ours,
    )  # fmt: skip
    trainer = SFTTrainer(str(locate(base).path), settings, train_dataset=data, peft_config=peft_config(LoraConfig))
    return timed(trainer, folder, base, batch, steps)


def trl_float32(folder: Path, base: str, steps: int, batch: int) -> dict[str, float]:
    return trl(folder, base, steps, batch, bf16=False)


def padded(folder: Path, base: str, steps: int, batch: int) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    path = locate(base).path
    made = []
    for row in rows_of(folder / "train.jsonl", path):
        rest = LENGTH - len(row.input_ids)
        ids = list(row.input_ids)
        made.append(
            {
                "input_ids": ids + [0] * rest,
                "attention_mask": [1] * len(ids) + [0] * rest,
                "labels": ids + [-100] * rest,
            }
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(model, peft_config(LoraConfig))
    settings = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=steps, per_device_train_batch_size=batch, learning_rate=RATE,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return timed(Trainer(model, settings, train_dataset=Dataset.from_list(made)), folder, base, batch, steps)


def peft_config(kind: Any) -> Any:
    from po_distill.records import LINEAR_MODULES

    return kind(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(LINEAR_MODULES), task_type="CAUSAL_LM"
    )


def timed(trainer: Any, folder: Path, base: str, batch: int, steps: int) -> dict[str, float]:
    """Train, with the time of each step, and leave the adapter in the folder."""
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started_s = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.started_s)

    trainer.add_callback(Clock())
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")
    return rated(folder, base, times, batch, steps)


def rated(folder: Path, base: str, times: Sequence[float], batch: int, steps: int) -> dict[str, float]:
    """Answer tokens and seconds of all steps but the first; each step has `batch` rows of like number of tokens."""
    assert len(times) == steps
    answers = sum(row.answer_tokens for row in rows_of(folder / "train.jsonl", locate(base).path))
    return {"answer_tokens": answers * (steps - 1) / steps, "seconds": sum(times[1:])}


PART_WORK: dict[str, Callable[[Path, str, int, int], dict[str, float]]] = {
    "ours": ours, "trl": trl, "trl_float32": trl_float32, "padded": padded,
}  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="JSONL of {prompt, response} rows.")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.part and not given.data:
        parser.error("--data is needed")
    return given


if __name__ == "__main__":
    main()
