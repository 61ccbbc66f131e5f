"""TRL's trainer for packed rows: the loss over answers alone, and what a run leaves behind as it goes."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from po_distill import artifacts
from po_distill.errors import TrainingError
from po_distill.progress import Advance
from po_distill.weights.lean_layers import answer_loss
from po_distill.weights.packed_rows import Packing, pack
from po_distill.weights.tokenization import IGNORED, TokenizedRow
from po_distill.weights.training_plan import TrainingPlan

_COMPLETE = "complete.json"  # written into a checkpoint after all else


def predict_loss(model: Any) -> None:
    """Make a causal language model return the summed loss of a pack (a scalar) in place of logits."""
    model.forward = functools.partial(_pack_loss, model)


def _pack_loss(
    model: Any, *, input_ids: Tensor, position_ids: Tensor, labels: Tensor, packing: Packing, **_: Any
) -> Tensor:
    states = model.base_model(input_ids=input_ids, position_ids=position_ids, packing=packing, use_cache=False)
    answered = labels != IGNORED
    return answer_loss(states.last_hidden_state[answered], model.lm_head.weight, labels[answered])


def trainer_settings(plan: TrainingPlan, folder: Path, *, seed: int, checkpoint_activations: bool) -> SFTConfig:
    """TRL's settings for a plan; checkpoints go below `folder`."""
    return SFTConfig(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.batch // plan.micro_batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_steps,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=False,  # the base is loaded in its precision, and LoRA's products follow it: nothing to cast
        fp16=False,
        gradient_checkpointing=checkpoint_activations,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,  # the labels say what is under the loss
        max_length=None,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
    )


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains a PeftModel on rows in a given order. The collator packs, the model returns the summed loss."""

    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, args: SFTConfig, rows: Sequence[TokenizedRow], order: Sequence[int], tokenizer: Any):
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict({"row": list(order)}),
            data_collator=lambda batch: pack([rows[entry["row"]] for entry in batch]),
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.model_accepts_loss_kwargs = True  # has the labels of a whole step counted
        self._step_tokens = 0
        predict_loss(self.model.get_base_model())

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The pack's share of the mean loss over all answer tokens of the step. Raises TrainingError at NaN."""
        loss: Tensor = model(**inputs) / num_items_in_batch
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps}.",
                f"Lower the learning rate (it is {self.args.learning_rate:g}): --lr {self.args.learning_rate / 3:.2g}",
            )
        self._step_tokens += inputs["packing"].row_tokens
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Note the tokens of the step beside the Trainer's own figures."""
        logs["tokens"], self._step_tokens = self._step_tokens, 0
        super().log(logs, start_time)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a checkpoint is thrown away, and a README for it would be work."""


class StepRecorder(TrainerCallback):  # type: ignore[misc]
    """Shows each step, writes it to the log, and marks checkpoints that are complete."""

    def __init__(self, advance: Advance, log_path: str | None) -> None:
        self._advance, self._log_path = advance, log_path
        self._started = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count what an earlier run has done."""
        if state.global_step:
            self._advance(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the step's clock."""
        self._started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        """Put the step's time into the Trainer's history, which checkpoints carry, and tell it."""
        if "loss" not in logs:
            return
        entry = state.log_history[-1]
        entry["step_s"] = time.perf_counter() - self._started
        tokens_per_s = entry["tokens"] / entry["step_s"]
        self._advance(1, note=f"loss {logs['loss']:.3f}, {tokens_per_s:.0f} tokens/s")
        if self._log_path:
            line: dict[str, Any] = {
                key: logs[key] for key in ("loss", "learning_rate", "grad_norm", "tokens") if key in logs
            }
            line |= {"step_s": round(entry["step_s"], 4), "tokens_per_s": round(tokens_per_s, 1)}
            artifacts.append_jsonl(
                self._log_path, {"step": state.global_step, "steps": state.max_steps, **line, "time": artifacts.now()}
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint, all of whose files are written by now."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        artifacts.write_json(folder / _COMPLETE, {"step": state.global_step})


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps below a folder; None where there is none."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{_COMPLETE}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
