"""One send of one call: reserved, written down, sent, priced, written down again.

What a call is known by is decided here too: the canonical request, the model, and who answers it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, cast

from po_distill import plugins
from po_distill.artifacts import digest_file, digest_value
from po_distill.budget import Budget, BudgetSpentError
from po_distill.errors import NotAskedError, PluginError, PODistillError, ProviderError, SettingsError
from po_distill.interfaces import Provider, Role, leaving
from po_distill.journal import End, Journal, Result
from po_distill.model_table import (
    NANOUSD,
    cost_nanousd,
    price_for,
    price_id,
    schema_facts,
    worst_price,
    worst_usage,
)
from po_distill.records import ProviderSettings, ProviderTraits, Request, Response, Usage

_CONCERN_ONE_CALL = ("bad_answer", "blocked")


@dataclass
class Tally:
    """What a caller did, counted up as it goes."""

    sends: int = 0  # requests that left
    from_journal: int = 0  # asks that were answered without a send
    failures: int = 0  # sends that ended in an error
    in_doubt: int = 0  # sends of earlier runs whose end was never seen
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0
    cost_nanousd: int = 0  # of this run's sends, as far as it is known
    latency_s: float = 0.0  # of all sends together

    def usage(self) -> Usage:
        """The tokens, cost and time as a record."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            thinking_tokens=self.thinking_tokens,
            cached_tokens=self.cached_tokens,
            cost_usd=self.cost_nanousd / NANOUSD,
            latency_s=self.latency_s,
        )


def find_provider(name: str) -> Callable[[ProviderSettings, Role], Provider]:
    """What a provider's name stands for: a plugin, or a class as `module:attribute`. Raises PluginError."""
    module, colon, attribute = name.partition(":")
    if not colon:
        return cast("Callable[[ProviderSettings, Role], Provider]", plugins.load("providers", name))
    try:
        return cast("Callable[[ProviderSettings, Role], Provider]", getattr(importlib.import_module(module), attribute))
    except (Exception, SystemExit) as error:  # a module may do anything while it is imported
        raise PluginError(
            f"The provider {name!r} does not load: {type(error).__name__}: {error}.",
            "Name a plugin (`po-distill plugins` lists them), or module:Class of a module on the Python path.",
        ) from error


def open_provider(settings: ProviderSettings, role: Role) -> Provider:
    """The provider that the settings name. Raises PluginError, and what the provider itself raises on opening."""
    return find_provider(settings.provider)(settings, role)


def traits_of(provider: Any) -> ProviderTraits:
    """What a provider (or its class) says of itself; the defaults where it says nothing."""
    traits = getattr(provider, "traits", None)
    return traits if isinstance(traits, ProviderTraits) else ProviderTraits()


class Sender:
    """Sends requests to one provider, once each, through a journal and inside a budget.

    The provider is opened before the first send, so a run that finds every answer in its journal opens none.
    """

    def __init__(
        self,
        settings: ProviderSettings,
        role: Role,
        journal: Journal,
        *,
        budget_usd: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._role, self.journal, self._clock = settings, role, journal, clock
        self.traits = traits_of(find_provider(settings.provider))
        self.capabilities = settings.capabilities
        self._prices = self.capabilities.prices if self.capabilities else ()
        self.is_priced = price_for(self._prices, 1, _today()) is not None
        if budget_usd is not None and self.traits.paid and not self.is_priced:
            raise SettingsError(
                f"No price of the model {settings.model!r} is known, so a budget of ${budget_usd:g} cannot be kept.",
                "Add the model to a file of your own and name it with --models-file (docs/teacher.md).",
            )
        self._identity = _identity(settings, self.traits)
        self._provider: Provider | None = None
        self._preparing: asyncio.Future[None] | None = None
        self.sending: set[asyncio.Task[Any]] = set()
        self.stopping = False
        doubtful = journal.in_doubt()
        journal.close_doubtful()
        self.tally = Tally(in_doubt=len(doubtful))
        self.doubtful_keys = journal.doubtful_keys()
        self.budget = Budget(budget_usd, journal.charged_nanousd())

    def key(self, request: Request, attempt: int = 0) -> str:
        """The digest that the journal knows a call by."""
        return _digest_call(request, attempt, self._identity)

    def worst_nanousd(self, request: Request) -> int:
        """The most that a send of the request can cost."""
        if self.capabilities is None or not self.is_priced:
            return 0
        return worst_price(self._prices, worst_usage(request, self.capabilities), _today())

    async def send(self, key: str, request: Request, attempt: int) -> Result:
        """Send once; the final result. Raises ProviderError where the call stays open, NotAskedError without budget."""
        worst = self.worst_nanousd(request)
        try:
            reservation = await self.budget.reserve(worst)
        except BudgetSpentError:
            raise NotAskedError(
                "The budget is reached.",
                "Raise --budget-usd and run the same command again: it goes on where this stopped.",
                reason="budget_reached",
            ) from None
        end: End | None = None
        intent: _Intent | None = None
        try:
            if self.stopping:
                raise asyncio.CancelledError
            provider = await self._ready()
            intent = _Intent(self, key, request, attempt, worst)
            if not self.traits.says_when_it_sends:
                await intent()
            started = self._clock()
            try:
                response = await self._generate(provider, request, intent)
                outcome: Response | ProviderError = _storable(response, self._clock() - started)
            except ProviderError as error:
                outcome = error
            except PODistillError:
                end = End("refused")
                self.journal.end_send(intent.send_id(), end)
                raise
            if intent.error is not None:
                raise intent.error
            end = self._end(outcome, self._clock() - started)
            result = await self._write_down(key, intent.send_id(), outcome, end)
            end = result.end or end
            self.budget.charged_nanousd += result.resettled_nanousd
            self._check_priced(end)
            return result
        finally:
            # What left and has no end (we were cancelled) may still be billed: all that was reserved counts.
            left = intent is not None and intent.has_left
            self.budget.settle(reservation, end.cost_nanousd if end else None if left else 0)

    async def _write_down(self, key: str, send_id: int, outcome: Response | ProviderError, end: End) -> Result:
        """The result, on the disk. Raises the error that leaves the call open, on the disk as well."""
        if isinstance(outcome, Response) or outcome.fault in _CONCERN_ONE_CALL:
            result = self.journal.record(key, send_id, _priced(outcome, end), end, later=True)
            await self.journal.durable()
            if isinstance(outcome, Response):
                self._count(outcome.usage, result.end or end)
                return result
            self.tally.failures += 1
            return result
        self.journal.end_send(send_id, end, later=True)
        await self.journal.durable()
        self.tally.failures += 1
        self.tally.latency_s += end.latency_s
        raise outcome

    def _check_priced(self, end: End) -> None:
        """Stop a run with a budget where a provider bills what nobody could reserve for."""
        if self.budget.limit_nanousd is not None and not self.is_priced and end.cost_nanousd:
            raise ProviderError(
                f"The provider {self._settings.provider!r} bills ${end.cost_nanousd / NANOUSD:g} for a call whose "
                "price is not known before, so a budget cannot be kept. The answer is journalled.",
                "Add the model to a file of your own (--models-file), or run without --budget-usd.",
                fault="refused",
            )

    def _end(self, outcome: Response | ProviderError, latency_s: float) -> End:
        if isinstance(outcome, ProviderError):
            unknown = outcome.doubtful and self.is_priced
            return End(outcome.fault, None if unknown else 0, latency_s=latency_s)
        usage = outcome.usage
        if usage.cost_usd:
            return End(None, round(usage.cost_usd * NANOUSD), "the provider's own", usage.latency_s)
        price = price_for(self._prices, usage.prompt_tokens, _today())
        if price is None or self.capabilities is None:
            return End(None, 0, None, usage.latency_s)
        cost = cost_nanousd(price, usage, outcome.price_factor)
        return End(None, cost, price_id(self.capabilities.model, price), usage.latency_s)

    def _count(self, usage: Usage, end: End) -> None:
        self.tally.prompt_tokens += usage.prompt_tokens
        self.tally.completion_tokens += usage.completion_tokens
        self.tally.thinking_tokens += usage.thinking_tokens
        self.tally.cached_tokens += usage.cached_tokens
        self.tally.cost_nanousd += end.cost_nanousd or 0
        self.tally.latency_s += usage.latency_s

    def begin(self, key: str, request: Request, attempt: int, worst_nanousd: int, *, later: bool) -> int:
        """Write down that a request leaves; the number of the send."""
        self.tally.sends += 1
        return self.journal.begin_send(
            key,
            concept_id=request.concept.concept_id if request.concept else "",
            provider=self._settings.provider,
            model=self._settings.model or "",
            attempt=attempt,
            reserved_nanousd=worst_nanousd,
            later=later,
        )

    async def _generate(self, provider: Provider, request: Request, intent: _Intent) -> Response:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.sending.add(task)
        leaving.set(intent)  # each concept is answered in a task, and so in a context, of its own
        try:
            return await provider.generate(request)
        except PODistillError:
            raise
        except Exception as error:
            raise ProviderError(
                f"The provider {self._settings.provider!r} broke: {type(error).__name__}: {error}.",
                "Report it to the package that brings this provider (`po-distill plugins` names it).",
                fault="refused",
                doubtful=True,
            ) from error
        finally:
            self.sending.discard(task)

    async def _ready(self) -> Provider:
        """The provider, opened and prepared: what is written down as sent leaves without waiting for a login."""
        if self._provider is None:
            self._provider = open_provider(self._settings, self._role)
            prepare = getattr(self._provider, "prepare", None)
            self._preparing = asyncio.ensure_future(prepare()) if prepare else None
        if self._preparing is not None:
            await asyncio.shield(self._preparing)
        return self._provider

    async def aclose(self) -> None:
        """Close the provider, where one was opened."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.gather(self._preparing, return_exceptions=True)
        if self._provider is not None:
            provider, self._provider = self._provider, None
            await provider.aclose()


class _Intent:
    """The intent to send a request, written down once, when it is awaited or when somebody needs its number."""

    def __init__(self, sender: Sender, key: str, request: Request, attempt: int, worst_nanousd: int) -> None:
        self._journal = sender.journal
        self._begin = functools.partial(sender.begin, key, request, attempt, worst_nanousd)
        self._send_id: int | None = None
        self.has_left = False
        self.error: PODistillError | None = None  # why it could not be written down, and the request did not leave

    async def __call__(self) -> None:
        """Be on the disk, then leave."""
        if self._send_id is not None:
            return
        try:
            self._send_id = self._begin(later=True)
            await self._journal.durable()
            self._journal.departs(self._send_id)
        except PODistillError as error:
            self.error = error
            raise
        except asyncio.CancelledError:
            if self._send_id is not None:  # it stays: nobody has to doubt it
                self._journal.end_send(self._send_id, End("never_left"))
            raise
        self.has_left = True

    def send_id(self) -> int:
        """The number of the send; written down now where the provider never said that it left."""
        if self._send_id is None:
            self._send_id = self._begin(later=False)
        return self._send_id


def call_key(request: Request, attempt: int, settings: ProviderSettings, traits: ProviderTraits) -> str:
    """The digest that a journal knows a call by, without a sender."""
    return _digest_call(request, attempt, _identity(settings, traits))


def _digest_call(request: Request, attempt: int, identity: dict[str, Any]) -> str:
    content = request.model_dump(mode="json", exclude={"concept", "json_schema"})
    content["json_schema"] = schema_facts(request.json_schema).digest
    if content["generation"]["thinking"] is None:  # as it was before there was such a field
        del content["generation"]["thinking"]
    return digest_value({"request": content, "provider": identity, "attempt": attempt})


def _identity(settings: ProviderSettings, traits: ProviderTraits) -> dict[str, Any]:
    """Who answers, as a call's key holds it; a model that is a file is known by its bytes.

    A model that was trained anew under the same path is another model: its old answers do not count. Providers of one
    family give each other's answers, wherever they are reached.
    """
    identity = settings.model_dump(mode="json", exclude={"capabilities"})
    identity["options"] = {k: v for k, v in settings.options.items() if k not in traits.transport_options}
    if traits.family:
        identity |= {"provider": traits.family, "base_url": None}
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


def _priced(outcome: Response | ProviderError, end: End) -> Response | ProviderError:
    if not isinstance(outcome, Response) or not end.cost_nanousd:
        return outcome
    usage = outcome.usage.model_copy(update={"cost_usd": end.cost_nanousd / NANOUSD})
    return outcome.model_copy(update={"usage": usage})


def _today() -> date:
    return datetime.now(UTC).date()
