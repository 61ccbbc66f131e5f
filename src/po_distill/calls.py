"""The only caller of a provider: journal, window, retries, cost log.

A call is known by its content: messages, generation settings, provider, model and the number of the
attempt. Its answer is journalled before anything else looks at it, and never asked for again.
Failures that pass by themselves (`rate_limited`, `unavailable`, `timeout`) wait and try again;
`bad_answer` and `blocked` are final for their call; `refused` stops the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from po_distill import plugins
from po_distill.artifacts import append_jsonl, digest_file, digest_value, now
from po_distill.errors import PluginError, PODistillError, ProviderError
from po_distill.interfaces import Provider, Role
from po_distill.interrupts import event_loop_steps
from po_distill.journal import Journal, Result
from po_distill.progress import say
from po_distill.records import ProviderSettings, Request, Response, Usage

_T = TypeVar("_T")
_R = TypeVar("_R")
_MAY_PASS = ("rate_limited", "unavailable", "timeout")
_CONCERN_ONE_CALL = ("bad_answer", "blocked")
_NOTHING_MORE: Any = object()


@dataclass(frozen=True)
class Retries:
    """How often, and how far apart, a call is sent that fails in a way that may pass."""

    sends: int = 6  # of one call, before it is given up
    first_wait_s: float = 1.0  # doubled with every failure
    longest_wait_s: float = 60.0

    def wait_s(self, failures: int, chance: random.Random) -> float:
        """The wait after so many failures: half to all of the doubled wait, so that calls spread out."""
        whole = min(self.first_wait_s * 2.0 ** (failures - 1), self.longest_wait_s)
        return whole * (0.5 + 0.5 * chance.random())


@dataclass(frozen=True)
class Answered:
    """An answer, and where it came from."""

    response: Response
    answered_at: str  # when it was journalled
    journalled: bool  # by an earlier ask: nothing was sent for it now


@dataclass
class Tally:
    """What a caller did, counted up as it goes."""

    sends: int = 0  # requests that left
    from_journal: int = 0  # asks that were answered without a send
    failures: int = 0  # sends that ended in an error
    in_doubt: int = 0  # sends of earlier runs whose end was never seen
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0  # of all sends together


def open_provider(settings: ProviderSettings, role: Role) -> Provider:
    """The provider that the settings name: a plugin, or a class as `module:attribute`.

    Raises PluginError where there is none, and what the provider itself raises on opening.
    """
    module, colon, attribute = settings.provider.partition(":")
    if not colon:
        provider: Provider = plugins.load("providers", settings.provider)(settings, role)
        return provider
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PluginError(
            f"The provider {settings.provider!r} does not load: {error}.",
            "Name a plugin (`po-distill plugins` lists them), or module:Class of a module on the Python path.",
        ) from error
    opened: Provider = make(settings, role)
    return opened


class Caller:
    """Asks one provider, through a journal. Good for one `stream` or one `each`.

    The provider is opened before the first send, so a run that finds every answer in its journal
    opens none. `log_path` takes one JSON line per send, without prompts and answers.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        role: Role,
        journal: Journal,
        *,
        log_path: Path | str | None = None,
        retries: Retries = Retries(),
        drain_s: float = 15.0,  # how long what is in flight is awaited when the run is stopped
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self._settings, self._role, self._journal = settings, role, journal
        self._log_path, self._retries, self._drain_s = log_path, retries, drain_s
        self._clock, self._sleep, self._chance = clock, sleep, chance or random.Random()  # noqa: S311 - jitter
        self._identity = _identity(settings)
        self._provider: Provider | None = None
        self._asking: dict[str, asyncio.Event] = {}
        self._sending: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.tally = Tally(in_doubt=len(journal.in_doubt()))

    # --- one call -------------------------------------------------------------------------------

    def key(self, request: Request, attempt: int = 0) -> str:
        """The digest that the journal knows a call by."""
        content = request.model_dump(mode="json", exclude={"concept"})
        return digest_value({"request": content, "provider": self._identity, "attempt": attempt})

    async def ask(self, request: Request, *, attempt: int = 0) -> Answered:
        """The answer to a request: from the journal, or by sending it.

        `attempt` counts asks of the same request whose answers shall differ. Raises ProviderError.
        """
        key = self.key(request, attempt)
        while twin := self._asking.get(key):
            await twin.wait()
        result = self._journal.result(key)
        journalled = result is not None
        if result is None:
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
        return Answered(result.outcome, result.recorded_at, journalled)

    async def _send_until_final(self, key: str, request: Request, attempt: int) -> Result:
        for failures in itertools.count(1):
            try:
                return await self._send(key, request, attempt)
            except ProviderError as error:
                if error.fault not in _MAY_PASS or failures >= self._retries.sends:
                    raise
            await self._sleep(self._retries.wait_s(failures, self._chance))
        raise AssertionError("unreachable")

    async def _send(self, key: str, request: Request, attempt: int) -> Result:
        """Send once; the final result. Raises ProviderError where the call stays open."""
        if self._stopping:
            raise asyncio.CancelledError
        provider = self._opened()
        concept_id = request.concept.concept_id if request.concept else ""
        model = self._settings.model or ""
        send_id = self._journal.begin_send(
            key, concept_id=concept_id, provider=self._settings.provider, model=model, attempt=attempt
        )
        self.tally.sends += 1
        started = self._clock()
        result = None
        try:
            response = await self._generate(provider, request)
            outcome: Response | ProviderError = _storable(response, self._clock() - started)
        except ProviderError as error:
            outcome = error
        except PODistillError:
            self._journal.end_send(send_id, "refused")
            raise
        if isinstance(outcome, Response) or outcome.fault in _CONCERN_ONE_CALL:
            result = self._journal.record(key, send_id, outcome)
        else:
            self._journal.end_send(send_id, outcome.fault)
        self._count_and_log(key, concept_id, attempt, outcome, self._clock() - started)
        if result is None:
            raise cast(ProviderError, outcome)
        return result

    async def _generate(self, provider: Provider, request: Request) -> Response:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._sending.add(task)
        try:
            return await provider.generate(request)
        except PODistillError:
            raise
        except Exception as error:
            raise ProviderError(
                f"The provider {self._settings.provider!r} broke: {type(error).__name__}: {error}.",
                "Report it to the package that brings this provider (`po-distill plugins` names it).",
                fault="refused",
            ) from error
        finally:
            self._sending.discard(task)

    def _opened(self) -> Provider:
        if self._provider is None:
            self._provider = open_provider(self._settings, self._role)
        return self._provider

    def _count_and_log(
        self, key: str, concept_id: str, attempt: int, outcome: Response | ProviderError, latency_s: float
    ) -> None:
        answered = isinstance(outcome, Response)
        usage = outcome.usage if isinstance(outcome, Response) else Usage(latency_s=latency_s)
        self.tally.failures += not answered
        self.tally.prompt_tokens += usage.prompt_tokens
        self.tally.completion_tokens += usage.completion_tokens
        self.tally.cost_usd += usage.cost_usd
        self.tally.latency_s += usage.latency_s
        if self._log_path is None:
            return
        line = {
            "time": now(),
            "key": key,
            "concept_id": concept_id,
            "attempt": attempt,
            "provider": self._settings.provider,
            "model": self._settings.model,
            "served_model": outcome.model if isinstance(outcome, Response) else None,
            "status": "answered" if isinstance(outcome, Response) else outcome.fault,
            "finish": outcome.finish if isinstance(outcome, Response) else None,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": usage.cost_usd,
            "latency_s": round(usage.latency_s, 4),
        }
        append_jsonl(self._log_path, line)

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
        self._stopping = True
        sending = running & self._sending
        for task in running - sending:
            task.cancel()
        if sending:
            say(f"Waiting up to {self._drain_s:.0f} s for {len(sending)} calls in flight; Ctrl-C again leaves them.")
            await asyncio.wait(sending, timeout=self._drain_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def aclose(self) -> None:
        """Close the provider, where one was opened."""
        if self._provider is not None:
            provider, self._provider = self._provider, None
            await provider.aclose()

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


def _identity(settings: ProviderSettings) -> dict[str, Any]:
    """The settings as a call's key holds them; a model that is a file is known by its bytes.

    A model that was trained anew under the same path is another model: its old answers do not count.
    """
    identity = settings.model_dump(mode="json")
    if settings.model and Path(settings.model).is_file():
        identity["model"] = digest_file(settings.model)
    return identity


def _storable(response: Response, latency_s: float) -> Response:
    """The response with text that UTF-8 can hold, and with our own latency where it has none."""
    text = response.text.encode("utf-8", "replace").decode("utf-8")
    usage = response.usage
    if usage.latency_s == 0.0:
        usage = usage.model_copy(update={"latency_s": latency_s})
    return response.model_copy(update={"text": text, "usage": usage})
