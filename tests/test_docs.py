"""The documentation says what the code does: commands, options, settings, links, names. Its code runs in
test_docs_blocks.py.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from pydantic import BaseModel

import po_distill.dspy
from documentation import DOCS, PAGES, ROOT, blocks_of, name_of, prose_of
from po_distill import DatasetBuilder, Launcher, Provider, ProviderSettings, Request, Teacher, errors, records, testing
from po_distill.cli import cli
from po_distill.records import BaseModelSpec
from po_distill.settings import Settings

# Links that leave the documentation. Nothing fetches them: who adds one has looked at it.
ELSEWHERE = {
    "https://keepachangelog.com/en/1.1.0/",
    "https://semver.org/",
}


def commands() -> list[tuple[Path, str]]:
    """Every `po-distill ...` line of a bash block, with its continuation lines."""
    return [
        (block.page, re.sub(r"^([A-Z_]+=\S+ )+", "", line))
        for page in PAGES
        for block in blocks_of(page)
        if block.language == "bash"
        for line in block.commands()
        if re.match(r"([A-Z_]+=\S+ )*po-distill ", line)
    ]


def test_the_pages_made_from_the_code_are_up_to_date() -> None:
    command = [sys.executable, str(DOCS / "make_reference.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_command_and_option_is_in_the_command_line_page() -> None:
    text = (DOCS / "cli.md").read_text()
    for name, command in cli.commands.items():
        section = text.split(f"\n## po-distill {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            spellings = parameter.opts if isinstance(parameter, click.Option) else [str(parameter.name).upper()]
            assert [spelling for spelling in spellings if spelling not in section] == []


def test_every_setting_is_in_the_settings_page() -> None:
    text = (DOCS / "settings.md").read_text()
    assert [name for name in _setting_names(Settings()) if f"| `{name}` |" not in text] == []


def _setting_names(section: BaseModel, prefix: str = "") -> Iterator[str]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _setting_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_the_documentation_shows_every_command() -> None:
    shown = {shlex.split(line)[1] for _, line in commands()}
    assert set(cli.commands) <= shown


@pytest.mark.parametrize(
    ("page", "line"), commands(), ids=lambda value: name_of(value) if isinstance(value, Path) else value
)
def test_every_command_shown_is_one_that_the_command_line_takes(page: Path, line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    name, *rest = [argument for argument in arguments if argument != "--debug"]
    command = cli.commands[name]
    if isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    if "--help" not in rest:
        command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_named_in_running_text_exists(page: Path) -> None:
    groups = [command for command in cli.commands.values() if isinstance(command, click.Group)]
    all_commands = (cli, *cli.commands.values(), *(c for group in groups for c in group.commands.values()))
    known = {opt for command in all_commands for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--version", "--check", "--no-deps", "--target"}
    text = prose_of(page)
    if page.name == "from-the-scripts.md":  # its left columns are the scripts' own
        text = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) - known == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    for link in _links(page):
        if ":" in link:
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), link
        assert file.is_relative_to(ROOT), link
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file), link


def test_every_link_that_leaves_the_documentation_is_listed() -> None:
    assert {link for page in PAGES for link in _links(page) if ":" in link} == ELSEWHERE


def _links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", prose_of(page))
    return [markdown or html for markdown, html in found]


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_leads_to_every_page() -> None:
    reached = {(DOCS / link.partition("#")[0]).resolve() for link in _links(DOCS / "index.md") if ":" not in link}
    pages = [page for page in PAGES[2:] if page.parent != DOCS / "reference"] + [DOCS / "reference/index.md"]
    assert [name_of(page) for page in pages if page not in reached and page.name != "index.md"] == []


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    public = {f"po_distill.{name}": getattr(po_distill, name) for name in po_distill.__all__}
    public |= {f"{home.__name__}.{name}": value for home in (errors, records) for name, value in _classes(home).items()}
    public |= {f"{door.__name__}.{name}": None for door in (po_distill.dspy, testing) for name in door.__all__}
    # By that name, by the name at home, or with all that is at home.
    assert [
        name
        for name, value in public.items()
        if not shown & {name, home := getattr(value, "__module__", ""), f"{home}.{getattr(value, '__name__', '')}"}
    ] == []


def _classes(module: ModuleType) -> dict[str, type]:
    return {name: value for name, value in vars(module).items() if isinstance(value, type)}


def test_the_tree_of_errors_is_the_codes() -> None:
    (tree,) = (block.body for block in blocks_of(DOCS / "reference/errors.md") if block.language == "text")
    assert tree.strip() in str(errors.__doc__)


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the group docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # material says so that it is at the end of its life
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, env=quiet)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text())
        assert fetched == [], page


def test_the_figure_is_well_formed_and_readable_in_light_and_dark() -> None:
    import xml.etree.ElementTree as ET

    figure = DOCS / "road.svg"
    root = ET.fromstring(figure.read_text())
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    style = root.find("{http://www.w3.org/2000/svg}style")
    assert style is not None
    assert "prefers-color-scheme: dark" in str(style.text)


def test_no_page_names_a_folder_of_somebodys_machine() -> None:
    for page in (*PAGES, *DOCS.glob("*.py"), *(ROOT / "examples").rglob("*.*")):
        if page.is_file() and page.suffix != ".pyc":
            assert not re.search(r"(?<![\w.])/(?:home|root|work|Users|tmp)/", page.read_text()), page


# --- the complete plugins of plugins.md -----------------------------------------------------------


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The Python blocks of plugins.md, each a module, by the class or constant that it is about."""
    folder = tmp_path_factory.mktemp("plugins")
    found: dict[str, Any] = {}
    for number, block in enumerate(b for b in blocks_of(DOCS / "plugins.md") if b.language == "python"):
        path = folder / f"docs_plugin_{number}.py"
        path.write_text(block.body)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        found |= {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == path.stem}
        found |= {name: value for name, value in vars(module).items() if isinstance(value, BaseModelSpec)}
    return found


def test_the_documented_role_walks_from_concepts_to_a_dataset(plugins: dict[str, Any], tmp_path: Path) -> None:
    role = plugins["TriageRole"]()
    role.self_test()
    concepts = role.vary_concepts(role.generate_concepts(20, seed=1), 30, seed=1)
    assert len({concept.concept_id for concept in concepts}) == 30
    assert role.read_prompt(role.render(concepts[0])[-1].content).concept == concepts[0].concept
    teacher = Teacher(role, journal_path=tmp_path / "j.sqlite", log_path=None)
    completions = teacher.answer(concepts)
    assert all(c.score and c.score.valid and c.score.label == c.concept.planted_label for c in completions)
    dataset = DatasetBuilder(role).build(completions, tmp_path / "d.jsonl")
    assert set(dataset.labels) == set(role.labels)
    assert role.score(concepts[0], "I would rather not say").valid is False


def test_the_documented_provider_is_one_and_reports_what_it_cannot_do(plugins: dict[str, Any]) -> None:
    made = plugins["CommandProvider"](ProviderSettings(provider="command", model="cat"), plugins["TriageRole"]())
    assert isinstance(made, Provider)
    assert made.run(Request(messages=())).text == "[]"


def test_the_documented_base_model_is_a_specification(plugins: dict[str, Any]) -> None:
    assert isinstance(plugins["TINYLLAMA_1_1B_CHAT"], BaseModelSpec)


def test_the_documented_launcher_runs_a_command_to_its_end(plugins: dict[str, Any]) -> None:
    launcher: Launcher = plugins["NiceLauncher"]()
    assert launcher.run([sys.executable, "-c", "import sys; sys.exit(3)"], {}) == 3
