"""Rows through a gate, on several processes where there are many, in their order, few in memory at a time.

loky, because its processes start in a script without a `__main__` guard and in a notebook, and a process that dies is
an error and not a wait without end.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pickle import PicklingError
from typing import Any, TypeVar

from po_distill.errors import PODistillError

_T = TypeVar("_T")
_R = TypeVar("_R")

_CHUNK = 128  # rows that travel together
_CHUNK_BYTES = 2_000_000  # or fewer, where they are long
_FEW = 2_000  # what one process is done with before others have started
_FEW_BYTES = 20_000_000


def looked_at(rows: Iterable[_T], look: Callable[[_T], _R], *, workers: int | None = None) -> Iterator[_R]:
    """`look(row)` of each row, in order. `workers` are processes; by default as many as this one may use.

    `look` and the rows go to other processes; where they cannot, or there are few rows, they stay in this one.
    """
    rows = iter(rows)
    processes = workers or _processors()
    first = _some(rows, _FEW, _FEW_BYTES) if processes > 1 else []
    rest = next(rows, _NO_ROW) if first else _NO_ROW
    if rest is _NO_ROW or not _can_travel(look):
        yield from map(look, itertools.chain(first, [] if rest is _NO_ROW else [rest], rows))
        return
    yield from _on_processes(itertools.chain(first, [rest], rows), look, processes)


_NO_ROW: Any = object()


def _some(rows: Iterator[_T], most: int, most_bytes: int) -> list[_T]:
    """The next rows, until there are so many or they hold so much."""
    some: list[_T] = []
    size = 0
    while len(some) < most and size < most_bytes and (row := next(rows, _NO_ROW)) is not _NO_ROW:
        some.append(row)
        line = getattr(row, "content", None)  # of a RawRow; others are in memory anyway
        size += len(line) if isinstance(line, bytes) else 0
    return some


def _processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_processes(rows: Iterator[_T], look: Callable[[_T], _R], processes: int) -> Iterator[_R]:
    from loky import ProcessPoolExecutor
    from loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(look,)) as pool:
        waiting: deque[tuple[list[_T], Any]] = deque()

        def seen() -> list[_R]:
            chunk, future = waiting.popleft()
            try:
                return list(future.result())
            except PicklingError:  # a row in memory that cannot travel
                return [look(row) for row in chunk]

        try:
            while chunk := _some(rows, _CHUNK, _CHUNK_BYTES):
                waiting.append((chunk, pool.submit(_look_at, chunk)))
                if len(waiting) >= 3 * processes:
                    yield from seen()
            while waiting:
                yield from seen()
        except BrokenProcessPool as error:
            killed = isinstance(error, TerminatedWorkerError)
            raise PODistillError(
                "A process that scored rows was killed, as happens where memory runs out."
                if killed
                else f"The processes that score rows do not start: {error}",
                "Run the same command again with more memory free, or with --workers 1.",
            ) from error
        finally:
            for _, future in waiting:
                future.cancel()


_looking: Callable[[Any], Any] | None = None  # of a worker's process, set when it begins


def _begin(look: Callable[[Any], Any]) -> None:
    global _looking
    _looking = look


def _look_at(chunk: list[Any]) -> list[Any]:
    assert _looking is not None
    return [_looking(row) for row in chunk]


def _can_travel(look: Callable[[Any], Any]) -> bool:
    from loky.backend.reduction import dumps  # cloudpickle where pickle cannot

    try:
        dumps(look)
    except Exception:  # whatever a user's metric or role raises there: it stays here
        return False
    return True
