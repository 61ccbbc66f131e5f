"""Concepts in, a teacher's scored completions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sized
from contextlib import closing
from pathlib import Path

from pydantic import JsonValue

from po_distill import plugins
from po_distill.artifacts import atomic_file, jsonl_line
from po_distill.calls import Answered, Caller, Retries
from po_distill.errors import InputError, PODistillError, ProviderError, SettingsError
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.progress import progress, say
from po_distill.records import (
    Completion,
    Concept,
    GenerationSettings,
    ProviderSettings,
    Rejection,
    Request,
    Score,
    TeacherSummary,
    Usage,
    Violation,
)

# A teacher that thinks spends answer tokens on it: a tighter limit cuts answers.
_GENERATION = GenerationSettings(max_tokens=8192)
_RETRIES = Retries()


class Teacher:
    """Lets a provider answer concepts in a role, and scores what it says.

    `batch_size` is how many concepts are being answered at a time: a sliding window, nothing waits for a
    batch. An answer that scores under `min_score`, or that production could not read even when rendered by
    us, is asked for again, up to `attempts` times in all; the best is kept. Every answer is journalled in
    `journal_path` before it is looked at, so the same concepts are never paid for twice.
    """

    def __init__(
        self,
        role: str | Role = "product_owner",
        *,
        provider: str = "offline",
        model: str | None = None,
        contract: str | None = None,
        prompt: str | None = None,
        batch_size: int = 20,
        min_score: float = 0.85,
        generation: GenerationSettings = _GENERATION,
        options: Mapping[str, JsonValue] | None = None,
        base_url: str | None = None,
        attempts: int = 3,
        journal_path: Path | str = "logs/distillation/teacher_journal.sqlite",
        log_path: Path | str | None = "logs/distillation/teacher_calls.jsonl",
        retries: Retries = _RETRIES,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("attempts", attempts)):
            if value < 1:
                raise SettingsError(f"{name} is {value}; it has to be at least 1.", "Give a positive number.")
        if not 0.0 <= min_score <= 1.0:
            raise SettingsError(f"min_score is {min_score}; scores are 0 to 1.", "Give a number such as 0.85.")
        if not isinstance(role, str) and (contract or prompt):
            raise SettingsError(
                "A role that is open already has its contract and prompt.", "Name the role, or leave them out."
            )
        opened: Role = plugins.load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        self.role = opened
        self._settings = ProviderSettings(
            provider=provider, model=model, base_url=base_url, options=dict(options or {})
        )
        self._batch_size, self._min_score, self._attempts = batch_size, min_score, attempts
        self._generation, self._retries = generation, retries
        self._journal_path, self._log_path = Path(journal_path), log_path
        self.rejections: list[Rejection] = []  # of the last `answer` or `write`
        self.summary = TeacherSummary(asked=0, answered=0)  # of the last run, complete at its end

    def answer(self, concepts: Iterable[Concept]) -> list[Completion]:
        """The completions, in the order of the concepts.

        Concepts without one are in `rejections` afterwards, and `summary` counts them by reason. Raises
        PODistillError where the role's metric fails its self-test or the provider refuses.
        """
        with closing(self.stream(concepts, in_order=True)) as results:
            answers = list(results)
        self.rejections = [answer for answer in answers if isinstance(answer, Rejection)]
        return [answer for answer in answers if isinstance(answer, Completion)]

    def write(self, concepts: Iterable[Concept], path: Path | str) -> TeacherSummary:
        """Write the completions to a JSONL file, atomically and in the order of the concepts.

        Rejections go beside it, to `<name>.rejected.jsonl`. Holds a few windows of completions in memory,
        however many there are. Raises ProviderError, and writes no completions, where not one came.
        """
        path = Path(path)
        rejected_path = path.with_name(f"{path.stem}.rejected.jsonl")
        self.rejections = []
        with (
            atomic_file(rejected_path) as rejected,
            atomic_file(path) as answered,
            closing(self.stream(concepts, in_order=True)) as results,
        ):
            for result in results:
                if isinstance(result, Rejection):
                    self.rejections.append(result)
                (rejected if isinstance(result, Rejection) else answered).write(jsonl_line(result))
            if not self.summary.answered:
                raise ProviderError(
                    f"None of {self.summary.asked} concepts was answered ({_by_reason(self.summary.failed)}); "
                    f"the first: {self.rejections[0].detail}",
                    "Correct the concepts, or choose another provider or model.",
                    fault="bad_answer",
                )
        return self.summary

    def stream(
        self, concepts: Iterable[Concept], *, in_order: bool = False
    ) -> Generator[Completion | Rejection, None, None]:
        """A completion or a rejection for each concept, as they come or in the concepts' order.

        Close it (`contextlib.closing`) where it may not be read to its end, so that what is in flight is
        awaited and journalled.
        """
        self.role.self_test()
        total = len(concepts) if isinstance(concepts, Sized) else None
        counts: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        with Journal(self._journal_path) as journal, progress("Teacher", total, "concepts") as advance:
            caller = Caller(self._settings, self.role, journal, log_path=self._log_path, retries=self._retries)
            if caller.tally.in_doubt:
                say(f"{caller.tally.in_doubt} calls of an earlier run are in doubt; they are asked again.")
            answering = _Answering(
                self.role, caller, self._settings.provider, self._generation, self._min_score, self._attempts
            )
            results = caller.stream(concepts, answering.answer, self._batch_size, in_order=in_order)
            with closing(results):
                for result in results:
                    counts["asked"] += 1
                    if isinstance(result, Rejection):
                        failed[result.reason] += 1
                    else:
                        counts["answered"] += 1
                        counts["below_minimum"] += not answering.good(result.score)
                    self.summary = _summary(counts, failed, caller)
                    advance(1, note=_note(self.summary))
                    yield result
        if not counts["asked"]:
            raise InputError("There are no concepts to answer.", "Give at least one concept.")


class _Answering:
    """How one concept is answered."""

    def __init__(
        self, role: Role, caller: Caller, provider: str, generation: GenerationSettings, min_score: float, attempts: int
    ) -> None:
        self._role, self._caller, self._provider = role, caller, provider
        self._generation, self._min_score, self._attempts = generation, min_score, attempts
        self._digest = role.contract.digest
        self._seen: set[str] = set()

    def good(self, score: Score | None) -> bool:
        """Good enough not to ask again."""
        return score is not None and score.valid and score.value >= self._min_score

    async def answer(self, concept: Concept) -> Completion | Rejection:
        """The best of the answers to a concept, or why there is none."""
        if concept.concept_id in self._seen:
            return Rejection(
                where=concept.concept_id, reason="duplicate_concept_id", detail="An earlier concept has the same id."
            )
        self._seen.add(concept.concept_id)
        try:
            self._role.check(concept)
            messages = self._role.render(concept)
        except InputError as error:
            return Rejection(where=concept.concept_id, reason="unusable_concept", detail=str(error))
        answers: list[Completion] = []
        for attempt in range(self._attempts):
            request = Request(messages=messages, generation=self._generation_for(attempt), concept=concept)
            try:
                answered = await self._caller.ask(request, attempt=attempt)
            except ProviderError as error:
                if error.fault == "refused":
                    raise
                if not answers:
                    return Rejection(where=concept.concept_id, reason=error.fault, detail=error.problem)
                break
            repeated = any(answered.response.text == earlier.text for earlier in answers)
            answers.append(self._completion(concept, answered))
            # A teacher that repeats itself word by word will not do better when asked once more.
            if repeated or self.good(answers[-1].score):
                break
        return max(answers, key=_rank)

    def _generation_for(self, attempt: int) -> GenerationSettings:
        seed = self._generation.seed
        if seed is None or attempt == 0:
            return self._generation
        return self._generation.model_copy(update={"seed": seed + attempt})

    def _completion(self, concept: Concept, answered: Answered) -> Completion:
        response = answered.response
        return Completion(
            concept=concept,
            text=response.text,
            model=response.model,
            provider=self._provider,
            contract_digest=self._digest,
            finish=response.finish,
            usage=response.usage,
            score=self._score(concept, response.text, answered.answered_at),
            stand_in=response.stand_in,
            created_at=answered.answered_at,
        )

    def _score(self, concept: Concept, text: str, stamp: str) -> Score:
        """The score of what the role understood, written its own way: what a student would learn from.

        What it could not understand stays among the violations. Nothing understood: the text's own score.
        """
        answer = self._role.parse(text)
        try:
            canonical = self._role.canonical(answer.documents, stamp=stamp) if answer.documents else text
        except PODistillError:
            canonical = text
        score = self._role.score(concept, canonical)
        return score.model_copy(update={"violations": _together(score.violations, answer.violations)})


def _rank(completion: Completion) -> tuple[bool, float]:
    score = completion.score
    return (score.valid, score.value) if score else (False, 0.0)


def _together(*groups: tuple[Violation, ...]) -> tuple[Violation, ...]:
    return tuple(dict.fromkeys(violation for group in groups for violation in group))


def _summary(counts: Mapping[str, int], failed: Mapping[str, int], caller: Caller) -> TeacherSummary:
    tally = caller.tally
    return TeacherSummary(
        asked=counts["asked"],
        answered=counts["answered"],
        failed=dict(sorted(failed.items())),
        below_minimum=counts["below_minimum"],
        sends=tally.sends,
        from_journal=tally.from_journal,
        in_doubt=tally.in_doubt,
        usage=Usage(
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            cost_usd=tally.cost_usd,
            latency_s=tally.latency_s,
        ),
    )


def _note(summary: TeacherSummary) -> str:
    parts = [f"{summary.answered} answered"]
    if summary.failed:
        parts.append(_by_reason(summary.failed))
    if summary.below_minimum:
        parts.append(f"{summary.below_minimum} below the minimum")
    if summary.usage.cost_usd:
        parts.append(f"${summary.usage.cost_usd:.4f}")
    return ", ".join(parts)


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
