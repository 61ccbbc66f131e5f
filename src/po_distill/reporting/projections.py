"""How long a piece of work takes with each candidate, reckoned from its measured times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from po_distill.records import EvaluationReport, Projection


class Work(NamedTuple):
    """So many calls of the role's model."""

    name: str  # pipeline, miprov2
    calls: int
    told: str  # where the number comes from


def projections(report: EvaluationReport, works: Sequence[Work]) -> tuple[Projection, ...]:
    """Each work with each candidate whose calls were timed: mean time times calls, as many at a time as measured."""
    found = []
    for work in works:
        for candidate in report.candidates:
            times = candidate.times
            if times is None or not times.n:
                continue
            mean_s = times.total_s / times.n
            rounds = math.ceil(work.calls / report.concurrency)
            measured = f"mean {mean_s:.3g} s a call over {times.n} calls, {report.concurrency} at a time"
            found.append(
                Projection(
                    candidate=candidate.name,
                    work=work.name,
                    calls=work.calls,
                    concurrency=report.concurrency,
                    seconds=mean_s * rounds + (times.load_s or 0.0),
                    basis=f"{work.told}; {measured}",
                )
            )
    return tuple(found)
