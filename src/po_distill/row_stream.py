"""Rows through a gate, on several processes where there are many, in their order, few in memory at a time.

loky, because its processes start in a script without a `__main__` guard and in a notebook, and a process that dies is
an error and not a wait without end.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from po_distill.errors import PODistillError

_T = TypeVar("_T")
_R = TypeVar("_R")

_CHUNK = 128
_FEW = 2_000  # what one process is done with before others have started


def looked_at(rows: Iterable[_T], look: Callable[[_T], _R], *, workers: int | None = None) -> Iterator[_R]:
    """`look(row)` of each row, in order. `workers` are processes; by default as many as this one may use.

    `look` and the rows go to other processes; where they cannot, or there are few rows, they stay in this one.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, _FEW))
    processes = workers or _processors()
    if len(first) < _FEW or processes < 2 or not _can_travel(look):
        yield from map(look, itertools.chain(first, rows))
        return
    yield from _on_processes(itertools.chain(first, rows), look, processes)


def _processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_processes(rows: Iterator[_T], look: Callable[[_T], _R], processes: int) -> Iterator[_R]:
    from loky import ProcessPoolExecutor
    from loky.process_executor import TerminatedWorkerError

    with ProcessPoolExecutor(processes, initializer=_begin, initargs=(look,)) as pool:
        waiting: deque[Any] = deque()
        try:
            for chunk in iter(lambda: list(itertools.islice(rows, _CHUNK)), []):
                waiting.append(pool.submit(_look_at, chunk))
                if len(waiting) >= 3 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except TerminatedWorkerError as error:
            raise PODistillError(
                "A process that scored rows was killed, as happens where memory runs out.",
                "Run the same command again with more memory free, or with --workers 1.",
            ) from error
        finally:
            for future in waiting:
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
