"""The plots of an evaluation that hold candidates against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from po_distill.records import CandidateResult
from po_distill.reporting.drawing import BAD, GOOD, INK, as_svg, label_rows, new_figure, plain, series_colour
from po_distill.reporting.figures import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def paired_differences(candidate: CandidateResult, reference: CandidateResult, number: int) -> str | None:
    """A step per concept, the worst first; over them the mean, its interval and the margin. None without a difference.

    `number` is the candidate's place among all.
    """
    found = candidate.difference
    if found is None:
        return None
    theirs = {case.concept_id: counted(case.score) for case in reference.results}
    steps = sorted(
        counted(case.score) - theirs[case.concept_id] for case in candidate.results if case.concept_id in theirs
    )
    figure, axes = new_figure(2.9)
    axes.grid(visible=False)
    axes.grid(axis="y", zorder=0)
    _stepped(axes, [min(0.0, step) for step in steps], BAD)
    _stepped(axes, [max(0.0, step) for step in steps], GOOD)
    right = float(len(steps))
    axes.fill_between([0, right], found.low, found.high, color=series_colour(number), alpha=0.35, linewidth=0)
    axes.plot([0, right], [found.mean, found.mean], color=INK, linewidth=1.6)
    axes.plot([0, right], [-found.margin, -found.margin], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlim(0, right)
    low, high = min([*steps, found.low, -found.margin]), max([*steps, found.high, 0.0])
    room = 0.08 * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel(f"concepts, the worst first (n = {found.n})")
    axes.set_ylabel(plain(f"metric less {reference.name}'s", 34))
    worse, better = sum(step < 0 for step in steps), sum(step > 0 for step in steps)
    told = (
        f"{candidate.name} less {reference.name}: mean {found.mean:+.3f} (the line), 95 % interval {found.low:+.3f} "
        f"to {found.high:+.3f} (the band), margin {-found.margin:+g} (dashed): {found.decision}; worse in {worse}, "
        f"equal in {len(steps) - worse - better}, better in {better} of {found.n} concepts"
    )
    return as_svg(figure, f"difference-{number}", f"Paired differences of {candidate.name}", told)


def slice_scores(candidates: Sequence[CandidateResult]) -> str | None:
    """A dot per candidate in each slice, at its mean. None without slices."""
    keys = list(dict.fromkeys((one.kind, one.name, one.n) for c in candidates for one in c.slices))
    if not keys:
        return None
    figure, axes = new_figure(0.42 * len(keys) + 0.9)
    told = []
    for number, candidate in enumerate(candidates):
        held = {(one.kind, one.name): one.mean for one in candidate.slices}
        rows = [row for row, (kind, name, _) in enumerate(keys) if (kind, name) in held]
        means = [held[keys[row][:2]] for row in rows]
        marker = "osD^vP"[number % 6]
        axes.scatter(means, rows, s=42, color=series_colour(number), marker=marker, label=plain(candidate.name, 18))
        told += [f"{candidate.name}, {keys[row][1]}: {mean:.3f}" for row, mean in zip(rows, means, strict=True)]
    label_rows(axes, [name for _, name, _ in keys], [f"n = {n}" for _, _, n in keys])
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("metric, an invalid answer counting 0")
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handletextpad=0.2,
    )
    counts = "; ".join(f"{name}: n = {n}" for _, name, n in keys)
    return as_svg(figure, "slices", "Metric by slice", f"{counts}; {'; '.join(told)}")


def _stepped(axes: Axes, steps: Sequence[float], colour: str) -> None:
    """An area with a step of width 1 for each value, as one path however many there are."""
    edges = [place for number in range(len(steps)) for place in (number, number + 1)]
    heights = [step for step in steps for _ in range(2)]
    axes.fill_between(edges, heights, 0, color=colour, alpha=0.75, linewidth=0)
