"""Concepts in, a teacher's scored completions out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from pydantic import JsonValue

from po_distill import plugins
from po_distill.answering import ACCEPTED, Answering, Judged
from po_distill.artifacts import atomic_file, jsonl_line, now
from po_distill.call_plan import plan_calls
from po_distill.calls import Caller, Limits, Retries
from po_distill.errors import InputError, ProviderError, SettingsError
from po_distill.guaranteed import structured_role
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.metric import Metric, load_metric
from po_distill.metric import self_test as test_metric
from po_distill.model_table import NANOUSD, find_model
from po_distill.progress import say
from po_distill.records import (
    CallPlan,
    Completion,
    Concept,
    GenerationSettings,
    ProviderSettings,
    Rejection,
    TeacherSummary,
    Usage,
)
from po_distill.reporting.teacher_view import Show, teacher_view
from po_distill.sending import find_provider, traits_of
from po_distill.topping_up import TopUp

# A teacher that thinks spends answer tokens on it: a tighter limit cuts answers.
_GENERATION = GenerationSettings(max_tokens=8192)
_RETRIES = Retries()
_NO_LIMITS = Limits()


class Teacher:
    """Lets a provider answer concepts in a role, and scores what it says.

    `batch_size` is how many calls are in flight at most: a sliding window, nothing waits for a batch. An answer that
    scores under `min_score`, or that the dataset would refuse for another reason, is asked for again with what was
    wrong with it, up to `regenerate` times; the best is kept. Every answer is journalled in `journal_path` before it is
    looked at, so the same concepts are never paid for twice. `limits` holds the budget and the rates.

    Where the provider holds answers to a JSON schema, the role is asked for JSON and its documents are written by the
    library; `structured=False` asks for them as free text. `metric` (a function, or its dotted path) takes the place
    of the role's metric. `model_table` is a YAML file of models that come before the library's own. `watch` names
    concepts whose outcome is reported one by one, by default those that the role knows to be hard.
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
        regenerate: int = 2,
        structured: bool | None = None,
        metric: str | Metric | None = None,
        model_table: Path | str | None = None,
        watch: Sequence[str] | None = None,
        journal_path: Path | str = "logs/distillation/teacher_journal.sqlite",
        log_path: Path | str | None = "logs/distillation/teacher_calls.log",
        retries: Retries = _RETRIES,
        limits: Limits = _NO_LIMITS,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("regenerate", regenerate, 0)):
            if value < least:
                raise SettingsError(f"{name} is {value}; it has to be at least {least}.", "Give a larger number.")
        if not 0.0 <= min_score <= 1.0:
            raise SettingsError(f"min_score is {min_score}; scores are 0 to 1.", "Give a number such as 0.85.")
        if not isinstance(role, str) and (contract or prompt):
            raise SettingsError(
                "A role that is open already has its contract and prompt.", "Name the role, or leave them out."
            )
        opened: Role = plugins.load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        self.role = opened
        capabilities = find_model(model, model_table)
        self._settings = ProviderSettings(
            provider=provider, model=model, base_url=base_url, options=dict(options or {}), capabilities=capabilities
        )
        self._batch_size, self._min_score, self._regenerate = batch_size, min_score, regenerate
        self._structured = self._is_structured(structured)
        self._generation = generation
        if generation.thinking is None and capabilities and capabilities.default_thinking is not None:
            self._generation = generation.model_copy(update={"thinking": capabilities.default_thinking})
        self._metric = load_metric(metric) if isinstance(metric, str) else metric
        self.watch = frozenset(getattr(opened, "watch", ()) if watch is None else watch)
        self._journal_path, self._log_path = Path(journal_path), log_path
        self._retries, self._limits = retries, limits
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

    def write(
        self,
        concepts: Iterable[Concept],
        path: Path | str,
        *,
        target: int | None = None,
        mix: Mapping[str, float] | None = None,
        seed: int = 7,
    ) -> TeacherSummary:
        """Write the completions to a JSONL file, atomically and in the order of the concepts.

        Rejections go beside it, to `<name>.rejected.jsonl`. With a `target`, variations of the concepts are asked
        until so many answers are accepted, in classes as `mix` wants them (`topping_up`). Without one, a few windows
        of completions are held in memory, however many there are. Raises ProviderError, and writes no completions,
        where not one came.
        """
        path = Path(path)
        rejected_path = path.with_name(f"{path.stem}.rejected.jsonl")
        self.rejections = []
        with (
            atomic_file(rejected_path) as rejected,
            atomic_file(path) as answered,
            closing(self.stream(concepts, in_order=True, target=target, mix=mix, seed=seed)) as results,
        ):
            first_failure: Rejection | None = None
            for result in results:
                if isinstance(result, Rejection):
                    first_failure = first_failure or result
                    if len(self.rejections) < _MOST_REJECTIONS:
                        self.rejections.append(result)
                (rejected if isinstance(result, Rejection) else answered).write(jsonl_line(result))
            if not self.summary.answered and first_failure:
                raise ProviderError(
                    f"None of {self.summary.asked} concepts was answered ({by_reason(self.summary.failed)}); "
                    f"the first: {first_failure.detail}",
                    "Correct the concepts, or choose another provider or model."
                    if not self.summary.stopped
                    else "Raise --budget-usd: it does not cover one call at its worst.",
                    fault="bad_answer",
                )
        return self.summary

    def stream(
        self,
        concepts: Iterable[Concept],
        *,
        in_order: bool = False,
        target: int | None = None,
        mix: Mapping[str, float] | None = None,
        seed: int = 7,
    ) -> Generator[Completion | Rejection, None, None]:
        """A completion or a rejection for each concept, as they come or in the concepts' order.

        Close it (`contextlib.closing`) where it may not be read to its end, so that what is in flight is
        awaited and journalled.
        """
        test_metric(self.role, self._metric)
        given: Iterable[Concept] = list(concepts) if target else concepts
        total = len(given) if isinstance(given, Sized) else None
        counting = _Counting()
        top_up = TopUp(self.role, list(given), target, mix, seed) if target else None
        with (
            Journal(self._journal_path) as journal,
            teacher_view(None if target else total, self._limits.budget_usd) as show,
        ):
            journal.run = f"{now()}-{uuid4().hex[:6]}"
            yield from self._round(given, journal, counting, show, in_order)
            if top_up is not None:
                while not self.summary.stopped and (more := top_up.next_round(self.summary.labels, self.summary.asked)):
                    short = sum(top_up.missing(self.summary.labels).values())
                    say(f"{short} accepted answers short of {target}: {len(more)} variations are asked.")
                    yield from self._round(more, journal, counting, show, in_order)
                self.summary = self.summary.model_copy(update={"missing": top_up.missing(self.summary.labels)})
        if not self.summary.asked:
            raise InputError("There are no concepts to answer.", "Give at least one concept.")

    def plan(self, concepts: Iterable[Concept], *, target: int | None = None) -> CallPlan:
        """What answering the concepts, and variations up to the target, would ask and cost; sends nothing."""
        asking = (structured_role(self.role) or self.role) if self._structured else self.role
        return plan_calls(
            concepts,
            role=self.role,
            asking=asking,
            schema=self.role.json_schema() if self._structured else None,
            settings=self._settings,
            generation=self._generation,
            regenerate=self._regenerate,
            journal_path=self._journal_path,
            target=target,
        )

    def _round(
        self, concepts: Iterable[Concept], journal: Journal, counting: _Counting, show: Show, in_order: bool
    ) -> Iterator[Completion | Rejection]:
        """Answer concepts through a caller of their own, and count what came of them."""
        caller = Caller(
            self._settings,
            self.role,
            journal,
            most=self._batch_size,
            log_path=self._log_path,
            retries=self._retries,
            limits=self._limits,
        )
        self._tell_beforehand(caller)
        answering = Answering(
            self.role,
            caller,
            journal,
            provider=self._settings.provider,
            generation=self._generation,
            min_score=self._min_score,
            regenerate=self._regenerate,
            structured=self._structured,
            metric=self._metric,
        )
        counting.begin(caller)
        self.summary = counting.summary()
        watched = (self._marked(concept) for concept in concepts)
        # More concepts than calls at a time: one is ready to be sent when a place is free, while others are scored.
        width = caller.width + _READY
        with closing(caller.stream(watched, answering.answer, width, in_order=in_order)) as results:
            for judged in results:
                counting.add(judged, judged.concept_id in self.watch)
                self.summary = counting.summary()
                show(self.summary, counting.scores, int(caller.window.size))
                yield judged.result
        counting.end(caller)
        self.summary = counting.summary()

    def _marked(self, concept: Concept) -> Concept:
        if concept.concept_id not in self.watch:
            return concept
        return concept.model_copy(update={"metadata": {**concept.metadata, "watch": True}})

    def _tell_beforehand(self, caller: Caller) -> None:
        if caller.tally.in_doubt:
            what = "asked again" if self._limits.in_doubt == "resend" else "left out"
            say(
                f"{caller.tally.in_doubt} calls of an earlier run are in doubt: they may have been paid for, and count "
                f"at their full price. They are {what}."
            )
        if caller.traits.paid and not caller.is_priced:
            say(f"No price of {self._settings.model} is known: its cost is counted as 0 (--models-file adds one).")

    def _is_structured(self, wanted: bool | None) -> bool:
        """Whether the role is asked for JSON under its schema."""
        capabilities = self._settings.capabilities
        provider_can = traits_of(find_provider(self._settings.provider)).structured_output
        can = provider_can and (capabilities is None or capabilities.structured_output != "none")
        can = can and structured_role(self.role) is not None
        if wanted and not can:
            raise SettingsError(
                f"{self._settings.provider} with {self._settings.model} gives no structured output for the role "
                f"{self.role.name}.",
                "Leave structured output out: answers are asked for as free text.",
            )
        return can if wanted is None else wanted


_READY = 64
_MOST_REJECTIONS = 1000  # kept in memory; the file beside the completions has them all


class _Counting:
    """What became of the concepts of a run, round by round."""

    def __init__(self) -> None:
        self.scores = [0] * 10  # answers by tenths of the score
        self._asked = self._answered = 0
        self._failed: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self.watched: dict[str, str] = {}
        self._callers: list[Caller] = []
        self._stopped: str | None = None

    def begin(self, caller: Caller) -> None:
        self._callers.append(caller)

    def end(self, caller: Caller) -> None:
        self._stopped = "budget_reached" if caller.budget_is_spent else None

    def add(self, judged: Judged, watched: bool) -> None:
        self._asked += 1
        self._verdicts[judged.verdict] += 1
        if watched:
            self.watched.setdefault(judged.concept_id, judged.verdict)
        if isinstance(judged.result, Rejection):
            self._failed[judged.verdict] += 1
            return
        self._answered += 1
        score = judged.result.score
        assert score is not None
        self.scores[min(int(score.value * 10), 9)] += 1
        if judged.verdict == ACCEPTED:
            self._labels[score.label or "none"] += 1

    def summary(self) -> TeacherSummary:
        tallies = [caller.tally for caller in self._callers]
        usages = [tally.usage() for tally in tallies]
        rejected = {reason: n for reason, n in sorted(self._verdicts.items()) if reason != ACCEPTED}
        return TeacherSummary(
            asked=self._asked,
            answered=self._answered,
            failed=dict(sorted(self._failed.items())),
            accepted=self._verdicts[ACCEPTED],
            rejected=rejected,
            labels=dict(sorted(self._labels.items())),
            watched=dict(sorted(self.watched.items())),
            sends=sum(tally.sends for tally in tallies),
            from_journal=sum(tally.from_journal for tally in tallies),
            in_doubt=sum(tally.in_doubt for tally in tallies),
            usage=Usage(
                prompt_tokens=sum(usage.prompt_tokens for usage in usages),
                completion_tokens=sum(usage.completion_tokens for usage in usages),
                thinking_tokens=sum(usage.thinking_tokens for usage in usages),
                cached_tokens=sum(usage.cached_tokens for usage in usages),
                cost_usd=sum(tally.cost_nanousd for tally in tallies) / NANOUSD,
                latency_s=sum(usage.latency_s for usage in usages),
            ),
            charged_usd=self._callers[-1].charged_nanousd / NANOUSD if self._callers else 0.0,
            stopped=self._stopped,
        )


def by_reason(counts: Mapping[str, int]) -> str:
    """Counts as people say them: `3 blocked, 1 timeout`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
