"""An EvaluationReport as a table on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from po_distill.records import CandidateResult, EvaluationReport
from po_distill.reporting.foreign_text import for_terminal
from po_distill.reporting.markdown import main_rows, outcome_of, title_of

_MOST_SIDE_BY_SIDE = 3  # candidates whose shares and counts fit beside each other


def print_report(report: EvaluationReport, console: Console | None = None) -> None:
    """Print the main table and the verdict.

    Green is what passes its rule, red what fails it, yellow what was not measured on a model: a
    stand-in, or a rule that the cases cannot decide. Everything else is plain.
    """
    console = console or Console()
    console.print(report_table(report))
    reasons = Table.grid(padding=(0, 2))
    for reason in report.verdict.reasons:
        word, _, figure = reason.partition(": ")
        reasons.add_row(Text(word, style=_COLOURS.get(word, ""), no_wrap=True), _plain(figure))
    console.print(reasons)
    who, outcome = outcome_of(report)
    colour = {"passed": "bold green", "failed": "bold red", "undecided": "bold yellow"}[report.verdict.decided]
    console.print(Text.assemble(_plain(who), " is ", (outcome, colour), "."))


def report_table(report: EvaluationReport) -> Table:
    """The main table, a column for each candidate."""
    table = Table(title=_plain(f"{report.role}: {report.cases} held-out cases", "italic"), title_justify="left")
    table.add_column("", min_width=24)
    crowded = len(report.candidates) > _MOST_SIDE_BY_SIDE
    for candidate in report.candidates:
        style = "yellow" if candidate.stand_in else ""
        table.add_column(_plain(title_of(candidate).replace(" (", "\n("), style), justify="right", no_wrap=True)
    judged = {0: "metric", 2: "valid", 3: "classes"}
    for number, (name, values) in enumerate(main_rows(report)):
        cells = [
            Text(value.replace(" (", "\n(") if crowded else value, style=_style(report, candidate, judged.get(number)))
            for value, candidate in zip(values, report.candidates, strict=True)
        ]
        table.add_row(Text(name), *cells)
    return table


def _plain(text: str, style: str = "") -> Text:
    """Text of other people: neither rich's markup nor the terminal's escape sequences act in it."""
    return Text("\n".join(for_terminal(line, longest=None) for line in text.split("\n")), style=style)


_COLOURS = {"passed": "green", "failed": "red", "not judged": "yellow", "undecided": "yellow"}
_RULES = {  # figure -> the rules that say what is thought of it, the first that the gate has
    "metric": ("above_base", "difference_low", "mean_of_reference"),
    "valid": ("valid_share",),
    "classes": ("above_chance", "balanced_accuracy_of_reference"),
}


def _style(report: EvaluationReport, candidate: CandidateResult, rule: str | None) -> str:
    """The colour of a figure of the student: what the gate says of it."""
    if candidate.name != (report.verdict.candidate or "student") or rule is None:
        return ""
    outcomes = {one.rule: one.outcome for one in report.verdict.rules}
    return next((_COLOURS[outcomes[name]] for name in _RULES[rule] if name in outcomes), "")
