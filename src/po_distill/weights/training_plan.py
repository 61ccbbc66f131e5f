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
from typing import Literal

from pydantic import Field

from po_distill.records import Digest, Record, TrainingJob
from po_distill.weights.tokenization import TokenizedRow

Precision = Literal["float32", "bfloat16"]

_MARGIN = 1.05  # checkpoints and a slower minute of a shared machine, as a factor on the step time
_ENDING_S = 5.0  # writing the adapter
_CHECKPOINT_EVERY_S = 60.0
_SHORT_RUN = 20  # steps under which a warm-up, whose first step learns nothing, costs more than it gives
_GROUPED_BATCHES = 16  # rows of like length are brought together within so many batches


class TrainingPlan(Record):
    """What a run is going to do."""

    job_digest: Digest  # over what of the job decides the result, and the base
    data_digest: Digest
    precision: Precision  # of the base's weights and of the arithmetic; LoRA's own weights are float32
    rows: int
    tokens: int  # of one pass
    answer_tokens: int  # of one pass, under the loss
    longest: int  # tokens of the longest row
    epochs: float  # the most passes over the rows
    batch: int  # rows of an optimizer step
    micro_batch: int  # rows computed at a time
    step_s: float  # measured
    steps: int
    warmup_steps: int
    learning_rate: float
    checkpoint_every: int = Field(ge=1)  # steps

    @property
    def passes(self) -> float:
        """How often each row is seen, on average."""
        return min(self.steps * self.batch / self.rows, self.epochs)

    def told(self, now: datetime) -> str:
        """The plan in one line for people, with the time of day at which it will have been done."""
        end = now + timedelta(seconds=self.steps * self.step_s)
        return (
            f"training plan: {self.rows} rows, {self.tokens:,} tokens, {self.answer_tokens:,} of them under the loss; "
            f"{self.steps} steps of {self.batch} rows ({self.passes:.2f} passes) "
            f"at {self.step_s:.3g} s in {self.precision}, learning rate {self.learning_rate:g}; "
            f"ends about {end:%H:%M:%S}"
        )


def make_plan(
    job: TrainingJob,
    rows: Sequence[TokenizedRow],
    *,
    job_digest: str,
    data_digest: str,
    precision: Precision,
    micro_batch: int,
    step_s: float,
    spent_s: float,
) -> TrainingPlan:
    """The plan for rows whose step was measured to take `step_s`, `spent_s` after the run began."""
    most = math.ceil(len(rows) * job.epochs / job.batch)
    steps = min(most, job.max_steps or most, steps_in(job.minutes, step_s, spent_s) or most)
    return TrainingPlan(
        job_digest=job_digest,
        data_digest=data_digest,
        precision=precision,
        rows=len(rows),
        tokens=sum(len(row.input_ids) for row in rows),
        answer_tokens=sum(row.answer_tokens for row in rows),
        longest=max(len(row.input_ids) for row in rows),
        epochs=job.epochs,
        batch=job.batch,
        micro_batch=micro_batch,
        step_s=step_s,
        steps=steps,
        warmup_steps=math.ceil(steps * job.warmup) if steps >= _SHORT_RUN else 0,
        learning_rate=job.learning_rate,
        checkpoint_every=max(1, min(round(_CHECKPOINT_EVERY_S / step_s), steps)),
    )


def steps_in(minutes: float | None, step_s: float, spent_s: float) -> int | None:
    """How many steps fit into the minutes, `spent_s` of which are gone, at least one; None without a limit."""
    if minutes is None:
        return None
    return max(1, math.floor((minutes * 60 - spent_s - _ENDING_S) / (step_s * _MARGIN)))


def choose_micro_batch(batch: int, *, longest: int, shared: int, most_tokens: int) -> int:
    """The largest divisor of `batch` whose rows fit into `most_tokens` when packed; at least 1.

    `longest` is the longest row, `shared` what all rows begin with, in tokens.
    """
    divisors = (size for size in range(batch, 1, -1) if batch % size == 0)
    return next((size for size in divisors if shared + size * (longest - shared) <= most_tokens), 1)


def row_order(lengths: Sequence[int], *, batch: int, steps: int, epochs: float, seed: int) -> list[int]:
    """The rows of a whole run, as indices in the order they are trained on: batch after batch.

    Passes in random order, one after the other. Rows of like length are brought into the same
    batch within a window of batches; the batches of a window are in random order again. Equal
    arguments give equal orders, and so a resumed run knows where it was.
    """
    generator = random.Random(seed)  # noqa: S311 - an order, not a secret
    wanted = min(steps * batch, math.ceil(len(lengths) * epochs))
    order: list[int] = []
    while len(order) < wanted:
        order += generator.sample(range(len(lengths)), len(lengths))
    window = batch * _GROUPED_BATCHES
    grouped: list[int] = []
    for start in range(0, wanted, window):
        rows = sorted(order[start : min(start + window, wanted)], key=lambda row: lengths[row], reverse=True)
        batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
        last = [batches.pop()] if len(batches[-1]) < batch else []  # a short batch can only be the run's last
        generator.shuffle(batches)
        grouped += [row for one in batches + last for row in one]
    return grouped
