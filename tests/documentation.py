"""The pages of the documentation and their code blocks, for the tests that hold the pages to the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
_WRITTEN_BY_RUNS = ("po_distillation_report.md", "plan.md")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md"] + [
    page for page in sorted(DOCS.rglob("*.md")) if str(page.relative_to(DOCS)) not in _WRITTEN_BY_RUNS
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"^<!-- not run: (.*) -->$", re.MULTILINE)
LANGUAGES = {"bash", "python", "yaml", "json", "toml", "text"}

# Why a block may be left out by `<!-- not run: REASON -->` right over it, and what it must hold to be excused so.
REASONS = {
    "a plugin of yours": r"--(provider|launcher) (my_|parrot)|--metric my_|--role architect",
    "another machine": r"rsync|scp|ssh|\.venv/bin/activate|pip install --no-index",
    "needs a cloud account": r"vertex|gcloud|gs://",
    "needs a GPU": r"po-distill (train|run|evaluate|merge)",
    "needs a server": r"--base-url|--host|curl|llama-server|vllm serve",
    "needs an Ollama server": r"--install|--host|package (list|remove)|po-distill smoke|ollama|valid_answer|student_lm",
    "needs the network": r"download|git clone|pip install",
    "takes minutes": r"quickstart|po-distill (train|run|evaluate)|python benchmarks|make test|BootstrapFinetune|mipro",
}


class Block(NamedTuple):
    """One fenced block; `left_out` is the reason for which it is not run."""

    page: Path
    line: int
    language: str
    body: str
    left_out: str | None

    def commands(self) -> list[str]:
        """The lines of a block for a shell, continued ones joined, comments left out."""
        lines = [line.strip() for line in self.body.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line and not line.startswith("#")]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()]
        over = NOT_RUN.fullmatch(before.rstrip("\n").rpartition("\n")[2]) if before.endswith("-->\n") else None
        found.append(Block(page, before.count("\n") + 1, fence[1], fence[2], over[1] if over else None))
    return found


def prose_of(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
