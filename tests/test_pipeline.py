"""The whole road on a tiny random model, and what a kill at any stage leaves of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tiny_models import tiny_model

STAGES = ("concepts", "teacher", "dataset", "train", "merge", "package", "base_gguf", "evaluate")
SETTINGS = """
concepts: {count: 60}
dataset: {test_share: 0.3}
train: {base: tiny, max_steps: 3, batch: 2, lr: 0.001, max_seq_len: 4096, lora: {rank: 4, alpha: 8}}
evaluate: {subset: 6, max_tokens: 24}
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with settings and a tiny base model in it."""
    tiny_model(tmp_path / "tiny", max_position_embeddings=8192)
    (tmp_path / "run.yaml").write_text(SETTINGS)
    return tmp_path


def teacher_log(workplace: Path) -> Path:
    return next((workplace / "logs/distillation").glob("teacher_calls_*.log"))


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "po_distill", "run", "run.yaml", "--json", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(child: "subprocess.Popen[str]") -> tuple[dict[str, Any], str]:
    said, told = child.communicate(timeout=280)
    assert child.returncode == 0, told
    return json.loads(said), told


def state(folder: Path) -> dict[str, Any]:
    path = folder / "artifacts/models/po_student.run.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"stages": {}}


def test_the_whole_road_makes_every_artifact_and_a_second_run_keeps_all(workplace: Path) -> None:
    result, _ = finish(start(workplace))
    assert result["cases"] == 6
    for name in ("base", "student", "teacher"):
        assert set(result[name]) == {"score_mean", "valid_share", "verdict_balanced_accuracy", "seconds_per_call"}
    assert result["teacher"]["valid_share"] == result["teacher"]["verdict_balanced_accuracy"] == 1.0
    version = workplace / "artifacts/models/po_student_v1"
    for path in (
        workplace / "artifacts/synthetic/product_owner/concepts.jsonl",
        workplace / "artifacts/distillation/po_teacher_dataset.jsonl",
        workplace / "docs/po_distillation_report.md",
        teacher_log(workplace),
        workplace / "logs/distillation/po_student_v1.log",
        version / "adapter/adapter_config.json",
        version / "adapter/adapter_model.safetensors",
        version / "po_student_v1_lora.safetensors",
        version / "po_student_v1.safetensors",
        version / "model.safetensors.index.json",
        version / "config.json",
        version / "tokenizer.json",
        version / "po-student-v1.Q4_0.gguf",
        version / "Modelfile",
        version / "manifest.json",
    ):
        assert path.stat().st_size > 0, path
    assert all((workplace / path).exists() for path in result["artifacts"].values())
    manifest = json.loads((version / "manifest.json").read_text())
    assert set(manifest["stages"]) == {"train", "merge", "package"}
    assert not [path for path in workplace.rglob("*") if ".partial" in path.name or path.name == ".train"]

    before = {path: path.stat().st_mtime_ns for path in version.rglob("*") if path.is_file()}
    again, told = finish(start(workplace))
    assert again == result
    assert all(f"{name}: finished before, kept" in told for name in STAGES)
    assert {path: path.stat().st_mtime_ns for path in version.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_fresh_run_makes_a_new_version_beside_the_old_one(workplace: Path) -> None:
    finish(start(workplace))
    version = workplace / "artifacts/models/po_student_v1"
    before = {path: path.stat().st_mtime_ns for path in version.rglob("*") if path.is_file()}
    fresh, _ = finish(start(workplace, "--fresh"))
    assert "po_student_v2" in fresh["artifacts"]["gguf"]
    assert {path: path.stat().st_mtime_ns for path in version.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_killed_in_each_stage_goes_on_and_repeats_no_finished_one(workplace: Path) -> None:
    durations: dict[str, float] = {}
    for name in STAGES:
        child = start(workplace)
        deadline = time.monotonic() + 120
        while name not in state(workplace)["stages"] and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        finished = {stage: entry for stage, entry in state(workplace)["stages"].items() if entry["finished"]}
        # What was finished before was not done again: its note is the same to the letter.
        assert {stage: finished[stage]["duration_s"] for stage in durations} == durations
        durations = {stage: entry["duration_s"] for stage, entry in finished.items()}
    result, told = finish(start(workplace))
    assert result["cases"] == 6
    assert all(f"{name}: finished before, kept" in told for name in durations)
    assert len(durations) >= len(STAGES) - 1
    assert [path.name for path in (workplace / "artifacts/models").glob("po_student_v*")] == ["po_student_v1"]
    calls = teacher_log(workplace).read_text().splitlines()
    keys = [json.loads(line)["key"] for line in calls]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_other_training_settings_begin_a_new_version(workplace: Path) -> None:
    finish(start(workplace))
    (workplace / "run.yaml").write_text(SETTINGS.replace("max_steps: 3", "max_steps: 4"))
    result, told = finish(start(workplace))
    assert "dataset: finished before, kept" in told
    assert "po_student_v2" in result["artifacts"]["adapter"]
    assert (workplace / "artifacts/models/po_student_v1/manifest.json").exists()


@pytest.mark.slow
def test_somebodys_own_concepts_are_used_as_they_are(workplace: Path) -> None:
    path = workplace / "artifacts/synthetic/product_owner/concepts.jsonl"
    command = [sys.executable, "-m", "po_distill", "concepts", "--count", "40", "--seed", "99", "--output", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    before = path.read_bytes()
    _, told = finish(start(workplace, "--fresh"))
    assert path.read_bytes() == before
    assert "used as it is" in told
