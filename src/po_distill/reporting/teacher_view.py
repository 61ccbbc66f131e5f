"""What a teacher's run is doing, while it does it: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from po_distill.progress import is_quiet, say
from po_distill.records import TeacherSummary

Show = Callable[[TeacherSummary, Sequence[int], int], None]
"""show(summary, scores, window): `scores` counts answers by tenths of the score, `window` is calls in flight."""

_PLAIN_INTERVAL_S = 5.0
_BARS = " ▁▂▃▄▅▆▇█"


@contextlib.contextmanager
def teacher_view(total: int | None, budget_usd: float | None) -> Iterator[Show]:
    """Show how a run goes; yields the function that says so. Nothing is shown when quiet."""
    if is_quiet():
        yield lambda summary, scores, window: None
        return
    started = time.monotonic()

    def lines(summary: TeacherSummary, scores: Sequence[int], window: int) -> dict[str, str]:
        return view_lines(summary, scores, window, total, budget_usd, time.monotonic() - started)

    with _panel(lines) if sys.stderr.isatty() else _plain(lines) as show:
        yield show


def view_lines(
    summary: TeacherSummary,
    scores: Sequence[int],
    window: int,
    total: int | None,
    budget_usd: float | None,
    elapsed_s: float,
) -> dict[str, str]:
    """The view as lines by title; what has nothing to say is left out."""
    of = f" of {total:,}" if total else ""
    calls = summary.sends
    left = (
        f", about {_duration(elapsed_s / summary.asked * (total - summary.asked))} left"
        if (total and 0 < summary.asked < total)
        else ""
    )
    usage = summary.usage
    thinking = f" ({usage.thinking_tokens:,} thinking)" if usage.thinking_tokens else ""
    lines = {
        "concepts": f"{summary.asked:,}{of}, {_duration(elapsed_s)}{left}",
        "accepted": f"{summary.accepted:,}{_counts(summary.labels)}",
        "rejected": f"{sum(summary.rejected.values()):,}{_counts(summary.rejected)}" if summary.rejected else "",
        "scores": _histogram(scores),
        "calls": f"{calls:,} sent, {60 * calls / max(elapsed_s, 1e-9):,.0f} a minute, window {window}"
        + (f", {summary.from_journal:,} from the journal" if summary.from_journal else ""),
        "tokens": f"{usage.prompt_tokens:,} in, {usage.completion_tokens:,} out{thinking}",
        "cost": f"${summary.charged_usd:.4f}" + (f" of ${budget_usd:g}" if budget_usd is not None else ""),
        "in doubt": f"{summary.in_doubt:,} calls of a killed run" if summary.in_doubt else "",
    }
    if not usage.prompt_tokens:
        del lines["tokens"]
    if not summary.charged_usd and budget_usd is None:
        del lines["cost"]
    return {title: line for title, line in lines.items() if line}


def _counts(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return " (" + ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())) + ")"


def _histogram(scores: Sequence[int]) -> str:
    """Scores by tenths, from 0 to 1, as bars: a bar is as high as its share of the tallest."""
    most = max(scores, default=0)
    if not most:
        return ""
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in scores)
    return f"0 {bars} 1"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def _panel(lines: Callable[..., dict[str, str]]) -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    colours = {"accepted": "green", "rejected": "yellow", "in doubt": "red"}
    latest: list[Any] = []

    def panel() -> Any:
        table = Table.grid(padding=(0, 2))
        for title, line in (lines(*latest) if latest else {"concepts": "starting"}).items():
            table.add_row(Text(title, style="dim"), Text(line, style=colours.get(title, "")))
        return table

    with Live(get_renderable=panel, console=Console(stderr=True), refresh_per_second=4):

        def show(summary: TeacherSummary, scores: Sequence[int], window: int) -> None:
            latest[:] = [summary, tuple(scores), window]

        yield show


@contextlib.contextmanager
def _plain(lines: Callable[..., dict[str, str]]) -> Iterator[Show]:
    last_shown = time.monotonic()
    latest: list[Any] = []

    def tell() -> None:
        if latest:
            say("Teacher: " + "; ".join(f"{title} {line}" for title, line in lines(*latest).items()))

    def show(summary: TeacherSummary, scores: Sequence[int], window: int) -> None:
        nonlocal last_shown
        latest[:] = [summary, tuple(scores), window]
        if time.monotonic() - last_shown >= _PLAIN_INTERVAL_S:
            last_shown = time.monotonic()
            tell()

    try:
        yield show
    finally:
        tell()
