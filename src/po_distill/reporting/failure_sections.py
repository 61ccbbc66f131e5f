"""What went wrong in an evaluation, as parts of its page: by class, by cause, by field, by violation."""

from __future__ import annotations

from collections.abc import Mapping

from po_distill.records import CandidateResult, Cluster, EvaluationReport
from po_distill.reporting.evaluation_sections import of_cases, titles
from po_distill.reporting.foreign_text import for_page
from po_distill.reporting.markdown import title_of
from po_distill.reporting.page import breakable, table

_CHANGES = ("same", "reworded", "missing", "added")
_MOST_FIELDS = 12
_FIRST_TO_READ = 8


def matrices(report: EvaluationReport) -> str:
    """What was answered for which class: planted truth, and the reference's verdicts."""
    planted = [_matrix(c, c.confusion, "planted") for c in report.candidates if c.confusion]
    whose = str(report.reference)
    against = [_matrix(c, c.reference_confusion, whose) for c in report.candidates if c.reference_confusion]
    found = ""
    for title, drawn in (("Against the planted truth", planted), (f"Against the {whose}'s verdicts", against)):
        if drawn:
            found += f'<h3>{for_page(title)}</h3><div class="matrices">{"".join(drawn)}</div>'
    note = '<p class="soft">A row is a class that is right, a column what was answered; right answers are framed.</p>'
    return found + note if found else ""


def _matrix(candidate: CandidateResult, confusion: Mapping[str, Mapping[str, int]], whose: str) -> str:
    answered = list(next(iter(confusion.values())))
    head = "".join(f'<th scope="col">{breakable(label)}</th>' for label in answered)
    body = ""
    for label, counts in confusion.items():
        whole = max(1, sum(counts.values()))
        cells = "".join(
            f'<td class="heat-{round(4 * counts[name] / whole)}{" right" if name == label else ""}">{counts[name]}</td>'
            for name in answered
        )
        body += f'<tr><th scope="row">{breakable(label)}</th>{cells}</tr>'
    n = sum(sum(counts.values()) for counts in confusion.values())
    return (
        f'<div><h4>{for_page(title_of(candidate))} {of_cases(n)}</h4><div class="scroll" tabindex="0">'
        f'<table class="matrix"><thead><tr><th scope="col">{for_page(whose)} \\ answered</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div>"
    )


def failures(report: EvaluationReport, numbers: Mapping[str, int]) -> str:
    """Failed answers by cause, for each candidate; `numbers` are the places of concepts in the list of cases."""
    found = ""
    for place, candidate in enumerate(report.candidates):
        rows = [(c.cause, _cluster(c, candidate, place, numbers)) for c in candidate.clusters]
        if not rows:
            continue
        header = ["Cause", "Level", "Answers", "Costs the mean", "Read first"]
        found += f"<h3>{for_page(title_of(candidate))}</h3>" + table(header, rows, kind="words") + _mended(candidate)
    return found


def _cluster(cluster: Cluster, candidate: CandidateResult, place: int, numbers: Mapping[str, int]) -> list[str]:
    shown = cluster.concept_ids[:_FIRST_TO_READ]
    links = ", ".join(
        f'<a href="#case-{numbers[one]}" data-candidate="{place}">{breakable(one)}</a>' if one in numbers
        else breakable(one)
        for one in shown
    )  # fmt: skip
    cause = for_page(cluster.cause, longest=None)
    count = (
        f'<span class="whole"><a href="#cases" data-candidate="{place}" data-cause="{cause}">{cluster.n}</a> of '
        f"{candidate.cases}</span>"
    )
    more = f" and {cluster.n - len(shown)} more" if cluster.n > len(shown) else ""
    return [cluster.level, count, f"{cluster.lost:.3f}", links + more]


def _mended(candidate: CandidateResult) -> str:
    mended = sum(case.repaired_value is not None for case in candidate.results)
    if not mended:
        return ""
    return (
        f"<p>Had the {mended} answers been repaired that lack only unfolding or quoting, the metric would be "
        f"{candidate.repaired_mean:.3f} in place of {candidate.score_mean:.3f} (n = {candidate.cases}).</p>"
    )


def fields(report: EvaluationReport) -> str:
    """What the judged candidate's answers leave out, add and reword, by field."""
    judged = report.judged
    counts: dict[str, dict[str, int]] = {}
    for case in judged.results:
        for change in case.changes:
            counts.setdefault(change.path, dict.fromkeys(_CHANGES, 0))[change.change] += 1
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1]["missing"] - pair[1]["added"], pair[0]))
    rows = [(path, [str(held[kind]) for kind in _CHANGES]) for path, held in ordered[:_MOST_FIELDS]]
    if not rows:
        return ""
    left = f" {len(ordered) - len(rows)} fields more differ less." if len(ordered) > len(rows) else ""
    note = f"Items of {for_page(judged.name)}'s answers against the reference's, n = {judged.cases} answers.{left}"
    return table(["Field", *(kind.capitalize() for kind in _CHANGES)], rows) + f'<p class="soft">{note}</p>'


def violations(report: EvaluationReport) -> str:
    """Answers that show a violation, by kind."""
    kinds = sorted(
        {kind for c in report.candidates for kind in c.violations},
        key=lambda kind: (-max(c.violations.get(kind, 0) for c in report.candidates), kind),
    )
    if not kinds:
        return f"<p>None (n = {report.cases} cases).</p>"
    rows = [(kind, [str(c.violations.get(kind, 0)) for c in report.candidates]) for kind in kinds]
    heads = [f"{title} {of_cases(c.cases)}" for title, c in zip(titles(report), report.candidates, strict=True)]
    return table(["Answers that show it", *heads], rows)
