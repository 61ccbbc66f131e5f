"""The loss of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from po_distill import artifacts
from po_distill.errors import MissingExtraError

_SMOOTHED = 0.9  # of the running mean, as TensorBoard has it
_INK, _LINE, _HELD_OUT = "#333333", "#4c78a8", "#e45756"


def draw_loss(history: Sequence[Mapping[str, Any]], path: Path, *, kept_step: int | None = None) -> None:
    """Write a PNG of a Trainer's history: the loss of each step, its running mean, the held-out losses.

    `kept_step` is marked as the one whose weights the adapter holds. Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The picture of the loss") from error
    steps = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    held_out = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*steps, strict=True), color=_LINE, alpha=0.3, linewidth=0.8)
    axes.plot([step for step, _ in steps], running_mean([loss for _, loss in steps]), color=_LINE, label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), color=_HELD_OUT, marker="o", markersize=4, label="held out")
    if kept_step is not None:
        axes.axvline(kept_step, color=_INK, linewidth=0.8, linestyle=":", label=f"kept: step {kept_step}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per answer token, in nats")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with artifacts.atomic_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})


def running_mean(values: Sequence[float]) -> list[float]:
    """The exponential running mean, not drawn to zero at its beginning (Kingma & Ba 2015, section 3)."""
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = _SMOOTHED * mean + (1 - _SMOOTHED) * value
        weight = _SMOOTHED * weight + (1 - _SMOOTHED)
        means.append(mean / weight)
    return means
