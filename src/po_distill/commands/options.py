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

CONCEPTS = "artifacts/synthetic/product_owner/concepts.jsonl"
DATASET = "artifacts/distillation/po_teacher_dataset.jsonl"
MODELS = "artifacts/models"

EXIT_PROBLEM = 1  # a PODistillError: problem and fix are on standard error
EXIT_NOT_PASSED = 3  # the work is done, and its verdict is no
EXIT_INTERRUPTED = 130


def json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def role_options(command: _F) -> _F:
    for option in (
        click.option(
            "--prompt", "prompt_path", type=click.Path(path_type=Path), help="File with another system prompt."
        ),
        click.option("--contract", help="Prompt contract of the role.  [default: the role's first]"),
        click.option("--role", default="product_owner", show_default=True, help="Role to distil."),
    ):
        command = option(command)
    return command


def open_role(role: str, contract: str | None, prompt_path: Path | None) -> Any:
    from po_distill.artifacts import read_text
    from po_distill.plugins import load

    return load("roles", role)(contract=contract, prompt=read_text(prompt_path) if prompt_path else None)


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
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
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
