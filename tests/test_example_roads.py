"""The examples that walk a road of several stages, with a tiny model in the place of a real one."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from fakes.logins import service_account
from fakes.vertex_batch import FakeBatchVertex, Knobs, product_owner_answer
from po_distill.artifacts import read_manifest
from po_distill.pipeline import open_teacher
from po_distill.plugins import load
from po_distill.settings import read_settings

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = json.loads((EXAMPLES / "rented_gpu.ipynb").read_text())


ROLE = load("roles", "product_owner")()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model whose tokenizer knows the role's words, so that a row fits into 2,048 tokens."""
    concepts = ROLE.generate_concepts(60, seed=7)
    texts = [ROLE.render(concept)[-1].content + ROLE.answer_by_rules(concept) for concept in concepts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "TEXTS", texts)
        return tiny_models.tiny_model(tmp_path_factory.mktemp("base") / "tiny", max_position_embeddings=8192)


def run(script: str, *arguments: object, folder: Path, **environment: str) -> str:
    command = [sys.executable, script, *map(str, arguments)]
    variables = {**os.environ, "PO_DISTILL_QUIET": "1", **environment}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=280, env=variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_by_hand_walks_from_concepts_to_a_verdict(tiny: Path, tmp_path: Path) -> None:
    said = run(str(EXAMPLES / "quickstart.py"), tmp_path, 0.1, tiny, 3, folder=tmp_path).splitlines()
    assert said[0].startswith("120 answers = ")
    assert " steps, loss " in said[1]
    assert said[2] == f"{tmp_path}/po_student_v1/po-student-v1.Q8_0.gguf: 0 MB"
    assert said[3].startswith("metric 0.000, valid 0.00, ")  # its base is random
    assert said[4] == "not accepted"
    assert (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def notebook(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The notebook's code as a script beside the folder that it has worked in."""
    folder = tmp_path_factory.mktemp("notebook")
    script = folder / "notebook.py"
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code" and "install" not in tags(cell)]
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    walk(script, folder / "work", tiny)
    return script, folder / "work"


def tags(cell: dict[str, dict[str, list[str]]]) -> list[str]:
    return cell["metadata"].get("tags", [])


def walk(script: Path, folder: Path, base: Path) -> dict[str, Any]:
    """Run the cells in this process, as a notebook's kernel would; what they have defined."""
    chosen = {"BASE": str(base), "FOLDER": str(folder), "CONCEPTS": "60", "MAX_STEPS": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in chosen.items():
            patch.setenv(f"PO_DISTILL_{name}", value)
        return runpy.run_path(str(script), run_name="notebook")


def test_the_notebook_trains_merges_and_packages(notebook: tuple[Path, Path]) -> None:
    _, folder = notebook
    manifest = read_manifest(folder / "artifacts/models/po_student_v1")
    assert manifest is not None
    assert set(manifest.stages) == {"train", "merge", "package"}
    with zipfile.ZipFile(folder / "po_student_v1.zip") as takeaway:
        names = set(takeaway.namelist())
    there = {"po-student-v1.Q4_0.gguf", "Modelfile", "manifest.json", "adapter/adapter_model.safetensors"}
    assert {f"po_student_v1/{name}" for name in there} <= names
    assert not [name for name in names if name.endswith("po_student_v1.safetensors")]


def test_the_notebook_run_again_keeps_what_is_finished(notebook: tuple[Path, Path], tiny: Path) -> None:
    script, folder = notebook
    gguf = folder / "artifacts/models/po_student_v1/po-student-v1.Q4_0.gguf"
    before = gguf.stat().st_mtime_ns
    assert "trained" not in walk(script, folder, tiny)
    assert gguf.stat().st_mtime_ns == before


def test_the_notebook_is_clean_and_installs_our_own_extras() -> None:
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == []
    (install,) = ("".join(cell["source"]) for cell in code if "install" in tags(cell))
    assert install == '%pip install --quiet "po-distill[train,gguf,llamacpp]"'
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_the_batch_teacher_is_planned_and_asked_within_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = read_settings(EXAMPLES / "batch_teacher.yaml").teacher
    assert wanted.budget_usd is not None
    with FakeBatchVertex(Knobs(answer=product_owner_answer), bucket="my-bucket") as fake:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(service_account(tmp_path / "login.json", fake)))
        quick = {"storage_base_url": fake.base_url, "gather_s": 0.2, "poll_s": 0.02}
        here = wanted.model_copy(update={"base_url": fake.base_url, "options": {**wanted.options, **quick}})
        teacher = open_teacher(ROLE, here, tmp_path)
        concepts = ROLE.generate_concepts(600, seed=7)
        plan = teacher.plan(concepts)
        assert (plan.to_ask, plan.model) == (600, "gemini-2.5-pro")
        assert plan.cost_usd is not None
        assert plan.cost_usd < wanted.budget_usd
        summary = teacher.write(concepts[:60], tmp_path / "completions.jsonl")
        assert (summary.accepted, summary.stopped, len(fake.jobs)) == (60, None, 1)
        assert 0 < summary.charged_usd < plan.cost_usd / 10
