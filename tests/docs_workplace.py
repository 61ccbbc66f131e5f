"""The folder of a reader of the documentation: what its pages begin with, small enough to be worked on in seconds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from click.testing import CliRunner

from adapters import record
from pipeline_files import CONFIG, make_version
from po_distill.artifacts import write_json, write_jsonl
from po_distill.cli import cli
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.merger import Merger
from po_distill.weights.gguf import write_gguf
from tiny_models import tiny_adapter, tiny_model

ROLE = ProductOwnerRole()
DATASET = "artifacts/distillation/po_teacher_dataset"


def make_workplace(folder: Path) -> Path:
    """Concepts, a dataset, recorded answers, and a tiny student's adapter under the names that the pages use."""
    os.chdir(folder)
    for line in (["concepts", "--count", "60"], ["dataset"]):
        CliRunner().invoke(cli, line, catch_exceptions=False)
    for name in ("recorded_answers", "po_teacher_supervised", "artifacts/distillation/po_teacher_supervised"):
        shutil.copy(f"{DATASET}.completions.jsonl", f"{name}.jsonl")
    concepts = ROLE.generate_concepts(30, seed=99)
    answered = [
        {**concept.model_dump(mode="json"), "response": ROLE.answer_by_rules(concept), "latency_s": 2.0}
        for concept in concepts
    ]
    for name in ("teacher", "student", "base", "gemini", "adapter", "merged", "gguf", "ollama"):
        write_jsonl(f"{name}.jsonl", answered)
    results = [{**row, "raw_response": row["response"], "latency_s": 0.5} for row in answered]
    Path("student.json").write_text(json.dumps({"results": results}))
    write_jsonl("my_concepts.jsonl", concepts)
    write_jsonl("validation.jsonl", answered[:5])
    write_json("concept.json", concepts[0])
    Path("rules.yaml").write_text("valid_share: 0.9\n")
    Path("config.yaml").write_text(CONFIG)
    Path("prompts").mkdir()
    Path("prompts/product_owner.md").write_text(ROLE.contract.system)
    for version in ("v1", "v2"):
        Path(f"artifacts/distillation/{version}").mkdir()
        for split in Path(DATASET).parent.glob("po_teacher_dataset*.json*"):
            shutil.copy(split, f"artifacts/distillation/{version}")
    make_student()
    return folder


def make_student() -> None:
    base = tiny_model(Path("checkpoints/mistral-7b-instruct"), max_position_embeddings=8192)
    for name in ("artifacts/models/po_student_v1/adapter", "adapters/mine", "adapters/yours"):
        tiny_adapter(base, Path(name))
    record(Path("artifacts/models/po_student_v1"), base, contract=ROLE.contract)
    write_gguf(base, Path("model.gguf"), "q4_0")


def make_merged_student() -> None:
    """What the page before the packager's ends with."""
    Merger().merge("artifacts/models/po_student_v1/adapter", "artifacts/models/po_student_v1")


def make_accepted_student() -> None:
    """In place of the tiny student: two versions that are packaged, and judged fit for production."""
    shutil.rmtree("artifacts/models")
    for number in (1, 2):
        make_version(Path(f"artifacts/models/po_student_v{number}"), f"po-student-v{number}")
