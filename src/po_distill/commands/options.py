"""What several commands share: options, how a role is opened, how a result is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

_F = TypeVar("_F", bound=Callable[..., Any])

MODELS = "artifacts/models"
ROLE = "product_owner"
IN_PATHS = "In paths {role} is its name, {stem} is po of po_student."
QUANTIZATIONS = ("q4_0", "q4_k_m", "q8_0", "f16")  # as records.Quantization has them, which is not loaded for --help

EXIT_PROBLEM = 1  # a PODistillError: problem and fix are on standard error
EXIT_NOT_PASSED = 3  # the work is done, and its verdict is no
EXIT_UNDECIDED = 4  # the work is done, and the cases do not decide its verdict
EXIT_INTERRUPTED = 130


def json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def role_options(command: _F) -> _F:
    for option in (
        click.option(
            "--prompt", "prompt_path", type=click.Path(path_type=Path), help="File with another system prompt."
        ),
        click.option("--contract", help="Prompt contract of the role.  [default: the role's first]"),
        click.option("--role", help=f"Role to distil. {IN_PATHS}  [default: the manifest's, else {ROLE}]"),
    ):
        command = option(command)
    return command


def open_role(role: str, contract: str | None, prompt_path: Path | None) -> Any:
    from po_distill.artifacts import read_text
    from po_distill.plugins import load

    return load("roles", role)(contract=contract, prompt=read_text(prompt_path) if prompt_path else None)


def placed(path: Path | str, role: str | None) -> Path:
    """A path with the role's name where it asks for it (`role_paths`)."""
    from po_distill.plugins import load
    from po_distill.role_paths import of_role

    return Path(of_role(path, load("roles", role or ROLE))) if "{" in str(path) else Path(path)


def open_role_of(
    path: Path, role: str | None, contract: str | None, prompt_path: Path | None
) -> tuple[Any, dict[str, Any]]:
    """The role, and what rows are judged by, for the dataset at `path`: as its manifest says, where it has one.

    The settings are `min_score`, `metric` and `near`, as far as they are known.
    """
    from po_distill.dataset_diff import manifest_of

    made = manifest_of(path)
    role = role or (made.contract.role if made and made.contract else ROLE)
    if made is None:
        return open_role(role, contract, prompt_path), {}
    known = {name: made.settings[name] for name in ("min_score", "metric", "near") if made.settings.get(name)}
    if contract is not None or prompt_path is not None or made.contract is None or made.contract.role != role:
        return open_role(role, contract, prompt_path), known
    from po_distill.plugins import load

    kind = load("roles", role)
    own = kind(contract=made.contract.name).contract.system
    return kind(
        contract=made.contract.name, prompt=None if own == made.contract.system else made.contract.system
    ), known


def print_result(record: BaseModel | dict[str, Any], as_json: bool, show: Callable[[Any], None] | None = None) -> None:
    """A result: as one JSON object, or as `show` puts it for people."""
    data = record if isinstance(record, dict) else record.model_dump(mode="json")
    if as_json or show is None:
        click.echo(json.dumps(data, indent=None if as_json else 2, ensure_ascii=False))
    else:
        show(record)


class SectionedOption(click.Option):
    """An option that stands under a heading of its own in the help text."""

    def __init__(self, *arguments: Any, section: str, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose many options are shown under headings, in the order in which the headings come first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_sections(self, ctx, formatter)


class SectionedGroup(click.Group):
    """A group that is a command with many options itself, where it is called without one of its commands."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_sections(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def _write_sections(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is not None:
            sections.setdefault(getattr(parameter, "section", "Output"), []).append(record)
    for section, records in sections.items():
        with formatter.section(section):
            formatter.write_dl(records)


def sectioned(section: str, *arguments: Any, **settings: Any) -> Callable[[_F], _F]:
    """An option under a heading; arguments as for `click.option`."""
    return click.option(*arguments, cls=SectionedOption, section=section, **settings)


def shares(text: str | None) -> dict[str, float] | None:
    """`aligned=0.5,misaligned=0.5` as a mapping. Raises BadParameter."""
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise click.BadParameter(f"{part!r} is no share; write aligned=0.5,needs_adjustment=0.3,...") from error
        if not equals or not name.strip():
            raise click.BadParameter(f"{part!r} is no share; write aligned=0.5,needs_adjustment=0.3,...")
    return found


def named_values(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE` pairs as a mapping, each value read as YAML: numbers, true, texts. Raises BadParameter."""
    from po_distill import safe_yaml

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{pair!r} is no NAME=VALUE.")
        found[name] = safe_yaml.load(value, what=f"the option {name}")
    return found
