"""The acceptance gate: whether a student may go to production, rule by rule."""

from __future__ import annotations

from collections.abc import Mapping

from po_distill.records import CandidateResult, Verdict


def judge(candidates: Mapping[str, CandidateResult], *, min_valid_share: float = 0.8) -> Verdict:
    """The verdict on the candidate named `student`, each rule a reason with its figure.

    It passes where no rule fails. A rule that the cases cannot decide (no base model to beat, no
    planted classes) says so and does not decide.
    """
    student = candidates.get("student")
    if student is None:
        return Verdict(passed=False, reasons=("failed: there is no candidate named student",))
    outcomes = (
        _beats_base(student, candidates.get("base")),
        _can_be_read(student, min_valid_share),
        _tells_classes(student),
    )
    words = {True: "passed", False: "failed", None: "not judged"}
    return Verdict(
        passed=all(passed is not False for passed, _ in outcomes),
        reasons=tuple(f"{words[passed]}: {reason}" for passed, reason in outcomes),
    )


def _beats_base(student: CandidateResult, base: CandidateResult | None) -> tuple[bool | None, str]:
    if base is None:
        return None, f"the student's metric is {student.score_mean:.3f}; there is no base model to compare"
    return (
        student.score_mean > base.score_mean,
        f"the student's metric {student.score_mean:.3f} beats the base model's {base.score_mean:.3f} "
        f"(difference {student.score_mean - base.score_mean:+.3f}, {student.cases} cases)",
    )


def _can_be_read(student: CandidateResult, least: float) -> tuple[bool, str]:
    return (
        student.valid_share >= least,
        f"production can read {student.valid_share:.3f} of the student's answers, at least {least:.2f} is asked",
    )


def _tells_classes(student: CandidateResult) -> tuple[bool | None, str]:
    accuracy = student.verdict_balanced_accuracy
    if accuracy is None or len(student.verdicts) < 2:
        return None, f"telling classes apart needs cases of two planted classes; there are {len(student.verdicts)}"
    always_the_same = 1 / len(student.verdicts)
    return (
        accuracy > always_the_same,
        f"the student's balanced accuracy {accuracy:.3f} is above {always_the_same:.3f}, which always the same "
        f"answer would reach",
    )
