"""The whole road in one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from po_distill.commands.options import json_option, print_result

if TYPE_CHECKING:
    from po_distill.pipeline import DistillResult


@click.command()
@click.option(
    "--minutes", default=10.0, show_default=True, type=click.FloatRange(min=0.1), help="The longest that it may train."
)
@click.option(
    "--role", default="product_owner", show_default=True, help="Role to distil; `po-distill plugins` lists them."
)
@click.option("--fresh", is_flag=True, help="Start over: forget what earlier runs finished.")
@json_option
def quickstart(minutes: float, role: str, fresh: bool, as_json: bool) -> None:
    """Walk the whole road offline, in about a quarter of an hour.

    No keys, no GPU: a rule-based stand-in plays the teacher, SmolLM2-135M is the student. A second run goes on where
    the first stopped. Two cores teach the form of the answers in ten minutes; verdicts want about --minutes 40. From
    15 on 30 held-out concepts are asked, else 12.
    """
    from po_distill.pipeline import distill
    from po_distill.settings import quickstart_settings

    result = distill(quickstart_settings(minutes, role), fresh=fresh)
    _tell_distilled(result, as_json)


@click.command()
@click.argument("settings_file", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="Start over: forget what earlier runs finished.")
@json_option
def run(settings_file: Path, fresh: bool, as_json: bool) -> None:
    """Walk all stages with the settings of one YAML file (examples/run.yaml)."""
    from po_distill.pipeline import distill
    from po_distill.settings import read_settings

    result = distill(read_settings(settings_file), fresh=fresh)
    _tell_distilled(result, as_json)


def _tell_distilled(result: DistillResult, as_json: bool) -> None:
    from po_distill.reporting.summary import show_summary, summary_object

    following = f"po-distill evaluate --model {result.folder} --gate"
    print_result(
        summary_object(result.report, result.artifacts),
        as_json,
        lambda _: show_summary(result.report, result.artifacts, following),
    )
