"""Ctrl-C and SIGTERM that never break into the middle of something.

asyncio's own handler may raise KeyboardInterrupt inside whichever task is running, such as one that is
writing a bought answer down. Here the first signal cancels the awaited coroutine between two steps of
the loop, so that it can finish what is in flight; the second raises at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

_R = TypeVar("_R")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Steps:
    """Runs coroutines one after another on one event loop."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._task: asyncio.Task[Any] | None = None
        self._stepping = False
        self._pressed = 0

    def run(self, coroutine: Coroutine[Any, Any, _R]) -> _R:
        """The coroutine's result. Raises KeyboardInterrupt once it has ended after a Ctrl-C."""
        self._stepping = True
        try:
            result = self._runner.run(self._tracked(coroutine))
        except asyncio.CancelledError:
            if not self._pressed:
                raise
            raise KeyboardInterrupt from None
        finally:
            self._stepping, self._task = False, None
        if self._pressed:
            raise KeyboardInterrupt
        return result

    def finish(self, coroutine: Coroutine[Any, Any, _R]) -> _R:
        """The result of a last coroutine, which a Ctrl-C breaks off at once."""
        return self._runner.run(coroutine)

    async def _tracked(self, coroutine: Coroutine[Any, Any, _R]) -> _R:
        self._task = asyncio.current_task()
        if self._pressed:  # before there was a task to cancel
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._pressed += 1
        if not self._stepping or self._pressed > 1:
            raise KeyboardInterrupt
        self._runner.get_loop().call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


def _handlers_to_replace() -> dict[signal.Signals, Any]:
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    if found[signal.SIGINT] is not signal.default_int_handler:
        del found[signal.SIGINT]
    return {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}


@contextlib.contextmanager
def event_loop_steps() -> Iterator[Steps]:
    """An event loop to run coroutines on, closed at the end of the block.

    Signals are handled where Python hands them out (the main thread). One that is ignored stays so (SIGINT is, in a
    shell's background job), and a SIGINT that somebody else took stays theirs.
    """
    with asyncio.Runner() as runner:
        steps = Steps(runner)
        before = _handlers_to_replace() if threading.current_thread() is threading.main_thread() else {}
        for number in before:
            signal.signal(number, steps._on_interrupt)
        try:
            yield steps
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)
