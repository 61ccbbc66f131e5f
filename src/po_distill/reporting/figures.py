"""The figures of a report, computed from scored completions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from po_distill.records import CandidateResult, CaseResult, ClassAccuracy, Completion, Score

INVALID = "invalid"
"""How an answer counts that production cannot read, or that is of none of the role's classes."""


def candidate_result(name: str, completions: Sequence[Completion]) -> CandidateResult:
    """The figures of one candidate over its completions, each of which carries its score.

    In `score_mean` an answer that production cannot read counts 0: a mean over the readable ones alone
    would reward a model for failing where it is weak.
    """
    results = tuple(_case(completion) for completion in completions)
    verdicts, confusion = _classes(results)
    return CandidateResult(
        name=name,
        model=", ".join(sorted({completion.model for completion in completions})),
        stand_in=any(completion.stand_in for completion in completions),
        cases=len(results),
        score_mean=statistics.fmean(counted(result.score) for result in results),
        raw_score_mean=statistics.fmean(result.score.value for result in results),
        valid_share=statistics.fmean(result.score.valid for result in results),
        verdict_balanced_accuracy=balanced_accuracy(verdicts),
        verdicts=verdicts,
        confusion=confusion,
        seconds_per_call=quantile([result.usage.latency_s for result in results], 0.5),
        seconds_per_call_p95=quantile([result.usage.latency_s for result in results], 0.95),
        violations=_violations(results),
        results=results,
    )


def counted(score: Score) -> float:
    """The score as it counts: 0 where production cannot read the answer."""
    return score.value if score.valid else 0.0


def answered_label(score: Score) -> str:
    """The class that was answered, as production sees it."""
    return score.label if score.valid and score.label else INVALID


def balanced_accuracy(verdicts: dict[str, ClassAccuracy]) -> float | None:
    """The mean over the classes of the share that was recognised; None without planted classes."""
    return statistics.fmean(v.right / v.cases for v in verdicts.values()) if verdicts else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which so large a share lies, interpolated linearly between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _case(completion: Completion) -> CaseResult:
    if completion.score is None:
        raise ValueError(f"the completion of {completion.concept.concept_id} has no score")
    return CaseResult(
        concept_id=completion.concept.concept_id,
        expected_label=completion.concept.planted_label,
        score=completion.score,
        usage=completion.usage,
        finish=completion.finish,
    )


def _classes(results: Sequence[CaseResult]) -> tuple[dict[str, ClassAccuracy], dict[str, dict[str, int]]]:
    pairs = Counter((r.expected_label, answered_label(r.score)) for r in results if r.expected_label)
    expected = sorted({label for label, _ in pairs if label})
    answered = sorted({label for _, label in pairs} - {INVALID} | set(expected))
    confusion = {label: {other: pairs[label, other] for other in (*answered, INVALID)} for label in expected}
    verdicts = {
        label: ClassAccuracy(cases=sum(confusion[label].values()), right=confusion[label][label]) for label in expected
    }
    return verdicts, confusion


def _violations(results: Sequence[CaseResult]) -> dict[str, int]:
    kinds = Counter(kind for result in results for kind in {v.kind for v in result.score.violations})
    return dict(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
