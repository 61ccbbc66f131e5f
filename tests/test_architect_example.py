"""The second role of examples/po_distill_architect, installed as a package of its own and distilled end to end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from po_distill.pipeline import room_for_answers
from po_distill.weights.tokenization import load_tokenizer, tokenize_file
from tiny_models import tiny_model

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples" / "po_distill_architect"
SETTINGS = """
role: architect
concepts: {count: 36}
dataset: {test_share: 0.3}
train: {base: tiny, max_steps: 3, batch: 2, lr: 0.001, max_seq_len: 4096, lora: {rank: 4, alpha: 8}}
evaluate: {subset: 3, max_tokens: 16}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package installed into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(PACKAGE)], check=True)
    return target


def run(site: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr + result.stdout
    return result


def po_distill(site: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(run(site, folder, "po_distill", *arguments, "--json").stdout))


def test_its_own_tests_pass_on_the_installed_package(site: Path, tmp_path: Path) -> None:
    run(site, tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(PACKAGE / "tests"))


def test_role_and_metric_are_listed_with_their_package(site: Path, tmp_path: Path) -> None:
    rows = po_distill(site, tmp_path, "plugins")["plugins"]
    found = {row["group"] for row in rows if (row["name"], row["package"]) == ("architect", "po-distill-architect")}
    assert found == {"roles", "metrics"}


@pytest.mark.slow
def test_the_whole_road_is_walked_beside_the_product_owners_files(site: Path, tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny", max_position_embeddings=8192)
    (tmp_path / "run.yaml").write_text(SETTINGS)
    result = po_distill(site, tmp_path, "run", "run.yaml")
    assert result["cases"] == 3
    assert result["teacher"]["valid_share"] == result["teacher"]["verdict_balanced_accuracy"] == 1.0
    assert all((tmp_path / path).exists() for path in result["artifacts"].values())
    version, data = tmp_path / "artifacts/models/architect_student_v1", tmp_path / "artifacts/distillation"
    for path in (
        tmp_path / "artifacts/synthetic/architect/concepts.jsonl",
        data / "architect_teacher_dataset.jsonl",
        tmp_path / "docs/architect_distillation_report.md",
        version / "architect-student-v1.Q4_0.gguf",
        version / "Modelfile",
    ):
        assert path.stat().st_size > 0, path
    product_owners = {f"po_{name}" for name in ("teacher_dataset", "distillation_report", "student_v1")}
    assert {path.stem for path in tmp_path.rglob("*")} & {*product_owners, "product_owner"} == set()

    # What is left open in place of a limit: every right answer fits into it, and is not far from it.
    test_path = data / "architect_teacher_dataset.test.jsonl"
    lengths = [
        row.answer_tokens for row in tokenize_file(test_path, load_tokenizer(version / "adapter"), max_seq_len=9999)
    ]
    room = room_for_answers(data / "architect_teacher_dataset.jsonl", version / "adapter")
    assert max(lengths) < room < 1.5 * max(lengths)

    # The commands that a run names next find the role by the dataset's manifest and the student's.
    assert po_distill(site, tmp_path, "dataset", "check", str(data / "architect_teacher_dataset.jsonl"))["fit"]
    again = po_distill(site, tmp_path, "evaluate", "--model", str(version), "--subset", "3", "--max-tokens", "8")
    assert again["cases"] == 3
    assert json.loads((version / "evaluation.json").read_text())["role"] == "architect"


@pytest.mark.slow
def test_each_command_keeps_to_the_roles_own_files(site: Path, tmp_path: Path) -> None:
    made = po_distill(site, tmp_path, "concepts", "--role", "architect", "--count", "12")
    assert made["path"] == "artifacts/synthetic/architect/concepts.jsonl"
    assert made["labels"] == {"feasible": 4, "infeasible": 4, "needs_clarification": 4}
    built = po_distill(site, tmp_path, "dataset", "--role", "architect")
    assert built["contract"]["role"] == "architect"
    assert (tmp_path / "artifacts/distillation/architect_teacher_dataset.jsonl").is_file()
    exported = tmp_path / "artifacts/distillation/architect_teacher_dataset.completions.jsonl"
    exported.unlink()
    po_distill(site, tmp_path, "journal", "export", "--role", "architect")
    assert len(exported.read_text().splitlines()) == 12


def test_no_line_of_the_library_names_the_role() -> None:
    sources = [path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".yaml", ".js", ".css")]
    named = re.compile(r"(?<![a-z])architect(?![a-z])", re.IGNORECASE)  # and not the architecture of a model
    assert [path for path in sources if named.search(path.read_text())] == []
