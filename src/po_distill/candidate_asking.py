"""Candidates asked the same concepts on the same machine: in turn, so that whatever slows it slows all alike.

Answers are journalled as they come, so a run that was killed asks only for what is missing.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from po_distill.artifacts import now
from po_distill.calls import Caller, Retries
from po_distill.errors import ProviderError
from po_distill.guaranteed import GuaranteedForm, check_traits
from po_distill.interfaces import Role
from po_distill.interrupts import event_loop_steps
from po_distill.journal import Journal
from po_distill.progress import progress, say
from po_distill.recorded_answers import Tries
from po_distill.records import Completion, Concept, GenerationSettings, ProviderSettings, Request

_RETRIES = Retries()


class _Turn(NamedTuple):
    """One concept for one candidate."""

    name: str
    concept: Concept


class CandidateAsking:
    """Asks candidates through one journal, `concurrency` calls at a time.

    `interleaved` asks all of them in turn, so many cases each as calls are in flight, and holds all of them open;
    without it each is asked alone, one after the other. A provider that is paid for is always asked alone: what is in
    flight there is awaited when the run is stopped. `tries` is how often a candidate is asked until production can
    read its answer; every answer is kept. `guaranteed_valid` has answers decoded under a JSON schema.
    """

    def __init__(
        self,
        role: Role,
        journal: Journal,
        *,
        generation: GenerationSettings,
        concurrency: int = 1,
        tries: int = 1,
        interleaved: bool = True,
        guaranteed_valid: bool = False,
        log_path: Path | str | None = None,
        retries: Retries = _RETRIES,
    ) -> None:
        self._role, self._journal, self._generation = role, journal, generation
        self._form = GuaranteedForm(role) if guaranteed_valid else None
        self._concurrency, self._tries, self._interleaved = concurrency, tries, interleaved
        self._log_path, self._retries = log_path, retries

    def ask(self, candidates: Mapping[str, ProviderSettings], cases: Sequence[Concept]) -> dict[str, list[Tries]]:
        """The answers of each candidate, in the order of the cases."""
        callers = {name: self._caller(settings) for name, settings in candidates.items()}
        together = [name for name in callers if self._interleaved and not callers[name].traits.paid]
        groups = [together, *([name] for name in callers if name not in together)]
        answers: dict[str, list[Tries]] = {}
        for names in filter(None, groups):
            answers |= self._asked({name: callers[name] for name in names}, candidates, cases)
        return answers

    def _caller(self, settings: ProviderSettings) -> Caller:
        caller = Caller(
            settings,
            self._role,
            self._journal,
            most=self._concurrency,
            log_path=self._log_path,
            retries=self._retries,
        )
        if self._form is not None:
            check_traits(caller.traits, settings.provider)
        return caller

    def _asked(
        self, callers: Mapping[str, Caller], candidates: Mapping[str, ProviderSettings], cases: Sequence[Concept]
    ) -> dict[str, list[Tries]]:
        if doubtful := sum(caller.tally.in_doubt for caller in callers.values()):
            say(f"{doubtful} calls of an earlier run are in doubt; they are asked again.")
        answers: dict[str, list[Tries]] = {name: [] for name in callers}

        async def answer(turn: _Turn) -> tuple[str, Tries]:
            return turn.name, await self._answer(turn.concept, candidates[turn.name], callers[turn.name])

        turns = list(_in_turn(list(callers), cases, self._concurrency))
        with (
            progress(f"Asking {', '.join(callers)}", len(turns), "answers") as advance,
            closing(_streamed(callers, turns, answer, self._concurrency)) as results,
        ):
            for name, tries in results:
                answers[name].append(tries)
                advance(1, note=f"{tries.first.usage.latency_s:.1f} s a call")
        return answers

    async def _answer(self, concept: Concept, settings: ProviderSettings, caller: Caller) -> Tries:
        found = []
        for attempt in range(self._tries):
            # The same words under another seed: a greedy model will say the same again, a sampling one may not.
            generation = self._generation.model_copy(update={"seed": attempt}) if attempt else self._generation
            request = self._request(concept, generation)
            found.append(await self._one_answer(request, concept, settings, caller, attempt))
            if self._tries == 1 or self._role.score(concept, found[-1].text).valid:
                break
        return Tries(tuple(found))

    def _request(self, concept: Concept, generation: GenerationSettings) -> Request:
        if self._form is not None:
            return self._form.request(concept, generation)
        return Request(messages=self._role.render(concept), generation=generation, concept=concept)

    async def _one_answer(
        self, request: Request, concept: Concept, settings: ProviderSettings, caller: Caller, attempt: int
    ) -> Completion:
        digest = self._role.contract.digest
        try:
            answered = await caller.ask(request, attempt=attempt)
        except ProviderError as error:
            if error.fault not in ("bad_answer", "blocked"):
                raise
            # No answer is an answer that production cannot read.
            return Completion(
                concept=concept,
                text="",
                model=settings.model or settings.provider,
                provider=settings.provider,
                contract_digest=digest,
                finish=error.fault,
                created_at=now(),
            )
        response = answered.response
        text = self._form.written(response, answered.answered_at) if self._form is not None else response.text
        return Completion(
            concept=concept,
            text=text,
            raw=response.text if text != response.text else None,
            model=response.model,
            provider=settings.provider,
            contract_digest=digest,
            finish=response.finish,
            finish_reason=response.finish_reason,
            usage=response.usage,
            stand_in=response.stand_in,
            created_at=answered.answered_at,
        )


def _in_turn(names: Sequence[str], cases: Sequence[Concept], block: int) -> Iterator[_Turn]:
    """Blocks of cases, each for every candidate, who goes first changing from block to block."""
    for number, start in enumerate(range(0, len(cases), block)):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            yield from (_Turn(name, concept) for concept in cases[start : start + block])


def _streamed(
    callers: Mapping[str, Caller],
    turns: Sequence[_Turn],
    answer: Callable[[_Turn], Coroutine[Any, Any, tuple[str, Tries]]],
    width: int,
) -> Generator[tuple[str, Tries], None, None]:
    """What is answered, in order; all callers work and are closed on one event loop."""
    first, *others = callers.values()
    if not others:
        return first.stream(turns, answer, width, in_order=True)
    steps = _steps(first, others, turns, answer, width)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return steps
    return _on_a_thread(steps)


_NOTHING_MORE: Any = object()


def _steps(
    first: Caller,
    others: Sequence[Caller],
    turns: Sequence[_Turn],
    answer: Callable[[_Turn], Coroutine[Any, Any, tuple[str, Tries]]],
    width: int,
) -> Generator[tuple[str, Tries], None, None]:
    with event_loop_steps() as steps:
        results = first.each(turns, answer, width, in_order=True)

        async def following() -> Any:
            return await anext(results, _NOTHING_MORE)

        async def close() -> None:
            await results.aclose()
            for caller in (first, *others):
                await caller.aclose()

        try:
            while (result := steps.run(following())) is not _NOTHING_MORE:
                yield result
        finally:
            steps.finish(close())


def _on_a_thread(results: Generator[tuple[str, Tries], None, None]) -> Generator[tuple[str, Tries], None, None]:
    """For notebooks, where an event loop runs already."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for _ in itertools.count():
                if (result := thread.submit(next, results, _NOTHING_MORE).result()) is _NOTHING_MORE:
                    return
                yield result
        finally:
            thread.submit(results.close).result()
