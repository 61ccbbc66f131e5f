"""A fake Vertex AI in a process of its own, and a gcloud that hands out its token: what the teacher's benchmarks ask.

The fake is the one of the tests (tests/fakes/vertex.py): it answers as the real one does, refuses what the real one
refuses, and keeps its own bill.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from po_distill.calls import Limits
from po_distill.records import Concept, GenerationSettings
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.teacher import Teacher

ROOT = Path(__file__).parents[1]
TOKEN = "ya29.benchmark"  # what the fake gcloud prints
PROJECT = "test-project"
MODEL = "gemini-2.5-pro"


class FakeTeacher:
    """The server, from outside."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def turn(self, **knobs: Any) -> None:
        """Change how it behaves from here on."""
        self._call("/_control/knobs", knobs)

    def bill(self) -> dict[str, Any]:
        """What it was asked and what that cost."""
        return self._call("/_control/bill", None)

    def _call(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base_url}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.loads(answer.read() or b"{}"))


@contextmanager
def fake_teacher(folder: Path, **knobs: Any) -> Iterator[FakeTeacher]:
    """The server with these knobs, until the block ends; PATH has the gcloud that goes with it."""
    command = [sys.executable, "-m", "fakes.vertex", "--token", TOKEN, "--project", PROJECT]
    for name, value in knobs.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    put_gcloud(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=folder)
    assert process.stdout is not None
    try:
        yield FakeTeacher(json.loads(process.stdout.readline())["base_url"])
    finally:
        process.terminate()
        process.wait(20)


def put_gcloud(folder: Path) -> None:
    """Put a gcloud that prints the token first on PATH."""
    script = folder / "bin" / "gcloud"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"#!/bin/sh\necho {TOKEN}\n")
    script.chmod(0o755)
    os.environ["PATH"] = f"{script.parent}{os.pathsep}{os.environ['PATH']}"


def open_teacher(fake: FakeTeacher, folder: Path, **settings: Any) -> Teacher:
    """Our teacher against the fake, with journal and cost log in the folder."""
    options = {"project": PROJECT, **settings.pop("options", {})}
    return Teacher(
        settings.pop("role", None) or ProductOwnerRole(),
        provider=settings.pop("provider", "vertex_cli"),
        model=MODEL,
        base_url=fake.base_url,
        options=options,
        limits=settings.pop("limits", Limits(budget_usd=1000.0)),
        generation=settings.pop("generation", GenerationSettings(max_tokens=8192)),
        journal_path=folder / "journal.sqlite",
        log_path=folder / "calls.log",
        **settings,
    )


def concepts(count: int, seed: int = 7) -> list[Concept]:
    """So many concepts with planted truth."""
    return ProductOwnerRole().generate_concepts(count, seed)


def logged_nanousd(folder: Path) -> int:
    """The sum of the cost log, in nano-dollars."""
    lines = (line for path in sorted(folder.glob("calls_*.log")) for line in path.read_text().splitlines())
    return sum(round((json.loads(line)["usd"] or 0.0) * 1e9) for line in lines)
