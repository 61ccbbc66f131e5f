"""The plots of a checkup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from po_distill.dataset_rules import RARE
from po_distill.records import Checkup, Lengths
from po_distill.reporting.checkup_lines import class_rows, percent, reasons
from po_distill.reporting.drawing import BAD, GOOD, INK, as_svg, new_figure, plain, series_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BARS = 10
_MOST_BINS = 48  # of token lengths; more are thinner than a line


def outcomes(checkup: Checkup) -> str | None:
    """A bar for the accepted rows, and one per reason for the rejected. None without rows."""
    if not checkup.rows:
        return None
    rejected = [(reason, refused) for reason, refused, _ in reasons(checkup) if refused]
    shown, others = rejected[:_MOST_BARS], rejected[_MOST_BARS:]
    if others:
        shown.append((f"{len(others)} other reasons", sum(refused for _, refused in others)))
    bars = [("accepted", checkup.accepted, GOOD), *((f"rejected: {name}", rows, BAD) for name, rows in shown)]
    figure, axes = new_figure(0.44 * len(bars) + 0.55)
    for place, (name, rows, colour) in enumerate(bars):
        _bar(axes, place, rows / checkup.rows, colour, name, f"{rows:,}, {percent(rows, checkup.rows)}")
    _finish_bars(axes, len(bars))
    axes.set_xlabel("share of the rows")
    told = "; ".join(f"{name}: {rows:,} of {checkup.rows:,}" for name, rows, _ in bars)
    return as_svg(figure, "outcomes", "Accepted and rejected rows", told)


def classes(checkup: Checkup) -> str | None:
    """A bar per class of the accepted rows, and the line under which a class is too rare. None without classes."""
    found = [row for row in class_rows(checkup) if row.label in checkup.accepted_labels]
    if not found or not checkup.accepted:
        return None
    figure, axes = new_figure(0.44 * len(found) + 0.85)
    for place, (label, _, accepted, rare) in enumerate(found):
        note = f"{accepted:,}, {percent(accepted, checkup.accepted)}" + (", rare" if rare else "")
        _bar(axes, place, accepted / checkup.accepted, BAD if rare else series_colour(1), label, note)
    _finish_bars(axes, len(found))
    _mark(axes, RARE, f"{100 * RARE:g} %: a class under it is rare", len(found))
    axes.set_xlabel("share of the accepted rows")
    told = "; ".join(f"{row.label}: {row.accepted:,} of {checkup.accepted:,}" for row in found)
    return as_svg(figure, "classes", "Classes of the accepted rows", told)


def score_histogram(scores: Sequence[int], mean: float | None, min_score: float | None = None) -> str | None:
    """Rows by score, those under the minimum in the colour of what is bad. None without scores."""
    if not sum(scores):
        return None
    figure, axes = new_figure(2.3)
    axes.grid(visible=False)
    axes.grid(axis="y", zorder=0)
    width = 1 / len(scores)
    for number, rows in enumerate(scores):
        low = number * width
        under = min_score is not None and low + width / 2 < min_score
        axes.bar(low + width / 2, rows, width * 0.88, color=BAD if under else series_colour(1))
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(scores) * 1.2)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("metric of the answer as it stands")
    axes.set_ylabel("rows")
    if min_score is not None:
        _upright(axes, min_score, f"minimum {min_score:g}", max(scores) * 1.18)
    told = [
        f"{number * width:.2f} to {(number + 1) * width:.2f}: {rows:,}" for number, rows in enumerate(scores) if rows
    ]
    mean_told = [f"mean {mean:.3f}"] if mean is not None else []
    return as_svg(figure, "scores", "Rows by score", "; ".join([*mean_told, *told]))


def token_lengths(lengths: Lengths) -> str | None:
    """Rows by their tokens, with the usual values of max_seq_len where rows reach to. None without rows."""
    if not lengths.histogram:
        return None
    figure, axes = new_figure(2.3)
    axes.grid(visible=False)
    axes.grid(axis="y", zorder=0)
    width, bins = _binned(lengths.histogram)
    axes.bar([low + width / 2 for low in bins], list(bins.values()), width * 0.88, color=series_colour(1))
    top = max(bins.values())
    axes.set_xlim(min(0.9 * lengths.shortest, min(bins)), 1.12 * lengths.longest)
    axes.set_ylim(0, top * 1.45)
    axes.set_xlabel("tokens of prompt and target")
    axes.set_ylabel("rows")
    low, high = axes.get_xlim()
    marks = [limit for limit in sorted(lengths.cut) if low < limit < high]
    for number, limit in enumerate(marks):
        cut = lengths.cut[limit]
        _upright(
            axes,
            limit,
            f"{limit:,}: cuts {cut:,}" if cut else f"{limit:,}: cuts none",
            top * (1.42 - 0.16 * (number % 2)),
        )
    told = f"{lengths.shortest:,} to {lengths.longest:,} tokens, median {lengths.median:,}; " + "; ".join(
        f"{limit:,} cuts {cut:,} of {lengths.rows:,} rows" for limit, cut in sorted(lengths.cut.items())
    )
    return as_svg(figure, "tokens", "Rows by length in tokens", told)


def _binned(histogram: Mapping[int, int]) -> tuple[int, dict[int, int]]:
    """(width, rows by lower edge), in bins of 64 tokens, or of twice as many until they can be told apart."""
    width = 64
    while (max(histogram) - min(histogram)) / width > _MOST_BINS:
        width *= 2
    found: Counter[int] = Counter()
    for low, rows in histogram.items():
        found[low // width * width] += rows
    return width, dict(sorted(found.items()))


def _bar(axes: Axes, place: int, share: float, colour: str, name: str, note: str) -> None:
    """A bar with its name and figures above it, where a long name has room."""
    axes.barh(place, share, 0.36, color=colour)
    axes.text(0, place - 0.24, plain(name, 36), va="bottom", fontsize=9, color=INK)
    axes.text(1, place - 0.24, note, va="bottom", ha="right", fontsize=9, color=INK)


def _finish_bars(axes: Axes, count: int) -> None:
    axes.set_yticks([])
    axes.set_ylim(count - 0.7, -0.75)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])


def _mark(axes: Axes, share: float, told: str, count: int) -> None:
    """A line over each bar, named below the last one."""
    axes.set_ylim(count - 0.2, -0.75)
    for place in range(count):
        axes.plot([share, share], [place - 0.24, place + 0.24], color=INK, linewidth=1.5)
    axes.plot([share, share], [count - 0.58, count - 0.22], color=INK, linewidth=1.5)
    axes.text(share + 0.015, count - 0.4, told, va="center", fontsize=9, color=INK)


def _upright(axes: Axes, place: float, told: str, top: float) -> None:
    """A line at a value, named at its top, on the side where there is room."""
    low, high = axes.get_xlim()
    axes.plot([place, place], [0, top], color=INK, linewidth=1, linestyle=(0, (4, 3)))
    left = place > low + 0.62 * (high - low)
    gap = 0.012 * (high - low)
    axes.text(
        place - gap if left else place + gap,
        top,
        told,
        va="top",
        ha="right" if left else "left",
        fontsize=8.5,
        color=INK,
    )
