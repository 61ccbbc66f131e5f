"""`po-distill promote`, `rollback` and `promotions` as a user meets them."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pipeline_files import CONFIG, PROMOTED, make_workplace
from po_distill.commands.integration import promote, promotions, rollback
from po_distill.errors import SettingsError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    return make_workplace(tmp_path)


def run(command: click.Command, *arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(command, ["--config", "config.yaml", *arguments], **more)


def test_the_commands_promote_show_and_roll_back(config: Path) -> None:
    dry = run(promote, "--model", "po-student-v1", "--dry-run")
    assert '+    model: "po-student-v1"' in dry.output and "Nothing was written." in dry.output
    assert config.read_text() == CONFIG
    done = run(promote, "--model", "po-student-v1", "--yes")
    assert done.exit_code == 0
    assert "Back: po-distill rollback --config config.yaml" in done.output
    assert "says so already" in run(promote, "--model", "po-student-v1", "--yes").output
    listed = run(promotions).output
    assert "product_owner: po-student-v1 of ollama, GGUF" in listed
    assert "Promoted: po-student-v1 for product_owner, since 20" in listed
    assert "is what it was" in run(rollback, "--yes").output
    assert config.read_text() == CONFIG
    assert "takes back 1" in run(promotions).output and "Nothing is promoted." in run(promotions).output


def test_the_commands_print_one_json_object(config: Path) -> None:
    change = json.loads(run(promote, "--model", "po-student-v1", "--yes", "--json").stdout)
    assert change["applied"] and change["after"]["model"] == "po-student-v1"
    found = json.loads(run(promotions, "--json").stdout)
    assert found["promoted"]["model"] == "po-student-v1" and found["as_left"]
    assert len(found["promotions"]) == 1
    assert json.loads(run(rollback, "--json", "--dry-run").stdout)["applied"] is False
    assert config.read_text() == PROMOTED


def test_without_a_terminal_and_without_yes_nothing_is_asked_or_written(config: Path) -> None:
    for command, arguments in ((promote, ["--model", "po-student-v1"]), (rollback, [])):
        error = run(command, *arguments).exception
        assert isinstance(error, SettingsError)
        assert "--yes" in error.fix
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(("answer", "written"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks(config: Path, monkeypatch: pytest.MonkeyPatch, answer: str, written: bool) -> None:
    monkeypatch.setattr("po_distill.commands.integration._is_terminal", lambda: True)
    asked = run(promote, "--model", "po-student-v1", input=answer)
    assert "Write this to" in asked.output
    assert (config.read_text() == PROMOTED) == written


def test_a_difference_is_coloured_on_a_terminal_alone(config: Path) -> None:
    plain = run(promote, "--model", "po-student-v1", "--dry-run").output
    coloured = run(promote, "--model", "po-student-v1", "--dry-run", color=True).output
    assert "\x1b" not in plain
    assert "\x1b[32m+    model" in coloured and "\x1b[31m-    model" in coloured
