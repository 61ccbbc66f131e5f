"""TRL's trainer for packed rows: the loss over answers alone, and held-out rows measured as it goes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from po_distill.errors import ArtifactError, TrainingError
from po_distill.records import TrainingJob
from po_distill.weights.answer_loss import predict_loss
from po_distill.weights.held_out_loss import HeldOut
from po_distill.weights.packed_rows import pack
from po_distill.weights.process_team import ProcessTeam
from po_distill.weights.step_recorder import COMPLETE
from po_distill.weights.tokenization import TokenizedRow
from po_distill.weights.training_checks import check_batch, require_free
from po_distill.weights.training_plan import TrainingPlan

_SCHEDULERS = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}  # by the Trainer's names
_DECAY = 0.3  # wsd: the last share of the steps, over which the learning rate runs down
_WRITING = ("writ", "no space", "iostream", "inline_container")  # what torch says where a file cannot be written


def trainer_settings(job: TrainingJob, plan: TrainingPlan, folder: Path, team: ProcessTeam) -> SFTConfig:
    """TRL's settings for a plan; checkpoints go below `folder`."""
    rows = plan.batch // team.size  # of a step, in each process
    micro_batch = math.gcd(plan.micro_batch, rows)  # the plan may be from a run of fewer processes
    evaluates = plan.evaluate_every > 0
    return SFTConfig(
        output_dir=str(folder),
        max_steps=plan.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=rows // micro_batch,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=_SCHEDULERS.get(job.scheduler, job.scheduler),
        lr_scheduler_kwargs={"num_decay_steps": math.ceil(plan.steps * _DECAY)} if job.scheduler == "wsd" else None,
        warmup_steps=plan.warmup_steps,
        adam_beta2=job.beta2,
        weight_decay=job.weight_decay,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=False,  # the base is loaded in its precision, and LoRA's products follow it: nothing to cast
        fp16=False,
        gradient_checkpointing=False,  # the student has it already, where the memory wants it
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=plan.checkpoint_every,
        save_total_limit=2,  # the last, and the best or the one before
        eval_strategy="steps" if evaluates else "no",
        eval_steps=plan.evaluate_every if evaluates else None,
        metric_for_best_model="loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        report_to=list(job.report_to) if team.leads and job.report_to else "none",
        run_name=Path(job.output_path).parent.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        completion_only_loss=False,  # the labels say what is under the loss
        max_length=None,
        use_cpu=not torch.cuda.is_available(),
        average_tokens_across_devices=True,  # the loss is over the answers of a whole step, whoever computes them
        ddp_find_unused_parameters=False,
        save_on_each_node=team.machines > 1,
        restore_callback_states_from_checkpoint=job.patience is not None,  # how much of the patience is used up
        seed=job.seed,
    )


class AnswerTrainer(SFTTrainer):  # type: ignore[misc]
    """Trains a PeftModel on rows in a given order. The collator packs, the model returns the summed loss.

    With `held_out` the rows of it are measured every `eval_steps` and after the last step; `patience` ends the run
    after so many measurements without a better loss.
    """

    loss_is_scaled_for_ga = True
    control: Any

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        rows: Sequence[TokenizedRow],
        order: Sequence[int],
        tokenizer: Any,
        held_out: HeldOut | None = None,
        *,
        patience: int | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            train_dataset=Dataset.from_dict({"row": list(order)}),
            eval_dataset=Dataset.from_dict({"row": [0]}) if held_out else None,  # the Trainer wants one; it is not read
            data_collator=lambda batch: pack([rows[entry["row"]] for entry in batch]),
            processing_class=tokenizer,
            callbacks=[EarlyStoppingCallback(patience)] if held_out and patience else None,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.model_accepts_loss_kwargs = True  # has the labels of a whole step counted
        self._held_out, self._eos = held_out, tokenizer.eos_token_id
        self._step_tokens, self._checked = 0, False
        learning = [weight for weight in self.model.parameters() if weight.requires_grad]
        for weight in learning:
            weight.data = weight.data.float()  # TRL makes them bfloat16 over a base in 4 bits
        self._checkpoint_bytes = sum(3 * weight.numel() * weight.itemsize for weight in learning)  # with two moments
        predict_loss(self.model.get_base_model())

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The rows as they were given: what of a step is for this process has been chosen already."""
        return DataLoader(self.train_dataset, self.args.per_device_train_batch_size, collate_fn=self.data_collator)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The pack's share of the mean loss over all answer tokens of the step. Raises TrainingError at NaN.

        The first batch is looked at first: exactly its answers have to be under the loss, each with its end.
        """
        if not self._checked:
            check_batch(inputs, self._eos)
            self._checked = True
        # Gradients are averaged over the processes, and are to be summed.
        loss: Tensor = model(**inputs) * (self.accelerator.num_processes / num_items_in_batch)
        if not torch.isfinite(loss):
            lines = ", ".join(map(str, inputs["packing"].lines))
            raise TrainingError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps}, "
                f"on the rows in lines {lines} of the data.",
                "Look at these rows, or lower the learning rate (it is "
                f"{self.args.learning_rate:g}): --lr {self.args.learning_rate / 3:.2g}",
            )
        self._step_tokens += inputs["packing"].row_tokens
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Note the tokens of the step beside the Trainer's own figures."""
        if "loss" in logs:
            tokens = torch.tensor(self._step_tokens, device=self.args.device)
            logs["tokens"], self._step_tokens = int(self.accelerator.reduce(tokens)), 0
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the held-out rows; a better loss than all before is worth a checkpoint."""
        assert self._held_out is not None
        metrics = {f"eval_{name}": value for name, value in self._held_out.measure(self.model).items()}
        best = self.state.best_metric
        if best is None or metrics["eval_loss"] < best:
            self.control.should_save = True
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        require_free(folder, self._checkpoint_bytes, "the next checkpoint")
        with _written(folder):
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a checkpoint is thrown away, and a README for it would be work."""


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Give what torch and safetensors raise where a file cannot be written as an ArtifactError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if type(error) is RuntimeError and not any(sign in str(error).lower() for sign in _WRITING):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"A checkpoint cannot be written to {folder}: {reason}.",
            "Free some space; the same command goes on from the checkpoint before.",
        ) from error


def last_checkpoint(folder: Path, team: ProcessTeam) -> Path | None:
    """The complete checkpoint with the most steps below a folder, on all machines; None where there is none."""
    complete = {int(path.parent.name.rpartition("-")[2]) for path in folder.glob(f"checkpoint-*/{COMPLETE}")}
    everywhere = set.intersection(*team.all_values(complete))
    return folder / f"checkpoint-{max(everywhere)}" if everywhere else None
