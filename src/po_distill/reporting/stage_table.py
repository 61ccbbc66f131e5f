"""A StageParity as a table on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from po_distill.records import StageFinding, StageParity
from po_distill.reporting.foreign_text import for_terminal


def show_parity(parity: StageParity, console: Console | None = None) -> None:
    """Print the stages, a row each, what is wrong with one under it, and the outcome."""
    console = console or Console()
    title = f"{parity.role}: {parity.cases} prompts through {len(parity.stages)} stages"
    table = Table(title=title, title_justify="left")
    for name in ("Stage", "Metric", "Valid", "Cut", "Same", "Agree", "Difference", "n"):
        table.add_column(name, justify="left" if name == "Stage" else "right")
    for finding in parity.stages:
        table.add_row(*(Text(cell, style="red" if finding.fault else "") for cell in _cells(finding)))
    console.print(table)
    for finding in parity.stages:
        if finding.fault:
            said = for_terminal(f"{finding.stage}: {finding.fault}: {finding.detail}", longest=None)
            console.print(Text(said, style="red"))
    outcome = ("no stage loses quality", "green") if parity.passed else ("a stage loses quality", "bold red")
    console.print(Text.assemble(outcome, "."))


def _cells(finding: StageFinding) -> list[str]:
    difference = finding.difference
    return [
        for_terminal(finding.stage),
        f"{finding.score_mean:.3f}",
        f"{finding.valid_share:.2f}",
        f"{finding.cut_share:.2f}",
        "" if finding.same_answers is None else f"{finding.same_answers:.2f}",
        "" if finding.agreement is None else f"{finding.agreement:.2f}",
        "" if difference is None else f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
        str(finding.n),
    ]
