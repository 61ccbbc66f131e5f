"""`po-distill evaluate` on recorded answers, as scripts and people use it."""

import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from po_distill.artifacts import read_record, write_jsonl
from po_distill.cli import cli
from po_distill.records import EvaluationReport
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole()
CONCEPTS = ROLE.generate_concepts(24, seed=2)


def rows(change=lambda number, text: text, concepts=CONCEPTS, **more) -> list[dict[str, object]]:
    return [
        {
            "concept_id": concept.concept_id,
            "concept": concept.concept,
            "requirements_yaml": concept.requirements_yaml,
            "tier": concept.tier,
            "response": change(number, ROLE.answer_by_rules(concept)),
            **more,
        }
        for number, concept in enumerate(concepts)
    ]


def broken(number: int, text: str) -> str:
    """Four of 24: two with an unquoted colon, one cut, one with the wrong verdict."""
    if number in (1, 2):
        return re.sub(r'^narrative: "(.*)"$', r"narrative: In short: \1", text, flags=re.MULTILINE)
    if number == 5:
        return text[: len(text) // 2]
    return text.replace('status: "aligned"', 'status: "misaligned"') if number == 0 else text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("teacher.jsonl", rows(latency_s=9.0, completion_tokens=300))
    write_jsonl("student.jsonl", rows(latency_s=2.0, completion_tokens=300))
    write_jsonl("broken.jsonl", rows(broken, latency_s=2.0))
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(cli, ["evaluate", *arguments], catch_exceptions=False)


def found(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_recorded_answers_are_judged_and_all_figures_are_in_one_object(place):
    told = found(
        "--reference",
        "teacher.jsonl",
        "--candidate",
        "student=broken.jsonl",
        "--candidate",
        "student.jsonl=student.jsonl",
    )
    student = told["candidates"]["student"]
    assert {"n", "mean", "valid_share", "std", "repaired_mean", "difference"} <= set(student)
    assert student["n"] == 24
    assert student["valid_share"] == pytest.approx(21 / 24)
    assert student["mean"] < student["repaired_mean"] < told["candidates"]["teacher"]["mean"]
    assert {"mean", "low", "high", "decision"} <= set(student["difference"])
    assert student["difference"]["low"] < student["difference"]["mean"] < student["difference"]["high"]
    causes = [(one["concept_id"], one["cause"]) for one in told["failures"] if one["candidate"] == "student"]
    assert causes == [
        (CONCEPTS[0].concept_id, "swapped_verdict"),
        (CONCEPTS[1].concept_id, "unquoted_colon"),
        (CONCEPTS[2].concept_id, "unquoted_colon"),
        (CONCEPTS[5].concept_id, "truncated"),
    ]
    assert told["verdict"]["outcome"] == "failed"


def test_the_exit_code_is_the_verdict_where_the_gate_is_asked_for(place):
    assert run("--reference", "teacher.jsonl", "--candidate", "student.jsonl", "--gate").exit_code == 0
    assert run("--reference", "teacher.jsonl", "--candidate", "broken.jsonl", "--gate").exit_code == 3
    assert run("--reference", "teacher.jsonl", "--candidate", "broken.jsonl").exit_code == 0
    Path("rules.yaml").write_text(
        "valid_share: 0.8\nstd: null\nmean_of_reference: 0.8\nslice_of_reference: null\n"
        "balanced_accuracy_of_reference: null\n"
    )
    undecided = run("--reference", "teacher.jsonl", "--candidate", "broken.jsonl", "--gate", "rules.yaml")
    assert undecided.exit_code == 4, undecided.output
    assert "broken is undecided: not accepted." in undecided.stdout
    assert run("--candidate", "student.jsonl", "--gate", "production").exit_code == 4


def test_the_model_in_production_decides_about_time(place):
    arguments = ["--reference", "teacher.jsonl", "--candidate", "student.jsonl", "--production", "teacher"]
    rules = {rule["rule"]: rule for rule in found(*arguments)["verdict"]["rules"]}
    assert rules["p95_of_production"]["outcome"] == "passed"
    assert rules["p95_of_production"]["value"] == pytest.approx(2 / 9)


def test_the_watch_list_is_a_slice_and_always_in_the_subset(place):
    watched = f"{CONCEPTS[3].concept_id}, {CONCEPTS[20].concept_id}"
    told = found("--reference", "teacher.jsonl", "--candidate", "student.jsonl", "--watch", watched, "--subset", "6")
    (one,) = [one for one in told["candidates"]["student"]["slices"] if one["kind"] == "watch"]
    assert (one["n"], told["cases"]) == (2, 6)


def test_a_subset_holds_every_verdict_of_the_reference_alike(place):
    many = [
        c for c in ROLE.generate_concepts(45, seed=3) if c.planted_label != "misaligned" or c.concept_id < "PO-3-00010"
    ]
    write_jsonl("teacher.jsonl", rows(concepts=many))
    write_jsonl("student.jsonl", rows(concepts=many))
    told = found("--reference", "teacher.jsonl", "--candidate", "student.jsonl", "--subset", "9")
    counts = {label: sum(row.values()) for label, row in told["candidates"]["student"]["reference_confusion"].items()}
    assert counts == {"aligned": 3, "misaligned": 3, "needs_adjustment": 3}
    assert sorted(one["n"] for one in told["candidates"]["student"]["slices"] if one["kind"] == "tier") == [3, 3, 3]


def test_scoring_again_asks_nobody_and_gives_the_same_figures(place):
    first = found("--reference", "teacher.jsonl", "--candidate", "student=broken.jsonl")
    kept = "artifacts/evaluation/{}.completions.jsonl"
    again = found("--reference", kept.format("teacher"), "--candidate", f"student={kept.format('student')}")
    for told in (first, again):
        del told["candidates"]["student"]["model"], told["candidates"]["teacher"]["model"]
    assert again["candidates"] == first["candidates"]
    assert again["failures"] == first["failures"]
    report = read_record("docs/po_distillation_report.json", EvaluationReport)
    assert set(report.digests) == {"teacher", "student"}


def test_a_second_try_is_told_apart_from_the_first(place):
    tries = [*rows(broken), *[row for n, row in enumerate(rows()) if n in (1, 5)]]
    random.Random(1).shuffle(tries)
    tries.sort(
        key=lambda row: (
            row["response"] == ROLE.answer_by_rules(CONCEPTS[1]) or row["response"] == ROLE.answer_by_rules(CONCEPTS[5])
        )
    )
    write_jsonl("tries.jsonl", tries)
    student = found("--reference", "teacher.jsonl", "--candidate", "student=tries.jsonl")["candidates"]["student"]
    assert student["valid_share"] == pytest.approx(21 / 24)
    assert (student["retried"], student["valid_share_after_retries"]) == (2, pytest.approx(23 / 24))


def test_a_case_that_was_trained_on_stops_the_run_with_its_id(place):
    write_jsonl("train.jsonl", rows(concepts=CONCEPTS[4:6]))
    arguments = [
        "evaluate",
        "--reference",
        "teacher.jsonl",
        "--candidate",
        "student.jsonl",
        "--train-data",
        "train.jsonl",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert (
        f"2 held-out concepts are in the training file train.jsonl: {CONCEPTS[4].concept_id}, {CONCEPTS[5].concept_id}"
        in str(result.exception)
    )
    assert not Path("docs").exists()


def test_time_of_a_pipeline_and_of_an_optimizer_is_projected(place):
    arguments = ["--reference", "teacher.jsonl", "--candidate", "student.jsonl", "--pipeline-calls", "100"]
    told = {
        (p["work"], p["candidate"]): p
        for p in found(*arguments, "--trials", "20", "--validation", "100")["projections"]
    }
    assert told["pipeline", "student"]["seconds"] == pytest.approx(200)
    assert told["miprov2", "teacher"]["seconds"] == pytest.approx(9 * (20 * 35 + 5 * 100))
    assert "n" not in told["pipeline", "student"] and "24 calls" in told["pipeline", "student"]["basis"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name whom to judge"),
        (["--candidate", "student.jsonl", "--candidate", "student.jsonl"], "Two candidates have one name"),
        (["--candidate", "student.jsonl", "--trials", "3"], "--trials and --validation go together"),
        (["--reference", "a=teacher.jsonl", "--candidate", "a=student.jsonl"], "both named a"),
    ],
)
def test_candidates_without_names_of_their_own_are_wrong_usage(place, arguments, said):
    result = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert result.exit_code == 2
    assert said in result.output


def test_stages_of_the_road_are_held_against_each_other(place):
    arguments = ["stages", "--stage", "adapter=teacher.jsonl", "--stage", "merged=student.jsonl"]
    assert run(*arguments).exit_code == 0
    lost = run(*arguments, "--stage", "gguf=broken.jsonl", "--json", "--output", "parity.json")
    assert json.loads(lost.stdout) == json.loads(Path("parity.json").read_text())


def test_the_report_tells_what_the_figures_show_and_what_to_do(place):
    found("--reference", "teacher.jsonl", "--candidate", "student=broken.jsonl")
    text = Path("docs/po_distillation_report.md").read_text()
    assert "2 of 24 answers fail by unquoted_colon (format)" in text
    assert CONCEPTS[5].concept_id in text
    assert "`po-distill dataset` writes them so" in text
    assert "n = 24" in text
