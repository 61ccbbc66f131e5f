"""Results of the commands as plain lines for people, on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click

from po_distill.records import Dataset, PluginInfo


def tell_counts(title: str, counts: Mapping[str, int]) -> None:
    """Counts under a title, a line each."""
    click.echo(title)
    for name, count in sorted(counts.items()):
        click.echo(f"  {name:<24}{count:>6}")


def tell_next(made: str, command: str) -> None:
    """What was made, and the command to type next."""
    click.echo(made)
    click.echo(f"Next: {click.style(command, bold=True)}")


def tell_dataset(built: Dataset) -> None:
    """What went into a dataset, what was rejected and why."""
    accepted = sum(built.counts.values())
    tell_counts(f"{built.inputs} answers: {accepted} accepted, {built.inputs - accepted} rejected", built.rejected)
    tell_counts("Accepted by split", {str(name): count for name, count in built.counts.items()})
    tell_counts("Accepted by verdict", built.labels)
    if built.rejected:
        click.echo(f"Each rejection with its reason: {built.rejected_path}")
    tell_next(f"Dataset: {built.paths['train']}", f"po-distill train --data {built.paths['train']}")


def tell_plugins(plugins: Sequence[PluginInfo]) -> None:
    """Plugins, a line each, with the package that brought them."""
    for info in plugins:
        click.echo(
            f"{info.group:<13}{info.name:<24}{info.package} {info.version}  {click.style(info.target, dim=True)}"
        )


def tell_checks(checks: Iterable[tuple[str, bool, str, str]]) -> None:
    """Checks of the machine as (name, ok, found, remedy): green is there, yellow is missing."""
    for name, ok, found, remedy in checks:
        mark = click.style("ok  ", fg="green") if ok else click.style("no  ", fg="yellow")
        click.echo(f"{mark}{name:<22}{found}")
        if not ok:
            click.echo(f"    {'':<22}{remedy}")
