"""What the figures of a report show, in sentences, with the concepts that show it; and what to do, by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from po_distill.paired_comparison import unseen_share
from po_distill.records import CandidateResult, CaseResult, EvaluationReport
from po_distill.reporting.figures import INVALID, answered_label

_MOST_NAMED = 5
_MUCH_FASTER = 0.5
_LEAST_GAP = 0.05  # of a slice under the candidate's own mean, to be worth a sentence

# What helps against a cause, as a next step.
_AGAINST_CAUSE = {
    "folded_list_item": "Train on targets without folded lines: `po-distill dataset` writes every text on one line, in "
    "double quotes.",
    "unquoted_colon": "Train on targets in double quotes: `po-distill dataset` writes them so.",
    "unescaped_quote": "Train on targets without quotes inside texts: `po-distill dataset` writes apostrophes.",
    "truncated": "Raise the limit of the answer (`--max-tokens`, `num_predict`) and the context (`num_ctx`).",
    "wrong_enum": "Remove training rows with a verdict outside the enum (`po-distill dataset check`).",
    "invented_ids": "Remove training rows that name unknown requirements (`po-distill dataset check`).",
    "contentless": "Read these cases: the metric does not see that they say nothing.",
    "swapped_verdict": "Train on more rows of the verdicts that are missed (`po-distill dataset --mix`).",
    "contradiction": "Remove training rows whose verdict contradicts their lists (`po-distill dataset check`).",
    "wrong_fences": "Ask with the contract that the student was trained on (`--contract`, `--prompt`).",
    "no_blocks": "Ask with the contract that the student was trained on, and compare the stages (`po-distill evaluate "
    "stages`).",
}
_AGAINST_RULE = {
    "std": "Read the weakest cases: the metric spreads more than the gate allows.",
    "slice_of_reference": "Train on more rows of the slices that fall behind the reference.",
    "every_class": "Train on more rows of the verdicts that are never given (`po-distill dataset --mix`).",
    "watch_list": "Vary the concepts of the watch list (`po-distill concepts --vary`) and train on the answers.",
    "p95_of_production": "Look for a smaller model or quantization, or shorter answers: the calls take too long.",
    "above_chance": "Train on more rows of each verdict (`po-distill dataset --mix`).",
    "above_base": "Look at the training log: the student is no better than the model it was made of.",
    "balanced_accuracy_of_reference": "Train on more rows of the verdicts that are missed (`dataset --mix`).",
}

_BEFORE_PRODUCTION = (
    "Judge it by the rules for production before you promote it: `po-distill evaluate --gate production`. The gate "
    "basic asks only whether the student has learnt something."
)


def observations(report: EvaluationReport) -> tuple[str, ...]:
    """Sentences about the judged candidate, each with its n, those that weigh most first."""
    judged = report.judged
    found = [
        *_difference(judged),
        *_invalid(judged),
        *_clusters(judged),
        *_verdicts(judged),
        *_slices(judged),
        *_items(judged),
        *_retries(judged),
        *_time(report, judged),
    ]
    return tuple(found)


def recommendations(report: EvaluationReport) -> tuple[str, ...]:
    """What to do next, by the rules that did not pass and the causes that cost most."""
    judged, verdict = report.judged, report.verdict
    found: list[str] = []
    for rule in verdict.rules:
        if rule.outcome in ("passed", "not judged"):
            continue
        if rule.rule == "difference_low" and judged.difference and judged.difference.cases_to_decide:
            found.append(
                f"Evaluate on about {judged.difference.cases_to_decide} cases: {judged.difference.n} do not decide "
                "whether the student is worse by more than the margin."
            )
        elif "no reference" in rule.reason:
            found.append("Name a reference (`--reference`): without one nothing says how good is good enough.")
        elif rule.rule in _AGAINST_RULE:
            found.append(_AGAINST_RULE[rule.rule])
    for cluster in judged.clusters:
        if against := _against(cluster.cause):
            found.append(f"{against} ({cluster.cause}: {cluster.n} of {judged.cases} answers)")
    if verdict.decided == "passed":
        found.insert(0, _BEFORE_PRODUCTION if verdict.gate == "basic" else "Promote it: `po-distill promote`.")
    return tuple(dict.fromkeys(found))


def _against(cause: str) -> str | None:
    """What helps against a cause; a document is missing under a name that the role gives: missing_review."""
    missing = "Look whether training rows lack it, or are cut before it (`po-distill dataset check`)."
    return _AGAINST_CAUSE.get(cause, missing if cause.startswith("missing_") else None)


def named(cases: Sequence[CaseResult | str], most: int = _MOST_NAMED) -> str:
    """The ids of the first cases, and how many more there are."""
    ids = [case if isinstance(case, str) else case.concept_id for case in cases]
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(ids[:most]) + more


def _difference(judged: CandidateResult) -> Iterator[str]:
    found = judged.difference
    if found is None:
        return
    said = {
        "better": f"is better than {found.reference}",
        "not worse": f"is not worse than {found.reference} by more than {found.margin:g}",
        "worse": f"is worse than {found.reference} by more than {found.margin:g}",
        "undecided": f"may or may not be worse than {found.reference} by more than {found.margin:g}",
    }[found.decision]
    about = f"; about {found.cases_to_decide} cases would decide it" if found.cases_to_decide else ""
    yield (
        f"{judged.name} {said}: {found.mean:+.3f}, 95 % interval [{found.low:+.3f}, {found.high:+.3f}], "
        f"p = {found.p_adjusted:.3g}, n = {found.n}{about}."
    )


def _invalid(judged: CandidateResult) -> Iterator[str]:
    cases = [case for case in judged.results if not case.score.valid]
    if not cases:
        most = unseen_share(0, judged.cases)
        yield (
            f"Production can read every answer, n = {judged.cases}; so many cases leave up to {most:.3f} of invalid "
            "ones possible (95 %)."
        )
        return
    yield f"Production cannot read {len(cases)} of {judged.cases} answers: {named(cases)}."
    repaired = [case for case in cases if case.repaired_value is not None]
    if repaired and judged.repaired_mean is not None:
        yield (
            f"{len(repaired)} of them lack only unfolding or quoting ({named(repaired)}); repaired, the metric would "
            f"be {judged.repaired_mean:.3f} in place of {judged.score_mean:.3f}, n = {judged.cases}."
        )


def _clusters(judged: CandidateResult) -> Iterator[str]:
    for cluster in judged.clusters[:_MOST_NAMED]:
        cost = f", which costs the mean {cluster.lost:.3f}" if cluster.lost >= 0.0005 else ""
        yield (
            f"{cluster.n} of {judged.cases} answers fail by {cluster.cause} ({cluster.level}){cost}: "
            f"{named(cluster.concept_ids)}."
        )


def _verdicts(judged: CandidateResult) -> Iterator[str]:
    pairs: dict[tuple[str, str], list[CaseResult]] = {}
    for case in judged.results:
        expected, answered = case.expected_label or case.reference_label, answered_label(case.score)
        if expected and answered not in (expected, INVALID):
            pairs.setdefault((expected, answered), []).append(case)
    total = Counter(case.expected_label or case.reference_label for case in judged.results)
    for (expected, answered), cases in sorted(pairs.items(), key=lambda pair: -len(pair[1]))[:3]:
        yield f"{expected} is answered as {answered} in {len(cases)} of {total[expected]} cases: {named(cases)}."


def _slices(judged: CandidateResult) -> Iterator[str]:
    for one in judged.slices:
        if one.kind == "watch":
            against = f", {one.production_mean:.3f} in production" if one.production_mean is not None else ""
            yield f"On the watch list the metric is {one.mean:.3f}{against}, n = {one.n}."
        elif one.mean < judged.score_mean - _LEAST_GAP:
            whole = f"over all {judged.score_mean:.3f}"
            yield f"In the {one.kind} {one.name} the metric is {one.mean:.3f}, {whole}, n = {one.n}."


def _items(judged: CandidateResult) -> Iterator[str]:
    counts = judged.item_changes
    if not counts:
        return
    missing: dict[str, list[CaseResult]] = {}
    for case in judged.results:
        for path in dict.fromkeys(change.path for change in case.changes if change.change == "missing"):
            missing.setdefault(path, []).append(case)
    said = ", ".join(f"{counts.get(kind, 0)} {kind}" for kind in ("same", "reworded", "missing", "added"))
    yield f"Of the reference's items and the candidate's: {said}, over {judged.cases} answers."
    if missing:
        path, cases = max(missing.items(), key=lambda pair: len(pair[1]))
        yield f"Items of {path} are missing most often, in {len(cases)} of {judged.cases} answers: {named(cases)}."


def _retries(judged: CandidateResult) -> Iterator[str]:
    if judged.retried and judged.valid_share_after_retries is not None:
        yield (
            f"Asked again where it was invalid ({judged.retried} of {judged.cases} cases), {judged.valid_share:.3f} "
            f"valid answers at the first try become {judged.valid_share_after_retries:.3f}."
        )


def _time(report: EvaluationReport, judged: CandidateResult) -> Iterator[str]:
    before = next((c for c in report.candidates if c.name == (report.production or report.reference)), None)
    if before is None or before.stand_in or before.name == judged.name or not (judged.times and before.times):
        return
    ours, theirs = judged.times.median_s, before.times.median_s
    if ours and theirs and ours / theirs < _MUCH_FASTER:
        yield (
            f"A call takes {ours:.3g} s in place of {theirs:.3g} s of {before.name} (medians, n = {judged.times.n} and "
            f"{before.times.n})."
        )
