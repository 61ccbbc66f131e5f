"""The plots of a report, as SVG to be put into a page.

Colours are CSS variables of the page (`--series-0`, ...; `currentColor` for text), so that they follow its
light or dark scheme. Every plot names itself to a screen reader.
"""

from __future__ import annotations

import html
import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from po_distill.errors import MissingExtraError
from po_distill.records import CandidateResult
from po_distill.reporting.figures import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that nothing else has, each replaced by the page's own.
_INK, _GRID = "#010203", "#040506"
_SERIES = tuple(f"#0a0b{number:02x}" for number in range(16))
_WIDTH_IN = 4.0  # at 72 points an inch: three fit beside each other, and a phone shrinks no text
_RC = {
    "svg.fonttype": "none",  # text stays text, for readers and screen readers
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "ytick.left": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
}


def score_distribution(candidates: Sequence[CandidateResult]) -> str:
    """A dot per case at its score, a row per candidate; the line is the mean. Invalid answers stand at 0."""
    figure, axes = _figure(0.75 * len(candidates) + 0.9)
    for row, candidate in enumerate(candidates):
        scores = [counted(result.score) for result in candidate.results]
        places = _stacked(scores, row)
        axes.scatter(scores, places, s=14, color=_colour(row), alpha=0.75, linewidths=0)
        mean = candidate.score_mean
        axes.plot([mean, mean], [row - 0.4, row + 0.4], color=_colour(row), linewidth=2.2)
    _rows(axes, [candidate.name for candidate in candidates], [f"mean {c.score_mean:.3f}" for c in candidates])
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("metric, an invalid answer counting 0")
    means = "; ".join(f"{c.name}: mean {c.score_mean:.3f} over {c.cases} cases" for c in candidates)
    return _svg(figure, "scores", "Scores per candidate", means)


def class_accuracy(candidates: Sequence[CandidateResult]) -> str | None:
    """A bar per class and candidate: the share of the class that was recognised. None without planted classes."""
    labels = sorted({label for candidate in candidates for label in candidate.verdicts})
    if not labels:
        return None
    figure, axes = _figure(0.34 * len(labels) * (len(candidates) + 0.8) + 0.9)
    height = 0.8 / len(candidates)
    told = []
    for number, candidate in enumerate(candidates):
        for row, label in enumerate(labels):
            found = candidate.verdicts.get(label)
            if found is None:
                continue
            accuracy = found.right / found.cases
            place = row + (number - (len(candidates) - 1) / 2) * height
            axes.barh(place, accuracy, height * 0.86, color=_colour(number))
            note = f"{candidate.name} {found.right}/{found.cases}"
            axes.text(accuracy + 0.015, place, note, va="center", fontsize=8.5, color=_INK)
            told.append(f"{candidate.name}, {label}: {found.right} of {found.cases}")
    _rows(axes, labels)
    axes.set_xlim(0, 1.55)
    axes.set_xticks([0, 0.5, 1])
    axes.set_xlabel("share recognised")
    return _svg(figure, "classes", "Accuracy per class", "; ".join(told))


def call_time(candidates: Sequence[CandidateResult]) -> str:
    """Seconds per call: the bar up to the median, the thin line up to the 95th percentile."""
    figure, axes = _figure(0.62 * len(candidates) + 0.9)
    longest = max([candidate.seconds_per_call_p95 for candidate in candidates] + [1e-9])
    told = []
    for row, candidate in enumerate(candidates):
        median, p95 = candidate.seconds_per_call, candidate.seconds_per_call_p95
        axes.barh(row, median, 0.5, color=_colour(row))
        axes.plot([median, p95], [row, row], color=_colour(row), linewidth=2)
        note = f"{median:.2g} s" if median < 10 else f"{median:.0f} s"
        axes.text(p95 + 0.02 * longest, row, note, va="center", fontsize=9, color=_INK)
        told.append(f"{candidate.name}: median {median:.3g} s, 95 % within {p95:.3g} s")
    _rows(axes, [candidate.name for candidate in candidates])
    axes.set_xlim(0, longest * 1.25)
    axes.set_xlabel("seconds per call: median, and line to 95 %")
    return _svg(figure, "time", "Time per call", "; ".join(told))


def _figure(height_in: float) -> tuple[Any, Axes]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "The plots of a report") from error
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="x", zorder=0)
        axes.set_axisbelow(True)
    return figure, axes


def _rows(axes: Axes, names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Label the rows, the first on top. A dollar sign is not the beginning of a formula."""
    shown = [(name if len(name) <= 18 else name[:17] + "…").replace("$", r"\$") for name in names]
    labels = [f"{name}\n{note}" for name, note in zip(shown, notes, strict=True)] if notes else shown
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)


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


def _colour(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _svg(figure: Any, name: str, title: str, description: str) -> str:
    import matplotlib as mpl

    written = io.StringIO()
    # Drawn with the same salt and without a date, equal figures are equal text.
    with mpl.rc_context({**_RC, "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several plots share a page, and an id has to be the only one of its kind there.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for number, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{number % 6})")
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
    label = f'role="img" aria-labelledby="{name}-title {name}-description" class="plot"'
    names = (
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-description">{html.escape(description)}</desc>'
    )
    opening = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f"{opening} {label}>{names}{svg[svg.index('>') + 1 :]}"
