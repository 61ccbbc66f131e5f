"""The figures of an evaluation as parts of its page; every one says how many cases it is of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from po_distill.records import EvaluationReport, RuleResult
from po_distill.reporting.figures import balanced_accuracy
from po_distill.reporting.foreign_text import for_page, one_line
from po_distill.reporting.markdown import main_rows, seconds, share, title_of
from po_distill.reporting.page import pairs, table

NOTHING = "–"
SIGNS = {"passed": "✓", "failed": "✗", "undecided": "?", "not judged": "–"}
_DECIDED = {"better": "passed", "not worse": "passed", "worse": "failed", "undecided": "undecided"}


def outcome(word: str) -> str:
    """A word of the gate in its colour, with a sign."""
    return f'<b class="{word.replace(" ", "-")}"><span aria-hidden="true">{SIGNS[word]}</span> {word}</b>'


def rules(report: EvaluationReport) -> str:
    """Each rule with its outcome, figure, threshold and number of cases."""
    if not report.verdict.rules:  # a report of 0.1
        return f"<ul>{''.join(f'<li>{_told(reason)}</li>' for reason in report.verdict.reasons)}</ul>"
    rows = [(rule.rule, _rule(rule)) for rule in report.verdict.rules]
    return table(["Rule", "Outcome", "Figure", "Value", "Threshold", "n"], rows, kind="words rules-table")


def _rule(rule: RuleResult) -> list[str]:
    return [outcome(rule.outcome), _told(rule.reason), _plain(rule.value), _plain(rule.threshold), _count(rule.n)]


def candidates(report: EvaluationReport) -> str:
    """The main table."""
    rows = [(name, [for_page(cell) for cell in cells]) for name, cells in main_rows(report)]
    models = [_path(candidate.model) for candidate in report.candidates]
    stand_ins = ", ".join(for_page(c.name) for c in report.candidates if c.stand_in)
    note = f'<p class="soft">Stand-in: rules answered in place of a model ({stand_ins}).</p>' if stand_ins else ""
    return table(["Figure", *titles(report)], [*rows, ("Model", models)]) + note


def differences(report: EvaluationReport) -> str:
    """The paired differences to the reference."""
    rows = []
    for candidate in report.candidates:
        if (found := candidate.difference) is None:
            continue
        effect = NOTHING if found.effect_size is None else f"{found.effect_size:+.2f}"
        more = NOTHING if found.cases_to_decide is None else f"{found.cases_to_decide}"
        sign = outcome(_DECIDED[found.decision]).split("</span>")[0]
        decision = f"{sign}</span> {found.decision}</b>"
        interval = f'<span class="whole">[{found.low:+.3f}, {found.high:+.3f}]</span>'
        cells = [f"{found.mean:+.3f}", interval, f"{found.p_adjusted:.3g}", effect, decision, more, str(found.n)]
        rows.append((candidate.name, cells))
    if not rows:
        return ""
    margin = next(candidate.difference.margin for candidate in report.candidates if candidate.difference)
    header = ["Candidate", "Difference", "95 % interval", "p (Holm)", "Effect", "Decision", "Cases to decide", "n"]
    return table(header, rows) + (
        f'<p class="soft">Paired by concept, an invalid answer counting 0; {for_page(str(report.reference))} is the '
        f"reference, {margin:g} the margin of <q>not worse</q>.</p>"
    )


def findings(report: EvaluationReport, numbers: Mapping[str, int]) -> str:
    """What the figures show, with links to the cases that show it, and what to do next."""
    shown = "".join(f"<li>{_linked(line, numbers)}</li>" for line in report.observations)
    advised = "".join(f"<li>{_with_code(line)}</li>" for line in report.recommendations)
    return (f"<ul>{shown}</ul>" if shown else "") + (f"<h3>Recommendations</h3><ul>{advised}</ul>" if advised else "")


def parts(report: EvaluationReport) -> str:
    """The parts of the metric, requirement coverage, length and agreement in meaning."""
    names = list(dict.fromkeys(name for candidate in report.candidates for name in candidate.parts))
    if not names:
        return ""
    every = report.candidates
    rows = [(f"Part {name}", [_three(c.parts.get(name), c.cases) for c in every]) for name in names]
    rows.append(("Requirements dealt with", [_three(c.coverage, c.coverage_n) for c in every]))
    note = "An invalid answer counts 0 in each part."
    if report.meaning_by:
        rows.append(("Agreement with the reference", [_three(c.meaning, c.meaning_n) for c in every]))
        note += f" Agreement by {for_page(report.meaning_by)}."
    rows.append(("Characters of an answer", [f"{c.characters:.0f} {of_cases(c.cases)}" for c in every]))
    return table(["Mean", *titles(report)], rows) + f'<p class="soft">{note}</p>'


def slices(report: EvaluationReport) -> str:
    """The metric by tier, class and on the watch list."""
    keys = dict.fromkeys((one.kind, one.name, one.n) for c in report.candidates for one in c.slices)
    rows = []
    for kind, name, n in keys:
        found = [next((s for s in c.slices if (s.kind, s.name) == (kind, name)), None) for c in report.candidates]
        label = name if kind == "watch" else f"{kind} {name}"
        rows.append((label, [*(NOTHING if s is None else f"{s.mean:.3f}" for s in found), str(n)]))
    return table(["Metric in", *titles(report), "n"], rows) if rows else ""


def classes(report: EvaluationReport) -> str:
    """How often each planted class was recognised."""
    labels = sorted({label for c in report.candidates for label in c.verdicts})
    if not labels:
        return ""
    rows = []
    for label in labels:
        found = [c.verdicts.get(label) for c in report.candidates]
        rows.append((label, [share(v.right / v.cases, v.cases) if v else "" for v in found]))
    balanced = [(balanced_accuracy(c.verdicts), sum(v.cases for v in c.verdicts.values())) for c in report.candidates]
    rows.append(("balanced accuracy", [_three(*found) for found in balanced]))
    return "<h3>Verdict accuracy per class</h3>" + table(["Planted class", *titles(report)], rows, kind="total")


def times(report: EvaluationReport) -> str:
    """What calls took."""
    rows = []
    for candidate in report.candidates:
        found = candidate.times
        if found is None or not found.n:
            continue
        figures = (
            found.median_s, found.p95_s, found.first_token_s, found.prompt_tokens_per_s, found.answer_tokens_per_s,
            found.load_s,
        )  # fmt: skip
        rows.append((candidate.name, [*(NOTHING if v is None else seconds(v) for v in figures), str(found.n)]))
    if not rows:
        return ""
    header = ["Candidate", "Median s", "95 % s", "First token s", "Prompt tokens/s", "Answer tokens/s", "Load s", "n"]
    asked = {True: ", asked in turn", False: ", one candidate after the other", None: ", as recorded"}
    told = f"Without the loading of the model, {report.concurrency} at a time{asked[report.interleaved]}."
    return table(header, rows) + f'<p class="soft">{told}</p>'


def projections(report: EvaluationReport) -> str:
    """How long whole pieces of work take."""
    rows = [
        (p.work, [for_page(p.candidate), str(p.calls), _duration(p.seconds), _told(p.basis)])
        for p in report.projections
    ]
    if not rows:
        return ""
    return "<h3>Projected</h3>" + table(["Work", "With", "Calls", "Takes", "Reckoned from"], rows, kind="words")


def method(report: EvaluationReport) -> str:
    """How the figures came about."""
    generation = report.generation
    sampling = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
    sampling += " under a JSON schema (guaranteed-valid)" if report.guaranteed_valid else ""
    given = [
        ("Measured", for_page(report.created_at)),
        ("Cases", f"{report.cases} held-out concepts, the same prompt for all"),
        (
            "Prompt contract",
            f"{for_page(report.contract.role)}/{for_page(report.contract.name)}, answers in the form "
            f"{for_page(report.contract.output_format)}",
        ),
        ("Decoding", f"{sampling}, at most {generation.max_tokens} tokens; recorded answers as they were recorded"),
        ("Valid", "production can read the answer as it stands; in the metric an invalid answer counts 0"),
        ("Balanced accuracy", "the mean over the planted classes of the share that was recognised"),
        ("Gate", for_page(report.verdict.gate or NOTHING)),
        ("Seed of the resampling", str(report.seed)),
    ]
    return pairs([*given, *((title_of(candidate), for_page(candidate.model)) for candidate in report.candidates)])


def artifacts(report: EvaluationReport) -> str:
    """Where the files lie."""
    return pairs((name, _path(path)) for name, path in report.artifacts.items()) if report.artifacts else ""


def digests(report: EvaluationReport) -> str:
    """What the figures hold for: the digests of contract, student, gate and all files that were read."""
    given = [("Prompt contract", _path(report.contract.digest))]
    if report.student_digest:
        given.append(("Student", _path(report.student_digest)))
    given += [(f"File of {name}", _path(digest)) for name, digest in report.digests.items()]
    return f"<h2>Digests</h2>{pairs(given)}"


def titles(report: EvaluationReport) -> list[str]:
    """The candidates as heads of a table, HTML already."""
    return [for_page(title_of(candidate)) for candidate in report.candidates]


def _path(text: str) -> str:
    return f'<span class="path">{for_page(text, longest=None)}</span>'


def _told(sentence: str) -> str:
    return for_page(sentence, longest=None)


def _linked(sentence: str, numbers: Mapping[str, int]) -> str:
    """The sentence, each concept id in it a link to its case."""
    parts = re.split(r"([\s,:;()]+|\.(?=\s|$))", one_line(sentence, longest=None))
    return "".join(
        f'<a href="#case-{numbers[part]}">{escape(part)}</a>' if part in numbers else escape(part) for part in parts
    )


def _with_code(sentence: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _told(sentence))


def of_cases(count: int) -> str:
    """How many cases a figure is of, HTML already."""
    return f'<span class="soft whole">n = {count}</span>'


def _count(n: int) -> str:
    return str(n or NOTHING)


def _plain(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}" if value % 1 else f"{value:.0f}"


def _three(value: float | None, n: int) -> str:
    return NOTHING if value is None else f"{value:.3f} {of_cases(n)}"


def _duration(taken_s: float) -> str:
    if taken_s < 120:
        return f"{taken_s:.3g} s"
    return f"{taken_s / 60:.0f} min" if taken_s < 7200 else f"{taken_s / 3600:.1f} h"


def joined(given: Iterable[str]) -> str:
    """What there is of several parts, below each other; nothing where there is none."""
    return "\n".join(filter(None, given))


def beside(plots: Sequence[str], told: str) -> str:
    """Several plots above what is told in figures, one beside it."""
    if not told or len(plots) > 1:
        return (f'<div class="plots">{"".join(plots)}</div>' if plots else "") + told
    return f'<div class="beside">{plots[0]}<div>{told}</div></div>' if plots else told
