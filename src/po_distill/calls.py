"""The only caller of a provider: asks until there is an answer, many at a time.

A call is known by its content: messages, generation settings, provider, model and the number of the
attempt. Its answer is journalled before anything else looks at it, and never asked for again.
Failures that pass by themselves (`rate_limited`, `unavailable`, `timeout`) wait and try again; `rate_limited` ones as
often as it takes, while others get through; `bad_answer` and `blocked` are final for their call; `refused` stops the
run, and so does a time without any success (the circuit breaker).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from po_distill.call_log import CallLog
from po_distill.errors import NotAskedError, ProviderError
from po_distill.interfaces import Role
from po_distill.interrupts import event_loop_steps
from po_distill.journal import Journal, Result
from po_distill.model_table import same_model
from po_distill.progress import say
from po_distill.records import ModelCapabilities, ProviderSettings, ProviderTraits, Request, Response
from po_distill.sending import Sender, Tally
from po_distill.window import Window

_T = TypeVar("_T")
_R = TypeVar("_R")
_MAY_PASS = ("rate_limited", "unavailable", "timeout")
_NOTHING_MORE: Any = object()
_FIRST_SHARE = 0.75  # of the window: half would cost a twentieth of a run of eight rounds
_DRAIN_S = 15.0  # what a local model is given to end what it is at
_PAID_DRAIN_S = 3600.0  # what is paid for is awaited, until a second Ctrl-C


@dataclass(frozen=True)
class Retries:
    """How often, and how far apart, a call is sent that fails in a way that may pass."""

    sends: int = 12  # of one call that fails otherwise than by a rate limit, before it is given up
    doubtful_sends: int = 3  # of them, those that may have been billed: timeouts, broken connections
    first_wait_s: float = 1.0  # doubled with every failure
    longest_wait_s: float = 60.0
    slowed_wait_s: float = 0.05  # after a rate limit, half as much again with every one: the window does the rest
    breaker_s: float = 300.0  # a run in which nothing succeeds for so long is stopped

    def wait_s(self, failures: int, chance: random.Random, *, slowed: bool = False) -> float:
        """The wait after so many failures: half to all of the grown wait, so that calls spread out."""
        doublings = min(failures - 1, 50)  # by then it is the longest wait; a float holds no thousand
        grown = self.slowed_wait_s * 1.5**doublings if slowed else self.first_wait_s * 2.0**doublings
        return min(grown, self.longest_wait_s) * (0.5 + 0.5 * chance.random())


@dataclass(frozen=True)
class Limits:
    """What bounds the calls of a run. None is no limit."""

    budget_usd: float | None = None  # what all runs of a journal may cost together
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    in_doubt: Literal["resend", "skip"] = "resend"  # what becomes of calls that may have been paid for already
    served_models: tuple[str, ...] = ()  # models that may answer in place of the one that is asked for


@dataclass(frozen=True)
class Answered:
    """An answer, and where it came from."""

    response: Response
    answered_at: str  # when it was journalled
    journalled: bool  # by an earlier ask: nothing was sent for it now
    key: str  # what the journal knows the call by


class Caller:
    """Asks one provider, through a journal. Good for one `stream` or one `each`.

    `most` calls are in flight at most. `log_path` names the cost log (`call_log`).
    """

    def __init__(
        self,
        settings: ProviderSettings,
        role: Role,
        journal: Journal,
        *,
        most: int = 20,
        log_path: Path | str | None = None,
        retries: Retries = Retries(),
        limits: Limits = Limits(),
        drain_s: float | None = None,  # how long what is in flight is awaited when the run is stopped
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._settings, self._journal, self._retries, self._limits = settings, journal, retries, limits
        self._clock, self._sleep, self._chance = clock, sleep, chance or random.Random()  # noqa: S311 - jitter
        self._sender = Sender(settings, role, journal, budget_usd=limits.budget_usd, clock=clock)
        self.width = max(most, self.traits.window or 0)
        self.window = Window(
            self.width,
            first_share=_FIRST_SHARE,
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            clock=clock,
            sleep=sleep,
            chance=self._chance,
        )
        if self.traits.window:
            self.window.size = float(self.width)
        self._drain_s = drain_s if drain_s is not None else _drain_s(self.traits)
        self._log = CallLog(journal, log_path) if log_path is not None else None
        self._unjudged: set[str] = set()  # calls with a new answer of which nobody has said what became of it
        self._asking: dict[str, asyncio.Event] = {}
        self._failing_since: float | None = None  # the first failure since something succeeded
        self._mean_completion = 0.0

    @property
    def traits(self) -> ProviderTraits:
        """What the provider says of itself."""
        return self._sender.traits

    @property
    def capabilities(self) -> ModelCapabilities | None:
        """The model's row of the model table."""
        return self._sender.capabilities

    @property
    def is_priced(self) -> bool:
        """Whether a list price of the model is known that holds today."""
        return self._sender.is_priced

    @property
    def tally(self) -> Tally:
        """What was done so far."""
        return self._sender.tally

    @property
    def charged_nanousd(self) -> int:
        """What all runs of the journal cost so far, calls in doubt at their full reservation."""
        return self._sender.budget.charged_nanousd

    @property
    def budget_is_spent(self) -> bool:
        """Whether a call was not made because the budget does not cover it."""
        return self._sender.budget.spent

    # --- one call -------------------------------------------------------------------------------

    def key(self, request: Request, attempt: int = 0) -> str:
        """The digest that the journal knows a call by."""
        return self._sender.key(request, attempt)

    async def ask(self, request: Request, *, attempt: int = 0) -> Answered:
        """The answer to a request: from the journal, or by sending it.

        `attempt` counts asks of the same request whose answers shall differ. Raises ProviderError, and NotAskedError
        where the budget or a doubt forbids the send.
        """
        key = self.key(request, attempt)
        while twin := self._asking.get(key):
            await twin.wait()
        result = self._journal.result(key)
        journalled = result is not None
        if result is None:
            if key in self._sender.doubtful_keys and self._limits.in_doubt == "skip":
                raise NotAskedError(
                    "An earlier run sent this call and never saw its end: it may have been paid for.",
                    "Run again with --in-doubt resend to ask once more.",
                    reason="in_doubt",
                )
            done = self._asking[key] = asyncio.Event()
            try:
                result = await self._send_until_final(key, request, attempt)
            finally:
                del self._asking[key]
                done.set()
        else:
            self.tally.from_journal += 1
        if isinstance(result.outcome, ProviderError):
            raise result.outcome
        self._check_served(result.outcome)
        return Answered(result.outcome, result.recorded_at, journalled, key)

    async def _send_until_final(self, key: str, request: Request, attempt: int) -> Result:
        slowed = failed = doubtful = 0
        for number in itertools.count():
            if self._sender.stopping:
                raise asyncio.CancelledError
            await self.window.enter(self._likely_tokens(request), again=number > 0)
            entered = self._clock()
            try:
                result = await self._sender.send(key, request, attempt)
            except ProviderError as error:
                pushed_back = error.fault in ("rate_limited", "unavailable") and not error.doubtful
                self.window.leave("slowed" if pushed_back else "failed", retry_after_s=error.retry_after_s)
                self.note_end()
                slowed += error.fault == "rate_limited"
                failed += error.fault != "rate_limited"
                doubtful += error.doubtful
                hopeless = failed >= self._retries.sends or doubtful >= self._retries.doubtful_sends
                if error.fault not in _MAY_PASS or hopeless:
                    raise
                if self._sender.stopping:
                    raise asyncio.CancelledError from None
                self._check_breaker(error)
                limited = error.fault == "rate_limited"
                wait_s = self._retries.wait_s(slowed if limited else failed, self._chance, slowed=limited)
                wait_s = max(wait_s, min(error.retry_after_s or 0.0, self._retries.longest_wait_s))
            except BaseException:
                self.window.leave("failed")
                raise
            else:
                self._unjudged.add(key)
                self.window.leave("answered", took_s=self._clock() - entered)
                self._failing_since = None
                if isinstance(result.outcome, Response):
                    tokens = result.outcome.usage.completion_tokens
                    self._mean_completion += 0.1 * (tokens - self._mean_completion)
                return result
            await self._sleep(wait_s)
        raise AssertionError("unreachable")

    def note_end(self, judged: str | None = None) -> None:
        """Say that a send has ended, or that the answer of a call (its key) was judged: the log may take it."""
        if judged is not None:
            self._unjudged.discard(judged)
        if self._log is not None:
            self._log.note(self._unjudged)

    def _likely_tokens(self, request: Request) -> int:
        """About how many tokens a call will take of a limit per minute: four characters each, and a mean answer."""
        return sum(len(message.content) for message in request.messages) // 4 + int(self._mean_completion)

    def _check_breaker(self, error: ProviderError) -> None:
        if self._failing_since is None:
            self._failing_since = self._clock()
        silent_s = self._clock() - self._failing_since
        if silent_s > self._retries.breaker_s:
            raise ProviderError(
                f"Nothing has succeeded for {silent_s:.0f} s; the last error: {error.problem}",
                "Look at the provider, then run the same command again: it goes on where this stopped.",
                fault="refused",
            ) from error

    def _check_served(self, response: Response) -> None:
        asked = self._settings.model
        if not self.traits.names_served_model or not asked or same_model(asked, response.model):
            return
        if response.model not in self._limits.served_models:
            raise ProviderError(
                f"{asked!r} was asked for, and {response.model!r} answered.",
                f"If that is wanted, allow it: --allow-model {response.model}. The answer is journalled, and will not "
                "be paid for again.",
                fault="refused",
            )

    # --- many calls -----------------------------------------------------------------------------

    async def each(
        self, items: Iterable[_T], work: Callable[[_T], Awaitable[_R]], width: int, *, in_order: bool = False
    ) -> AsyncGenerator[_R, None]:
        """What `work` makes of each item, `width` at a time, as it comes or in the items' order.

        A sliding window, not batches: an item is taken from `items` as soon as another is done, and
        no more of them are held than that. In order, at most 32 windows of results wait for a slow one.
        Where it ends early, what is being sent is awaited for `drain_s` and journalled.
        """
        numbered = enumerate(items)
        running: dict[asyncio.Task[_R], int] = {}
        waiting: dict[int, _R] = {}
        following = 0  # the number of the item to deliver next, in order
        try:
            while True:
                while len(running) < width and len(waiting) < 32 * width:
                    if (pair := next(numbered, None)) is None:
                        break
                    running[asyncio.ensure_future(_coroutine(work, pair[1]))] = pair[0]
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=running.__getitem__):
                    result = task.result()
                    number = running.pop(task)
                    if not in_order:
                        yield result
                        continue
                    waiting[number] = result
                    while following in waiting:
                        yield waiting.pop(following)
                        following += 1
        finally:
            await self._drain(set(running))

    async def _drain(self, running: set[asyncio.Task[Any]]) -> None:
        self._sender.stopping = True
        sending = running & self._sender.sending
        for task in running - sending:
            task.cancel()
        if sending:
            say(f"Waiting for {len(sending)} calls in flight to end and be journalled; Ctrl-C again leaves them.")
            await asyncio.wait(sending, timeout=self._drain_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def aclose(self) -> None:
        """Write the log's last lines and close the provider, where one was opened."""
        try:
            if self._log is not None:
                self._log.flush()
        finally:
            await self._sender.aclose()

    def stream(
        self, items: Iterable[_T], work: Callable[[_T], Awaitable[_R]], width: int, *, in_order: bool = False
    ) -> Generator[_R, None, None]:
        """The same as `each`, for callers that are not async; it closes the provider at its end.

        Close the iterator (`contextlib.closing`) where it may not be read to its end: that is when
        what is in flight is drained. Inside a running event loop (a notebook) it works on a thread.
        """
        steps = self._steps(items, work, width, in_order)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return steps
        return _on_a_thread(steps)

    def _steps(
        self, items: Iterable[_T], work: Callable[[_T], Awaitable[_R]], width: int, in_order: bool
    ) -> Generator[_R, None, None]:
        with event_loop_steps() as steps:
            results = self.each(items, work, width, in_order=in_order)
            try:
                while (result := steps.run(_coroutine(anext, results, _NOTHING_MORE))) is not _NOTHING_MORE:
                    yield result
            finally:
                steps.finish(self._close(results))

    async def _close(self, results: AsyncGenerator[Any, None]) -> None:
        with contextlib.suppress(RuntimeError):  # a second Ctrl-C broke into it: it is running still
            await results.aclose()
        await self.aclose()


async def _coroutine(make: Callable[..., Awaitable[_R]], *arguments: Any) -> _R:
    """`make(*arguments)` awaited: a coroutine, whatever kind of awaitable it is."""
    return await make(*arguments)


def _on_a_thread(results: Generator[_R, None, None]) -> Generator[_R, None, None]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            while (result := thread.submit(next, results, _NOTHING_MORE).result()) is not _NOTHING_MORE:
                yield result
        finally:
            thread.submit(results.close).result()


def _drain_s(traits: ProviderTraits) -> float:
    """A job that goes on without us is found again, so it is not waited for."""
    if traits.window:
        return 0.0
    return _PAID_DRAIN_S if traits.paid else _DRAIN_S
