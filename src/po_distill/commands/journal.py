"""The commands that read a teacher's journal: everything else can be made again from it."""

from __future__ import annotations

from pathlib import Path

import click

from po_distill.commands.options import EXIT_NOT_PASSED, IN_PATHS, json_option, placed, print_result
from po_distill.role_paths import DATASET

_PATH = click.Path(path_type=Path)
_JOURNAL = "logs/distillation/teacher_journal.sqlite"
_journal_option = click.option("--journal", "path", default=_JOURNAL, show_default=True, type=_PATH)


@click.group()
def journal() -> None:
    """Read a teacher's journal: its answers, its costs, its soundness."""


@journal.command()
@_journal_option
@click.option(
    "--output",
    default=DATASET.replace(".jsonl", ".completions.jsonl"),
    show_default=True,
    type=_PATH,
    help="JSONL of completions, as the teacher writes it.",
)
@click.option("--role", default="product_owner", show_default=True, help=f"Role whose answers they are. {IN_PATHS}")
@json_option
def export(path: Path, output: Path, role: str, as_json: bool) -> None:
    """Write the completions again, the best answer to each concept."""
    from po_distill.journal import Journal
    from po_distill.journal_views import export_completions
    from po_distill.reporting import console

    output = placed(output, role)
    with Journal(path, reading=True) as opened:
        found = export_completions(opened, output)
    print_result(
        found,
        as_json,
        lambda _: console.tell_next(
            f"{found['completions']} completions of {found['answers']} answers: {output}",
            f"po-distill dataset --input {output}",
        ),
    )


@journal.command()
@_journal_option
@click.option(
    "--rebuild",
    type=_PATH,
    help="Write the cost log anew: logs/distillation/teacher_calls.log names teacher_calls_YYYYMMDD.log.",
)
@json_option
def costs(path: Path, rebuild: Path | None, as_json: bool) -> None:
    """Say what was spent: by model, by day, and what is in doubt."""
    from po_distill.call_log import CallLog
    from po_distill.journal import Journal
    from po_distill.journal_views import cost_table
    from po_distill.reporting import console

    with Journal(path, reading=True) as opened:
        found = cost_table(opened)
        if rebuild:
            CallLog(opened, rebuild)
    print_result(found, as_json, lambda _: console.tell_costs(found))


@journal.command()
@_journal_option
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Check the journal, and that its parts add up."""
    from po_distill.journal import Journal
    from po_distill.reporting import console

    with Journal(path, reading=True) as opened:
        problems = opened.integrity()
    print_result(
        {"path": str(path), "problems": problems, "ok": not problems},
        as_json,
        lambda _: console.tell_problems(str(path), problems),
    )
    if problems:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)
