"""`po-distill new`: what it writes installs, is found, and passes its own tests, in an environment of its own."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from po_distill.cli import cli
from po_distill.errors import ArtifactError, InputError
from po_distill.new_package import KINDS, write_package

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NAMES = {"provider": "foo", "role": "ticket_sorter", "base-model": "tiny-0.4b.chat", "launcher": "far-away"}


def new(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["new", *arguments])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python of its own, which sees the packages of this one; what is installed there stays there."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (site / "seen.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in seen))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def place(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new package of each kind, all installed into that environment."""
    folder = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        write_package(kind, name, folder / name)
    packages = [str(folder / name) for name in NAMES.values()]
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", *packages], check=True, cwd=folder)
    return folder


def run(environment: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(environment), "-m", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_passes_its_own_tests_once_it_is_installed(kind: str, environment: Path, place: Path) -> None:
    result = run(environment, place, "pytest", "-q", "-p", "no:cacheprovider", NAMES[kind])
    assert result.returncode == 0, result.stdout + result.stderr
    passed = int(result.stdout.rpartition(" passed")[0].split()[-1])
    assert passed >= 5 and "warning" not in result.stdout


def test_new_packages_are_listed_and_load(environment: Path, place: Path) -> None:
    result = run(environment, place, "po_distill", "plugins", "--check", "--json")
    assert result.returncode == 0, result.stderr
    found = {row["name"]: row for row in json.loads(result.stdout)["plugins"]}
    assert [found[name]["problem"] for name in NAMES.values()] == [None] * 4
    assert found["tiny-0.4b.chat"]["package"] == "po-distill-tiny-0-4b-chat"


def test_a_new_role_walks_the_road_with_a_new_provider(environment: Path, place: Path) -> None:
    arguments = ["--role", "ticket_sorter", "--count", "4", "--output", "concepts.jsonl", "--json"]
    made = run(environment, place, "po_distill", "concepts", *arguments)
    assert made.returncode == 0, made.stderr
    (place / "model.py").write_text('print(\'{"kind": "bug", "reason": "It always is one"}\')\n')
    arguments = ["--role", "ticket_sorter", "--provider", "foo", "--model", f"{environment} model.py", "--json"]
    result = run(
        environment, place, "po_distill", "dataset", "--input", "concepts.jsonl", "--output", "d.jsonl", *arguments
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["inputs"] == sum(json.loads(result.stdout)["counts"].values()) == 4


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = new("provider", "foo")
    assert shown.exit_code == 0 and "pip install ./foo && pytest ./foo" in shown.stdout
    told = json.loads(new("launcher", "bar", "--output", "deep/bar-launcher", "--json").stdout)
    assert (told["package"], told["path"]) == ("po-distill-bar", "deep/bar-launcher")
    assert all((tmp_path / told["path"] / file).is_file() for file in told["files"]) and len(told["files"]) == 5
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or "$" not in file.read_text().replace('"$BAR_COMMAND"', "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_exists_is_left_as_it_is(kind: str, tmp_path: Path) -> None:
    (tmp_path / "foo").mkdir()
    with pytest.raises(ArtifactError, match="foo exists already"):
        write_package(kind, "foo", tmp_path / "foo")
    assert list((tmp_path / "foo").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "reason", "fix"),
    [
        ("provider", "Foo", "upper-case", "Take foo."),
        ("provider", "my llm", "' '", "Take my_llm."),
        ("provider", "a:b", "':'", "Take a_b."),
        ("provider", "../etc", "begin with a letter", "Take etc."),
        ("provider", "7b", "begin with a letter", "Take b."),
        ("provider", "a__b", "one at a time", "Take a_b."),
        ("provider", "b-", "only between", "Take b."),
        ("provider", "qwen2.5", "'.'", "Take qwen2_5."),
        ("role", "bug-sorter", "'-'", "Take bug_sorter."),
        ("role", "größe", "'ö'", "Take gr_e."),
        ("base-model", "", "empty", "such as my_own"),
        ("launcher", "x" * 41, "more than 40", f"Take {'x' * 40}."),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_the_reason_and_a_better_one(
    kind: str, name: str, reason: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        write_package(kind, name)
    assert reason in caught.value.problem and fix in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("provider", "ollama"),
        ("role", "product_owner"),
        ("base-model", "qwen2.5-7b-instruct"),
        ("launcher", "local"),
    ],
)
def test_a_name_that_is_registered_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already"):
        write_package(kind, name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_package_that_is_installed_with_another_plugin_is_not_replaced(environment: Path, place: Path) -> None:
    result = run(environment, place, "po_distill", "new", "launcher", "foo", "--output", "other")
    assert result.returncode == 1 and "po-distill-foo is installed already" in result.stderr


def test_the_templates_are_in_the_wheel(tmp_path: Path) -> None:
    import zipfile

    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    inside = set(zipfile.ZipFile(wheel).namelist())
    templates = sorted((ROOT / "src" / "po_distill" / "plugin_templates").rglob("*.template"))
    assert len(templates) == 2 + 3 * len(KINDS)
    assert {path.relative_to(ROOT / "src").as_posix() for path in templates} <= inside
