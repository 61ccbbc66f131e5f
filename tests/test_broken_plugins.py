"""Installed packages whose plugins are broken: told with package and reason, and in nobody's way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from po_distill.roles.product_owner.role import ProductOwnerRole

MODULES = {
    "broken_import": "import no_such_module_anywhere\n",
    "broken_syntax": "def answer(:\n",
    "broken_exit": "raise SystemExit('bye')\n",
    "broken_extra": "from po_distill.errors import MissingExtraError\nraise MissingExtraError('x', 'y', 'Z')\n",
    "broken_noise": "print('noise')\nraise RuntimeError('\\x1b[31mred')\n",
    "broken_objects": "class Half:\n    def __init__(self, settings, role): ...\nnumber = 3\n",
}
# group, name, target -> what is said of it
PLUGINS = {
    ("providers", "b-import", "broken_import:P"): "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ("providers", "b-syntax", "broken_syntax:P"): "SyntaxError",
    ("providers", "b-exit", "broken_exit:P"): "SystemExit: bye",
    ("providers", "b-half", "broken_objects:Half"): "is no provider: it lacks aclose, generate",
    ("providers", "b-missing", "broken_objects:Nothing"): "AttributeError",
    ("providers", "b-target", "broken_objects:a b:c"): "does not load",
    ("roles", "b-role", "broken_extra:R"): "Z needs the package 'x'",
    ("roles", "b-number", "broken_objects:number"): "is no role: it is a int, which cannot be called",
    ("base_models", "b-spec", "broken_objects:Half"): "is no base model: it is a type, no BaseModelSpec",
    ("launchers", "b-noise", "broken_noise:L"): "RuntimeError: ?[31mred",
    ("metrics", "b-metric", "broken_import:m"): "ModuleNotFoundError",
    ("embeddings", "b-meaning", "broken_exit:E"): "SystemExit",
}


def install(site: Path, name: str, entry_points: str, metadata: str | None = None) -> None:
    folder = site / f"{name.replace('-', '_')}-6.6.dist-info"
    folder.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 6.6\n" if metadata is None else metadata
    (folder / "METADATA").write_text(text)
    (folder / "entry_points.txt").write_text(entry_points)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    groups: dict[str, list[str]] = {}
    for group, name, target in PLUGINS:
        groups.setdefault(group, []).append(f"{name} = {target}")
    install(folder, "acme-broken", "\n".join(f"[po_distill.{g}]\n" + "\n".join(rows) for g, rows in groups.items()))
    install(folder, "acme-nameless", "[po_distill.launchers]\nnameless = broken_import:L\n", metadata="")
    return folder


def po_distill(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OLLAMA_HOST": "127.0.0.1:9"}
    command = [sys.executable, "-m", "po_distill", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checked(site: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return po_distill(site, tmp_path_factory.mktemp("checked"), "plugins", "--check")


def test_the_check_names_each_with_package_and_reason_and_exits_with_three(
    checked: subprocess.CompletedProcess[str],
) -> None:
    assert checked.returncode == 3 and "Traceback" not in checked.stderr
    lines = checked.stdout.splitlines()
    for (group, name, _), reason in PLUGINS.items():
        place = next(place for place, line in enumerate(lines) if f" {name} " in line)
        assert lines[place].split() == ["no", group, name, "acme-broken", "6.6"]
        assert reason in lines[place + 1]
    assert any(line.split()[:3] == ["ok", "roles", "product_owner"] for line in lines)


def test_a_package_without_metadata_is_named_as_such(checked: subprocess.CompletedProcess[str]) -> None:
    assert any("nameless" in line and "a package without a name ?" in line for line in checked.stdout.splitlines())


def test_listing_loads_none_of_them(site: Path, tmp_path: Path) -> None:
    result = po_distill(site, tmp_path, "plugins", "--json")
    assert result.returncode == 0, result.stderr
    found = {(row["group"], row["name"]) for row in json.loads(result.stdout)["plugins"]}
    assert {(group, name) for group, name, _ in PLUGINS} | {("providers", "ollama")} <= found


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["concepts", "--count", "2", "--output", "c.jsonl"],
        ["metric", "check", "product_owner"],
        ["train", "--base", "no-such-base", "--input", "d.jsonl"],
    ],
)
def test_other_commands_work_beside_them(site: Path, tmp_path: Path, arguments: list[str]) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    beside, alone = po_distill(site, tmp_path, *arguments), po_distill(nothing, nothing, *arguments)
    assert (beside.returncode, "Traceback" in beside.stderr) == (alone.returncode, False)
    assert "acme" not in beside.stdout + beside.stderr


def test_the_doctor_counts_them_and_says_where_to_look(site: Path, tmp_path: Path) -> None:
    result = po_distill(site, tmp_path, "doctor", "--json")
    assert result.returncode == 0, result.stderr
    check = next(row for row in json.loads(result.stdout)["checks"] if row["name"] == "plugins")
    assert not check["ok"] and "b-import (acme-broken)" in check["found"] and "--check" in check["remedy"]


@pytest.mark.parametrize(
    ("command", "name", "reason"),
    [
        (["dataset", "--input", "concepts.jsonl", "--provider"], "b-syntax", "SyntaxError"),
        (["dataset", "--input", "concepts.jsonl", "--provider"], "b-half", "lacks aclose, generate"),
        (["dataset", "--input", "concepts.jsonl", "--provider"], "broken_exit:P", "SystemExit"),
        (["dataset", "--input", "concepts.jsonl", "--role"], "b-role", "needs the package"),
        (["dataset", "--input", "concepts.jsonl", "--metric"], "b-metric", "ModuleNotFoundError"),
    ],
)
def test_who_names_one_is_told_why_it_does_not_load(
    site: Path, tmp_path: Path, command: list[str], name: str, reason: str
) -> None:
    concept = ProductOwnerRole().generate_concepts(1, seed=4)[0]
    (tmp_path / "concepts.jsonl").write_text(concept.model_dump_json() + "\n")
    result = po_distill(site, tmp_path, *command, name)
    assert result.returncode == 1, result.stdout
    assert reason in result.stderr and "Traceback" not in result.stderr
    assert ":" in name or "acme-broken 6.6" in result.stderr
