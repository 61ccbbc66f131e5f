"""An EvaluationReport as one page that needs nothing else: no network, and one script, which is in it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files

from po_distill.errors import MissingExtraError
from po_distill.records import Completion, EvaluationReport
from po_distill.reporting import evaluation_plots, evaluation_sections, failure_sections, plots
from po_distill.reporting.case_list import CaseList
from po_distill.reporting.evaluation_sections import beside, joined
from po_distill.reporting.foreign_text import for_page
from po_distill.reporting.markdown import outcome_of
from po_distill.reporting.page import figure

_SCRIPT = "report_page.js"
_STYLES = ("page.css", "report_page.css")


def render_html(report: EvaluationReport, completions: Mapping[str, Sequence[Completion]] | None = None) -> str:
    """The report as a page. With the candidates' completions, every answer can be opened and read.

    The verdict is on top, then figures and plots, then the cases, which can be filtered and held against each other;
    without JavaScript they are a list that opens. Without matplotlib (extra `report`) the page says what is missing in
    place of the plots; no figure is in a plot alone. Texts of models and of other people are shown and do nothing: all
    are escaped, and the page's policy forbids any script but its own.
    """
    cases = CaseList(report, completions or {})
    drawn, note = _plots(report)
    say = evaluation_sections
    sections = (
        ("figures", "Candidates", note + beside(drawn["figures"], say.candidates(report))),
        ("differences", "Differences to the reference", beside(drawn["differences"], say.differences(report))),
        ("observations", "Observations", say.findings(report, cases.numbers)),
        ("slices", "Slices", beside(drawn["slices"], say.slices(report))),
        (
            "verdicts",
            "What was answered for which class",
            joined([beside(drawn["classes"], say.classes(report)), failure_sections.matrices(report)]),
        ),
        ("time", "Time of a call", joined([say.times(report), beside(drawn["time"], say.projections(report))])),
        ("parts", "Parts of the metric", say.parts(report)),
        ("failures", "Why answers fail", failure_sections.failures(report, cases.numbers)),
        ("fields", "Items against the reference's", failure_sections.fields(report)),
        ("violations", "Violations", failure_sections.violations(report)),
        ("cases", "Cases", cases.render()),
        ("method", "How it was measured", say.method(report)),
        ("artifacts", "Artifacts", say.artifacts(report)),
    )
    shown = [(name, title, body) for name, title, body in sections if body]
    return _document(report, _header(report, [(name, title) for name, title, _ in shown]), shown)


def _header(report: EvaluationReport, contents: Sequence[tuple[str, str]]) -> str:
    who, said = outcome_of(report)
    decided = report.verdict.decided
    labels = ", ".join(f"{count} {for_page(label)}" for label, count in report.labels.items())
    gate = f" by the gate {for_page(report.verdict.gate)}" if report.verdict.gate else ""
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in contents)
    return (
        f"<h1>Evaluation of the role {for_page(report.role)}</h1>\n"
        f'<p class="outcome banner {decided}-banner">{evaluation_sections.outcome(decided)}: {for_page(who)} is '
        f"{said}{gate}.</p>\n"
        f'<p class="soft">n = {report.cases} held-out cases: {labels}.</p>\n{evaluation_sections.rules(report)}\n'
        f'<nav aria-label="Contents"><ul class="contents">{links}</ul></nav>'
    )


def _plots(report: EvaluationReport) -> tuple[dict[str, list[str]], str]:
    """The plots by section, and a note where there can be none."""
    drawn: dict[str, list[str]] = {name: [] for name in ("figures", "differences", "slices", "classes", "time")}
    try:
        _add(drawn["figures"], "Scores", plots.score_distribution(report.candidates))
        reference = next((c for c in report.candidates if c.name == report.reference), None)
        for number, candidate in enumerate(report.candidates):
            if reference is not None:
                title = f"{for_page(candidate.name)} less {for_page(reference.name)}, concept by concept"
                svg = evaluation_plots.paired_differences(candidate, reference, number)
                _add(drawn["differences"], title, svg)
        _add(drawn["slices"], "Metric by slice", evaluation_plots.slice_scores(report.candidates))
        _add(drawn["classes"], "Accuracy per class", plots.class_accuracy(report.candidates))
        _add(drawn["time"], "Time per call", plots.call_time(report.candidates))
    except MissingExtraError as error:
        told = f'<p class="soft">{for_page(error.problem)} {for_page(error.fix)}</p>'
        return {name: [] for name in drawn}, told
    return drawn, ""


def _add(drawn: list[str], title: str, svg: str | None) -> None:
    if svg:
        drawn.append(figure(title, svg))


def _document(report: EvaluationReport, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
    script = _read(_SCRIPT)
    style = "".join(map(_read, _STYLES))
    body = "".join(f'<section id="{name}">\n<h2>{title}</h2>\n{told}\n</section>\n' for name, title, told in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>Evaluation of {for_page(report.role)}: {report.verdict.decided}</title>\n<style>\n{style}</style>\n"
        '</head>\n<body>\n<a class="skip" href="#cases">Skip to the cases</a>\n'
        f'<header>\n{header}\n</header>\n<main>\n{body}</main>\n<footer id="digests">\n'
        f'{evaluation_sections.digests(report)}\n<p class="soft">Written by po_distill, '
        f"{for_page(report.created_at)}.</p>\n</footer>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _policy(script: str) -> str:
    """Nothing is loaded, nothing is sent, no text becomes HTML, and no script runs but the one of this digest."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _read(name: str) -> str:
    return files("po_distill.reporting").joinpath(name).read_text(encoding="utf-8")
