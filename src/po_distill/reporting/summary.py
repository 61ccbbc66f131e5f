"""What a run ends with: one object for scripts, a table and the next command for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from po_distill.records import EvaluationReport
from po_distill.reporting.table import print_report

_FIGURES = ("score_mean", "valid_share", "verdict_balanced_accuracy", "seconds_per_call")


def summary_object(report: EvaluationReport, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """`{"cases", <candidate>: {score_mean, valid_share, ...}, "verdict", "artifacts": {name: path}}`."""
    figures = {candidate.name: {name: getattr(candidate, name) for name in _FIGURES} for candidate in report.candidates}
    return {
        "cases": report.cases,
        **figures,
        "verdict": {"passed": report.verdict.passed, "reasons": list(report.verdict.reasons)},
        "artifacts": dict(artifacts),
    }


def show_summary(report: EvaluationReport, artifacts: Mapping[str, str], next_command: str | None = None) -> None:
    """The main table, the paths of all artifacts, and the command to type next."""
    console = Console()
    print_report(report, console)
    paths = Table.grid(padding=(0, 2))
    for name, path in artifacts.items():
        paths.add_row(f"[dim]{name}[/dim]", path)
    console.print()
    console.print(paths, soft_wrap=True)
    if next_command:
        console.print(f"\nNext: [bold]{next_command}[/bold]", soft_wrap=True, highlight=False)
