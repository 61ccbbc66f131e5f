import json
import subprocess
import sys
from pathlib import Path

import pytest

from haiku import PAID, SCRIPTED, HaikuRole, ScriptedProvider, haiku, haiku_concept
from po_distill.artifacts import read_record, read_records, write_jsonl
from po_distill.calls import Retries
from po_distill.errors import ContractMismatchError, InputError, PODistillError, ProviderError, SettingsError
from po_distill.records import Completion, EvaluationReport, Example, Message, ProviderSettings, Usage
from po_distill.stages.evaluator import Evaluator

ROLE = HaikuRole()
CASES = [haiku_concept(number, "autumn" if number >= 6 else "spring") for number in range(10)]  # 6 spring, 4 autumn


@pytest.fixture
def evaluator(tmp_path):
    def make(**settings):
        return Evaluator(
            settings.pop("role", HaikuRole()),
            folder=tmp_path / "evaluation",
            report_path=settings.pop("report_path", tmp_path / "docs" / "report.md"),
            log_path=tmp_path / "calls.log",
            retries=Retries(sends=2, first_wait_s=0.0),
            **settings,
        )

    return make


def scripted(model="student.gguf", **options) -> ProviderSettings:
    return ProviderSettings(provider=SCRIPTED, model=model, options=options)


def recorded(text, cases=CASES, **more) -> list[Completion]:
    return [
        Completion(
            concept=case,
            text=text(case),
            model="teacher-1",
            provider="p",
            contract_digest=ROLE.contract.digest,
            usage=Usage(latency_s=2.0),
            **more,
        )
        for case in cases
    ]


# What the student is made to answer: 7 sound, one wrong class, one cut to one line, one unreadable.
PLANTED = {
    "H-00000": [haiku("autumn")],
    "H-00001": [haiku("spring", lines=1)],
    "H-00006": ['{"season": "autumn", "lines": ["no", "fence", "here"]}'],
}


def test_planted_answers_give_the_exact_figures(evaluator):
    report = evaluator().evaluate(CASES, {"student": scripted(answers=PLANTED)})
    student = report.candidate("student")
    assert student.cases == 10
    assert student.score_mean == pytest.approx((8 * 1.0 + 1 / 3) / 10)  # the unreadable one counts 0
    assert student.raw_score_mean == pytest.approx((9 * 1.0 + 1 / 3) / 10)
    assert student.valid_share == pytest.approx(0.9)
    assert {label: (v.right, v.cases) for label, v in student.verdicts.items()} == {"autumn": (3, 4), "spring": (5, 6)}
    assert student.verdict_balanced_accuracy == pytest.approx((3 / 4 + 5 / 6) / 2)
    assert student.confusion == {
        "autumn": {"autumn": 3, "spring": 0, "invalid": 1},
        "spring": {"autumn": 1, "spring": 5, "invalid": 0},
    }
    assert student.model == "student.gguf"
    assert not student.stand_in
    assert report.labels == {"autumn": 4, "spring": 6}
    assert [r.concept_id for r in student.results] == [c.concept_id for c in CASES]
    assert sum(label.cases for label in student.verdicts.values()) == report.cases


def test_no_answer_at_all_counts_as_an_invalid_one(evaluator):
    faults = {"H-00000": ["blocked"], "H-00001": ["bad_answer"]}
    student = evaluator().evaluate(CASES, {"student": scripted(faults=faults)}).candidate("student")
    assert student.valid_share == pytest.approx(0.8)
    assert student.score_mean == pytest.approx(0.8)
    assert student.violations["no_answer"] == 2
    assert student.confusion["spring"]["invalid"] == 2
    assert [r.finish for r in student.results[:3]] == ["blocked", "bad_answer", "stop"]


def test_violations_are_counted_by_answer_and_kind(evaluator):
    answers = {"H-00000": [haiku("winter")], "H-00001": [haiku("winter")], "H-00002": ["no: [yaml"]}
    student = evaluator().evaluate(CASES, {"student": scripted(answers=answers)}).candidate("student")
    assert student.violations == {"season_outside_enum": 3, "unreadable": 1}


def test_time_per_call_is_the_median_and_the_95th_percentile(evaluator):
    completions = recorded(lambda case: haiku("spring"))
    timed = [
        c.model_copy(update={"usage": Usage(latency_s=float(n))}) for n, c in enumerate(completions, start=1)
    ]  # 1 .. 10 s
    teacher = evaluator().evaluate(CASES, {"teacher": timed}).candidate("teacher")
    assert teacher.seconds_per_call == pytest.approx(5.5)
    assert teacher.seconds_per_call_p95 == pytest.approx(9.55)


def test_candidates_that_are_not_interleaved_run_one_after_the_other(evaluator):
    ScriptedProvider.most_open = ScriptedProvider.open_now = 0
    names = {"base": scripted("base"), "student": scripted("student"), "other": scripted("o")}
    report = evaluator(interleaved=False).evaluate(CASES, names)
    assert ScriptedProvider.most_open == 1
    assert ScriptedProvider.open_now == 0
    assert report.interleaved is False


def test_candidates_are_asked_in_turn_and_who_is_first_changes(evaluator):
    ScriptedProvider.most_open = ScriptedProvider.open_now = 0
    ScriptedProvider.requests.clear()
    report = evaluator(concurrency=2).evaluate(CASES, {"a": scripted("a"), "b": scripted("b")})
    asked = [request.concept.concept_id[-1] for request in ScriptedProvider.requests]
    assert "".join(asked[:12]) == "010123234545"  # blocks of two cases, each for both
    assert (ScriptedProvider.most_open, ScriptedProvider.open_now) == (2, 0)
    assert report.interleaved is True
    assert [r.concept_id for r in report.candidate("b").results] == [c.concept_id for c in CASES]


def test_a_provider_that_is_paid_for_is_asked_alone(evaluator):
    ScriptedProvider.most_open = ScriptedProvider.open_now = 0
    paid = ProviderSettings(provider=PAID, model="paid")
    report = evaluator().evaluate(CASES, {"teacher": paid, "student": scripted()})
    assert ScriptedProvider.open_now == 0
    assert report.candidate("teacher").valid_share == 1.0
    assert report.reference == "teacher"


def test_concurrency_is_how_many_calls_are_in_flight(evaluator):
    for concurrency in (1, 4):
        ScriptedProvider.busiest = 0
        evaluator(concurrency=concurrency).evaluate(
            CASES, {"student": scripted(f"model of {concurrency}", delay_s=0.003)}
        )
        assert ScriptedProvider.busiest == concurrency


def test_a_student_that_beats_the_base_model_and_can_be_read_is_accepted(evaluator):
    base = {case.concept_id: [haiku("spring", lines=1)] for case in CASES}
    report = evaluator().evaluate(CASES, {"base": scripted("base", answers=base), "student": scripted(answers=PLANTED)})
    assert report.verdict.passed
    assert [reason.split(":")[0] for reason in report.verdict.reasons] == ["passed"] * 3
    assert "0.833 beats the base model's 0.333" in report.verdict.reasons[0]
    assert "0.900" in report.verdict.reasons[1]
    assert "0.792 is above 0.500" in report.verdict.reasons[2]


@pytest.mark.parametrize(
    ("student", "rule"),
    [
        (lambda case: haiku(case.planted_label, lines=2), 0),  # worse than the base model
        (lambda case: "no fence" if case.concept_id < "H-00003" else haiku(case.planted_label), 1),
        (lambda case: haiku("spring"), 2),  # always the same answer
    ],
)
def test_a_student_that_fails_one_rule_is_not_accepted(evaluator, student, rule):
    def base(case):
        return haiku(case.planted_label, lines=3 if rule == 0 else 1)

    verdict = evaluator().evaluate(CASES, {"base": recorded(base), "student": recorded(student)}).verdict
    assert not verdict.passed
    assert [reason.split(":")[0] for reason in verdict.reasons] == [
        "failed" if number == rule else "passed" for number in range(3)
    ]


def test_a_student_equal_to_the_base_model_does_not_beat_it(evaluator):
    same = recorded(lambda case: haiku(case.planted_label))
    assert not evaluator().evaluate(CASES, {"base": same, "student": same}).verdict.passed


def test_what_the_cases_cannot_decide_is_not_judged(evaluator):
    blind = [case.model_copy(update={"planted_label": None}) for case in CASES]
    report = evaluator().evaluate(blind, {"student": scripted()})
    assert [reason.split(":")[0] for reason in report.verdict.reasons] == ["not judged", "passed", "not judged"]
    assert report.candidate("student").verdict_balanced_accuracy is None
    assert report.labels == {"not planted": 10}
    verdict = evaluator().evaluate(CASES, {"base": scripted()}).verdict
    assert not verdict.passed
    assert verdict.reasons == ("failed: there is no candidate named student",)


# --- against a reference ------------------------------------------------------------------------


def test_answers_that_are_asked_for_again_are_told_apart_from_the_first(evaluator):
    answers = {"H-00000": ["no fence", haiku("spring")], "H-00001": ["no fence", "no fence", haiku("spring")]}
    report = evaluator(tries=2).evaluate(CASES, {"student": scripted(answers=answers)})
    student = report.candidate("student")
    assert student.valid_share == pytest.approx(0.8)
    assert (student.retried, student.valid_share_after_retries) == (2, pytest.approx(0.9))
    assert [case.tries for case in student.results[:3]] == [2, 2, 1]


def test_candidates_are_held_against_the_reference_item_by_item(evaluator):
    other = recorded(lambda case: haiku(case.planted_label, "new pond"))
    report = evaluator().evaluate(
        CASES, {"v2": other, "gold": recorded(lambda c: haiku(c.planted_label))}, reference="gold"
    )
    v2 = report.candidate("v2")
    assert v2.item_changes == {"same": 30, "reworded": 10}
    assert (v2.results[0].changes[1].reference, v2.results[0].changes[1].candidate) == ("old pond", "new pond")
    assert 0.5 < v2.meaning < 1.0
    assert (report.verdict.candidate, report.reference, report.candidate("gold").difference) == ("v2", "gold", None)
    assert "synonyms are not known" in report.meaning_by


def test_what_a_role_does_not_say_of_failures_is_told_by_the_score(evaluator):
    student = evaluator().evaluate(CASES, {"student": scripted(answers=PLANTED)}).candidate("student")
    causes = {case.concept_id: (case.failure.level, case.failure.cause) for case in student.failures}
    assert causes == {"H-00000": ("content", "swapped_verdict"), "H-00006": ("format", "unreadable")}
    assert [(cluster.cause, cluster.n) for cluster in student.clusters] == [("unreadable", 1), ("swapped_verdict", 1)]


def test_a_reference_or_a_model_in_production_that_is_no_candidate_is_refused(evaluator):
    for names in ({"reference": "gold"}, {"production": "gold"}):
        with pytest.raises(SettingsError, match="'gold' is not among the candidates"):
            evaluator().evaluate(CASES, {"student": scripted()}, **names)


def test_a_metric_of_the_users_own_is_tested_and_scores(evaluator):
    with pytest.raises(PODistillError, match="self-test failed"):
        evaluator(metric="test_evaluator_metrics:constant").evaluate(CASES, {"student": scripted()})
    report = evaluator(metric="test_evaluator_metrics:lines").evaluate(CASES, {"student": scripted(answers=PLANTED)})
    assert report.candidate("student").score_mean == pytest.approx((8 * 0.9 + 0.3) / 10)


# --- cases --------------------------------------------------------------------------------------


def examples(concepts, concept=True) -> list[Example]:
    return [
        Example(
            example_id=f"e-{number}",
            prompt=ROLE.render(one),
            completion=(Message(speaker="assistant", content=haiku("spring")),),
            concept=one if concept else None,
        )
        for number, one in enumerate(concepts)
    ]


@pytest.mark.parametrize("shape", ["examples", "examples without concepts", "concepts", "completions", "prompts"])
def test_a_case_that_was_trained_on_stops_the_run_with_its_id(evaluator, tmp_path, shape):
    trained = [CASES[3], haiku_concept(77), CASES[8]]
    rows = {
        "examples": lambda: examples(trained),
        "examples without concepts": lambda: examples(trained, concept=False),
        "concepts": lambda: [c.model_copy(update={"concept_id": f"other-{c.concept_id}"}) for c in trained],
        "completions": lambda: recorded(lambda case: haiku("spring"), trained),
        "prompts": lambda: [{"prompt": ROLE.render(c)[-1].content, "response": "x"} for c in trained],
    }[shape]()
    write_jsonl(tmp_path / "train.jsonl", rows)
    ledger = tmp_path / "ledger"
    with pytest.raises(InputError, match=r"2 held-out concepts are in the training file .*: H-00003, H-00008\."):
        evaluator(train_path=tmp_path / "train.jsonl").evaluate(CASES, {"student": scripted(ledger=str(ledger))})
    assert not ledger.exists()


def test_a_variation_of_a_trained_concept_is_a_leak(evaluator, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [CASES[0]])
    varied = haiku_concept(50).model_copy(update={"metadata": {"group": CASES[0].concept}})
    with pytest.raises(InputError, match="H-00050"):
        evaluator(train_path=tmp_path / "train.jsonl").evaluate([varied, CASES[1]], {"student": scripted()})


def test_cases_that_were_not_trained_on_pass(evaluator, tmp_path):
    write_jsonl(tmp_path / "train.jsonl", examples([haiku_concept(n) for n in range(50, 60)]))
    assert evaluator(train_path=tmp_path / "train.jsonl").evaluate(CASES, {"student": scripted()}).cases == 10


@pytest.mark.parametrize("rows", [CASES, examples(CASES), recorded(lambda case: haiku("spring"))])
def test_cases_come_from_concepts_examples_or_completions(evaluator, tmp_path, rows):
    write_jsonl(tmp_path / "cases.jsonl", rows)
    report = evaluator().evaluate(str(tmp_path / "cases.jsonl"), {"student": scripted()})
    assert [r.concept_id for r in report.candidate("student").results] == [c.concept_id for c in CASES]
    assert report.labels == {"autumn": 4, "spring": 6}


def test_cases_without_ids_of_their_own_or_without_any_case_are_refused(evaluator):
    with pytest.raises(InputError, match="share their ids: H-00000"):
        evaluator().evaluate([CASES[0], CASES[0]], {"student": scripted()})
    with pytest.raises(InputError, match="no held-out concepts"):
        evaluator().evaluate([], {"student": scripted()})


def test_a_subset_holds_every_class_alike_whatever_the_order(evaluator):
    many = [haiku_concept(number, "autumn" if number % 4 == 0 else "spring") for number in range(80)]
    report = evaluator(subset=20).evaluate(many, {"student": scripted()})
    assert report.labels == {"autumn": 10, "spring": 10}
    again = evaluator(subset=20).evaluate(many[::-1], {"student": scripted()})
    ids = [r.concept_id for r in report.candidate("student").results]
    assert ids == sorted(ids)
    assert sorted(r.concept_id for r in again.candidate("student").results) == ids
    rare = [haiku_concept(n) for n in range(50)] + [haiku_concept(99, "autumn")]
    assert evaluator(subset=4).evaluate(rare, {"student": scripted()}).labels == {"autumn": 1, "spring": 3}


# --- completions --------------------------------------------------------------------------------


def test_recorded_completions_are_read_from_a_file_and_matched_by_content(evaluator, tmp_path):
    completions = recorded(lambda case: haiku(case.planted_label), stand_in=True)[::-1]
    renamed = [c.model_copy(update={"concept": c.concept.model_copy(update={"concept_id": "x"})}) for c in completions]
    write_jsonl(tmp_path / "teacher.jsonl", renamed)
    teacher = evaluator().evaluate(CASES, {"teacher": tmp_path / "teacher.jsonl"}).candidate("teacher")
    assert (teacher.score_mean, teacher.stand_in, teacher.model) == (1.0, True, "teacher-1")
    assert teacher.verdict_balanced_accuracy == 1.0


def test_rows_of_other_tools_are_scored_as_recorded(evaluator, tmp_path):
    rows = [
        {
            "concept_id": case.concept_id,
            "concept": case.concept,
            "requirements_yaml": case.requirements_yaml,
            "response": haiku(case.planted_label),
            "latency_s": 3,
            "completion_tokens": 40,
        }
        for case in CASES
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    candidate = evaluator().evaluate(CASES, {"theirs": str(tmp_path / "rows.jsonl")}).candidate("theirs")
    assert (candidate.score_mean, candidate.seconds_per_call, candidate.model) == (1.0, 3.0, "rows.jsonl")
    assert candidate.results[0].usage.completion_tokens == 40


def test_a_recorded_candidate_that_misses_cases_is_refused_before_any_call(evaluator, tmp_path):
    ledger = tmp_path / "ledger"
    few = recorded(lambda case: haiku("spring"), CASES[:8])
    with pytest.raises(InputError, match=r"no completion for 2 of 10 held-out concepts: H-00008, H-00009"):
        evaluator().evaluate(CASES, {"student": scripted(ledger=str(ledger)), "teacher": few})
    assert not ledger.exists()


def test_a_candidate_that_answered_another_prompt_is_refused(evaluator):
    others = recorded(lambda case: haiku("spring"))
    wrong = [c.model_copy(update={"contract_digest": HaikuRole(prompt="Other.").contract.digest}) for c in others]
    with pytest.raises(ContractMismatchError, match="'teacher'"):
        evaluator().evaluate(CASES, {"teacher": wrong})


def test_completions_are_kept_and_can_be_judged_again_without_a_call(evaluator, tmp_path):
    first = evaluator().evaluate(CASES, {"student": scripted(answers=PLANTED)})
    kept = tmp_path / "evaluation" / "student.completions.jsonl"
    assert first.artifacts["completions of student"] == str(kept)
    assert len(list(read_records(kept, Completion))) == 10
    again = evaluator().evaluate(CASES, {"student": kept})
    assert again.candidate("student") == first.candidate("student")


def test_the_report_is_written_as_text_page_and_data(evaluator, tmp_path):
    report = evaluator().evaluate(CASES, {"student": scripted()}, artifacts={"GGUF": "models/s.gguf"})
    assert read_record(tmp_path / "docs" / "report.json", EvaluationReport) == report
    assert "models/s.gguf" in (tmp_path / "docs" / "report.md").read_text()
    assert "models/s.gguf" in (tmp_path / "docs" / "report.html").read_text()
    assert set(report.artifacts) == {"GGUF", "completions of student", "report", "report as a page", "report as data"}
    without = evaluator(report_path=None).evaluate(CASES, {"student": scripted()})
    assert set(without.artifacts) == {"completions of student"}


def test_a_network_that_stays_down_stops_the_run_and_scores_nobody_zero(evaluator, tmp_path):
    faults = {"H-00004": ["unavailable"] * 9}
    with pytest.raises(ProviderError) as caught:
        evaluator().evaluate(CASES, {"student": scripted(faults=faults)})
    assert caught.value.fault == "unavailable"
    assert not (tmp_path / "docs").exists()


def test_settings_that_make_no_sense_are_refused(evaluator):
    for wrong in ({"subset": 0}, {"concurrency": 0}, {"prompt": "x"}):
        with pytest.raises(SettingsError):
            evaluator(**wrong)
    with pytest.raises(SettingsError, match=r"'\.\./x'"):
        evaluator().evaluate(CASES, {"../x": scripted()})
    with pytest.raises(InputError, match="nobody"):
        evaluator().evaluate(CASES, {})


_CHILD = """
import sys, json
from haiku import HaikuRole, haiku_concept
from po_distill.records import ProviderSettings
from po_distill.stages.evaluator import Evaluator
folder, options = sys.argv[1], json.loads(sys.argv[2])
evaluator = Evaluator(HaikuRole(), folder=folder + "/e", report_path=folder + "/report.md", log_path=None)
models = {name: ProviderSettings(provider="haiku:ScriptedProvider", model=name, options=options)
          for name in ("base", "student")}
evaluator.evaluate([haiku_concept(n) for n in range(8)], models)
"""


def test_killed_in_the_middle_the_next_run_asks_only_what_is_missing(tmp_path):
    ledger = tmp_path / "ledger"
    options = {"ledger": str(ledger), "kill_at": "H-00005", "kill_once": str(tmp_path / "killed")}

    def run():
        return subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path), json.dumps(options)],
            env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert run().returncode == -9
    assert not (tmp_path / "report.md").exists()
    assert len(ledger.read_text().split()) == 11  # in turn: five cases for both, the sixth for one
    done = run()
    assert done.returncode == 0, done.stderr
    assert len(ledger.read_text().split()) == 11 + 1 + 5  # the call in doubt once more, the rest once
    assert "1 calls of an earlier run are in doubt" in done.stderr
    assert (tmp_path / "report.md").exists()
