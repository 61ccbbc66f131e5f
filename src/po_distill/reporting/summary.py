"""What a run ends with: one object for scripts, a table and the next command for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from po_distill.records import CandidateResult, EvaluationReport
from po_distill.reporting.table import print_report

_FIGURES = ("score_mean", "valid_share", "verdict_balanced_accuracy", "seconds_per_call")


def summary_object(report: EvaluationReport, artifacts: Mapping[str, str]) -> dict[str, Any]:
    """`{"cases", <candidate>: {score_mean, valid_share, ...}, "candidates", "verdict", "failures", "artifacts"}`.

    `candidates` has under each name all its figures but the single cases: n, mean (an invalid answer counting 0),
    valid_share, std, repaired_mean, difference. `failures` are the cases that failed, by candidate and cause.
    """
    figures = {candidate.name: {name: getattr(candidate, name) for name in _FIGURES} for candidate in report.candidates}
    verdict = report.verdict
    return {
        "cases": report.cases,
        **figures,
        "candidates": {candidate.name: _figures(candidate) for candidate in report.candidates},
        "reference": report.reference,
        "production": report.production,
        "verdict": {
            "passed": verdict.passed,
            "outcome": verdict.decided,
            "candidate": verdict.candidate,
            "gate": verdict.gate,
            "reasons": list(verdict.reasons),
            "rules": [rule.model_dump(mode="json") for rule in verdict.rules],
        },
        "failures": [
            {
                "candidate": candidate.name,
                "concept_id": case.concept_id,
                "cause": case.failure.cause,
                "level": case.failure.level,
                "detail": case.failure.detail,
                "also": list(case.failure.also),
                "score": case.score.value if case.score.valid else 0.0,
                "repaired": case.repaired_value,
            }
            for candidate in report.candidates
            for case in candidate.results
            if case.failure is not None
        ],
        "observations": list(report.observations),
        "recommendations": list(report.recommendations),
        "projections": [projection.model_dump(mode="json") for projection in report.projections],
        "artifacts": dict(artifacts),
    }


def _figures(candidate: CandidateResult) -> dict[str, Any]:
    left_out = {"results", "name", "cases", "score_mean", "score_std", "raw_score_mean"}
    return {
        "n": candidate.cases,
        "mean": candidate.score_mean,
        "raw_mean": candidate.raw_score_mean,
        "std": candidate.score_std,
        **candidate.model_dump(mode="json", exclude=left_out),
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
