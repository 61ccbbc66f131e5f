"""The plan of a training run, settled before its first step and kept, so that a killed run goes on with it.

How many steps, how large the pieces, in which precision: some of it is measured, and would come out
otherwise a second time. A run that is started again on the same job and data takes all of it from
the file.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import Field

from po_distill.records import Digest, Fraction, Record, TrainingJob
from po_distill.weights.memory_estimate import MemoryEstimate, Precision, told_parts, told_size
from po_distill.weights.tokenization import TokenizedRow

_MARGIN = 1.05  # checkpoints and a slower minute of a shared machine, as a factor on the step time
_ENDING_S = 5.0  # writing the adapter
_CHECKPOINT_EVERY_S = 60.0
_EVALUATIONS = 10  # of the held-out rows in a run
_EVALUATION_SHARE = 0.1  # of a run's time that they may take
_SHORT_RUN = 20  # steps under which a warm-up, whose first step learns nothing, costs more than it gives
_GROUPED_BATCHES = 16  # rows of like length are brought together within so many batches


class TrainingPlan(Record):
    """What a run is going to do."""

    job_digest: Digest  # over what of the job decides the result, and the chat template
    data_digest: Digest  # over training and held-out rows
    base_digest: Digest
    precision: Precision  # of the base's weights and of the arithmetic; LoRA's own weights are float32
    rows: int
    tokens: int  # of one pass
    answer_tokens: int  # of one pass, under the loss
    longest: int  # tokens of the longest row
    padding: Fraction  # share of the positions that attention computes for nothing; no other layer computes any
    epochs: float  # the most passes over the rows
    batch: int  # rows of an optimizer step
    micro_batch: int  # rows computed at a time
    checkpoint_activations: bool
    step_s: float  # measured
    steps: int
    warmup_steps: int
    learning_rate: float
    scheduler: str
    checkpoint_every: int = Field(ge=1)  # steps
    heldout_rows: int
    evaluate_every: int = Field(ge=0)  # steps; 0 is never
    evaluation_s: float  # what measuring the held-out rows once takes, estimated from the step
    generate_cases: int  # held-out cases that are answered each time
    memory: MemoryEstimate
    memory_free_bytes: int  # when the plan was made
    disk_bytes: int  # what checkpoints and adapter will take

    @property
    def passes(self) -> float:
        """How often each row is seen, on average."""
        return min(self.steps * self.batch / self.rows, self.epochs)

    @property
    def evaluations(self) -> int:
        """How often the held-out rows are measured, the last step included."""
        return math.ceil(self.steps / self.evaluate_every) if self.evaluate_every else 0

    @property
    def duration_s(self) -> float:
        """What steps and evaluations will take."""
        return self.steps * self.step_s + self.evaluations * self.evaluation_s

    def told(self, now: datetime) -> str:
        """The plan for people, with the time of day at which it will have been done."""
        end = now + timedelta(seconds=self.duration_s)
        pieces = f"{self.micro_batch} at a time" + (", activations computed twice" * self.checkpoint_activations)
        lines = [
            f"training plan: {self.steps} steps of {self.batch} rows ({self.passes:.2f} passes), {pieces}, "
            f"at {self.step_s:.3g} s (measured) in {self.precision}",
            f"  learning rate {self.learning_rate:g}, {self.scheduler}, {self.warmup_steps} steps of warm-up; rows are "
            f"packed: no padding, but for {self.padding:.1%} of attention's positions",
            f"  memory {told_parts(self.memory)} of {told_size(self.memory_free_bytes)} free; "
            f"disk {told_size(self.disk_bytes)}",
        ]
        if self.evaluate_every:
            answers = f" and {self.generate_cases} answers" if self.generate_cases else ""
            lines.append(
                f"  held out: {self.heldout_rows} rows{answers} every {self.evaluate_every} steps, "
                f"about {self.evaluation_s:.3g} s each time"
            )
        lines.append(f"  a checkpoint every {self.checkpoint_every} steps; ends about {end:%H:%M:%S}")
        return "\n".join(lines)


def told_rows(rows: Sequence[TokenizedRow], heldout_rows: int, max_seq_len: int) -> str:
    """What is going to be trained on, for people."""
    tokens, answers = sum(len(row.input_ids) for row in rows), sum(row.answer_tokens for row in rows)
    return (
        f"training data: {len(rows)} rows, {tokens:,} tokens, {answers:,} of them under the loss; the longest row has "
        f"{max(len(row.input_ids) for row in rows):,} of {max_seq_len:,} tokens, none is cut; {heldout_rows} held out"
    )


def make_plan(
    job: TrainingJob,
    rows: Sequence[TokenizedRow],
    *,
    job_digest: str,
    data_digest: str,
    base_digest: str,
    precision: Precision,
    memory: MemoryEstimate,
    memory_free_bytes: int,
    disk_bytes: int,
    step_s: float,
    heldout_rows: int,
    evaluation_s: float,
    generate_cases: int,
    spent_s: float,
) -> TrainingPlan:
    """The plan for rows whose step was measured to take `step_s`, `spent_s` after the run began."""
    evaluates = heldout_rows > 0 and job.evaluate_every != 0
    # What a step takes with its share of the evaluations, and the one at the end.
    whole_step_s = step_s * (1 + _EVALUATION_SHARE) if evaluates else step_s
    if evaluates and job.evaluate_every:
        whole_step_s = step_s + evaluation_s / job.evaluate_every
    spent_s += evaluation_s if evaluates else 0.0
    most = math.ceil(len(rows) * job.epochs / job.batch)
    steps = min(most, job.max_steps or most, steps_in(job.minutes, whole_step_s, spent_s) or most)
    lengths = [len(row.input_ids) for row in rows]
    as_given = job.order == "given"
    order = row_order(lengths, batch=job.batch, steps=steps, epochs=job.epochs, seed=job.seed, as_given=as_given)
    return TrainingPlan(
        job_digest=job_digest,
        data_digest=data_digest,
        base_digest=base_digest,
        precision=precision,
        rows=len(rows),
        tokens=sum(lengths),
        answer_tokens=sum(row.answer_tokens for row in rows),
        longest=max(lengths),
        padding=padding_share([lengths[row] for row in order], memory.micro_batch),
        epochs=job.epochs,
        batch=job.batch,
        micro_batch=memory.micro_batch,
        checkpoint_activations=memory.checkpoint_activations,
        step_s=step_s,
        steps=steps,
        warmup_steps=math.ceil(steps * job.warmup) if steps >= _SHORT_RUN else 0,
        learning_rate=job.learning_rate,
        scheduler=job.scheduler,
        checkpoint_every=min(job.save_every or max(1, round(_CHECKPOINT_EVERY_S / step_s)), steps),
        heldout_rows=heldout_rows,
        evaluate_every=_evaluate_every(job, steps, step_s, evaluation_s) if evaluates else 0,
        evaluation_s=evaluation_s if evaluates else 0.0,
        generate_cases=generate_cases if evaluates else 0,
        memory=memory,
        memory_free_bytes=memory_free_bytes,
        disk_bytes=disk_bytes,
    )


def _evaluate_every(job: TrainingJob, steps: int, step_s: float, evaluation_s: float) -> int:
    """As the job says; else some ten times a run, and not so often that it takes more than its share of the time."""
    if job.evaluate_every:
        return min(job.evaluate_every, steps)
    affordable = math.ceil(evaluation_s / (_EVALUATION_SHARE * step_s))
    return min(max(math.ceil(steps / _EVALUATIONS), affordable), steps)


def steps_in(minutes: float | None, step_s: float, spent_s: float) -> int | None:
    """How many steps fit into the minutes, `spent_s` of which are gone, at least one; None without a limit."""
    if minutes is None:
        return None
    return max(1, math.floor((minutes * 60 - spent_s - _ENDING_S) / (step_s * _MARGIN)))


def padding_share(lengths: Sequence[int], micro_batch: int) -> float:
    """What of a batch's positions lies behind the ends of its rows, for rows in the order they are computed in."""
    padded = 0
    for start in range(0, len(lengths), micro_batch):
        pack = lengths[start : start + micro_batch]
        padded += max(pack) * len(pack)
    return 1 - sum(lengths) / padded


def row_order(
    lengths: Sequence[int], *, batch: int, steps: int, epochs: float, seed: int, as_given: bool = False
) -> list[int]:
    """The rows of a whole run, as indices in the order they are trained on: batch after batch.

    Passes in random order, or with `as_given` in the rows' own, one after the other. Rows of like
    length are brought into the same batch within a window of batches; the batches of a window are
    in random order again. Equal arguments give equal orders, and so a resumed run knows where it was.
    """
    generator = random.Random(seed)  # noqa: S311 - an order, not a secret
    wanted = min(steps * batch, math.ceil(len(lengths) * epochs))
    order: list[int] = []
    while len(order) < wanted:
        order += range(len(lengths)) if as_given else generator.sample(range(len(lengths)), len(lengths))
    window = batch * _GROUPED_BATCHES
    grouped: list[int] = []
    for start in range(0, wanted, window):
        rows = sorted(order[start : min(start + window, wanted)], key=lambda row: lengths[row], reverse=True)
        batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
        last = [batches.pop()] if len(batches[-1]) < batch else []  # a short batch can only be the run's last
        generator.shuffle(batches)
        grouped += [row for one in batches + last for row in one]
    return grouped
