"""The folder that a training run leaves: the adapter in PEFT's layout, with tokenizer, history and record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from po_distill import artifacts, plugins
from po_distill.errors import TrainingError
from po_distill.records import Adapter, TrainingJob, TrainingSummary
from po_distill.weights.checkpoint import TOKENIZER_FILES
from po_distill.weights.training_plan import TrainingPlan

RECORD_NAME = "po_distill.json"
HISTORY_NAME = "trainer_state.json"  # the Trainer's own record: settings, and each logged step
LAST_NAME = "last"  # the folder of the last step's weights, where those of an earlier step were better
_WEIGHTS_NAME = "adapter_model.safetensors"


def write_adapter(
    job: TrainingJob,
    student: Any,
    learnt: Mapping[str, Any],
    *,
    best: Path | None,
    state: Any,
    summary: TrainingSummary,
    base_digest: str,
    template: str,
) -> Adapter:
    """Write the folder. `best` is the checkpoint with the weights to keep, None where those are the last.

    `state` is the Trainer's. Raises TrainingError where nothing was learnt.
    """
    _check_learnt(learnt)
    # peft would note the path of this machine.
    student.peft_config["default"].base_model_name_or_path = public_name(job.base_name)
    with artifacts.atomic_folder(job.output_path) as folder:
        _save_weights(student, learnt, folder)
        if best is not None:
            _save_weights(student, learnt, folder / LAST_NAME)
            shutil.copyfile(best / _WEIGHTS_NAME, folder / _WEIGHTS_NAME)
        for name in TOKENIZER_FILES:
            if (Path(job.base_path) / name).is_file():
                shutil.copyfile(Path(job.base_path) / name, folder / name)
        state.save_to_json(str(folder / HISTORY_NAME))
        adapter = Adapter(
            path=job.output_path,
            base_name=job.base_name,
            base_digest=base_digest,
            contract=job.contract,
            digest=artifacts.digest_file(folder / _WEIGHTS_NAME),
            chat_template=template,
            training=summary,
        )
        artifacts.write_json(folder / RECORD_NAME, adapter)
        if best is not None:
            last = {
                "path": f"{job.output_path}/{LAST_NAME}",
                "digest": artifacts.digest_file(folder / LAST_NAME / _WEIGHTS_NAME),
            }
            artifacts.write_json(folder / LAST_NAME / RECORD_NAME, adapter.model_copy(update=last))
    return adapter


def _save_weights(student: Any, learnt: Mapping[str, Any], folder: Path) -> None:
    student.save_pretrained(str(folder), state_dict=dict(learnt), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card, with nothing filled in


def learnt_weights(student: Any) -> dict[str, Any]:
    """The adapter's weights, each whole; where they are spread over processes, all of these have to ask."""
    weights = {name: weight.detach() for name, weight in student.named_parameters() if weight.requires_grad}
    return {
        name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight for name, weight in weights.items()
    }


def _check_learnt(learnt: Mapping[str, Any]) -> None:
    updates = [weight for name, weight in learnt.items() if "lora_B" in name]
    if not all(bool(weight.isfinite().all()) for weight in updates):
        raise TrainingError("The adapter holds NaN or infinite weights.", "Lower the learning rate (--lr).")
    if not any(bool(weight.any()) for weight in updates):  # B begins at zero
        raise TrainingError("Training did not change the adapter.", "Raise the learning rate (--lr) or the steps.")


def public_name(base_name: str) -> str:
    """A base's hub id where it has one, else the last part of its name, which may be a folder's path."""
    if base_name in plugins.names("base_models"):
        return str(plugins.load("base_models", base_name).hub_id)
    return Path(base_name).resolve().name if Path(base_name).exists() else base_name


def best_checkpoint(checkpoints: Path, state: Any) -> Path | None:
    """The checkpoint with the least held-out loss by the Trainer's state; None where that is the last step."""
    if state.best_global_step in (None, 0, state.global_step):
        return None
    return checkpoints / f"checkpoint-{state.best_global_step}"


def summarise(plan: TrainingPlan, state: Any, *, device: str, peak_bytes: int | None) -> TrainingSummary:
    """What a run did, by its plan and the Trainer's state."""
    steps = [entry for entry in state.log_history if "step_s" in entry]
    held_out = {int(entry["step"]): entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    losses = [entry["loss"] for entry in steps]
    ends = max(1, min(10, len(losses) // 4))
    duration_s = sum(entry["step_s"] for entry in steps)
    done = plan.model_copy(update={"steps": len(steps)})  # fewer than planned where the run stopped early
    step = state.best_global_step or len(steps)
    return TrainingSummary(
        rows=min(plan.rows, len(steps) * plan.batch),
        tokens=plan.tokens,
        answer_tokens=plan.answer_tokens,
        longest=plan.longest,
        steps=len(steps),
        epochs=done.passes,
        first_loss=sum(losses[:ends]) / ends,
        last_loss=sum(losses[-ends:]) / ends,
        duration_s=duration_s,
        step_s=duration_s / len(steps),
        tokens_per_s=sum(entry["tokens"] for entry in steps) / duration_s,
        step=step,
        heldout_loss=held_out.get(step),
        heldout_loss_last=held_out.get(len(steps)),
        stopped_early=len(steps) < plan.steps,
        precision=plan.precision,
        device=device,
        peak_memory_bytes=peak_bytes,
        estimated_memory_bytes=plan.memory.total,
    )
