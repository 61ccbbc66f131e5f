"""The plots of an evaluation report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from po_distill.records import CandidateResult
from po_distill.reporting.drawing import INK, as_svg, label_rows, new_figure, series_colour
from po_distill.reporting.figures import counted

_MOST_DOTS = 150  # of a candidate; more are slow to draw, and no longer told apart
_BINS = 40


def score_distribution(candidates: Sequence[CandidateResult]) -> str:
    """A dot per case at its score, a row per candidate; the line is the mean. Invalid answers stand at 0.

    Very many cases are an area as high as there are cases of a score.
    """
    figure, axes = new_figure(0.75 * len(candidates) + 0.9)
    for row, candidate in enumerate(candidates):
        scores = [counted(result.score) for result in candidate.results]
        if len(scores) > _MOST_DOTS:
            edges, widths = _hill(scores)
            below, above = [row - width for width in widths], [row + width for width in widths]
            axes.fill_between(edges, below, above, color=series_colour(row), alpha=0.6, linewidth=0)
        else:
            axes.scatter(scores, _stacked(scores, row), s=14, color=series_colour(row), alpha=0.75, linewidths=0)
        mean = candidate.score_mean
        axes.plot([mean, mean], [row - 0.4, row + 0.4], color=series_colour(row), linewidth=2.2)
    label_rows(
        axes,
        [candidate.name for candidate in candidates],
        [f"mean {c.score_mean:.3f}\nn = {c.cases}" for c in candidates],
    )
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("metric, an invalid answer counting 0")
    means = "; ".join(f"{c.name}: mean {c.score_mean:.3f} over {c.cases} cases" for c in candidates)
    return as_svg(figure, "scores", "Scores per candidate", means)


def class_accuracy(candidates: Sequence[CandidateResult]) -> str | None:
    """A bar per class and candidate: the share of the class that was recognised. None without planted classes."""
    labels = sorted({label for candidate in candidates for label in candidate.verdicts})
    if not labels:
        return None
    figure, axes = new_figure(0.34 * len(labels) * (len(candidates) + 0.8) + 0.9)
    height = 0.8 / len(candidates)
    told = []
    for number, candidate in enumerate(candidates):
        for row, label in enumerate(labels):
            found = candidate.verdicts.get(label)
            if found is None:
                continue
            accuracy = found.right / found.cases
            place = row + (number - (len(candidates) - 1) / 2) * height
            axes.barh(place, accuracy, height * 0.86, color=series_colour(number))
            note = f"{candidate.name} {found.right}/{found.cases}"
            axes.text(accuracy + 0.015, place, note, va="center", fontsize=8.5, color=INK)
            told.append(f"{candidate.name}, {label}: {found.right} of {found.cases}")
    label_rows(axes, labels)
    axes.set_xlim(0, 1.55)
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("share recognised")
    return as_svg(figure, "classes", "Accuracy per class", "; ".join(told))


def call_time(candidates: Sequence[CandidateResult]) -> str:
    """Seconds per call, without loading: the bar up to the median, the thin line up to the 95th percentile."""
    figure, axes = new_figure(0.62 * len(candidates) + 0.9)
    taken = [_taken(candidate) for candidate in candidates]
    longest = max([p95 for _, p95, _ in taken] + [1e-9])
    told = []
    for row, (candidate, (median, p95, n)) in enumerate(zip(candidates, taken, strict=True)):
        axes.barh(row, median, 0.5, color=series_colour(row))
        axes.plot([median, p95], [row, row], color=series_colour(row), linewidth=2)
        note = f"{median:.2g} s" if median < 10 else f"{median:.0f} s"
        axes.text(p95 + 0.02 * longest, row, note, va="center", fontsize=9, color=INK)
        told.append(f"{candidate.name}: median {median:.3g} s, 95 % within {p95:.3g} s (n = {n})")
    label_rows(axes, [candidate.name for candidate in candidates], [f"n = {n}" for _, _, n in taken])
    axes.set_xlim(0, longest * 1.25)
    axes.set_xlabel("seconds per call: median, and line to 95 %")
    return as_svg(figure, "time", "Time per call", "; ".join(told))


def _taken(candidate: CandidateResult) -> tuple[float, float, int]:
    """(median, 95th percentile, calls): of reports of 0.1 all calls, with whatever was loaded in them."""
    times = candidate.times
    if times is None or times.median_s is None or times.p95_s is None:
        return candidate.seconds_per_call, candidate.seconds_per_call_p95, candidate.cases
    return times.median_s, times.p95_s, times.n


def _hill(scores: Sequence[float]) -> tuple[list[float], list[float]]:
    """(edges, half heights) of an area with a step for each bin of scores; the highest reaches 0.35 off its row."""
    counts = Counter(min(_BINS - 1, int(score * _BINS)) for score in scores)
    highest = max(counts.values())
    edges = [place / _BINS for number in range(_BINS) for place in (number, number + 1)]
    return edges, [0.35 * counts[number] / highest for number in range(_BINS) for _ in range(2)]


def _stacked(scores: Sequence[float], row: int) -> list[float]:
    """Heights at which dots of like scores lie beside each other around the row, in at most 0.7 of it."""
    bins = [round(score * 50) for score in scores]
    highest = max(Counter(bins).values())
    step = min(0.12, 0.7 / highest)
    seen: Counter[int] = Counter()
    places = []
    for place in bins:
        turn = seen[place]
        seen[place] += 1
        places.append(row + step * ((turn + 1) // 2) * (-1 if turn % 2 else 1))
    return places
