"""What is to be said of one answer: its score, what repair would make of it, why it failed, how it differs.

Nothing here looks at more than one answer and the reference's to the same concept, so answers are rated on as many
processes as there are (`row_stream`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from po_distill.document_changes import all_text, item_changes
from po_distill.interfaces import Role
from po_distill.metric import Metric
from po_distill.metric import score as score_by
from po_distill.recorded_answers import Tries
from po_distill.records import CaseResult, Completion, Failure, ItemChange, Score, Violation

Meaning = Callable[[str, str], float]
"""How far two texts agree in meaning, 0 to 1."""

_MUCH_WEAKER = 0.2  # under the reference's metric: a failure of its own


class Answered(NamedTuple):
    """What a candidate answered to a concept, and what it is held against."""

    tries: Tries
    watched: bool = False
    reference: str | None = None  # the reference's answer
    reference_score: Score | None = None


class Rater:
    """Rates answers in a role. Goes to other processes as it is, where role, metric and meaning can."""

    def __init__(self, role: Role, *, metric: Metric | None = None, meaning: Meaning | None = None) -> None:
        self._role, self._metric, self._meaning = role, metric, meaning

    def score(self, completion: Completion) -> Score:
        """The score of one answer. No answer at all is an answer that production cannot read."""
        found = score_by(self._role, self._metric, completion.concept, completion.text)
        if completion.text.strip():
            return found
        violation = Violation(kind="no_answer", detail=f"the model answered nothing (finish: {completion.finish})")
        return found.model_copy(update={"valid": False, "violations": (violation, *found.violations)})

    def rate(self, answered: Answered) -> CaseResult:
        """All that is to be said of a candidate's answers to a concept; the figures are of the first try."""
        first, *later = answered.tries.answers
        concept, score = first.concept, self.score(first)
        repaired = None if score.valid else self._repaired(first)
        documents: Mapping[str, Mapping[str, Any]] = {}
        if first.text.strip():
            documents = self._role.parse(repaired[0] if repaired else first.text).documents
        changes, agreement = self._against(documents, answered.reference)
        reference_label = answered.reference_score.label if answered.reference_score else None
        retried = [self.score(one) for one in later]
        final = next((one for one in retried if one.valid), retried[-1]) if retried else None
        coverage: Any = getattr(self._role, "coverage", None)
        return CaseResult(
            concept_id=concept.concept_id,
            expected_label=concept.planted_label,
            score=score,
            usage=first.usage,
            finish=first.finish,
            tier=concept.tier,
            watched=answered.watched,
            reference_label=reference_label,
            characters=len(first.text),
            repaired_value=repaired[1] if repaired else None,
            failure=self._failure(first, score, concept.planted_label or reference_label, answered.reference_score),
            coverage=coverage(concept, documents) if coverage is not None else None,
            changes=changes,
            meaning=agreement,
            tries=len(answered.tries.answers),
            final=score if final is not None and score.valid else final,
        )

    def _repaired(self, completion: Completion) -> tuple[str, float] | None:
        """(the answer repaired, its metric) where repair makes it readable."""
        repair: Any = getattr(self._role, "repair", None)
        text = repair(completion.text) if repair is not None else None
        if text is None:
            return None
        score = score_by(self._role, self._metric, completion.concept, text)
        return (text, score.value) if score.valid else None

    def _against(
        self, documents: Mapping[str, Mapping[str, Any]], reference: str | None
    ) -> tuple[tuple[ItemChange, ...], float | None]:
        if reference is None:
            return (), None
        theirs = self._role.parse(reference).documents
        agreement = None
        if self._meaning is not None:
            agreement = min(1.0, max(0.0, self._meaning(all_text(theirs), all_text(documents))))
        return item_changes(theirs, documents), agreement

    def _failure(
        self, completion: Completion, score: Score, expected: str | None, reference: Score | None
    ) -> Failure | None:
        attribute: Any = getattr(self._role, "attribute", None)
        if attribute is not None:
            found: list[Failure] = list(
                attribute(completion.concept, completion.text, score=score, finish=completion.finish, expected=expected)
            )
        else:
            found = list(_by_score(score, expected, completion.finish))
        if not found and reference is not None and reference.valid and score.value < reference.value - _MUCH_WEAKER:
            detail = f"the metric is {score.value:.3f}, the reference's {reference.value:.3f}"
            found = [Failure(level="content", cause="much_weaker", detail=detail)]
        if not found:
            return None
        return found[0].model_copy(update={"also": tuple(dict.fromkeys(one.cause for one in found[1:]))})


def _by_score(score: Score, expected: str | None, finish: str) -> tuple[Failure, ...]:
    """Why an answer failed, as far as its score tells: for roles that do not say more."""
    if not score.valid:
        cause = "truncated" if finish == "length" else score.violations[0].kind if score.violations else "unreadable"
        detail = score.violations[0].detail if score.violations else "production cannot read it"
        return (Failure(level="format", cause=cause, detail=detail),)
    if expected is not None and score.label is not None and score.label != expected:
        return (Failure(level="content", cause="swapped_verdict", detail=f"{score.label}, {expected} is right"),)
    return tuple(Failure(level="content", cause=one.kind, detail=one.detail) for one in score.violations[:1])
