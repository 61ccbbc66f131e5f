"""The acceptance gate: whether a student may go to production, rule by rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from po_distill.gate_rules import GateRules, read_gate
from po_distill.paired_comparison import cases_to_bound, unseen_share
from po_distill.records import CandidateResult, Difference, RuleResult, Slice, Verdict
from po_distill.records.evaluation import Outcome

_BASE = "base"


class Compared(NamedTuple):
    """The candidates that rules look at. A place that nobody fills is None."""

    student: CandidateResult
    reference: CandidateResult | None = None
    production: CandidateResult | None = None
    base: CandidateResult | None = None


def judge(
    candidates: Mapping[str, CandidateResult],
    *,
    rules: GateRules | None = None,
    gate: str | None = None,
    min_valid_share: float | None = None,
    reference: str | None = None,
    production: str | None = None,
) -> Verdict:
    """The verdict on the student (see `judged_name`), each rule a reason with its figure and its number of cases.

    It passes where every rule that applies passes. A rule that lacks what it needs, or that the cases cannot decide,
    is undecided, and then nothing passes; one that does not apply (no model in production is named) is not judged.
    `gate` is how the rules are called; without rules they are the gate `basic`. `min_valid_share` takes the place of
    the rules' own.
    """
    if rules is None:
        rules, gate = read_gate("basic"), gate or "basic"
    if min_valid_share is not None:
        rules = rules.model_copy(update={"valid_share": min_valid_share})
    name = judged_name(candidates, reference, production)
    if name is None:
        return Verdict(
            passed=False, reasons=("failed: there is no candidate named student",), outcome="failed", gate=gate
        )
    compared = Compared(
        candidates[name], candidates.get(reference or ""), candidates.get(production or ""), candidates.get(_BASE)
    )
    results = tuple(_judged(compared, rules))
    outcomes = {result.outcome for result in results}
    outcome = "failed" if "failed" in outcomes else "undecided" if "undecided" in outcomes else "passed"
    return Verdict.model_validate(
        {
            "passed": outcome == "passed",
            "reasons": [f"{result.outcome}: {result.reason}" for result in results],
            "outcome": outcome,
            "candidate": name,
            "gate": gate,
            "rules": results,
        }
    )


def judged_name(
    candidates: Mapping[str, object], reference: str | None = None, production: str | None = None
) -> str | None:
    """Whom the verdict is on: the candidate named student, else the first that is nobody's measure."""
    if "student" in candidates:
        return "student"
    return next((name for name in candidates if name not in (reference, production, _BASE, "teacher")), None)


def _judged(compared: Compared, rules: GateRules) -> Iterator[RuleResult]:
    if rules.above_base:
        yield _above_base(compared)
    if rules.valid_share is not None:
        yield _valid_share(compared.student, rules.valid_share)
    if rules.above_chance:
        yield _above_chance(compared.student)
    for wanted, rule in _AGAINST_REFERENCE:
        if (threshold := getattr(rules, wanted)) is not None:
            yield rule(compared, threshold)
    if rules.std is not None:
        student = compared.student
        reason = f"the metric's standard deviation is {student.score_std:.3f}, at most {rules.std:.2f} is allowed"
        yield _result("std", student.score_std <= rules.std, reason, student.score_std, rules.std, student.cases)
    if rules.slice_of_reference is not None:
        yield _slices(compared, rules.slice_of_reference, rules.slice_cases)
    if rules.every_class:
        yield _every_class(compared.student)
    if rules.watch_list:
        yield _watch_list(compared)
    if rules.p95_of_production is not None:
        yield _time(compared, rules.p95_of_production)
    if rules.unseen_failures is not None:
        yield _unseen_failures(compared.student, rules.unseen_failures)


def _result(
    rule: str,
    passed: bool | Outcome,
    reason: str,
    value: float | None = None,
    threshold: float | None = None,
    n: int = 0,
) -> RuleResult:
    outcome: Outcome = passed if isinstance(passed, str) else "passed" if passed else "failed"
    counted = f"{reason} ({n} cases)" if n and "case" not in reason else reason
    return RuleResult(rule=rule, outcome=outcome, reason=counted, value=value, threshold=threshold, n=n)


# --- one candidate alone ------------------------------------------------------------------------


def _above_base(compared: Compared) -> RuleResult:
    student, base = compared.student, compared.base
    if base is None:
        reason = f"the student's metric is {student.score_mean:.3f}; there is no base model to compare"
        return _result("above_base", "not judged", reason, student.score_mean, None, student.cases)
    reason = (
        f"the student's metric {student.score_mean:.3f} beats the base model's {base.score_mean:.3f} "
        f"(difference {student.score_mean - base.score_mean:+.3f}, {student.cases} cases)"
    )
    better = student.score_mean > base.score_mean
    return _result("above_base", better, reason, student.score_mean, base.score_mean, student.cases)


def _valid_share(student: CandidateResult, least: float) -> RuleResult:
    reason = f"production can read {student.valid_share:.3f} of the student's answers, at least {least:.2f} is asked"
    return _result("valid_share", student.valid_share >= least, reason, student.valid_share, least, student.cases)


def _above_chance(student: CandidateResult) -> RuleResult:
    accuracy = student.verdict_balanced_accuracy
    if accuracy is None or len(student.verdicts) < 2:
        reason = f"telling classes apart needs cases of two planted classes; there are {len(student.verdicts)}"
        return _result("above_chance", "not judged", reason)
    always_the_same = 1 / len(student.verdicts)
    reason = (
        f"the student's balanced accuracy {accuracy:.3f} is above {always_the_same:.3f}, which always the same "
        f"answer would reach"
    )
    return _result("above_chance", accuracy > always_the_same, reason, accuracy, always_the_same, _planted(student))


def _every_class(student: CandidateResult) -> RuleResult:
    confusion = student.confusion or student.reference_confusion
    if not confusion:
        return _result("every_class", "not judged", "which verdicts are right is not known")
    never = [label for label in confusion if not any(row.get(label) for row in confusion.values())]
    said = f"of {len(confusion)} verdicts that are right somewhere, the student never gives {', '.join(never)}"
    reason = said if never else f"the student gives each of the {len(confusion)} verdicts that are right somewhere"
    count = sum(sum(row.values()) for row in confusion.values())
    return _result("every_class", not never, reason, len(never), 0, count)


def _unseen_failures(student: CandidateResult, most: float) -> RuleResult:
    failed = student.cases - round(student.valid_share * student.cases)
    share = unseen_share(failed, student.cases)
    readable = [result.score.value for result in student.results if result.score.valid]
    mean = sum(readable) / len(readable) if readable else 1.0
    reason = (
        f"{failed} of {student.cases} answers are invalid, which leaves up to {share:.3f} possible (95 %), worth "
        f"{share * mean:.3f} of the metric; at most {most:.3f} is allowed"
    )
    if share * mean <= most:
        return _result("unseen_failures", True, reason, share * mean, most, student.cases)
    reason += f"; {cases_to_bound(failed, most / mean):,} cases with no more of them would decide it"
    return _result("unseen_failures", "undecided", reason, share * mean, most, student.cases)


def _planted(student: CandidateResult) -> int:
    return sum(verdict.cases for verdict in student.verdicts.values())


# --- against the reference ----------------------------------------------------------------------


def _mean_of_reference(compared: Compared, least: float) -> RuleResult:
    student, reference = compared.student, compared.reference
    if reference is None:
        return _no_reference("mean_of_reference", student)
    share = student.score_mean / reference.score_mean if reference.score_mean else 1.0
    reason = (
        f"the student's metric {student.score_mean:.3f} is {share:.3f} of the {reference.name}'s "
        f"{reference.score_mean:.3f}, at least {least:.2f} is asked"
    )
    return _result("mean_of_reference", share >= least, reason, share, least, student.cases)


def _difference_low(compared: Compared, least: float) -> RuleResult:
    student = compared.student
    found: Difference | None = student.difference
    if found is None:
        return _no_reference("difference_low", student)
    said = (
        f"the paired difference to the {found.reference} is {found.mean:+.3f}, 95 % interval "
        f"[{found.low:+.3f}, {found.high:+.3f}], at least {least:+.3f} is asked at {100 * found.level:g} %"
    )
    if found.decision == "undecided":
        about = f"; about {found.cases_to_decide} cases would decide it" if found.cases_to_decide else ""
        return _result("difference_low", "undecided", f"{said}, {found.n} cases{about}", found.low, least, found.n)
    return _result("difference_low", found.decision != "worse", said, found.low, least, found.n)


def _balanced_accuracy(compared: Compared, least: float) -> RuleResult:
    student, reference = compared.student, compared.reference
    rule = "balanced_accuracy_of_reference"
    if reference is None:
        return _no_reference(rule, student)
    ours, theirs, count = student.verdict_balanced_accuracy, reference.verdict_balanced_accuracy, _planted(student)
    what = "balanced accuracy"
    if ours is None or theirs is None:  # nobody planted the truth: the reference's verdicts stand for it
        ours, theirs = student.reference_balanced_accuracy, 1.0
        count = sum(sum(row.values()) for row in student.reference_confusion.values())
        what = f"balanced agreement with the {reference.name}'s verdicts"
    if ours is None:
        return _result(rule, "not judged", "the answers have no verdict that could be told apart")
    share = ours / theirs if theirs else 1.0
    reason = f"the student's {what} {ours:.3f} is {share:.3f} of {theirs:.3f}, at least {least:.2f} is asked"
    return _result(rule, share >= least, reason, share, least, count)


def _no_reference(rule: str, student: CandidateResult) -> RuleResult:
    reason = "there is no reference to hold the student against: name one with --reference"
    return _result(rule, "undecided", reason, None, None, student.cases)


_AGAINST_REFERENCE: tuple[tuple[str, Callable[[Compared, float], RuleResult]], ...] = (
    ("mean_of_reference", _mean_of_reference),
    ("difference_low", _difference_low),
    ("balanced_accuracy_of_reference", _balanced_accuracy),
)


def _slices(compared: Compared, least: float, fewest: int) -> RuleResult:
    rule, student = "slice_of_reference", compared.student
    if compared.reference is None:
        return _no_reference(rule, student)
    judged = [one for one in student.slices if one.kind != "watch" and one.n >= fewest and one.reference_mean]
    if not judged:
        return _result(rule, "not judged", f"no tier and no class has {fewest} cases")
    worst = min(judged, key=_share)
    below = [one for one in judged if _share(one) < least]
    named = "; ".join(f"{one.kind} {one.name} {_share(one):.3f} of {one.n} cases" for one in below or [worst])
    reason = (
        f"lowest share of the {compared.reference.name}'s metric in a slice: {named}; at least {least:.2f} is asked"
    )
    return _result(rule, not below, reason, _share(worst), least, worst.n)


def _share(one: Slice) -> float:
    return one.mean / one.reference_mean if one.reference_mean else 1.0


# --- against the model now in production --------------------------------------------------------


def _watch_list(compared: Compared) -> RuleResult:
    rule = "watch_list"
    found = next((one for one in compared.student.slices if one.kind == "watch"), None)
    if found is None:
        return _result(rule, "not judged", "no concept of the watch list is among the cases")
    if found.production_mean is None:
        return _result(rule, "not judged", "the model now in production is not among the candidates: --production NAME")
    reason = (
        f"on the watch list the student's metric is {found.mean:.3f}, that of the model in production "
        f"{found.production_mean:.3f}"
    )
    return _result(rule, found.mean >= found.production_mean - 1e-9, reason, found.mean, found.production_mean, found.n)


def _time(compared: Compared, most: float) -> RuleResult:
    rule = "p95_of_production"
    if compared.production is None:
        return _result(rule, "not judged", "the model now in production is not among the candidates: --production NAME")
    ours, theirs = compared.student.times, compared.production.times
    if ours is None or theirs is None or ours.p95_s is None or not theirs.p95_s:
        return _result(rule, "not judged", "the times of the calls are not recorded")
    share = ours.p95_s / theirs.p95_s
    reason = (
        f"95 % of the student's calls take at most {ours.p95_s:.3g} s, {share:.3f} of the {theirs.p95_s:.3g} s of the "
        f"model in production; at most {most:.3f} is asked"
    )
    return _result(rule, share <= most, reason, share, most, min(ours.n, theirs.n))
