"""The commands that let a pipeline use a student, and take it back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from po_distill.commands.options import MODELS, json_option, print_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from po_distill.records import ConfigChange, Promotion

_PATH = click.Path(path_type=Path)
_config_option = click.option(
    "--config", default="config.yaml", show_default=True, type=_PATH, help="The pipeline's own configuration."
)
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Show the difference and write nothing.")


@click.command()
@_config_option
@click.option("--role", default="product_owner", show_default=True, help="Role that shall use the model.")
@click.option("--model", required=True, help="Name of the model, as Ollama has it.")
@click.option("--package", type=_PATH, help=f"Version folder of the model.  [default: by its name, in {MODELS}]")
@click.option("--report", type=_PATH, help="Evaluation of the model, as JSON.  [default: the folder's evaluation.json]")
@click.option("--provider", default="ollama", show_default=True, help="Who serves the model: a name in providers.")
@click.option("--base-url", help="Address for providers.ollama, where it is missing.  [default: Ollama's own]")
@click.option("--temperature", default=0.4, show_default=True, type=click.FloatRange(0, 2))
@click.option("--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option("--force", metavar="REASON", help="Promote without a passed verdict; the reason is recorded.")
@_yes_option
@_dry_run_option
@json_option
def promote(
    config: Path, role: str, model: str, package: Path | None, report: Path | None, provider: str,
    base_url: str | None, temperature: float, max_tokens: int, force: str | None, yes: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Let a role of the pipeline use a student: edit its config.yaml, and nothing else in it."""
    from po_distill.stages.integration import Integration

    change = Integration(config, approve=_asking(yes=yes, dry_run=dry_run, as_json=as_json)).promote(
        model, role=role, package=package, report=report, models=MODELS, provider=provider, base_url=base_url,
        temperature=temperature, max_tokens=max_tokens, force=force,
    )  # fmt: skip

    def tell(_: object) -> None:
        if change.applied:
            click.echo(f"{role} uses {model} from now on. Back: po-distill rollback --config {config}")
        elif not change.diff:
            click.echo(f"{config} says so already; nothing was written.")
        else:
            click.echo("Nothing was written.")

    print_result(change, as_json, tell)


@click.command()
@_config_option
@click.option("--force", is_flag=True, help="Also where the file was edited by hand since; the edited file is kept.")
@_yes_option
@_dry_run_option
@json_option
def rollback(config: Path, force: bool, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Make the config.yaml what it was before the last promotion, byte for byte."""
    from po_distill.stages.integration import Integration

    change = Integration(config, approve=_asking(yes=yes, dry_run=dry_run, as_json=as_json)).rollback(force=force)

    def tell(_: object) -> None:
        done = f"{config} is what it was before that promotion of {change.role}."
        click.echo(done if change.applied else "Nothing was written.")

    print_result(change, as_json, tell)


@click.command()
@_config_option
@json_option
def promotions(config: Path, as_json: bool) -> None:
    """List what was promoted and rolled back: which model, since when, by which report."""
    from po_distill.stages.integration import Integration

    integration = Integration(config)
    lines, standing = integration.history(), integration.standing()
    as_left = integration.is_as_left()
    found = {
        "config": str(config),
        "promoted": standing[-1].model_dump(mode="json") if standing else None,
        "as_left": as_left,
        "promotions": [line.model_dump(mode="json") for line in lines],
    }
    print_result(found, as_json, lambda _: _tell_promotions(lines, standing[-1] if standing else None, as_left))


def _tell_promotions(lines: list[Promotion], promoted: Promotion | None, as_left: bool) -> None:
    for line in lines:
        digest = f"GGUF {line.package_digest[7:19]}" if line.package_digest else "GGUF unknown"
        evidence = f"forced: {line.forced}" if line.forced else line.report_path or ""
        what = f"takes back {line.undoes}" if line.undoes else f"{line.model} of {line.provider}, {digest}"
        click.echo(f"{line.number:>3}  {line.at}  {line.action:<9}{line.role}: {what}  {evidence}".rstrip())
    if promoted is None:
        click.echo("Nothing is promoted.")
    else:
        click.echo(f"Promoted: {promoted.model} for {promoted.role}, since {promoted.at}")
    if not as_left:
        click.secho("The file was edited by hand since the last line.", fg="yellow")


def _asking(*, yes: bool, dry_run: bool, as_json: bool) -> Callable[[ConfigChange], bool]:
    """Shows a change, and says whether it shall be written. Raises SettingsError where nobody can be asked."""
    if not yes and not dry_run and not _is_terminal():
        from po_distill.errors import SettingsError

        raise SettingsError(
            "This asks before it writes, and there is no terminal to ask on.",
            "Add --yes to write without asking, or --dry-run to see the difference.",
        )

    def approve(change: ConfigChange) -> bool:
        if not as_json:
            _show_difference(change.diff)
        if change.forced:
            click.secho(f"Forced: {change.forced}", fg="yellow", err=True)
        if dry_run:
            return False
        return yes or click.confirm(f"Write this to {change.config_path}?", err=as_json)

    return approve


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _show_difference(difference: str) -> None:
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in difference.splitlines():
        is_head = line.startswith(("+++ ", "--- "))
        click.secho(line, fg=None if is_head else colours.get(line[:1]), bold=is_head or None)
