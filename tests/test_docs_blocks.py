"""Every block of code in the documentation runs, in the order of its page, in a reader's folder.

A block that cannot run here has `<!-- not run: REASON -->` right over it; the reasons are in tests/documentation.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs_workplace import make_accepted_student, make_merged_student, make_workplace
from documentation import LANGUAGES, NOT_RUN, PAGES, REASONS, ROOT, Block, blocks_of, name_of
from po_distill import records
from po_distill.cli import main
from po_distill.gate_rules import read_gate
from po_distill.model_table import read_rows
from po_distill.plugins import GROUPS

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNING = [page for page in PAGES if any(b.language in ("bash", "python") for b in blocks_of(page) if not b.left_out)]
PREPARED = {"package.md": make_merged_student, "promote.md": make_accepted_student, "smoke.md": make_accepted_student}
SMALLER = {"--count 600": "--count 60"}  # enough to see that commands fit together
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def where(block: Block) -> str:
    return f"{name_of(block.page)}:{block.line}"


def of_language(*languages: str) -> list[Any]:
    return [pytest.param(block, id=where(block)) for block in BLOCKS if block.language in languages]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with contextlib.chdir(tmp_path_factory.mktemp("reader")):
        return make_workplace(Path.cwd())


@pytest.fixture
def reader(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workplace, to work in; a person at its terminal says yes."""
    folder = tmp_path / "reader"
    shutil.copytree(workplace, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PO_DISTILL_QUIET", "1")
    monkeypatch.setattr("po_distill.commands.integration._is_terminal", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *_, **__: True)
    hub = folder / "checkpoints/mistral-7b-instruct"  # a tiny model in its place
    monkeypatch.setattr("po_distill.weights.checkpoint._from_hub", lambda *_: hub)
    return folder


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PREPARED.get(page.name, lambda: None)()
    names: dict[str, Any] = {"__name__": "documentation"}
    for block in blocks_of(page):
        if block.left_out:
            continue
        if block.language == "python":
            exec(compile(block.body, where(block), "exec"), names)
        elif block.language == "bash":
            for line in block.commands():
                run(line, where(block), monkeypatch)


def run(line: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a shell block. Of programs other than ours it is looked at whether they are there."""
    for shown, taken in SMALLER.items():
        line = line.replace(shown, taken)
    words = shlex.split(line, comments=True)
    with monkeypatch.context() as environment:
        while re.match(r"[A-Z_]+=", words[0]):
            environment.setenv(*words.pop(0).split("=", 1))
        program, *arguments = words
        if program == "po-distill":
            status, said = po_distill(arguments, environment)
            told = (0, 3) if arguments[:2] == ["dataset", "check"] else (0,)  # 3: a verdict that is no
            assert status in told, f"{place}: {line}\nexit status {status}\n{said[:2000]}"
        elif program == "python":  # tests/test_examples.py and tests/test_benchmarks.py run these
            assert (ROOT / arguments[0]).is_file(), f"{place}: {line}"
        elif program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert arguments[0] in targets, f"{place}: {line}"
        else:
            pytest.fail(
                f"{place}: {line}\nNothing runs {program!r} here: write <!-- not run: REASON --> over the block."
            )


def po_distill(arguments: list[str], environment: pytest.MonkeyPatch) -> tuple[int, str]:
    environment.setattr(sys, "argv", ["po-distill", *arguments])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0), said.getvalue()


def test_every_fence_is_a_block_of_a_known_language() -> None:
    for page in PAGES:
        fences = re.findall(r"^\s*(?:`{3,}|~{3,})", page.read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), f"{name_of(page)} has a fence that these tests do not see"
    assert [where(block) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_a_block_is_left_out_only_for_a_known_reason_that_fits_it() -> None:
    left_out = [block for block in BLOCKS if block.left_out]
    marks = sum(len(NOT_RUN.findall(page.read_text())) for page in PAGES)
    assert marks == len(left_out), "a mark does not stand right over a block"
    assert [where(block) for block in left_out if block.left_out not in REASONS] == []
    for block in left_out:
        assert re.search(REASONS[str(block.left_out)], block.body), f"{where(block)}: {block.left_out}?"


@pytest.mark.parametrize("block", of_language("python"))
def test_python_that_is_left_out_compiles_too(block: Block) -> None:
    compile(block.body, where(block), "exec")


@pytest.mark.parametrize("block", of_language("bash"))
def test_what_is_installed_is_an_extra_of_ours(block: Block) -> None:
    wanted = re.findall(r"po-distill\[([\w,]+)\]", block.body)
    assert {extra for extras in wanted for extra in extras.split(",")} <= set(EXTRAS)


@pytest.mark.parametrize("block", of_language("json"))
def test_json_is_read(block: Block) -> None:
    assert json.loads(block.body)


@pytest.mark.parametrize("block", of_language("toml"))
def test_toml_names_groups_of_plugins_that_there_are(block: Block) -> None:
    groups = tomllib.loads(block.body).get("project", {}).get("entry-points", {})
    assert set(groups) <= {f"po_distill.{group}" for group in GROUPS}


@pytest.mark.parametrize("block", of_language("yaml"))
def test_yaml_is_read(block: Block) -> None:
    assert yaml.safe_load(block.body)


def test_the_gate_in_the_page_is_the_librarys_own(tmp_path: Path) -> None:
    (block,) = (block for block in BLOCKS if block.page.name == "evaluate.md" and block.language == "yaml")
    (tmp_path / "rules.yaml").write_text(block.body)
    assert read_gate(tmp_path / "rules.yaml") == read_gate("production")


def test_the_model_in_the_teachers_page_is_a_row_of_the_table(tmp_path: Path) -> None:
    (block,) = (block for block in BLOCKS if block.page.name == "teacher.md" and block.language == "yaml")
    (tmp_path / "models.yaml").write_text(block.body)
    assert [row.model for row in read_rows(tmp_path / "models.yaml")] == ["my-model"]


def test_the_concept_in_the_page_is_one() -> None:
    (block,) = (block for block in BLOCKS if block.page.name == "concepts.md" and block.language == "json")
    assert records.Concept.model_validate_json(block.body).planted_label == "needs_adjustment"
