"""The commands around a dataset: check it, and compare two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from po_distill.commands.options import (
    EXIT_NOT_PASSED,
    ROLE,
    SectionedCommand,
    json_option,
    open_role_of,
    print_result,
    sectioned,
    shares,
)

_PATH = click.Path(path_type=Path)


@click.command(cls=SectionedCommand)
@click.argument("path", metavar="FILE", type=_PATH)
@sectioned("What is looked at", "--max-records", type=click.IntRange(min=1), help="Read only so many rows.")
@sectioned("What is looked at", "--role", help=f"Role of the answers.  [default: the manifest's, else {ROLE}]")
@sectioned("What is looked at", "--contract", help="Prompt contract.  [default: the manifest's, else the role's first]")
@sectioned("What is looked at", "--prompt", "prompt_path", type=_PATH, help="File with another system prompt.")
@sectioned(
    "What is wanted",
    "--held-out",
    multiple=True,
    type=_PATH,
    help="File that no row may be in, exactly or nearly; may be repeated.",
)
@sectioned("What is wanted", "--min-score", type=click.FloatRange(0, 1), help="[default: the manifest's, else 0.85]")
@sectioned(
    "What is wanted",
    "--near",
    type=click.FloatRange(0, 1, min_open=True),
    help="Similarity of near duplicates.  [default: the manifest's, else 0.9]",
)
@sectioned("What is wanted", "--metric", help="package.module:function in place of the role's metric.")
@sectioned("What is wanted", "--base", "--base-model", "base", help="Base model whose tokenizer counts lengths.")
@sectioned("What is wanted", "--max-seq-len", default=2048, show_default=True, type=click.IntRange(min=1))
@sectioned("What is wanted", "--target", type=click.IntRange(min=1), help="How many accepted rows there should be.")
@sectioned("What is wanted", "--mix", help="Shares of the classes in the target: aligned=0.5,...")
@sectioned("What is wanted", "--allow", multiple=True, help="A rule that may be broken; may be repeated.")
@sectioned("Output", "--html", type=_PATH, help="Write the findings as a page, with plots.")
@sectioned("Output", "--workers", type=click.IntRange(min=1), help="Processes.  [default: one a processor]")
@json_option
def check(
    path: Path, max_records: int | None, role: str | None, contract: str | None, prompt_path: Path | None,
    held_out: tuple[Path, ...], mix: str | None, html: Path | None, as_json: bool, **wanted: Any,
) -> None:  # fmt: skip
    """Say whether FILE is fit for training, and if not, by which rule.

    FILE holds rows of a dataset, completions, {prompt, response} or any other form that `dataset` reads: JSONL,
    Parquet, or a folder that `datasets` saved. Exit status 3 where it is not fit.
    """
    from po_distill.artifacts import write_text
    from po_distill.reporting.checkup_page import render_checkup
    from po_distill.reporting.checkup_text import tell_checkup
    from po_distill.stages.dataset_doctor import DatasetDoctor

    if mix and not wanted["target"]:
        raise click.UsageError("--mix gives shares of a target: name it with --target.")
    opened, judged_by = open_role_of(path, role, contract, prompt_path)
    given = {name: wanted.pop(name) for name in ("min_score", "metric", "near")}
    judged_by |= {name: value for name, value in given.items() if value is not None}
    doctor = DatasetDoctor(opened, held_out=held_out, mix=shares(mix), **judged_by, **wanted)
    checkup = doctor.check(path, most=max_records)
    if html is not None:
        write_text(html, render_checkup(checkup, min_score=doctor.min_score))
    counted = {fact.name: fact.count for fact in checkup.facts}
    found = {**counted, **checkup.violations, **checkup.model_dump(mode="json")}
    print_result(found, as_json, lambda _: tell_checkup(checkup))
    if html is not None and not as_json:
        click.echo(f"Page: {html}")
    if not checkup.fit:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)


@click.command()
@click.argument("before", type=_PATH)
@click.argument("after", type=_PATH)
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Compare two datasets: manifests, train splits, or folders that hold one."""
    from po_distill.dataset_diff import compare
    from po_distill.reporting.checkup_text import tell_change

    print_result(compare(before, after), as_json, tell_change)
