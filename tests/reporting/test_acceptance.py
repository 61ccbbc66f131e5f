"""The gate, rule by rule: each passed, failed, undecided or not judged, with its figure and its n."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from haiku import HaikuRole, haiku, haiku_concept
from po_distill.errors import SettingsError
from po_distill.gate_rules import GATES, GateRules, read_gate
from po_distill.records import Completion, Usage, Verdict
from po_distill.stages.evaluator import Evaluator

ROLE = HaikuRole()
CASES = [haiku_concept(number, "autumn" if number % 2 else "spring") for number in range(40)]


def completions(text, seconds: float = 1.0) -> list[Completion]:
    return [
        Completion(
            concept=case,
            text=text(number, case),
            model="m",
            provider="p",
            contract_digest=ROLE.contract.digest,
            usage=Usage(latency_s=seconds),
        )
        for number, case in enumerate(CASES)
    ]


def sound(number, case) -> str:
    return haiku(case.planted_label)


def verdict(tmp_path, student, *, seconds: float = 1.0, watch=(), gate="production", **others) -> Verdict:
    evaluator = Evaluator(HaikuRole(), folder=tmp_path, report_path=None, log_path=None, gate=gate, watch=watch)
    candidates = {"teacher": completions(sound, 9.0), "student": completions(student, seconds), **others}
    return evaluator.evaluate(CASES, candidates, production="old" if "old" in others else None).verdict


def outcomes(found: Verdict) -> dict[str, str]:
    return {rule.rule: rule.outcome for rule in found.rules}


def test_a_student_as_good_as_its_teacher_passes(tmp_path):
    found = verdict(tmp_path, sound)
    assert (found.passed, found.decided, found.candidate, found.gate) == (True, "passed", "student", "production")
    assert outcomes(found) == {
        **dict.fromkeys(("valid_share", "mean_of_reference", "difference_low", "std", "every_class"), "passed"),
        **dict.fromkeys(("slice_of_reference", "balanced_accuracy_of_reference"), "passed"),
        **dict.fromkeys(("watch_list", "p95_of_production"), "not judged"),
    }
    assert all(rule.n == 40 for rule in found.rules if rule.outcome == "passed" and rule.rule != "slice_of_reference")


@pytest.mark.parametrize(
    ("student", "failed"),
    [
        (lambda n, case: "no fence" if n < 2 else sound(n, case), {"valid_share", "std"}),
        (
            lambda n, case: haiku(case.planted_label, lines=2),
            {"mean_of_reference", "difference_low", "slice_of_reference"},
        ),
        (lambda n, case: haiku("spring"), {"balanced_accuracy_of_reference", "every_class"}),
    ],
)
def test_what_fails_is_named_and_nothing_else(tmp_path, student, failed):
    found = outcomes(verdict(tmp_path, student))
    assert {rule for rule, outcome in found.items() if outcome == "failed"} == failed


def test_an_interval_that_crosses_the_margin_is_undecided_and_says_how_many_cases_decide(tmp_path):
    found = verdict(
        tmp_path, lambda n, case: "no fence" if n == 0 else sound(n, case), gate=GateRules(std=None, valid_share=0.9)
    )
    assert (found.passed, found.decided) == (False, "undecided")
    assert outcomes(found)["difference_low"] == "undecided"
    (reason,) = [reason for reason in found.reasons if reason.startswith("undecided")]
    assert "cases would decide it" in reason


def test_a_student_without_a_reference_passes_no_production_gate(tmp_path):
    evaluator = Evaluator(HaikuRole(), folder=tmp_path, report_path=None, log_path=None, gate="production")
    found = evaluator.evaluate(CASES, {"student": completions(sound)}).verdict
    assert found.decided == "undecided"
    assert "name one with --reference" in " ".join(found.reasons)


def test_time_and_watch_list_are_held_against_the_model_in_production(tmp_path):
    def old(number, case):
        return haiku(case.planted_label, lines=2 if number == 3 else 3)

    watch = [CASES[3].concept_id, CASES[4].concept_id]
    quick = verdict(tmp_path, sound, watch=watch, old=completions(old, 3.1))
    assert outcomes(quick) | {"watch_list": "passed", "p95_of_production": "passed"} == outcomes(quick)
    slow = verdict(tmp_path, old, seconds=2.0, watch=watch, old=completions(sound, 3.1))
    assert (outcomes(slow)["watch_list"], outcomes(slow)["p95_of_production"]) == ("failed", "failed")
    assert next(rule.n for rule in slow.rules if rule.rule == "watch_list") == 2


def test_failures_that_cannot_be_excluded_keep_a_student_back_where_that_is_asked(tmp_path):
    found = verdict(tmp_path, sound, gate=GateRules(unseen_failures=0.03))
    assert outcomes(found)["unseen_failures"] == "undecided"
    assert "0 of 40 answers are invalid" in found.reasons[-1]
    assert "; 99 cases with no more of them would decide it" in found.reasons[-1]
    assert outcomes(verdict(tmp_path, sound, gate=GateRules(unseen_failures=0.1)))["unseen_failures"] == "passed"


def test_where_nobody_planted_the_truth_the_references_verdicts_stand_for_it(tmp_path):
    blind = [case.model_copy(update={"planted_label": None}) for case in CASES]
    evaluator = Evaluator(HaikuRole(), folder=tmp_path, report_path=None, log_path=None)
    wrong = completions(lambda n, case: haiku("spring" if n % 4 else case.planted_label))
    report = evaluator.evaluate(blind, {"teacher": completions(sound), "student": wrong})
    student = report.candidate("student")
    assert student.verdict_balanced_accuracy is None
    assert student.reference_balanced_accuracy == pytest.approx(0.5)
    assert student.reference_confusion["autumn"] == {"autumn": 0, "spring": 20, "invalid": 0}
    assert outcomes(report.verdict)["balanced_accuracy_of_reference"] == "failed"


# --- the rules as data --------------------------------------------------------------------------


def test_the_librarys_gates_say_every_rule_and_the_record_has_productions_numbers():
    for name in GATES:
        text = (Path(__file__).parents[2] / "src/po_distill/gates" / f"{name}.yaml").read_text()
        assert set(yaml.safe_load(text)) == set(GateRules.model_fields)
    assert read_gate("production") == GateRules()


def test_rules_of_ones_own_are_read_and_what_is_left_out_is_as_in_production(tmp_path):
    (tmp_path / "rules.yaml").write_text("valid_share: 0.9\nstd: null\n")
    assert read_gate(tmp_path / "rules.yaml") == GateRules(valid_share=0.9, std=None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("valid_shar: 1", "Did you mean 'valid_share'"),
        ("valid_share: 2", "less than or equal to 1"),
        ("- 1", "no mapping"),
        ("std: .nan", "std"),
    ],
)
def test_rules_that_make_no_sense_are_refused_with_the_key(tmp_path, text, said):
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(SettingsError, match="(?s)" + said.replace("'", ".")) as caught:
        read_gate(tmp_path / "rules.yaml")
    assert said.strip("'") in str(caught.value)


def test_a_gate_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingsError, match="no gate named 'strict'"):
        read_gate("strict")
