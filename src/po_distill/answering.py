"""How one concept is answered: asked, read, judged, and asked again by what was wrong.

| what came back | what is done |
| --- | --- |
| a cut answer (finish `length`) | the limit is doubled, up to the model's cap |
| an answer that ended otherwise (finish `other`, such as RECITATION) | another seed, three times at most |
| a blocked prompt or answer | rejected, with the reason |
| a score under the minimum, or a violation | asked again with the findings, `regenerate` times; the best is kept |
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from po_distill.artifacts import digest_value
from po_distill.calls import Answered, Caller
from po_distill.errors import InputError, NotAskedError, PODistillError, ProviderError
from po_distill.gate import gravity
from po_distill.guaranteed import structured_role
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.metric import Metric
from po_distill.metric import score as score_by
from po_distill.records import (
    Completion,
    Concept,
    GenerationSettings,
    Message,
    Rejection,
    Request,
    Score,
    Violation,
)

ACCEPTED = "accepted"
_OTHER_SEEDS = 3
_MOST_FINDINGS = 12


class Judged(NamedTuple):
    """What became of a concept: the best completion with its verdict, or a rejection without an answer."""

    result: Completion | Rejection
    verdict: str  # ACCEPTED, or the reason why not

    @property
    def concept_id(self) -> str:
        """Which concept."""
        return self.result.concept.concept_id if isinstance(self.result, Completion) else self.result.where


def verdict_of(score: Score | None, min_score: float) -> str:
    """ACCEPTED for an answer that the dataset will take; else the reason that says most."""
    if score is None:
        return "not_scored"
    if score.violations:
        return score.violations[0].kind
    if not score.valid:
        return "unreadable"
    return ACCEPTED if score.value >= min_score else "score_below_minimum"


class Answering:
    """Answers concepts in a role through a caller. `structured` asks under the JSON schema of the role."""

    def __init__(
        self,
        role: Role,
        caller: Caller,
        journal: Journal,
        *,
        provider: str,
        generation: GenerationSettings,
        min_score: float,
        regenerate: int,
        structured: bool,
        metric: Metric | None = None,
    ) -> None:
        self._metric = metric
        self._role, self._caller, self._journal, self._provider = role, caller, journal, provider
        self._asking = (structured_role(role) or role) if structured else role
        self._schema = role.json_schema() if structured else None
        self._generation, self._min_score, self._regenerate = generation, min_score, regenerate
        self._digest = role.contract.digest
        self._cap = caller.capabilities.output_cap_tokens if caller.capabilities else generation.max_tokens
        # Validated once: what is put in for a concept comes from records.
        self._first = Request(messages=(), generation=generation, json_schema=self._schema)
        self._seen: set[bytes] = set()
        self._working = asyncio.Lock()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One at a time, and one step of the event loop each, for what keeps the processor busy.

        Rendering and scoring take milliseconds. Many in one step would keep answers from being read and free places
        from being used meanwhile.
        """
        async with self._working:
            await asyncio.sleep(0)
            yield

    def request(self, concept: Concept) -> Request:
        """The first request about a concept. Raises InputError where the role cannot work on it."""
        self._role.check(concept)
        return self._first.model_copy(update={"messages": self._asking.render(concept), "concept": concept})

    async def answer(self, concept: Concept) -> Judged:
        """The best of the answers to a concept, or why there is none. Raises ProviderError where it is `refused`."""
        if not self._is_new(concept):
            return _rejected(concept, "duplicate_concept_id", "An earlier concept has the same id.")
        try:
            async with self._turn():
                request = self.request(concept)
        except InputError as error:
            return _rejected(concept, "unusable_concept", str(error))
        answers: list[Completion] = []
        try:
            await self._ask_until_good(concept, request, answers)
        except ProviderError as error:
            if error.fault == "refused":
                raise
            if not answers:
                return _rejected(concept, error.fault, error.problem)
        except NotAskedError as error:
            if not answers:
                return _rejected(concept, error.reason, error.problem)
        blocked = answers[-1] if answers[-1].finish == "blocked" else None
        if blocked and len(answers) == 1:
            return _rejected(concept, "blocked", f"{blocked.model} blocked it: {blocked.finish_reason}")
        best = max(answers, key=_rank)
        return Judged(best, verdict_of(best.score, self._min_score))

    async def _ask_until_good(self, concept: Concept, first: Request, answers: list[Completion]) -> None:
        """Fill `answers` until one is good or nothing more may help."""
        request, regenerated, seeds = first, 0, 0
        for attempt in itertools.count():
            completion = await self._one_answer(concept, request, attempt)
            repeated = any(completion.text == earlier.text for earlier in answers)
            answers.append(completion)
            if verdict_of(completion.score, self._min_score) == ACCEPTED or completion.finish == "blocked":
                return
            if completion.finish == "length" and request.generation.max_tokens < self._cap:
                request = _changed(request, max_tokens=min(2 * request.generation.max_tokens, self._cap))
            elif completion.finish == "other" and seeds < _OTHER_SEEDS:
                seeds += 1
                request = _changed(request, seed=_seed(first, concept, seeds))
            # What repeats itself word by word (rules, a recording) will not do better when asked once more.
            elif regenerated < self._regenerate and (self._caller.traits.paid or not repeated):
                regenerated += 1
                request = self._with_findings(first, request, max(answers, key=_rank), regenerated)
            else:
                return

    async def _one_answer(self, concept: Concept, request: Request, attempt: int) -> Completion:
        answered = await self._caller.ask(request, attempt=attempt)
        async with self._turn():
            completion = self._completion(concept, answered)
        assert completion.score is not None
        self._journal.judge(
            answered.key,
            concept,
            contract=self._digest,
            verdict=verdict_of(completion.score, self._min_score),
            score=completion.score,
            text=completion.text,
            again=answered.journalled,
        )
        if not answered.journalled:
            self._caller.note_end(answered.key)
        return completion

    def _with_findings(self, first: Request, last: Request, best: Completion, number: int) -> Request:
        """The first request with the best answer so far and what is wrong with it behind it."""
        findings = "\n".join(f"- {line}" for line in itertools.islice(self._findings(best), _MOST_FINDINGS))
        said = (best.raw or best.text).strip()
        turns = (Message(speaker="assistant", content=said),) if said else ()
        text = (
            f"A check of {'that answer' if said else 'your answer'} found:\n{findings}\n\n"
            "Write the whole answer again, in the same form, with these points mended."
        )
        # Another seed each time: the same words about the same answer would be the same question.
        generation = last.generation.model_copy(update={"seed": _seed(first, best.concept, 0) + number})
        messages = (*first.messages, *turns, Message(speaker="user", content=text))
        return first.model_copy(update={"messages": messages, "generation": generation})

    def _findings(self, completion: Completion) -> Iterator[str]:
        """What is wrong with an answer, for the one who wrote it."""
        if completion.finish == "length":
            yield "the answer was cut: be shorter, so that every part is there"
        score = completion.score
        assert score is not None
        yield from (f"{violation.kind.replace('_', ' ')}: {violation.detail}" for violation in score.violations)
        if self._metric is None:
            yield from self._role.advise(completion.concept, completion.text)
        yield f"its score is {score.value:.2f}, at least {self._min_score:.2f} is wanted"

    def _completion(self, concept: Concept, answered: Answered) -> Completion:
        response = answered.response
        text, score = self._read(concept, response.text, answered.answered_at)
        return Completion(
            concept=concept,
            text=text,
            raw=response.text if text != response.text else None,
            model=response.model,
            provider=self._provider,
            contract_digest=self._digest,
            finish=response.finish,
            finish_reason=response.finish_reason,
            usage=response.usage,
            score=score,
            stand_in=response.stand_in,
            created_at=answered.answered_at,
        )

    def _read(self, concept: Concept, text: str, stamp: str) -> tuple[str, Score]:
        """(the answer, its score). The score is that of what the role understood, written its own way.

        That is what a student would learn from. A structured answer is written that way too, as nobody else would
        write its documents; what was written freely stays as it came. What could not be understood stays among
        the violations. Nothing understood: the text's own score.
        """
        answer = self._role.parse(text)
        try:
            canonical = self._role.canonical(answer.documents, stamp=stamp) if answer.documents else text
        except PODistillError:
            canonical = text
        score = score_by(self._role, self._metric, concept, canonical)
        together = dict.fromkeys((*answer.violations, *score.violations))
        score = score.model_copy(update={"violations": _gravest_first(tuple(together))})
        return (canonical if self._schema is not None else text), score

    def _is_new(self, concept: Concept) -> bool:
        # Eight bytes an id: a hundred thousand concepts stay small.
        digest = hashlib.blake2b(concept.concept_id.encode(), digest_size=8).digest()
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True


def _gravest_first(violations: tuple[Violation, ...]) -> tuple[Violation, ...]:
    return tuple(sorted(violations, key=lambda violation: gravity(violation.kind)))


def _rejected(concept: Concept, reason: str, detail: str) -> Judged:
    return Judged(Rejection(where=concept.concept_id, reason=reason, detail=detail), reason)


def _changed(request: Request, **settings: int) -> Request:
    return request.model_copy(update={"generation": request.generation.model_copy(update=settings)})


def _seed(first: Request, concept: Concept, number: int) -> int:
    """Another seed than the one before: of the concept where none was given, so that a second run asks the same."""
    start = first.generation.seed
    return (int(digest_value(concept.concept_id)[7:14], 16) if start is None else start) + 1000 * number


def _rank(completion: Completion) -> tuple[bool, bool, float]:
    score = completion.score
    return (score.valid, not score.violations, score.value) if score else (False, False, 0.0)
