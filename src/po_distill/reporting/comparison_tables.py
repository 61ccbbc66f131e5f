"""The sections of a Markdown report that hold candidates against a reference: differences, slices, failures, time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from po_distill.records import CandidateResult, EvaluationReport
from po_distill.reporting.foreign_text import for_markdown

NOTHING = "–"
_MOST_FIELDS = 12
_CHANGES = ("same", "reworded", "missing", "added")


def rules_table(report: EvaluationReport) -> str:
    """Each rule of the gate: outcome, figure, n."""
    rows = [
        [for_markdown(rule.rule), rule.outcome, for_markdown(rule.reason, longest=None), str(rule.n or NOTHING)]
        for rule in report.verdict.rules
    ]
    return markdown_table(["Rule", "Outcome", "Figure", "n"], rows) if rows else ""


def differences(report: EvaluationReport) -> str:
    """The paired differences to the reference."""
    rows = [
        [
            for_markdown(candidate.name),
            f"{found.mean:+.3f}",
            f"[{found.low:+.3f}, {found.high:+.3f}]",
            f"{found.p_adjusted:.3g}",
            NOTHING if found.effect_size is None else f"{found.effect_size:+.2f}",
            found.decision,
            NOTHING if found.cases_to_decide is None else f"{found.cases_to_decide}",
            str(found.n),
        ]
        for candidate in report.candidates
        if (found := candidate.difference) is not None
    ]
    if not rows:
        return ""
    margin = next(candidate.difference.margin for candidate in report.candidates if candidate.difference)
    header = ["Candidate", "Difference", "95 % interval", "p (Holm)", "Effect", "Decision", "Cases to decide", "n"]
    note = (
        f"Paired by concept, an invalid answer counting 0; {for_markdown(str(report.reference))} is the reference, "
        f"{margin:g} the margin of `not worse`."
    )
    return f"## Differences to the reference\n\n{markdown_table(header, rows)}\n\n{note}"


def parts(report: EvaluationReport) -> str:
    """The parts of the metric, requirement coverage, length and agreement in meaning."""
    names = list(dict.fromkeys(name for candidate in report.candidates for name in candidate.parts))
    if not names:
        return ""
    rows = [
        [f"Part {for_markdown(name)}", *(_three(candidate.parts.get(name)) for candidate in report.candidates)]
        for name in names
    ]
    rows.append(["Requirements dealt with", *(_three(c.coverage) for c in report.candidates)])
    if report.meaning_by:
        rows.append(["Agreement with the reference", *(_three(c.meaning) for c in report.candidates)])
    rows.append(["Characters of an answer", *(f"{c.characters:.0f}" for c in report.candidates)])
    told = f" Agreement by {for_markdown(report.meaning_by)}." if report.meaning_by else ""
    header = [f"Means, n = {report.cases}", *_titles(report)]
    return f"## Parts of the metric\n\n{markdown_table(header, rows)}\n\nAn invalid answer counts 0 in each part.{told}"


def judgements(report: EvaluationReport) -> str:
    """What a model as a judge preferred."""
    rows = [
        [
            for_markdown(candidate.name),
            *(str(getattr(found, name)) for name in ("better", "worse", "tied", "inconsistent", "unreadable", "n")),
            for_markdown(found.judge),
        ]
        for candidate in report.candidates
        if (found := candidate.judgement) is not None
    ]
    if not rows:
        return ""
    header = ["Against the reference", "Better", "Worse", "Tied", "By place alone", "Unreadable", "n", "Judge"]
    note = "Asked in both orders by a fixed rubric; no rule of the gate reads it."
    return f"## A model as a judge\n\n{markdown_table(header, rows)}\n\n{note}"


def slices(report: EvaluationReport) -> str:
    """The metric by tier, class and on the watch list."""
    keys = dict.fromkeys((one.kind, one.name, one.n) for c in report.candidates for one in c.slices)
    if not keys:
        return ""
    rows = []
    for kind, name, n in keys:
        means = [next((s.mean for s in c.slices if (s.kind, s.name) == (kind, name)), None) for c in report.candidates]
        label = for_markdown(name) if kind == "watch" else f"{kind} {for_markdown(name)}"
        rows.append([label, *map(_three, means), str(n)])
    return "## Slices\n\n" + markdown_table(["Metric in", *_titles(report), "n"], rows)


def failures(report: EvaluationReport) -> str:
    """Failed answers by cause, for each candidate that has any, the costliest cause first."""
    found = []
    for candidate in report.candidates:
        rows = [
            [
                for_markdown(cluster.cause),
                cluster.level,
                f"{cluster.n} of {candidate.cases}",
                f"{cluster.lost:.3f}",
                for_markdown(", ".join(cluster.concept_ids[:5])),
            ]
            for cluster in candidate.clusters
        ]
        if rows:
            header = ["Cause", "Level", "Answers", "Costs the mean", "Read first"]
            found.append(
                f"### {for_markdown(candidate.name)}\n\n{markdown_table(header, rows)}{_if_repaired(candidate)}"
            )
    return "## Why answers fail\n\n" + "\n\n".join(found) if found else ""


def _if_repaired(candidate: CandidateResult) -> str:
    mended = sum(case.repaired_value is not None for case in candidate.results)
    if not mended:
        return ""
    return (
        f"\n\nHad the {mended} answers been repaired that lack only unfolding or quoting, the metric would be "
        f"{candidate.repaired_mean:.3f} in place of {candidate.score_mean:.3f} (n = {candidate.cases})."
    )


def changes(report: EvaluationReport) -> str:
    """What the judged candidate's answers leave out, add and reword, by field."""
    judged = report.judged
    counts: dict[str, dict[str, int]] = {}
    for case in judged.results:
        for change in case.changes:
            field = counts.setdefault(change.path, dict.fromkeys(_CHANGES, 0))
            field[change.change] += 1
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1]["missing"] - pair[1]["added"], pair[0]))
    rows = [[for_markdown(path), *(str(held[kind]) for kind in _CHANGES)] for path, held in ordered[:_MOST_FIELDS]]
    return f"## Items against the reference's ({for_markdown(judged.name)}, n = {judged.cases})\n\n" + markdown_table(
        ["Field", *(kind.capitalize() for kind in _CHANGES)], rows
    )


def times(report: EvaluationReport) -> str:
    """What calls took, and how long whole pieces of work take."""
    timed = [candidate for candidate in report.candidates if candidate.times and candidate.times.n]
    if not timed:
        return ""
    rows = []
    for candidate in timed:
        found = candidate.times
        assert found is not None
        figures = (
            found.median_s, found.p95_s, found.first_token_s, found.prompt_tokens_per_s, found.answer_tokens_per_s,
            found.load_s,
        )  # fmt: skip
        rows.append([for_markdown(candidate.name), *(_digits(value) for value in figures), str(found.n)])
    header = ["", "Median s", "95 % s", "First token s", "Prompt tokens/s", "Answer tokens/s", "Load s", "n"]
    asked = {True: ", asked in turn", False: ", one candidate after the other", None: ", as recorded"}
    told = f"Without the loading of the model, {report.concurrency} at a time{asked[report.interleaved]}."
    text = f"## Time of a call\n\n{markdown_table(header, rows)}\n\n{told}"
    if report.projections:
        rows = [
            [p.work, for_markdown(p.candidate), str(p.calls), _duration(p.seconds), for_markdown(p.basis, longest=None)]
            for p in report.projections
        ]
        text += "\n\n### Projected\n\n" + markdown_table(["Work", "With", "Calls", "Takes", "Reckoned from"], rows)
    return text


def observations(report: EvaluationReport) -> str:
    """What the figures show, in sentences."""
    lines = "\n".join(f"- {for_markdown(line, longest=None)}" for line in report.observations)
    return f"## Observations\n\n{lines}" if lines else ""


def recommendations(report: EvaluationReport) -> str:
    """What to do next: the library's own words, in Markdown already."""
    lines = "\n".join(f"- {line}" for line in report.recommendations)
    return f"## Recommendations\n\n{lines}" if lines else ""


def digests(report: EvaluationReport) -> str:
    """The digests of the files that the figures come from."""
    rows = [[for_markdown(name), digest] for name, digest in report.digests.items()]
    return "### Digests\n\n" + markdown_table(["What was read", "SHA-256"], rows) if rows else ""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; columns of figures are aligned to the right."""
    rows = list(rows)
    ruler = ["---", *["---:"] * (len(header) - 1)] if all(_numeric(row) for row in rows) else ["---"] * len(header)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows))


def _titles(report: EvaluationReport) -> list[str]:
    return [for_markdown(candidate.name) for candidate in report.candidates]


def _numeric(row: Sequence[str]) -> bool:
    return all(not cell or cell[0].isdigit() or cell == NOTHING for cell in row[1:])


def _three(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _digits(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
