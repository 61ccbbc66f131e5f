"""Progress on standard error: a bar on a terminal, plain lines elsewhere, silence when quiet."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[..., None]
"""advance(amount=1, note="", total=None): so much more is done; `note` is shown behind the bar."""

_PLAIN_INTERVAL_S = 5.0
_QUIET = "PO_DISTILL_QUIET"


def be_quiet() -> None:
    """Show no progress from here on, in the processes that we start either."""
    os.environ[_QUIET] = "1"


def is_quiet() -> bool:
    """Whether nothing is to be shown."""
    return bool(os.environ.get(_QUIET))


def say(line: str) -> None:
    """One line for people, on standard error."""
    if not is_quiet():
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(label: str, total: float | None = None, unit: str = "", *, done: float = 0) -> Iterator[Advance]:
    """Show how far a piece of work is; yields the function that says so.

    `done` is what an earlier run did: it counts, and says nothing about the time that is left.
    """
    if is_quiet():
        yield lambda amount=1, note="", total=None: None
    elif sys.stderr.isatty():
        with _bar(label, total, unit, done) as advance:
            yield advance
    else:
        with _lines(label, total, unit, done) as advance:
            yield advance


@contextlib.contextmanager
def _bar(label: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, note="")
        bar.update(task, completed=done)

        def advance(amount: float = 1, note: str = "", total: float | None = None) -> None:
            bar.update(task, advance=amount, total=total)
            if note:
                bar.update(task, note=note)

        yield advance


@contextlib.contextmanager
def _lines(label: str, total: float | None, unit: str, done: float) -> Iterator[Advance]:
    started = last_shown = time.monotonic()
    begun, last_note, whole = done, "", total

    def show() -> None:
        of = f"/{whole:g}" if whole else ""
        elapsed = time.monotonic() - started
        left = f", {elapsed / (done - begun) * (whole - done):.0f} s left" if whole and begun < done < whole else ""
        say(
            f"{label}: {done:g}{of} {unit}".rstrip()
            + f" ({elapsed:.0f} s{left})"
            + (f"  {last_note}" if last_note else "")
        )

    def advance(amount: float = 1, note: str = "", total: float | None = None) -> None:
        nonlocal done, last_note, last_shown, whole
        done += amount
        last_note = note or last_note
        whole = total or whole
        if time.monotonic() - last_shown >= _PLAIN_INTERVAL_S:
            last_shown = time.monotonic()
            show()

    yield advance
    show()
