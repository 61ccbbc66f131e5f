"""The command that looks at a metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from po_distill.commands.options import EXIT_NOT_PASSED, json_option, open_role, print_result

if TYPE_CHECKING:
    from po_distill.records import MetricCheckup


@click.group()
def metric() -> None:
    """Look at a metric before anything is paid for by it."""


@metric.command()
@click.argument("name", metavar="MODULE:FUNCTION")
@click.option("--role", default="product_owner", show_default=True, help="Role whose answers it scores.")
@click.option("--concepts", default=5, show_default=True, type=click.IntRange(min=1), help="How many it is tried on.")
@json_option
def check(name: str, role: str, concepts: int, as_json: bool) -> None:
    """Try a metric on sound, empty, content-free and broken answers: does it hold, and can it be gamed?"""
    from po_distill.metric import load_metric
    from po_distill.metric_doctor import check_metric

    found = check_metric(name, load_metric(name), open_role(role, None, None), concepts=concepts)
    print_result(found, as_json, _tell)
    if not found.passed:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)


def _tell(found: MetricCheckup) -> None:
    from po_distill.reporting.foreign_text import for_terminal

    words = {True: ("passed", "green"), False: ("failed", "red"), None: ("to know", "yellow")}
    for check in found.checks:
        word, colour = words[check.passed]
        value = "" if check.value is None else f"{check.value:.3f}"
        click.echo(f"{click.style(f'{word:8s}', fg=colour)}{check.check:20s}{value:>7s}  {for_terminal(check.detail)}")
    if found.gameable is not None:
        click.echo(f"An answer without content gets up to {found.gameable:.2f} of a sound one's score.")
    click.echo(f"{found.seconds_per_call * 1e3:.2f} ms a call.")
