"""An EvaluationReport as Markdown."""

from __future__ import annotations

from po_distill.records import CandidateResult, CaseResult, EvaluationReport
from po_distill.reporting import comparison_tables as tables
from po_distill.reporting.comparison_tables import markdown_table as _table
from po_distill.reporting.figures import answered_label, counted
from po_distill.reporting.foreign_text import for_markdown

_WORST = 5


def render_markdown(report: EvaluationReport) -> str:
    """The report as a Markdown document, tables first. Text of other people is escaped."""
    sections = (
        _head(report),
        _main_table(report),
        tables.differences(report),
        tables.observations(report),
        tables.recommendations(report),
        tables.judgements(report),
        tables.parts(report),
        tables.slices(report),
        _classes(report),
        _confusion(report),
        tables.failures(report),
        tables.changes(report),
        _violations(report),
        _worst_cases(report),
        tables.times(report),
        _method(report),
        _artifacts(report),
        tables.digests(report),
        _verdict(report),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def main_rows(report: EvaluationReport) -> list[tuple[str, list[str]]]:
    """The main table: (what, a value for each candidate)."""
    every = report.candidates
    return [
        ("Metric (an invalid answer counts 0)", [f"{c.score_mean:.3f}" for c in every]),
        ("Metric, invalid answers too", [f"{c.raw_score_mean:.3f}" for c in every]),
        ("Valid answers", [share(c.valid_share, c.cases) for c in every]),
        ("Verdict balanced accuracy", [_optional(c.verdict_balanced_accuracy) for c in every]),
        ("Seconds per call, median", [seconds(c.seconds_per_call) for c in every]),
        ("Seconds per call, 95th percentile", [seconds(c.seconds_per_call_p95) for c in every]),
        ("Metric had format faults been repaired", [_optional(c.repaired_mean) for c in every]),
        ("Standard deviation of the metric", [f"{c.score_std:.3f}" for c in every]),
        *_after_retries(report),
        ("Cases", [str(c.cases) for c in every]),
    ]


def _after_retries(report: EvaluationReport) -> list[tuple[str, list[str]]]:
    if not any(c.retried for c in report.candidates):
        return []
    return [
        (
            "Valid answers after retries",
            [
                share(
                    c.valid_share_after_retries if c.valid_share_after_retries is not None else c.valid_share, c.cases
                )
                for c in report.candidates
            ],
        )
    ]


def outcome_of(report: EvaluationReport) -> tuple[str, str]:
    """(who was judged, what the gate says): ("The student", "accepted")."""
    said = {"passed": "accepted", "failed": "not accepted", "undecided": "undecided: not accepted"}
    name = report.verdict.candidate or "student"
    return "The student" if name == "student" else name, said[report.verdict.decided]


def title_of(candidate: CandidateResult) -> str:
    """The candidate's name, and that rules answered in its place where they did."""
    return f"{candidate.name} (stand-in)" if candidate.stand_in else candidate.name


def share(fraction: float, whole: int) -> str:
    """A share of a number of cases, with the count: 0.83 (10 of 12)."""
    return f"{fraction:.2f} ({round(fraction * whole)} of {whole})"


def seconds(value: float) -> str:
    """A time with as many digits as it deserves."""
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def worst_cases(report: EvaluationReport, most: int = _WORST) -> tuple[CandidateResult, list[CaseResult]]:
    """The judged candidate and the cases to read first: invalid, then of the wrong class, then weak."""
    chosen = report.judged

    def gravity(result: CaseResult) -> tuple[bool, bool, float, float, str]:
        right = (result.expected_label or result.reference_label) in (None, answered_label(result.score))
        return (result.score.valid, right, counted(result.score), result.score.value, result.concept_id)

    return chosen, sorted(chosen.results, key=gravity)[:most]


def _head(report: EvaluationReport) -> str:
    who, said = outcome_of(report)
    outcome = f"{for_markdown(who)} is **{said}**."
    labels = ", ".join(f"{count} {for_markdown(label)}" for label, count in report.labels.items())
    return f"# Evaluation of the role {for_markdown(report.role)}\n\n{outcome} {report.cases} held-out cases: {labels}."


def _main_table(report: EvaluationReport) -> str:
    stand_ins = [for_markdown(c.name) for c in report.candidates if c.stand_in]
    note = f"\n\nStand-in: rules answered in place of a model ({', '.join(stand_ins)})." if stand_ins else ""
    titles = [for_markdown(title_of(c)) for c in report.candidates]
    return _table(["", *titles], [[name, *values] for name, values in main_rows(report)]) + note


def _classes(report: EvaluationReport) -> str:
    labels = sorted({label for c in report.candidates for label in c.verdicts})
    if not labels:
        return ""
    rows = []
    for label in labels:
        found = [c.verdicts.get(label) for c in report.candidates]
        rows.append([for_markdown(label), *(share(v.right / v.cases, v.cases) if v else "" for v in found)])
    titles = [for_markdown(title_of(c)) for c in report.candidates]
    return "## Verdict accuracy per class\n\n" + _table(["Planted class", *titles], rows)


def _confusion(report: EvaluationReport) -> str:
    planted = [(c, c.confusion, "Planted") for c in report.candidates if c.confusion]
    against = [(c, c.reference_confusion, "Reference") for c in report.candidates if c.reference_confusion]
    parts = []
    for candidate, confusion, whose in planted or against:
        answered = list(next(iter(confusion.values())))
        rows = [[for_markdown(label), *(str(counts[name]) for name in answered)] for label, counts in confusion.items()]
        header = [f"{whose} \\ answered", *map(for_markdown, answered)]
        parts.append(f"### {for_markdown(title_of(candidate))}\n\n{_table(header, rows)}")
    return "## What was answered for which class\n\n" + "\n\n".join(parts) if parts else ""


def _violations(report: EvaluationReport) -> str:
    kinds = sorted(
        {kind for c in report.candidates for kind in c.violations},
        key=lambda kind: (-max(c.violations.get(kind, 0) for c in report.candidates), kind),
    )
    if not kinds:
        return "## Violations\n\nNone."
    rows = [[for_markdown(kind), *(str(c.violations.get(kind, 0)) for c in report.candidates)] for kind in kinds]
    header = ["Answers that show it", *(for_markdown(title_of(c)) for c in report.candidates)]
    return "## Violations\n\n" + _table(header, rows)


def _worst_cases(report: EvaluationReport) -> str:
    candidate, cases = worst_cases(report)
    rows = [
        [
            for_markdown(case.concept_id),
            for_markdown(case.expected_label or "not planted"),
            for_markdown(answered_label(case.score)),
            f"{counted(case.score):.3f}",
            for_markdown(case.finish),
            "; ".join(f"{for_markdown(v.kind)}: {for_markdown(v.detail)}" for v in case.score.violations[:3]) or "none",
        ]
        for case in cases
    ]
    header = ["Concept", "Planted", "Answered", "Metric", "Finish", "Violations"]
    return f"## Cases to read first ({for_markdown(title_of(candidate))})\n\n" + _table(header, rows)


def _method(report: EvaluationReport) -> str:
    contract, generation = report.contract, report.generation
    sampling = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    sampling += " under a JSON schema (guaranteed-valid)" if report.guaranteed_valid else ""
    lines = [
        f"Measured {for_markdown(report.created_at)} on {report.cases} held-out concepts, the same prompt for all.",
        f"Prompt contract {for_markdown(contract.role)}/{for_markdown(contract.name)}, answers in the form "
        f"{for_markdown(contract.output_format)}, digest {contract.digest[:19]}.",
        f"Decoding: {sampling}, at most {generation.max_tokens} tokens an answer. Recorded answers were decoded as "
        "they were recorded.",
        "An answer is valid when production can read it as it stands; in the metric an invalid answer counts 0. "
        "Balanced accuracy is the mean over the planted classes of the share that was recognised.",
        *(f"{for_markdown(title_of(c))}: {for_markdown(c.model)}." for c in report.candidates),
    ]
    return "## How it was measured\n\n" + "\n".join(f"- {line}" for line in lines)


def _artifacts(report: EvaluationReport) -> str:
    if not report.artifacts:
        return ""
    rows = [[for_markdown(name), for_markdown(path, longest=None)] for name, path in report.artifacts.items()]
    return "## Artifacts\n\n" + _table(["What", "Where"], rows)


def _verdict(report: EvaluationReport) -> str:
    _, outcome = outcome_of(report)
    reasons = "\n".join(f"- {for_markdown(reason, longest=None)}" for reason in report.verdict.reasons)
    gate = f"\n\nBy the gate {for_markdown(report.verdict.gate)}." if report.verdict.gate else ""
    return f"## Verdict: {outcome}\n\n{tables.rules_table(report) or reasons}{gate}"


def _optional(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
