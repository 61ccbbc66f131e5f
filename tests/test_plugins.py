import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from po_distill import plugins
from po_distill.errors import PluginError
from po_distill.roles.product_owner.role import ProductOwnerRole

PACKAGE = Path(__file__).parent / "plugin_package"


def test_our_own_plugins_are_registered_like_anybodys() -> None:
    found = {(info.group, info.name): info.package for info in plugins.list_plugins()}
    assert found[("roles", "product_owner")] == "po-distill"
    assert {name for group, name in found if group == "base_models"} >= {
        "mistral-7b-instruct",
        "qwen2.5-7b-instruct",
        "smollm2-135m-instruct",
    }


@pytest.mark.parametrize("group", plugins.GROUPS)
def test_every_registered_plugin_of_ours_loads(group: str) -> None:
    for name in plugins.names(group):
        assert plugins.load(group, name) is not None


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="Did you mean 'product_owner'"):
        plugins.load("roles", "product_onwer")
    with pytest.raises(PluginError, match="There is no base model named 'zzz'"):
        plugins.load("base_models", "zzz")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin package installed into a folder of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(PACKAGE)], check=True)
    return target


def po_distill(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "po_distill", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_separately_installed_provider_is_listed_with_its_package(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(po_distill(installed, tmp_path, "plugins", "--json").stdout)["plugins"]
    parrot = next(row for row in listed if row["name"] == "parrot")
    assert (parrot["group"], parrot["package"], parrot["version"]) == ("providers", "po-distill-parrot", "1.2.3")


def test_a_separately_installed_provider_answers_a_dataset(installed: Path, tmp_path: Path) -> None:
    role = ProductOwnerRole()
    concept = role.generate_concepts(1, seed=4)[0]
    (tmp_path / "concepts.jsonl").write_text(concept.model_dump_json() + "\n")
    (tmp_path / "said.txt").write_text(role.answer_by_rules(concept))
    arguments = ["--input", "concepts.jsonl", "--output", "d.jsonl", "--provider", "parrot", "--json"]
    result = po_distill(installed, tmp_path, "dataset", *arguments, "--model", "said.txt")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["inputs"] == sum(json.loads(result.stdout)["counts"].values()) == 1
    refused = po_distill(installed, tmp_path, "dataset", *arguments, "--model", "nothing.txt")
    assert refused.returncode == 1
    assert "Name a file" in refused.stderr


def test_a_plugin_that_does_not_load_is_named_with_package_and_reason(installed: Path, tmp_path: Path) -> None:
    concept = ProductOwnerRole().generate_concepts(1, seed=4)[0]
    (tmp_path / "concepts.jsonl").write_text(concept.model_dump_json() + "\n")
    result = po_distill(installed, tmp_path, "dataset", "--input", "concepts.jsonl", "--provider", "broken")
    assert result.returncode == 1
    assert "po-distill-parrot 1.2.3" in result.stderr
    assert "Missing" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_plugin_stays_under_thirty_lines() -> None:
    assert len((PACKAGE / "src" / "po_distill_parrot.py").read_text().splitlines()) < 30
