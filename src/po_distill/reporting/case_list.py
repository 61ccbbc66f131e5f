"""The cases of a report as a list to browse: readable as it stands, filtered and opened side by side by a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from po_distill.records import CandidateResult, CaseResult, Completion, EvaluationReport
from po_distill.reporting.case_data import MOST_CASES, Case, embedded, ordered_cases
from po_distill.reporting.figures import answered_label, counted
from po_distill.reporting.foreign_text import for_page
from po_distill.reporting.markdown import seconds, title_of

_MARKS = {"same": "=", "reworded": "~", "missing": "−", "added": "+"}


class CaseList:
    """The list of cases of one report. `numbers` are the places of concepts in it, for links to `#case-NUMBER`."""

    def __init__(self, report: EvaluationReport, completions: Mapping[str, Sequence[Completion]]) -> None:
        self._report = report
        self._cases = ordered_cases(report, completions)[:MOST_CASES]
        self.numbers = {case.concept_id: number for number, case in enumerate(self._cases)}

    def render(self) -> str:
        """The controls, which a script shows and serves; a line per case that opens; and the data of the cases."""
        report, names = self._report, [title_of(candidate) for candidate in self._report.candidates]
        place = report.candidates.index(report.judged)
        entries = "".join(self._entry(number, case, place) for number, case in enumerate(self._cases))
        data, texts = embedded(report, self._cases)
        heads = "".join(f"<span>{for_page(name)}</span>" for name in names)
        return (
            f'<p class="soft">Those first where <b id="focus">{for_page(names[place])}</b> lost most.{self._left_out()}'
            f'{self._legend()}</p>\n<noscript class="note"><p>Without JavaScript this list cannot be filtered and '
            "answers are not shown in full: they lie in the files under Artifacts.</p></noscript>\n"
            f'{self._controls(place)}\n<div class="entries" id="entries" style="--candidates: {len(names)}">'
            f'<div class="heads" aria-hidden="true"><span>Concept</span><span>Tier, class</span>{heads}'
            f"<span>Cause</span><span>Lost</span></div>\n{entries}</div>\n"
            f'<script type="application/json" id="case-data">{data}</script>\n'
            f'<script type="text/plain" id="case-texts">{texts}</script>\n'
        )

    def _left_out(self) -> str:
        left = self._report.cases - len(self._cases)
        if left <= 0:
            return f" n = {self._report.cases} cases."
        return (
            f" These are {len(self._cases):,} of {self._report.cases:,} cases; the other {left:,} are in the report's "
            "data and the files of completions (under Artifacts)."
        )

    def _legend(self) -> str:
        if not any(candidate.item_changes for candidate in self._report.candidates):
            return ""
        told = {"same": "the same", "reworded": "in other words", "missing": "only left", "added": "only right"}
        marks = ", ".join(f'<b class="{kind}">{_MARKS[kind]}</b> {told[kind]}' for kind in _MARKS)
        return f' <span class="legend">Items of two answers: {marks}.</span>'

    # --- controls -------------------------------------------------------------------------------

    def _controls(self, place: int) -> str:
        report = self._report
        names = [report.reference] if report.reference else []
        left = next((n for n, c in enumerate(report.candidates) if c.name in names and n != place), None)
        if left is None:
            left = next((number for number in range(len(report.candidates)) if number != place), place)
        failed = for_page(title_of(report.judged))
        return (
            '<div class="controls" id="controls" role="search" aria-label="Filter the cases" hidden>'
            '<label class="wide"><span>Text or concept id <kbd>/</kbd></span>'
            '<input type="search" id="by-words" autocomplete="off" spellcheck="false"></label>'
            f'<label>Candidate<select id="by-right">{self._names(place)}</select></label>'
            f'<label>Beside<select id="by-left">{self._names(left)}</select></label>'
            f'<label>Slice<select id="by-slice"><option value="">all</option>{self._slices()}</select></label>'
            '<label>Cause<select id="by-cause"><option value="">all</option></select></label>'
            '<label>Order<select id="by-order"><option value="lost">lost most first</option>'
            '<option value="metric">lowest metric first</option><option value="seconds">slowest first</option>'
            '<option value="id">concept id</option></select></label>'
            '<label class="tick"><input type="checkbox" id="by-failures"> Only failures of '
            f'<span id="whose">{failed}</span></label>'
            '<label class="tick"><input type="checkbox" id="by-differing"> Only differing items</label>'
            '<label class="tick"><input type="checkbox" id="by-keys" checked> Keys: <kbd>j</kbd> <kbd>k</kbd> or '
            "arrows move, <kbd>Enter</kbd> opens, <kbd>Esc</kbd> closes, <kbd>/</kbd> filters</label>"
            '<button type="button" id="clear">Clear filters</button>'
            '<p class="count" id="count" role="status" aria-live="polite"></p></div>'
        )

    def _names(self, chosen: int) -> str:
        return "".join(
            f'<option value="{number}"{" selected" if number == chosen else ""}>{for_page(title)}</option>'
            for number, title in enumerate(map(title_of, self._report.candidates))
        )

    def _slices(self) -> str:
        known = [case.known for case in self._cases]
        groups = (
            ("Tier", "tier", sorted({case.tier for case in known})),
            ("Class that is right", "class", sorted({label for case in known if (label := _right(case))})),
        )
        found = ""
        for title, kind, names in groups:
            options = "".join(
                f'<option value="{kind}:{for_page(name, longest=None)}">{for_page(name)}</option>' for name in names
            )
            found += f'<optgroup label="{title}">{options}</optgroup>' if options else ""
        watched = any(case.watched for case in known)
        return found + ('<option value="watch:">on the watch list</option>' if watched else "")

    # --- one case -------------------------------------------------------------------------------

    def _entry(self, number: int, case: Case, place: int) -> str:
        known, judged = case.known, case.results[place]
        right = _right(known)
        star = '<span class="star"><span aria-hidden="true">★</span><span class="unseen">watched</span></span>'
        scores = "".join(
            _score(candidate, result) for candidate, result in zip(self._report.candidates, case.results, strict=True)
        )
        cause = judged.failure.cause if judged is not None and judged.failure is not None else ""
        asked = next((one.concept.concept for one in case.completions if one is not None), None)
        answers = "".join(
            self._answer(candidate, result)
            for candidate, result in zip(self._report.candidates, case.results, strict=True)
            if result is not None
        )
        return (
            f'<details class="entry" id="case-{number}"><summary><span><code>{for_page(case.concept_id)}</code>'
            f"{star if known.watched else ''}</span><span>{for_page(known.tier)}"
            f"{', ' + for_page(right) if right else ''}</span>{scores}"
            f'<span class="cause">{for_page(cause)}</span><span class="lost">{_signed(case.lost[place])}</span>'
            # A browser with scripts passes over what the script will put there in full; without, it is what opens.
            f'</summary><noscript><div class="case">{f"<p>{for_page(asked, longest=None)}</p>" if asked else ""}'
            f'<div class="answers">{answers}</div></div></noscript></details>\n'
        )

    def _answer(self, candidate: CandidateResult, result: CaseResult) -> str:
        """What is said of one answer where no script runs, in few elements: there are thousands of answers."""
        failure, score = result.failure, result.score
        faults = [f"{failure.cause}: {failure.detail}"] if failure is not None else []
        faults += [f"{one.kind}: {one.detail}" for one in score.violations]
        why = f"<p>{'; '.join(map(for_page, faults))}</p>" if faults else ""
        if candidate is self._report.judged and (differing := [one for one in result.changes if one.change != "same"]):
            lines = (f"{_MARKS[c.change]} {c.path}: {c.candidate or c.reference or ''}" for c in differing)
            why += f'<pre class="items">{"&#10;".join(map(for_page, lines))}</pre>'
        return (
            f"<div><h3>{for_page(title_of(candidate))}: {for_page(answered_label(score))}</h3>"
            f'<p class="soft">metric {counted(score):.3f}, finish {for_page(result.finish)}, '
            f"{seconds(result.usage.latency_s)} s, {result.usage.completion_tokens} tokens</p>{why}</div>"
        )


def _right(case: CaseResult) -> str | None:
    return case.expected_label or case.reference_label


def _score(candidate: CandidateResult, result: CaseResult | None) -> str:
    name = f'<span class="name">{for_page(title_of(candidate))} </span>'
    if result is None:
        return f'<span class="score">{name}–</span>'
    if result.failure is None and result.score.valid:
        return f'<span class="score">{name}<b class="passed">✓ {counted(result.score):.3f}</b></span>'
    told = '<span class="unseen"> failed</span>'
    return f'<span class="score">{name}<b class="failed">✗ {counted(result.score):.3f}{told}</b></span>'


def _signed(lost: float) -> str:
    return f"−{lost:.3f}" if lost >= 0.0005 else "0"
