"""A metric for DSPy's optimizers: a number that says itself whether it is good enough."""

from __future__ import annotations

from typing import Any

from po_distill.errors import SettingsError
from po_distill.metric import Metric, load_metric


class Judged(float):
    """A score of 0 to 1 that is true only where it reaches the least one.

    `BootstrapFinetune` keeps a demonstration where the metric is true, and gives it no trace: a plain float of 0.09
    would be kept.
    """

    least: float

    def __new__(cls, value: float, least: float) -> Judged:
        judged = super().__new__(cls, value)
        judged.least = least
        return judged

    def __bool__(self) -> bool:
        return float(self) >= self.least

    def __reduce__(self) -> tuple[type[Judged], tuple[float, float]]:
        return Judged, (float(self), self.least)


def dspy_metric(metric: str | Metric = "product_owner", *, min_score: float = 0.85) -> Metric:
    """A metric with a threshold: `metric` is a plugin's name (po_distill.metrics), a dotted path, or a function.

    Called with a trace, as when demonstrations are gathered, it says True or False; without one a `Judged`, which is
    the score to those who count and the verdict to those who ask whether. Raises SettingsError where the threshold is
    not between 0 and 1.
    """
    if not 0.0 < min_score <= 1.0:
        raise SettingsError(f"min_score is {min_score}.", "Give a number above 0 and up to 1, such as 0.85.")
    scored: Metric = load_metric(metric) if isinstance(metric, str) else metric

    def judged(example: Any, prediction: Any, trace: Any = None) -> bool | Judged:
        score = Judged(float(scored(example, prediction)), min_score)
        return score if trace is None else bool(score)

    return judged
