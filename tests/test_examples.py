"""The examples as a reader runs them."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import po_distill
from po_distill.settings import Settings, read_settings

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))


def run(name: str, *arguments: object, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_teacher_example_answers_and_a_second_run_asks_nothing(tmp_path: Path) -> None:
    assert "30 calls, 0 answers found" in run("teacher.py", tmp_path, folder=tmp_path)
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 30
    assert "0 calls, 30 answers found" in run("teacher.py", tmp_path, folder=tmp_path)


def test_the_dataset_example_accounts_for_every_answer(tmp_path: Path) -> None:
    assert "60 answers = {'train': " in run("dataset_builder.py", tmp_path, folder=tmp_path)
    files = ("dataset.jsonl", "dataset.validation.jsonl", "dataset.test.jsonl", "dataset.rejected.jsonl")
    assert sum(len((tmp_path / name).read_text().splitlines()) for name in files) == 60


def test_the_doctors_example_names_the_rules_that_are_broken(tmp_path: Path) -> None:
    lines = run("dataset_doctor.py", folder=tmp_path).splitlines()
    broken = {line.split()[1] for line in lines if line.startswith("BROKEN")}
    assert broken == {"gate", "duplicate_prompts", "rare_class"}
    assert lines[-1] == "not fit for training"


def test_the_metric_example_tells_sound_from_empty(tmp_path: Path) -> None:
    said = run("metric.py", folder=tmp_path)
    assert "sound: 0.95" in said
    assert "empty: 0.0156, good enough: False" in said


def test_the_role_example_reads_a_sloppy_answer(tmp_path: Path) -> None:
    assert "violations: []" in run("role.py", folder=tmp_path)


def test_the_provider_example_is_asked_and_scored(tmp_path: Path) -> None:
    lines = run("provider_plugin.py", tmp_path, folder=tmp_path).splitlines()
    assert [line.split()[-1] for line in lines] == ["aligned", "needs_adjustment", "misaligned"]


def test_the_dspy_example_asks_optimizes_and_evaluates_one_program(tmp_path: Path) -> None:
    pytest.importorskip("dspy")
    said = run("dspy_product_owner.py", folder=tmp_path)
    assert said.splitlines()[0] in ("aligned", "needs_adjustment", "misaligned")
    assert "kept as a demonstration: True" in said
    assert "valid 100%" in said


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_name_that_an_example_imports_exists(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("po_distill"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_every_stage_and_the_metric_have_an_example() -> None:
    imported = {
        alias.name
        for script in SCRIPTS
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "po_distill"
        for alias in node.names
    }
    wanted = {"Teacher", "DatasetBuilder", "LoRATrainer", "Merger", "Packager", "Evaluator", "distill"}
    assert wanted | {"product_owner_metric", "Provider"} <= imported <= set(po_distill.__all__)


def test_run_yaml_names_every_setting_at_its_default() -> None:
    path = EXAMPLES / "run.yaml"
    assert read_settings(path) == Settings()
    text = path.read_text()
    assert [name for name in _names(Settings()) if f"{name}:" not in text] == []


def test_run_mistral_yaml_is_the_plans_run() -> None:
    settings = read_settings(EXAMPLES / "run_mistral.yaml")
    train = settings.train
    assert (train.base, train.lora.rank, train.lora.alpha, train.lora.dropout) == ("mistral-7b-instruct", 32, 64, 0.05)
    assert (settings.concepts.count, settings.teacher.provider, settings.package.quantization) == (
        600,
        "replay",
        "q4_0",
    )


def _names(section: BaseModel) -> list[str]:
    found = []
    for name, value in section:
        found += [name, *(_names(value) if isinstance(value, BaseModel) else [])]
    return found
