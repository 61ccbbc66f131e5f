"""The plan of a run: the one that an earlier run of the same job left, or one measured on this machine.

What cannot be done is refused here, before a step is: no memory, no disk, another base than the run began with.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from po_distill import artifacts
from po_distill.errors import InputError, TrainingError
from po_distill.progress import say
from po_distill.records import TrainingJob
from po_distill.weights.memory_estimate import (
    MemoryEstimate,
    MemoryNeeds,
    Precision,
    fit,
    longest_rows,
    remedies,
    shape_of,
    told_parts,
    told_size,
)
from po_distill.weights.process_team import ProcessTeam
from po_distill.weights.run_data import RunData
from po_distill.weights.training_checks import check_quantized_base, require_free
from po_distill.weights.training_plan import TrainingPlan, make_plan, row_order

if TYPE_CHECKING:
    from po_distill.weights.loaded_run import LoadedRun

PLAN_NAME = "training_plan.json"
CHECKPOINTS_NAME = "checkpoints"
_TIMED_PACKS = 2
_FORWARD_SHARE = 1 / 3  # of a step's products: the backward pass has twice as many
_USABLE_OF_GPU, _USABLE_OF_MACHINE = 0.95, 0.85  # of the free memory; a machine has other programs too
_ADAPTERS_ON_DISK = 3 * 3 + 3  # three checkpoints with two moments each, the best and the last weights, one in work


@dataclass(frozen=True)
class RunDigests:
    """What a run is of."""

    job_digest: str
    data_digest: str
    base_digest: str


def digests_of(job: TrainingJob, *, base_digest: str, template: str, sharded: bool) -> RunDigests:
    """The digests of a job: of all that decides the adapter, and not of where things lie."""
    places = {"data_path", "validation_path", "base_path", "output_path", "work_path", "log_path"}
    deciding = job.model_dump(mode="json", exclude={*places, "report_to", "dry_run", "save_every"})
    data = [artifacts.digest_file(path) for path in (job.data_path, job.validation_path) if path]
    return RunDigests(
        job_digest=artifacts.digest_value([deciding, template, *(["sharded"] if sharded else [])]),
        data_digest=artifacts.digest_value(data),
        base_digest=base_digest,
    )


# --- an earlier run's plan ------------------------------------------------------------------------


def kept_plan(work: Path, digests: RunDigests) -> TrainingPlan | None:
    """The plan of an earlier run of the same job on the same data; else None, with its work thrown away.

    Raises TrainingError where it was the same job, but the weights of the base have changed since.
    """
    path = work / PLAN_NAME
    if not path.exists():
        return None
    try:
        plan = artifacts.read_record(path, TrainingPlan)
    except InputError:
        throw_away(work, "left a plan that cannot be read")
        return None
    same_job, same_data = plan.job_digest == digests.job_digest, plan.data_digest == digests.data_digest
    if same_job and same_data and plan.base_digest != digests.base_digest:
        raise TrainingError(
            f"The run in {work} began on a base model of the digest {plan.base_digest[:19]}; this one has "
            f"{digests.base_digest[:19]}.",
            f"Give the base that it began with, or delete {work} to begin again.",
        )
    if same_job and same_data:
        return plan
    throw_away(work, f"was for other {'data' if same_job else 'settings'}")
    return None


def throw_away(work: Path, reason: str) -> None:
    """Forget an earlier run, and say why."""
    say(f"training: the earlier run {reason}; its work is thrown away")
    (work / PLAN_NAME).unlink()
    shutil.rmtree(work / CHECKPOINTS_NAME, ignore_errors=True)


# --- room -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """In which precision and in what pieces a run computes, so that it fits, and what was free for it."""

    precision: Precision
    memory: MemoryEstimate
    memory_free_bytes: int
    disk_bytes: int


def kept_room(plan: TrainingPlan) -> Room:
    """The room of a plan that is kept."""
    return Room(plan.precision, plan.memory, plan.memory_free_bytes, plan.disk_bytes)


def find_room(job: TrainingJob, data: RunData, team: ProcessTeam) -> Room:
    """The room for a new run. Raises TrainingError where memory, ArtifactError where the disk is too small for it."""
    from po_distill.weights.student_model import choose_precision, free_memory, on_gpu

    check_quantized_base(job, on_gpu=on_gpu())
    precision = choose_precision(Path(job.base_path), job.precision, nf4=job.quantize_base is not None)
    precision = team.agree(precision)
    needs = memory_needs(job, data, precision, team, on_gpu=on_gpu())
    free = min(team.all_values(free_memory() // (1 if on_gpu() else team.on_machine)))
    memory = fit_memory(needs, job.batch // team.size, free, job.base_name)
    disk_bytes = 4 * needs.shape.adapter_parameters(job.lora) * _ADAPTERS_ON_DISK
    require_free(Path(job.output_path), disk_bytes, "checkpoints and adapter")
    return Room(precision, memory, free, disk_bytes)


def memory_needs(
    job: TrainingJob, data: RunData, precision: Precision, team: ProcessTeam, *, on_gpu: bool
) -> MemoryNeeds:
    """What decides the memory of one process of the run."""
    from po_distill.weights.packed_rows import common_prefix

    rows = [*data.rows, *data.held_out]
    shared = common_prefix([row.input_ids[: row.prompt_tokens - 1] for row in rows])
    return MemoryNeeds(
        shape=shape_of(data.config),
        lora=job.lora,
        precision=precision,
        packs=longest_rows([len(row.input_ids) for row in rows], [row.answer_tokens for row in rows], shared),
        on_gpu=on_gpu,
        nf4=job.quantize_base == "nf4",
        rounded=job.quantization_aware is not None,
        shards=team.size if team.sharded else 1,
    )


def fit_memory(needs: MemoryNeeds, rows_at_most: int, free_bytes: int, base_name: str) -> MemoryEstimate:
    """The largest pieces of a step's rows that fit. Raises TrainingError, with what would fit, where none do."""
    usable = _USABLE_OF_GPU if needs.on_gpu else _USABLE_OF_MACHINE
    budget = round(free_bytes * usable)
    estimate = fit(needs, batch=rows_at_most, budget_bytes=budget)
    if estimate.total <= budget:
        return estimate
    found = [f"{name} ({told_size(size)})" for name, size in remedies(needs, budget).items()]
    place = "GPU" if needs.on_gpu else "machine"
    raise TrainingError(
        f"Training {base_name} needs {told_parts(estimate)} with a row at a time and activations computed twice; "
        f"{told_size(free_bytes)} of this {place} are free, {told_size(budget)} of which a run may take.",
        (f"It would fit with {' or with '.join(found)}. Else take" if found else "Take")
        + f" a smaller base model, or a {place} with {math.ceil(estimate.total / 1e9 / usable)} GB free.",
    )


# --- a new plan -----------------------------------------------------------------------------------


def measured_plan(
    job: TrainingJob,
    data: RunData,
    run: LoadedRun,
    room: Room,
    digests: RunDigests,
    team: ProcessTeam,
    *,
    started_s: float,
) -> TrainingPlan:
    """The plan by the time that some packs take, forward and backward."""
    from po_distill.weights.student_model import seconds_per_token

    lengths, size = [len(row.input_ids) for row in data.rows], room.memory.micro_batch
    order = row_order(lengths, batch=job.batch, steps=len(lengths), epochs=job.epochs, seed=job.seed)
    starts = range(0, min(len(order), (1 + _TIMED_PACKS) * size), size)
    packs = [[data.rows[i] for i in order[start : start + size]] for start in starts]
    rounding_s = run.rounding.apply() if run.rounding else 0.0
    token_s = max(team.all_values(seconds_per_token(run.student, packs)))  # all at once: they may share the machine
    rows_of_step = min(job.batch, math.ceil(len(lengths) * job.epochs))
    learning = sum(weight.numel() for weight in run.student.parameters() if weight.requires_grad)
    heldout_tokens = sum(len(row.input_ids) for row in data.held_out)
    return make_plan(
        job,
        data.rows,
        **asdict(digests),
        precision=room.precision,
        memory=room.memory,
        memory_free_bytes=room.memory_free_bytes,
        disk_bytes=room.disk_bytes,
        step_s=token_s * math.ceil(rows_of_step / team.size) * sum(lengths) / len(lengths)
        + rounding_s
        + team.seconds_per_sum(learning),
        heldout_rows=len(data.held_out),
        evaluation_s=token_s * _FORWARD_SHARE * heldout_tokens + run.generation_s(),
        generate_cases=run.cases,
        spent_s=time.time() - started_s,
    )
