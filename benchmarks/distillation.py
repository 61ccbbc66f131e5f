"""Does the distillation work? A small student learns verdicts on a processor, and is held to planted truth.

    python benchmarks/distillation.py --teacher-rows ROWS.jsonl --folder F [--contract fenced] [--minutes 40] [--json]

ROWS are `{prompt, response}` of a real teacher. Those that pass the gate (or the first `--teacher-most` of them, where
the time is short) are trained on, in the canonical form of the contract, with `--planted` generated concepts whose
right verdict is known, answered by the embedded rules: real rows have few verdicts but `aligned` and
`needs_adjustment`. smollm2-135m-instruct learns from the teacher's rows first and from the planted ones behind them
(`--order shuffled` mixes them), for `--minutes` (or `--max-steps`), is packaged in `--quantization` (and trained for
it where that is q4_0), and answers `--cases` generated concepts that no row is like. Reported for base and student:
the share of valid answers, the metric with an invalid answer as 0, and the balanced accuracy of the verdict against
the planted truth (an invalid answer is wrong; always answering the same is 0.33).

Everything is kept in `--folder`, and a run that was killed goes on there. `--json` prints one object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from po_distill import (
    DatasetBuilder,
    Evaluator,
    GenerationSettings,
    LoRASettings,
    LoRATrainer,
    Merger,
    Packager,
    ProviderSettings,
    Teacher,
    artifacts,
)
from po_distill.plugins import load
from po_distill.records import Adapter, CandidateResult, Concept, Dataset
from po_distill.weights.checkpoint import locate
from po_distill.weights.gguf import write_gguf

TRAINING_SEED, HELD_OUT_SEED = 7, 2026
CONTEXT, ANSWER = 2048, 768  # tokens


def main() -> None:
    given = arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    role = load("roles", "product_owner")(contract=given.contract)
    cases = role.generate_concepts(given.cases, HELD_OUT_SEED)
    dataset = build_rows(role, given, cases)
    student, training = train(role, given, dataset)
    found: dict[str, Any] = {
        "contract": given.contract,
        "form": role.contract.output_format,
        "inputs": dataset.inputs,
        "rows": dataset.counts["train"],
        "classes": dataset.labels,
        "rejected": dataset.rejected,
        **training,
        "student": judge(role, given, "student", student, cases),
    }
    if given.base_cases:
        found["base"] = judge(role, given, "base", base_package(given), cases[: given.base_cases])
    print(json.dumps(found) if given.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher-rows", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--contract", default="fenced")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--teacher-most", type=int, help="of the teacher's rows that pass the gate.  [default: all]")
    parser.add_argument("--planted", type=int, default=360, help="generated concepts to learn from")
    parser.add_argument("--cases", type=int, default=210, help="generated concepts to be judged on")
    parser.add_argument(
        "--base-cases", type=int, default=210, help="how many of them the base is asked; 0 leaves it out"
    )
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--max-steps", type=int, help="train for so many steps, whatever time they take")
    parser.add_argument("--order", choices=["curriculum", "shuffled"], default="curriculum")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--processes", type=int, default=1, help="that train together, each with its share of a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--scheduler", choices=["cosine", "linear", "constant", "wsd"], default="cosine")
    parser.add_argument("--beta2", type=float, default=0.999, help="of AdamW")
    parser.add_argument("--quantization", choices=["q4_0", "q8_0", "f16"], default="q4_0")
    parser.add_argument("--concurrency", type=int, default=4, help="answers generated at a time")
    parser.add_argument("--threads", type=int, help="of llama.cpp.  [default: one per core]")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def build_rows(role: Any, given: argparse.Namespace, cases: list[Concept]) -> Dataset:
    """The teacher's rows and the planted ones through the gate, none of them like a held-out case."""
    output, held_out, planted = (given.folder / name for name in ("dataset.jsonl", "held_out.jsonl", "planted.jsonl"))
    artifacts.write_jsonl(held_out, (case.model_dump(mode="json") for case in cases))
    concepts = role.generate_concepts(given.planted, TRAINING_SEED)
    teacher = Teacher(role, provider="offline", journal_path=given.folder / "journal.sqlite", log_path=None)
    answers = teacher.answer(concepts)
    artifacts.write_jsonl(planted, (answer.model_dump(mode="json") for answer in answers))
    builder = DatasetBuilder(
        role, validation_share=0.0, test_share=0.0, held_out=[held_out], stamp="2026-01-01T00:00:00Z"
    )
    return builder.build_from([given.teacher_rows, planted], output)


def curriculum(given: argparse.Namespace, dataset: Dataset) -> tuple[Path, int]:
    """The rows with the planted ones last, so that a teacher's free prose does not outweigh verdicts at the end.

    And how many of them are the teacher's: the first `--teacher-most`.
    """
    path: Path = given.folder / "curriculum.jsonl"
    rows = [row for _, row in artifacts.read_jsonl(dataset.paths["train"])]
    teacher = [row for row in rows if not row["concept"]["planted_label"]][: given.teacher_most]
    artifacts.write_jsonl(path, [*teacher, *(row for row in rows if row["concept"]["planted_label"])])
    return path, len(teacher)


def train(role: Any, given: argparse.Namespace, dataset: Dataset) -> tuple[Path, dict[str, Any]]:
    """The student's GGUF, and what its training was."""
    version = given.folder / "student_v1"
    record = version / "adapter" / "po_distill.json"
    rows, teacher_rows = curriculum(given, dataset)
    started_s = time.monotonic()
    if record.exists():
        adapter = artifacts.read_record(record, Adapter)
    else:
        trainer = LoRATrainer(
            base=given.base,
            lora=LoRASettings(dropout=0.0),
            epochs=1,
            batch=given.batch,
            learning_rate=given.learning_rate,
            scheduler=given.scheduler,
            beta2=given.beta2,
            max_steps=given.max_steps,
            minutes=None if given.max_steps else given.minutes,
            order="given" if given.order == "curriculum" else "shuffled",
            quantization_aware="q4_0" if given.quantization == "q4_0" else None,
            evaluate_every=0,
            launcher="accelerate" if given.processes > 1 else "local",
            launcher_options={"processes": given.processes} if given.processes > 1 else {},
        )
        adapter = trainer.train(rows, version, contract=role.contract, log_path=given.folder / "training.log")
        artifacts.write_json(given.folder / "minutes.json", {"minutes": round((time.monotonic() - started_s) / 60, 1)})
    packages = list(version.glob(f"*.{given.quantization.upper()}.gguf"))
    if not packages:
        merged = Merger(gguf=given.quantization).merge(adapter, version)
        packages = [Path(Packager(name="student-v1", quantization=given.quantization).package(merged).gguf.path)]
    summary = adapter.training
    assert summary is not None
    taken = json.loads((given.folder / "minutes.json").read_text())
    seen = summary.steps * given.batch
    return packages[0], {
        **taken,
        "steps": summary.steps,
        "teacher_rows": teacher_rows,
        "rows_seen": min(seen, summary.rows),
        "tokens_per_s": round(summary.tokens_per_s),
        "last_loss": round(summary.last_loss, 4),
        "device": summary.device,
    }


def base_package(given: argparse.Namespace) -> Path:
    """The base without an adapter, packaged alike."""
    path: Path = given.folder / f"base.{given.quantization.upper()}.gguf"
    if not path.exists():
        write_gguf(locate(given.base).path, path, given.quantization)
    return path


def judge(role: Any, given: argparse.Namespace, name: str, model: Path, cases: list[Concept]) -> dict[str, Any]:
    """What one model's greedy answers are worth."""
    evaluator = Evaluator(
        role,
        generation=GenerationSettings(temperature=0.0, max_tokens=ANSWER),
        concurrency=given.concurrency,
        gate="basic",
        meaning=None,
        folder=given.folder / name,
        report_path=None,
        log_path=None,
    )
    options = {"n_parallel": given.concurrency, "n_ctx": CONTEXT}
    if given.threads:
        options["n_threads"] = given.threads
    runtime = ProviderSettings(provider="llama_cpp", model=str(model), options=options)
    found: CandidateResult = evaluator.evaluate(cases, {name: runtime}).candidate(name)
    return {
        "cases": found.cases,
        "valid_share": round(found.valid_share, 4),
        "metric": round(found.score_mean, 4),
        "verdict_balanced_accuracy": found.verdict_balanced_accuracy and round(found.verdict_balanced_accuracy, 4),
        "confusion": found.confusion,
        "s_per_call": round(found.seconds_per_call, 2),
        "clusters": {cluster.cause: cluster.n for cluster in found.clusters},
    }


if __name__ == "__main__":
    main()
