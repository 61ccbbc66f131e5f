"""An EvaluationReport as one page that needs nothing else: no network, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from po_distill.errors import MissingExtraError
from po_distill.records import CandidateResult, CaseResult, Completion, EvaluationReport
from po_distill.reporting import plots
from po_distill.reporting.figures import answered_label, counted
from po_distill.reporting.markdown import main_rows, seconds, share, title_of, worst_cases
from po_distill.reporting.page import breakable, document, figure, pairs, section, table

_RIGHT = ' class="right"'  # a cell where planted and answered agree


def render_html(report: EvaluationReport, completions: Mapping[str, Sequence[Completion]] | None = None) -> str:
    """The report as a page. With the candidates' completions, every case can be opened and read.

    Without matplotlib (extra `report`) the page says what is missing in place of the plots.
    """
    sections = (
        section("Figures", _main_table(report)),
        section("Plots", _plots(report)),
        section("Verdict accuracy per class", _classes(report)),
        section("What was answered for which class", _matrices(report)),
        section("Violations", _violations(report)),
        section("Cases", _cases(report, completions or {})),
        section("How it was measured", _method(report)),
        section("Artifacts", _artifacts(report)),
    )
    return document(
        f"Evaluation of {report.role}",
        _header(report),
        sections,
        f"Written by po_distill, {escape(report.created_at)}.",
    )


def _header(report: EvaluationReport) -> str:
    passed = report.verdict.passed
    outcome = f'<span class="{"passed" if passed else "failed"}">{"accepted" if passed else "not accepted"}</span>'
    labels = ", ".join(f"{count} {escape(label)}" for label, count in report.labels.items())
    reasons = []
    for reason in report.verdict.reasons:
        word, _, figure = reason.partition(": ")
        reasons.append(f'<li><b class="{escape(word.replace(" ", "-"))}">{escape(word)}</b> {escape(figure)}</li>')
    return (
        f"<h1>Evaluation of the role {escape(report.role)}</h1>\n"
        f'<p class="outcome">The student is {outcome}.</p>\n<ul class="reasons">{"".join(reasons)}</ul>\n'
        f'<p class="soft">{report.cases} held-out cases: {labels}.</p>'
    )


def _main_table(report: EvaluationReport) -> str:
    figures = _table(["", *map(title_of, report.candidates)], main_rows(report))
    stand_ins = [c.name for c in report.candidates if c.stand_in]
    note = f'<p class="soft">Stand-in: rules answered in place of a model ({escape(", ".join(stand_ins))}).</p>'
    return figures + (note if stand_ins else "")


def _plots(report: EvaluationReport) -> str:
    try:
        drawn = (
            ("Scores", plots.score_distribution(report.candidates)),
            ("Accuracy per class", plots.class_accuracy(report.candidates)),
            ("Time per call", plots.call_time(report.candidates)),
        )
    except MissingExtraError as error:
        return f'<p class="soft">{escape(error.problem)} {escape(error.fix)}</p>'
    figures = (figure(title, svg) for title, svg in drawn if svg)
    return f'<div class="plots">{"".join(figures)}</div>'


def _classes(report: EvaluationReport) -> str:
    labels = sorted({label for c in report.candidates for label in c.verdicts})
    rows = []
    for label in labels:
        found = [c.verdicts.get(label) for c in report.candidates]
        rows.append((label, [share(v.right / v.cases, v.cases) if v else "" for v in found]))
    return _table(["Planted class", *map(title_of, report.candidates)], rows) if labels else ""


def _matrices(report: EvaluationReport) -> str:
    drawn = [_matrix(c) for c in report.candidates if c.confusion]
    return f'<div class="matrices">{"".join(drawn)}</div>' if drawn else ""


def _matrix(candidate: CandidateResult) -> str:
    answered = list(next(iter(candidate.confusion.values())))
    head = "".join(f'<th scope="col">{breakable(label)}</th>' for label in answered)
    rows = "".join(
        f'<tr><th scope="row">{breakable(label)}</th>'
        + "".join(f"<td{_RIGHT if name == label else ''}>{counts[name]}</td>" for name in answered)
        + "</tr>"
        for label, counts in candidate.confusion.items()
    )
    return (
        f'<div><h3>{escape(title_of(candidate))}</h3><div class="scroll"><table><thead><tr>'
        f'<th scope="col">planted</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>'
    )


def _violations(report: EvaluationReport) -> str:
    kinds = sorted(
        {kind for c in report.candidates for kind in c.violations},
        key=lambda kind: (-max(c.violations.get(kind, 0) for c in report.candidates), kind),
    )
    if not kinds:
        return "<p>None.</p>"
    rows = [(kind, [str(c.violations.get(kind, 0)) for c in report.candidates]) for kind in kinds]
    return _table(["Answers that show it", *map(title_of, report.candidates)], rows)


def _cases(report: EvaluationReport, completions: Mapping[str, Sequence[Completion]]) -> str:
    """Every case, those where the student did worst first, the answers side by side."""
    chosen, ordered = worst_cases(report, most=report.cases)
    results = {c.name: {result.concept_id: result for result in c.results} for c in report.candidates}
    texts = {name: {c.concept.concept_id: c for c in given} for name, given in completions.items()}
    drawn = (_case(case, report.candidates, results, texts) for case in ordered)
    return f'<p class="soft">Those first where {escape(chosen.name)} did worst.</p>\n{"".join(drawn)}'


def _case(
    case: CaseResult,
    candidates: Sequence[CandidateResult],
    results: Mapping[str, Mapping[str, CaseResult]],
    texts: Mapping[str, Mapping[str, Completion]],
) -> str:
    scores = "".join(
        f"<span>{escape(c.name)} {counted(results[c.name][case.concept_id].score):.3f}</span>"
        for c in candidates
        if case.concept_id in results[c.name]
    )
    known = next((given[case.concept_id] for given in texts.values() if case.concept_id in given), None)
    asked = ""
    if known:
        asked = (
            f"<h3>Concept</h3><p>{escape(known.concept.concept)}</p>"
            f"<h3>Requirements</h3><pre>{escape(known.concept.requirements_yaml)}</pre>"
        )
    answers = "".join(
        _answer(c, results[c.name][case.concept_id], texts.get(c.name, {}).get(case.concept_id))
        for c in candidates
        if case.concept_id in results[c.name]
    )
    return (
        f"<details><summary><code>{escape(case.concept_id)}</code>"
        f'<span class="soft">planted: {escape(case.expected_label or "nothing")}</span>{scores}</summary>'
        f'<div class="case">{asked}<div class="answers">{answers}</div></div></details>\n'
    )


def _answer(candidate: CandidateResult, result: CaseResult, completion: Completion | None) -> str:
    violations = "".join(
        f"<li>{escape(violation.kind)}: {escape(violation.detail)}</li>" for violation in result.score.violations
    )
    text = f"<pre>{escape(completion.text) or '(nothing)'}</pre>" if completion else ""
    return (
        f"<div><h3>{escape(title_of(candidate))}: {escape(answered_label(result.score))}</h3>"
        f'<p class="soft">metric {counted(result.score):.3f}, finish {escape(result.finish)}, '
        f"{seconds(result.usage.latency_s)} s, {result.usage.completion_tokens} tokens</p>"
        f'<ul class="violations">{violations}</ul>{text}</div>'
    )


def _method(report: EvaluationReport) -> str:
    generation = report.generation
    sampling = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    pairs = [
        ("Cases", f"{report.cases} held-out concepts, the same prompt for all"),
        ("Prompt contract", f"{report.contract.role}/{report.contract.name}, {report.contract.digest[:19]}"),
        ("Decoding", f"{sampling}, at most {generation.max_tokens} tokens; recorded answers as they were recorded"),
        ("Valid", "production can read the answer as it stands; in the metric an invalid answer counts 0"),
        ("Balanced accuracy", "the mean over the planted classes of the share that was recognised"),
        *((title_of(candidate), candidate.model) for candidate in report.candidates),
    ]
    return _list(pairs)


def _artifacts(report: EvaluationReport) -> str:
    return _list(report.artifacts.items()) if report.artifacts else ""


def _list(given: Iterable[tuple[str, str]]) -> str:
    return pairs((name, escape(value)) for name, value in given)


def _table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    return table([escape(cell) for cell in header], ((name, [escape(cell) for cell in cells]) for name, cells in rows))
