"""The commands around the students of an Ollama server: list them, and take one away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from po_distill.commands.options import json_option, print_result

if TYPE_CHECKING:
    from po_distill.records import InstalledPackage, ServedStudent

_CONFIG = "config.yaml"
_host_option = click.option("--host", help="The Ollama server.  [default: OLLAMA_HOST, else this machine]")
_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"The pipeline's config.  [default: {_CONFIG}, where there is one]",
)


@click.command("list")
@_host_option
@_config_option
@json_option
def list_students(host: str | None, config: Path | None, as_json: bool) -> None:
    """List the students of an Ollama server, and which of them is promoted."""
    from po_distill.ollama_server import OllamaServer
    from po_distill.served_students import served_students

    server = OllamaServer(host)
    students = served_students(server, _known(config))
    found = {"server": server.url, "students": [student.model_dump(mode="json") for student in students]}
    print_result(found, as_json, lambda _: _tell_students(server.url, students))


@click.command()
@click.argument("name", metavar="NAME[:TAG]")
@_host_option
@_config_option
@click.option("--force", is_flag=True, help="Also one that is promoted, or that a rollback would give back.")
@json_option
def remove(name: str, host: str | None, config: Path | None, force: bool, as_json: bool) -> None:
    """Remove a student from an Ollama server: one by its tag, or all of a name.

    What is promoted in the config, or what a rollback would give back, stays.
    """
    from po_distill.ollama_server import OllamaServer
    from po_distill.served_students import remove_student

    removed = [student.name for student in remove_student(OllamaServer(host), name, _known(config), force=force)]
    print_result({"removed": removed}, as_json, lambda _: click.echo(f"Removed: {', '.join(removed)}"))


def tell_installed(installed: InstalledPackage) -> None:
    """What was made or found on the server, and the command to type next."""
    from po_distill.reporting import console

    for name in installed.removed:
        click.echo(f"Removed, as an earlier run had left it unproven: {name}")
    if installed.kept:
        click.echo(f"What {installed.alias} stood for before is {installed.kept} now.")
    click.echo(
        f"{installed.name} is proven on {installed.server}: its prompt is the training's, and it answered "
        f"{installed.answer_tokens} tokens in {installed.latency_s:.1f} s and stopped."
    )
    name = installed.alias.removesuffix(":latest")
    console.tell_next(f"{installed.alias} stands for it.", f"po-distill promote --model {name}")


def _known(config: Path | None) -> Path | None:
    return config or (Path(_CONFIG) if Path(_CONFIG).is_file() else None)


def _tell_students(server: str, students: list[ServedStudent]) -> None:
    for one in students:
        uses = [f"promoted: {', '.join(one.promoted)}"] if one.promoted else []
        uses += [f"for a rollback: {', '.join(one.needed)}"] if one.needed else []
        size = f"{one.size_bytes / 1e6:,.0f} MB"
        said = f"{one.name:<48}{one.digest[7:19]}  {size:>10}  {one.quantization:<5}{one.state:<9}{'; '.join(uses)}"
        click.secho(said.rstrip(), fg="yellow" if one.state == "unproven" else "green" if one.promoted else None)
    if not students:
        click.echo(f"No students on {server}.")
    elif any(one.state == "unproven" for one in students):
        click.echo("Unproven: a run was killed. Install the same package again, or remove the name.")
