"""What is built out of the sources: complete, the same each time, and light to install."""

from __future__ import annotations

import email
import email.message
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from po_distill import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"])
HEAVY = {"torch", "transformers", "peft", "trl", "datasets", "google-genai", "dspy", "xllamacpp", "matplotlib"}


def copy_sources(folder: Path) -> Path:
    """The repository without what was built or run in it, in a folder of its own."""

    def left_out(place: str, names: list[str]) -> set[str]:
        beside = {name for name in names if name == "__pycache__" or name.endswith("_cache")}
        built = {".venv", ".git", ".hypothesis", "artifacts", "build", "dist", "logs", "site"}
        return beside | (built & set(names) if Path(place) == ROOT else set())

    return Path(shutil.copytree(ROOT, folder, ignore=left_out))


def build(source: Path, output: Path, *targets: str) -> dict[str, Path]:
    """kind -> file; built as pip does it, by the backend alone."""
    wanted = [word for target in targets for word in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(output), *wanted]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return {"wheel" if file.suffix == ".whl" else "sdist": file for file in output.iterdir()}


def digests(files: dict[str, Path]) -> dict[str, str]:
    return {kind: hashlib.sha256(file.read_bytes()).hexdigest() for kind, file in files.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("built")
    return build(copy_sources(folder / "source"), folder / "dist", "sdist", "wheel")


@pytest.fixture(scope="module")
def metadata(built: dict[str, Path]) -> email.message.Message:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(wheel.read(path).decode())


def test_two_builds_are_the_same_to_the_byte(built: dict[str, Path], tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "elsewhere")
    for file in source.rglob("*"):  # another day, another umask
        os.utime(file, (1_700_000_000, 1_700_000_000))
        file.chmod(file.stat().st_mode & ~0o077)
    assert digests(build(source, tmp_path / "dist", "sdist", "wheel")) == digests(built)


def test_the_source_distribution_makes_the_same_wheel(built: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert digests(build(source, tmp_path / "dist", "wheel"))["wheel"] == digests(built)["wheel"]


def test_the_wheel_holds_every_file_of_the_package(built: dict[str, Path]) -> None:
    package = ROOT / "src/po_distill"
    ours = {
        str(file.relative_to(package.parent))
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc"
    }
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == ours
    data = ("py.typed", "models.yaml", "gates/production.yaml", "reporting/report_page.css", "reporting/report_page.js")
    assert {f"po_distill/{name}" for name in data} <= names


def test_the_source_distribution_can_be_tested_and_read(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = (
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
        "docs/index.md",
        "tests/test_packaging.py",
        "examples/run.yaml",
    )
    assert set(wanted) <= names
    assert not [name for name in names if name.startswith(("site/", "artifacts/", "logs/", ".venv"))]


def test_the_metadata_says_what_the_project_file_says(metadata: email.message.Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("po-distill", __version__)
    assert metadata["Requires-Python"] == ">=3.11"
    versions = {"Programming Language :: Python :: 3." + minor for minor in ("11", "12", "13")}
    assert versions <= set(metadata.get_all("Classifier"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert sorted(metadata.get_all("Provides-Extra")) == EXTRAS


def test_the_package_alone_needs_nothing_heavy(metadata: email.message.Message) -> None:
    alone = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(alone) == len(PROJECT["dependencies"])
    assert not HEAVY & {line.split(">")[0].split("[")[0].strip() for line in alone}


def test_every_extra_is_in_the_readmes_table() -> None:
    text = (ROOT / "README.md").read_text()
    assert [extra for extra in EXTRAS if f'`pip install "po-distill[{extra}]"`' not in text] == []


@pytest.mark.live
@pytest.mark.skipif("PO_DISTILL_PACKAGE_INDEX" not in os.environ, reason="PO_DISTILL_PACKAGE_INDEX is not set")
@pytest.mark.parametrize("extras", ["", *EXTRAS, ",".join(EXTRAS)])
def test_the_index_has_packages_that_fit_together(extras: str, built: dict[str, Path], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    wanted = f"{built['wheel']}[{extras}]" if extras else str(built["wheel"])
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report"]
    done = subprocess.run([*command, str(report), wanted], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert "po-distill" in found
    if not extras:
        assert not HEAVY & found
