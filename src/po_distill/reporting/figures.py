"""The figures of a report, computed from scored completions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from po_distill.records import CandidateResult, CaseResult, ClassAccuracy, Cluster, Completion, Score, Slice, Times

INVALID = "invalid"
"""How an answer counts that production cannot read, or that is of none of the role's classes."""

_MOST_TO_READ = 20  # cases of a cluster


def candidate_result(
    name: str, completions: Sequence[Completion], results: Sequence[CaseResult] | None = None
) -> CandidateResult:
    """The figures of one candidate over its completions; `results` are what was said of them, in the same order.

    Without `results` each completion carries its score. In `score_mean` an answer that production cannot read
    counts 0: a mean over the readable ones alone would reward a model for failing where it is weak.
    """
    found = tuple(results) if results is not None else tuple(_case(completion) for completion in completions)
    verdicts, confusion = _classes(found, {case.concept_id: case.expected_label for case in found})
    against, reference_confusion = _classes(found, {case.concept_id: case.reference_label for case in found})
    values = [counted(case.score) for case in found]
    result = CandidateResult(
        name=name,
        model=", ".join(sorted({completion.model for completion in completions})),
        stand_in=any(completion.stand_in for completion in completions),
        cases=len(found),
        score_mean=statistics.fmean(values),
        raw_score_mean=statistics.fmean(case.score.value for case in found),
        valid_share=statistics.fmean(case.score.valid for case in found),
        verdict_balanced_accuracy=balanced_accuracy(verdicts),
        verdicts=verdicts,
        confusion=confusion,
        seconds_per_call=quantile([case.usage.latency_s for case in found], 0.5),
        seconds_per_call_p95=quantile([case.usage.latency_s for case in found], 0.95),
        violations=_violations(found),
        results=found,
        score_std=statistics.stdev(values) if len(values) > 1 else 0.0,
        repaired_mean=statistics.fmean(repaired(case) for case in found),
        parts=_parts(found),
        characters=statistics.fmean(case.characters for case in found),
        item_changes=dict(Counter(change.change for case in found for change in case.changes)),
        reference_confusion=reference_confusion,
        reference_balanced_accuracy=balanced_accuracy(against),
        times=times_of(found),
    )
    return result.model_copy(update={**_means(found), **_retries(found)})


def counted(score: Score) -> float:
    """The score as it counts: 0 where production cannot read the answer."""
    return score.value if score.valid else 0.0


def repaired(case: CaseResult) -> float:
    """The score had an unreadable answer been repaired: unfolded and quoted, where that is all that it lacks."""
    return case.repaired_value if case.repaired_value is not None else counted(case.score)


def answered_label(score: Score) -> str:
    """The class that was answered, as production sees it."""
    return score.label if score.valid and score.label else INVALID


def balanced_accuracy(verdicts: Mapping[str, ClassAccuracy]) -> float | None:
    """The mean over the classes of the share that was recognised; None without planted classes."""
    return statistics.fmean(v.right / v.cases for v in verdicts.values()) if verdicts else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which so large a share lies, interpolated linearly between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def times_of(cases: Sequence[CaseResult]) -> Times:
    """What the calls took, loading of the model taken out, over the cases whose time is known."""
    known = [case.usage for case in cases if case.usage.latency_s > 0]
    if not known:
        return Times(n=0)
    took = [max(0.0, usage.latency_s - (usage.load_s or 0.0)) for usage in known]
    first = [usage for usage in known if usage.first_token_s is not None]
    loads = [usage.load_s for usage in known if usage.load_s is not None]
    answering = [
        (usage.completion_tokens, max(0.0, seconds - max(0.0, (usage.first_token_s or 0.0) - (usage.load_s or 0.0))))
        for usage, seconds in zip(known, took, strict=True)
        if usage.completion_tokens
    ]
    reading = [(usage.prompt_tokens, (usage.first_token_s or 0.0) - (usage.load_s or 0.0)) for usage in first]
    return Times(
        n=len(known),
        median_s=quantile(took, 0.5),
        p95_s=quantile(took, 0.95),
        first_token_s=quantile([usage.first_token_s or 0.0 for usage in first], 0.5) if first else None,
        first_token_n=len(first),
        prompt_tokens_per_s=_rate(reading),
        answer_tokens_per_s=_rate(answering),
        load_s=max(loads) if loads else None,
        total_s=sum(took),
    )


def _rate(pairs: Iterable[tuple[int, float]]) -> float | None:
    """Tokens over seconds, all calls together; None where nothing was counted."""
    counted_pairs = [(tokens, seconds) for tokens, seconds in pairs if tokens and seconds > 0]
    seconds = sum(taken for _, taken in counted_pairs)
    return sum(tokens for tokens, _ in counted_pairs) / seconds if seconds else None


def slices_of(
    result: CandidateResult, reference: CandidateResult | None, production: CandidateResult | None
) -> tuple[Slice, ...]:
    """The candidate by tier, by planted class and on the watch list, beside reference and production."""
    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for case in result.results:
        groups.setdefault(("tier", case.tier), []).append(case)
        if case.expected_label:
            groups.setdefault(("class", case.expected_label), []).append(case)
        if case.watched:
            groups.setdefault(("watch", "watch list"), []).append(case)
    order = {"tier": 0, "class": 1, "watch": 2}
    found = []
    for (kind, name), cases in sorted(groups.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        ids = {case.concept_id for case in cases}
        found.append(
            Slice.model_validate(
                {
                    "kind": kind,
                    "name": name,
                    "n": len(cases),
                    "mean": statistics.fmean(counted(case.score) for case in cases),
                    "valid_share": statistics.fmean(case.score.valid for case in cases),
                    "reference_mean": _mean_of(reference, ids),
                    "production_mean": _mean_of(production, ids),
                }
            )
        )
    return tuple(found)


def clusters_of(result: CandidateResult, reference: CandidateResult | None) -> tuple[Cluster, ...]:
    """Failed cases by cause, those that cost the mean most first; in each the costliest cases first."""
    theirs = {case.concept_id: counted(case.score) for case in reference.results} if reference else {}

    def lost(case: CaseResult) -> float:
        best = max(repaired(case), theirs.get(case.concept_id, 0.0), case.score.value)
        return max(0.0, best - counted(case.score))

    groups: dict[tuple[str, str], list[CaseResult]] = {}
    for case in result.failures:
        assert case.failure is not None
        groups.setdefault((case.failure.level, case.failure.cause), []).append(case)
    found = [
        Cluster.model_validate(
            {
                "cause": cause,
                "level": level,
                "n": len(cases),
                "concept_ids": [
                    case.concept_id for case in sorted(cases, key=lambda case: (-lost(case), case.concept_id))
                ][:_MOST_TO_READ],
                "lost": sum(map(lost, cases)) / result.cases,
            }
        )
        for (level, cause), cases in groups.items()
    ]
    return tuple(sorted(found, key=lambda cluster: (-cluster.lost, -cluster.n, cluster.cause)))


def _mean_of(candidate: CandidateResult | None, ids: set[str]) -> float | None:
    values = [counted(case.score) for case in candidate.results if case.concept_id in ids] if candidate else []
    return statistics.fmean(values) if values else None


def _case(completion: Completion) -> CaseResult:
    if completion.score is None:
        raise ValueError(f"the completion of {completion.concept.concept_id} has no score")
    return CaseResult(
        concept_id=completion.concept.concept_id,
        expected_label=completion.concept.planted_label,
        score=completion.score,
        usage=completion.usage,
        finish=completion.finish,
        tier=completion.concept.tier,
        characters=len(completion.text),
    )


def _parts(results: Sequence[CaseResult]) -> dict[str, float]:
    names = list(dict.fromkeys(name for case in results for name in case.score.parts))
    return {
        name: statistics.fmean(case.score.parts.get(name, 0.0) if case.score.valid else 0.0 for case in results)
        for name in names
    }


def _means(results: Sequence[CaseResult]) -> dict[str, float | int]:
    found: dict[str, float | int] = {}
    for name in ("coverage", "meaning"):
        values = [value for case in results if (value := getattr(case, name)) is not None]
        if values:
            found |= {name: statistics.fmean(values), f"{name}_n": len(values)}
    return found


def _retries(results: Sequence[CaseResult]) -> dict[str, float | int]:
    retried = sum(case.tries > 1 for case in results)
    if not retried:
        return {}
    last = [case.final or case.score for case in results]
    return {
        "retried": retried,
        "valid_share_after_retries": statistics.fmean(score.valid for score in last),
        "score_mean_after_retries": statistics.fmean(map(counted, last)),
    }


def _classes(
    results: Sequence[CaseResult], expected_by_id: Mapping[str, str | None]
) -> tuple[dict[str, ClassAccuracy], dict[str, dict[str, int]]]:
    pairs = Counter((expected_by_id[r.concept_id], answered_label(r.score)) for r in results)
    pairs = Counter({pair: count for pair, count in pairs.items() if pair[0]})
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
