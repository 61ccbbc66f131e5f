"""The examples of docs/plugins.md, as one installed package, pass the contract tests that the page shows for them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's modules beside the entry points of its pyproject.toml, and its tests."""
    folder = tmp_path_factory.mktemp("documented")
    tests = [block for block in blocks("python") if "po_distill.testing" in block]
    examples = [block for block in blocks("python") if block not in tests]
    (folder / "my_plugins.py").write_text("\n\n".join(examples))
    (folder / "test_my_plugins.py").write_text("\n\n".join(tests))
    project = tomllib.loads(blocks("toml")[0])["project"]
    info = folder / "my_plugins-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def test_the_examples_pass_the_contracts_that_the_page_shows(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(place), str(place)]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert int(result.stdout.rpartition(" passed")[0].split()[-1]) >= 30
