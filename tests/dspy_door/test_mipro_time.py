"""The command that times an optimization with two models."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("optuna")
pytest.importorskip("xllamacpp")
from answers_of_dspy import CONCEPTS, GOOD, saying
from po_distill.artifacts import write_jsonl
from po_distill.cli import cli
from po_distill.errors import PODistillError, SettingsError


@pytest.fixture(scope="module")
def concepts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "concepts.jsonl"
    write_jsonl(path, CONCEPTS[:6])
    return path


SMALL = ["--trials", "1", "--candidates", "3", "--validation", "2"]


def test_both_models_are_timed_on_the_same_work(concepts, tmp_path):
    student = saying(tmp_path / "student.gguf", GOOD)
    arguments = [
        "mipro-time",
        "offline",
        str(student),
        "--data",
        str(concepts),
        "--num-ctx",
        "8192",
        "--parallel",
        "2",
        *SMALL,
    ]
    result = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "times.json"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "times.json").read_text())
    old, new = found["times"]["old"], found["times"]["student"]
    assert old["calls"] >= 4
    assert new["calls"] >= 4
    assert (new["parse_errors"], new["failed"]) == (0, 0)
    assert 500 < new["longest_prompt"] < 8192
    assert old["score"] > 0.95
    assert new["score"] > 0.7
    assert new["duration_s"] > 0


def test_people_are_shown_a_table(concepts):
    arguments = ["mipro-time", "offline", "offline", "--data", str(concepts), "--num-ctx", "9000", *SMALL]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "1 trials x 2 concepts, 3 candidates; instructions by proposals/product_owner" in result.stdout
    assert "The student takes 1/" in result.stdout


def test_too_few_concepts_are_refused(concepts):
    arguments = ["mipro-time", "offline", "offline", "--data", str(concepts), "--validation", "5", "--num-ctx", "9000"]
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, SettingsError)
    assert "too few" in result.exception.problem


def test_an_evaluation_that_broke_off_is_no_score_of_0(monkeypatch):
    from po_distill.dspy import role_instructions, student_lm, time_mipro
    from po_distill.dspy.timing import _Watch

    monkeypatch.delattr(_Watch, "__deepcopy__")  # then DSPy's threads die before they ask, and it says nothing
    models = {"old": student_lm("offline", parallel=2)}
    settings = {"trials": 1, "candidates": 3, "validation": 2, "num_ctx": 9000}
    with pytest.raises(PODistillError, match="broke off"):
        time_mipro(models, CONCEPTS[:6], prompt_model=role_instructions(), **settings)
