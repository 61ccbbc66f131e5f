"""The training run, in a process of its own: `python -m po_distill.weights.lora_training JOB.json`.

It reads a `records.TrainingJob`, trains a LoRA adapter on TRL and peft, and leaves the adapter under
the job's `output_path`. Killed, it goes on from its last checkpoint when it is started again. A
problem that the user can act on is left in `work_path` (`FAILURE_NAME`) for whoever started it.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from po_distill import artifacts, plugins
from po_distill.errors import ArtifactError, InputError, PODistillError, TrainingError
from po_distill.progress import progress, say
from po_distill.records import Adapter, Record, TrainingJob, TrainingSummary
from po_distill.weights.checkpoint import TOKENIZER_FILES, digest_checkpoint
from po_distill.weights.tokenization import TokenizedRow, load_tokenizer, tokenize_file
from po_distill.weights.training_plan import TrainingPlan, choose_micro_batch, make_plan, row_order

FAILURE_NAME = "failure.json"
RECORD_NAME = "po_distill.json"
PARENT_PROCESS = "PO_DISTILL_PARENT_PROCESS"  # the id of the process without which the run is for nobody
ENVIRONMENT: Mapping[str, str] = {
    # glibc gives large buffers back at once, and the system has to clear them again for the next step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "HF_HUB_OFFLINE": "1",  # the base is a local folder by now
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_PLAN_NAME = "training_plan.json"
_CHECKPOINTS_NAME = "checkpoints"
_TIMED_PACKS = 2
_NO_MEMORY = ("can't allocate memory", "out of memory", "std::bad_alloc")


class TrainingFailure(Record):
    """Why a run ended, for the process that started it."""

    error: str  # the class of po_distill.errors
    problem: str
    fix: str


def main(arguments: Sequence[str]) -> int:
    """Run the job whose file is named; the exit status."""
    started_s = time.time()
    job = artifacts.read_record(arguments[0], TrainingJob)
    failure_path = Path(job.work_path) / FAILURE_NAME
    failure_path.unlink(missing_ok=True)
    _end_with_parent()
    try:
        with _translated(job):
            train(job, started_s=started_s)
    except PODistillError as error:
        failure = TrainingFailure(error=type(error).__name__, problem=error.problem, fix=error.fix)
        artifacts.write_json(failure_path, failure)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def train(job: TrainingJob, *, started_s: float) -> Adapter:
    """Train, or go on training, and write the adapter. `started_s`: when the job's minutes began (time.time()).

    Raises InputError for the data, TrainingError for the run, WeightsError for the base, ArtifactError for files.
    """
    artifacts.refuse_existing(job.output_path)
    _quieten()
    from po_distill.weights.quantization_aware import QuantizationAware
    from po_distill.weights.student_model import fast_precision, load_student

    base = Path(job.base_path)
    tokenizer = load_tokenizer(base)
    rows = tokenize_file(job.data_path, tokenizer, max_seq_len=job.max_seq_len, max_samples=job.max_samples)
    base_digest = digest_checkpoint(base)
    digests = {
        "job_digest": artifacts.digest_value([_deciding(job), base_digest]),
        "data_digest": artifacts.digest_file(job.data_path),
    }
    plan = _kept_plan(Path(job.work_path), digests)
    precision = plan.precision if plan else fast_precision(base)
    student = load_student(base, job.lora, precision, seed=job.seed)
    rounding = QuantizationAware(student) if job.quantization_aware else None
    if plan is None:
        plan = _measured_plan(job, rows, student, digests, started_s, rounding_s=rounding.apply() if rounding else 0.0)
        artifacts.write_json(Path(job.work_path) / _PLAN_NAME, plan)
    say(plan.told(datetime.now()))
    history = _run(job, plan, student, rows, tokenizer, rounding)
    return _write_adapter(job, student, base_digest, _summary(plan, history))


# --- the plan -------------------------------------------------------------------------------------


def _deciding(job: TrainingJob) -> dict[str, Any]:
    """What of a job decides the adapter: all but where things lie. The data has a digest of its own."""
    return job.model_dump(mode="json", exclude={"data_path", "base_path", "output_path", "work_path", "log_path"})


def _kept_plan(work: Path, digests: Mapping[str, str]) -> TrainingPlan | None:
    """The plan of an earlier run of the same job on the same data; else None, with its work thrown away."""
    path = work / _PLAN_NAME
    if not path.exists():
        return None
    try:
        plan = artifacts.read_record(path, TrainingPlan)
        if plan.job_digest == digests["job_digest"] and plan.data_digest == digests["data_digest"]:
            return plan
        changed = "settings or base model" if plan.data_digest == digests["data_digest"] else "data"
        reason = f"was for other {changed}"
    except InputError:
        reason = "left a plan that cannot be read"
    say(f"training: the earlier run {reason}; its work is thrown away")
    path.unlink()
    shutil.rmtree(work / _CHECKPOINTS_NAME, ignore_errors=True)
    return None


def _measured_plan(
    job: TrainingJob,
    rows: Sequence[TokenizedRow],
    student: Any,
    digests: Mapping[str, str],
    started_s: float,
    *,
    rounding_s: float,
) -> TrainingPlan:
    from po_distill.weights.packed_rows import common_prefix
    from po_distill.weights.student_model import seconds_per_token, tokens_that_fit

    lengths = [len(row.input_ids) for row in rows]
    size = choose_micro_batch(
        job.batch,
        longest=max(lengths),
        shared=common_prefix([row.input_ids[: row.prompt_tokens - 1] for row in rows]),
        most_tokens=tokens_that_fit(student),
    )
    order = row_order(lengths, batch=job.batch, steps=len(rows), epochs=job.epochs, seed=job.seed)
    starts = range(0, min(len(order), (1 + _TIMED_PACKS) * size), size)
    token_s = seconds_per_token(student, [[rows[i] for i in order[start : start + size]] for start in starts])
    rows_of_step = min(job.batch, math.ceil(len(rows) * job.epochs))
    return make_plan(
        job,
        rows,
        **digests,
        precision="bfloat16" if student.dtype.itemsize == 2 else "float32",
        micro_batch=size,
        step_s=token_s * rows_of_step * sum(lengths) / len(lengths) + rounding_s,
        spent_s=time.time() - started_s,
    )


# --- the run --------------------------------------------------------------------------------------


def _run(
    job: TrainingJob, plan: TrainingPlan, student: Any, rows: Sequence[TokenizedRow], tokenizer: Any, rounding: Any
) -> list[dict[str, float]]:
    """Train the student to the plan's last step; the Trainer's history, an entry per step."""
    import torch

    from po_distill.weights.answer_trainer import AnswerTrainer, StepRecorder, last_checkpoint, trainer_settings

    checkpoints = Path(job.work_path) / _CHECKPOINTS_NAME
    # A processor's memory is plenty for a small student; a GPU's is not for a large one.
    settings = trainer_settings(plan, checkpoints, seed=job.seed, checkpoint_activations=torch.cuda.is_available())
    lengths = [len(row.input_ids) for row in rows]
    order = row_order(lengths, batch=plan.batch, steps=plan.steps, epochs=job.epochs, seed=job.seed)
    trainer = AnswerTrainer(student, settings, rows, order, tokenizer)
    if rounding:
        trainer.add_callback(rounding)
    resumed = last_checkpoint(checkpoints)
    if resumed:
        say(f"training: goes on behind step {resumed.name.rpartition('-')[2]} of {plan.steps}")
    with progress("training", total=plan.steps, unit="steps") as advance:
        trainer.add_callback(StepRecorder(advance, job.log_path))
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return [entry for entry in trainer.state.log_history if "step_s" in entry]


def _summary(plan: TrainingPlan, history: Sequence[Mapping[str, float]]) -> TrainingSummary:
    losses = [entry["loss"] for entry in history]
    ends = max(1, min(10, len(losses) // 4))
    duration_s = sum(entry["step_s"] for entry in history)
    return TrainingSummary(
        rows=min(plan.rows, plan.steps * plan.batch),
        tokens=plan.tokens,
        answer_tokens=plan.answer_tokens,
        longest=plan.longest,
        steps=plan.steps,
        epochs=plan.passes,
        first_loss=sum(losses[:ends]) / ends,
        last_loss=sum(losses[-ends:]) / ends,
        duration_s=duration_s,
        step_s=duration_s / len(history),
        tokens_per_s=sum(entry["tokens"] for entry in history) / duration_s,
    )


# --- the adapter ----------------------------------------------------------------------------------


def _write_adapter(job: TrainingJob, student: Any, base_digest: str, summary: TrainingSummary) -> Adapter:
    """Write the folder in PEFT's layout, with tokenizer and record. Raises TrainingError where nothing was learnt."""
    _check_learnt(student)
    # peft would note the path of this machine.
    student.peft_config["default"].base_model_name_or_path = _public_name(job.base_name)
    with artifacts.atomic_folder(job.output_path) as folder:
        student.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card, with nothing filled in
        for name in TOKENIZER_FILES:
            if (Path(job.base_path) / name).is_file():
                shutil.copyfile(Path(job.base_path) / name, folder / name)
        adapter = Adapter(
            path=job.output_path,
            base_name=job.base_name,
            base_digest=base_digest,
            contract=job.contract,
            digest=artifacts.digest_file(folder / "adapter_model.safetensors"),
            training=summary,
        )
        artifacts.write_json(folder / RECORD_NAME, adapter)
    return adapter


def _check_learnt(student: Any) -> None:
    updates = [weight for name, weight in student.named_parameters() if "lora_B" in name]
    if not all(bool(weight.isfinite().all()) for weight in updates):
        raise TrainingError("The adapter holds NaN or infinite weights.", "Lower the learning rate (--lr).")
    if not any(bool(weight.any()) for weight in updates):  # B begins at zero
        raise TrainingError("Training did not change the adapter.", "Raise the learning rate (--lr) or the steps.")


def _public_name(base_name: str) -> str:
    """A base's hub id where it has one, else the last part of its name, which may be a folder's path."""
    if base_name in plugins.names("base_models"):
        return str(plugins.load("base_models", base_name).hub_id)
    return Path(base_name).resolve().name if Path(base_name).exists() else base_name


# --- the process ----------------------------------------------------------------------------------


def _quieten() -> None:
    """Leave standard error to our progress: no bars and no advice to programmers from below."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextlib.contextmanager
def _translated(job: TrainingJob) -> Iterator[None]:
    """Foreign errors that the user can act on, as ours."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{job.work_path} cannot be written: {error.strerror or error}.",
            "Free some space, or name an output that you may write; then run the same command again.",
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _NO_MEMORY):
            raise
        raise TrainingError(
            f"The memory of this machine is not enough to train {job.base_name} with batch {job.batch}.",
            "Use a smaller --batch, a smaller base model, or a machine with more memory.",
        ) from error


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went; nobody waits for the result then."""
    parent = os.environ.get(PARENT_PROCESS)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
