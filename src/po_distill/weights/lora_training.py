"""The training run, in a process of its own: `python -m po_distill.weights.lora_training JOB.json`.

It reads a `records.TrainingJob`, trains a LoRA adapter on TRL and peft, and leaves the adapter under
the job's `output_path`. Killed, it goes on from its last checkpoint when it is started again. A
problem that the user can act on is left in `work_path` (`FAILURE_NAME`) for whoever started it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_distill import artifacts
from po_distill.errors import ArtifactError, PODistillError, TrainingError
from po_distill.progress import be_quiet, progress, say
from po_distill.records import Adapter, Record, TrainingJob
from po_distill.weights.adapter_folder import best_checkpoint, learnt_weights, summarise, write_adapter
from po_distill.weights.checkpoint import digest_checkpoint
from po_distill.weights.process_team import ProcessTeam, blank_row, check_team, join_team
from po_distill.weights.run_data import RunData, read_run_data
from po_distill.weights.run_planning import (
    CHECKPOINTS_NAME,
    PLAN_NAME,
    digests_of,
    find_room,
    kept_plan,
    kept_room,
    measured_plan,
    throw_away,
)
from po_distill.weights.training_plan import TrainingPlan, row_order, told_rows

if TYPE_CHECKING:
    from po_distill.weights.loaded_run import LoadedRun

FAILURE_NAME = "failure.json"
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


def train(job: TrainingJob, *, started_s: float) -> Adapter | None:
    """Train, or go on training, and write the adapter. `started_s`: when the job's minutes began (time.time()).

    Of several processes one on each machine writes; the others return None, as a dry run does, which ends with the
    plan. Raises InputError for the data, TrainingError for the run, WeightsError for the base, ArtifactError for files.
    """
    artifacts.refuse_existing(job.output_path)
    _quieten()
    team = join_team()
    if not team.leads:
        be_quiet()
    check_team(team, batch=job.batch, quantization_aware=job.quantization_aware is not None)
    work = Path(job.work_path)
    team.check_folder(work)
    data = read_run_data(job)
    # peft takes seconds to import: rows that have to be refused are refused before.
    from po_distill.weights.loaded_run import load_run
    from po_distill.weights.student_model import device_name, peak_memory_bytes

    base_digest = digest_checkpoint(Path(job.base_path))
    digests = digests_of(job, base_digest=base_digest, template=data.template, sharded=team.sharded)
    kept = kept_plan(work, digests) if team.writes else None
    plan = team.agree(kept)
    if kept and kept != plan:
        throw_away(work, "is not the other machines' run")
    say(told_rows(data.rows, len(data.held_out), job.max_seq_len))
    room = kept_room(plan) if plan else team.agree(find_room(job, data, team))
    run = load_run(job, data, room, team)
    if plan is None:
        plan = team.agree(measured_plan(job, data, run, room, digests, team, started_s=started_s))
    if team.writes and plan != kept:
        artifacts.write_json(work / PLAN_NAME, plan)
    say(plan.told(datetime.now()))
    if job.dry_run:
        return None
    state = _train(job, plan, run, data, team)
    learnt = learnt_weights(run.student)
    team.leave()
    if not team.writes:
        return None
    summary = summarise(plan, state, device=device_name(), peak_bytes=peak_memory_bytes())
    best = best_checkpoint(work / CHECKPOINTS_NAME, state)
    return write_adapter(
        job,
        run.student,
        learnt,
        best=best,
        state=state,
        summary=summary,
        base_digest=base_digest,
        template=data.template,
    )


def _train(job: TrainingJob, plan: TrainingPlan, run: LoadedRun, data: RunData, team: ProcessTeam) -> Any:
    """Train the student to the plan's last step; the Trainer's state, with an entry per step in its history."""
    from po_distill.weights.answer_trainer import AnswerTrainer, last_checkpoint, trainer_settings
    from po_distill.weights.step_recorder import StepRecorder

    checkpoints = Path(job.work_path) / CHECKPOINTS_NAME
    settings = trainer_settings(job, plan, checkpoints, team)
    lengths = [len(row.input_ids) for row in data.rows]
    order = row_order(
        lengths, batch=plan.batch, steps=plan.steps, epochs=job.epochs, seed=job.seed, as_given=job.order == "given"
    )
    share = team.share(order, batch=plan.batch, blank=len(data.rows))
    rows = [*data.rows, blank_row(data.rows[0])]
    trainer = AnswerTrainer(run.student, settings, rows, share, data.tokenizer, run.held_out, patience=job.patience)
    if run.rounding:
        trainer.add_callback(run.rounding)
    resumed = last_checkpoint(checkpoints, team)
    done = int(resumed.name.rpartition("-")[2]) if resumed else 0
    if resumed:
        say(f"training: goes on behind step {done} of {plan.steps}")
    with progress("training", total=plan.steps, unit="steps", done=done) as advance:
        trainer.add_callback(StepRecorder(advance, job.log_path, plan, team))
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return trainer.state


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
        place = "the GPU" if "cuda" in str(error).lower() else "this machine"
        raise TrainingError(
            f"The memory of {place} is not enough to train {job.base_name} with batch {job.batch}.",
            "Use a smaller --batch, a smaller base model, or more memory; or end what else runs there.",
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
