"""Figures as SVG to be put into a page.

Colours are CSS variables of the page (`--series-0`, ...; `currentColor` for text), so that they follow its
light or dark scheme. Every plot names itself to a screen reader.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from po_distill.errors import MissingExtraError
from po_distill.reporting.foreign_text import for_page, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that nothing else has, each replaced by the page's own.
INK, GOOD, BAD, _GRID = "#010203", "#010204", "#010205", "#040506"
_SERIES = tuple(f"#0a0b{number:02x}" for number in range(16))
_WIDTH_IN = 4.0  # at 72 points an inch: three fit beside each other, and a phone shrinks no text
_RC = {
    "svg.fonttype": "none",  # text stays text, for readers and screen readers
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
}


def new_figure(height_in: float) -> tuple[Any, Axes]:
    """An empty figure of the page's width, and its axes. Raises MissingExtraError without matplotlib."""
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


def label_rows(axes: Axes, names: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Label the rows, the first on top."""
    shown = [plain(name, longest=18) for name in names]
    labels = [f"{name}\n{note}" for name, note in zip(shown, notes, strict=True)] if notes else shown
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)


def plain(text: str, longest: int) -> str:
    """Text of other people for a figure. A dollar sign is not the beginning of a formula."""
    return one_line(text, longest).replace("$", r"\$")


def series_colour(number: int) -> str:
    """The page's colour of a series; there are six, used in turn."""
    return _SERIES[number % len(_SERIES)]


def as_svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an <svg> element; `name` makes its ids the only ones of their kind in a page."""
    import matplotlib as mpl

    written = io.StringIO()
    # Drawn with the same salt and without a date, equal figures are equal text.
    with mpl.rc_context({**_RC, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's own fonts draw the text: what matplotlib's lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several plots share a page, and an id has to be the only one of its kind there.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for number, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{number % 6})")
    svg = svg.replace(INK, "currentColor").replace(_GRID, "var(--line)")
    svg = svg.replace(GOOD, "var(--good)").replace(BAD, "var(--bad)")
    label = f'role="img" aria-labelledby="{name}-title {name}-description" class="plot"'
    names = (
        f'<title id="{name}-title">{for_page(title)}</title>'
        f'<desc id="{name}-description">{for_page(description, longest=None)}</desc>'
    )
    opening = re.sub(r'\s(width|height)="[^"]*"', "", svg[: svg.index(">")])
    return f"{opening} {label}>{names}{svg[svg.index('>') + 1 :]}"
