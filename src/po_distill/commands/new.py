"""The command that writes a plugin package to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from po_distill.commands.options import json_option, print_result

if TYPE_CHECKING:
    from po_distill.new_package import NewPackage


@click.group()
def new() -> None:
    """Write a plugin package that installs, and passes its own contract tests."""


def _command(kind: str, help_text: str) -> click.Command:
    @click.command(kind, help=help_text)
    @click.argument("name")
    @click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: NAME, here]")
    @json_option
    def write(name: str, output: Path | None, as_json: bool) -> None:
        from po_distill.new_package import write_package

        print_result(write_package(kind, name, output), as_json, _tell)

    return write


for _kind, _help in {
    "provider": "A provider NAME: something that answers requests.",
    "role": "A role NAME: how it is asked, read, written and scored.",
    "base-model": "A base model NAME: where it is from, as data.",
    "launcher": "A launcher NAME: where a training run runs.",
}.items():
    new.add_command(_command(_kind, _help))


def _tell(written: NewPackage) -> None:
    kind = written.kind.replace("-", " ")
    click.echo(f"{written.path}: the package {written.package}, with the {kind} {written.name}")
    for file in written.files:
        click.echo(f"  {file}")
    here = shlex.quote(written.path if written.path.startswith(("/", ".")) else f"./{written.path}")
    click.echo(f"Next: pip install {here} && pytest {here}")
