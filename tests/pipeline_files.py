"""A workplace with a pipeline's config.yaml and an accepted student in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from generated_configs import ROLE
from po_distill.artifacts import digest_file, write_json
from po_distill.records import (
    EvaluationReport,
    GenerationSettings,
    GGUFFile,
    OllamaPackage,
    PromptContract,
    RunManifest,
    Verdict,
)

CONFIG = """\
# the pipeline's own file
providers:
  vertex:   # hosted
    type: vertex_ai
    project_id: acme

roles:
  product_owner:
    provider: vertex
    model: "gemini-2.5-pro"  # until the student is there
    temperature: 0.7
  architect: {provider: vertex, model: gemini-2.5-flash}
"""
PROMOTED = """\
# the pipeline's own file
providers:
  vertex:   # hosted
    type: vertex_ai
    project_id: acme
  ollama:
    type: ollama
    base_url: "http://localhost:11434"

roles:
  product_owner:
    provider: ollama
    model: "po-student-v1"  # until the student is there
    temperature: 0.4
    max_tokens: 4096
  architect: {provider: vertex, model: gemini-2.5-flash}
"""
CONTRACT = PromptContract(role=ROLE, name="fenced", system="", template="{concept}", output_format="1")


def make_workplace(folder: Path) -> Path:
    """The config's path, in the folder, which is the current one then; po-student-v1 is packaged and accepted there."""
    os.chdir(folder)
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    make_version(folder / "artifacts/models/po_student_v1", "po-student-v1")
    return path


def make_version(folder: Path, name: str, **changes: Any) -> str:
    """A version folder with a package and a passed report on it; the digest of its GGUF."""
    folder.mkdir(parents=True)
    gguf_path = folder / f"{name}.Q4_0.gguf"
    gguf_path.write_bytes(f"the weights of {name}".encode())
    gguf = GGUFFile(
        path=str(gguf_path), quantization="q4_0", architecture="llama", size_bytes=9, tensors={},
        digest=digest_file(gguf_path),
    )  # fmt: skip
    package = OllamaPackage(
        name=name, path=str(folder), gguf=gguf, modelfile_path="Modelfile", num_ctx=8192, stops=(), contract=CONTRACT,
        create_command="ollama create",
    )  # fmt: skip
    stages = {"package": package.model_dump(mode="json")}
    write_json(folder / "manifest.json", RunManifest(version="v", po_distill="1", stages=stages, created_at="now"))
    write_json(folder / "evaluation.json", make_report(**{"student_digest": gguf.digest, **changes}))
    return gguf.digest


def make_report(**changes: Any) -> EvaluationReport:
    values: dict[str, Any] = {
        "role": ROLE, "contract": CONTRACT, "cases": 1, "labels": {}, "candidates": (),
        "verdict": Verdict(passed=True, reasons=("passed: all of it",)), "generation": GenerationSettings(),
        "created_at": "2026-11-23T10:00:00+00:00",
    }  # fmt: skip
    return EvaluationReport(**{**values, **changes})


def lines(config: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.parent / "promotions.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    return [name for name in ("staged", "pending.json") if (folder / ".po_distill" / name).exists()]
