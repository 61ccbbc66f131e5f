"""The single cases of a report, as the data that its page shows them from."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from po_distill.records import CandidateResult, CaseResult, Completion, EvaluationReport
from po_distill.reporting.figures import answered_label, counted, repaired
from po_distill.reporting.foreign_text import one_line
from po_distill.reporting.markdown import title_of, worst_cases

MOST_CASES = 2_000
"""So many cases a page can hold and still open at once; the others are told of, and lie in the files."""

_LONGEST = 40_000  # characters of one answer
_CHANGES = ("same", "reworded", "missing", "added")


class Case(NamedTuple):
    """One concept, and what each candidate made of it, in the report's order; None where it was not asked."""

    concept_id: str
    results: tuple[CaseResult | None, ...]
    lost: tuple[float, ...]  # what each candidate lost
    completions: tuple[Completion | None, ...]

    @property
    def known(self) -> CaseResult:
        """A result that says what is true of the case whoever answered."""
        return next(result for result in self.results if result is not None)


def ordered_cases(report: EvaluationReport, completions: Mapping[str, Sequence[Completion]]) -> list[Case]:
    """All cases, those first where the judged candidate lost most, then the worst."""
    held = [{result.concept_id: result for result in candidate.results} for candidate in report.candidates]
    texts = [
        {one.concept.concept_id: one for one in completions.get(candidate.name, ())} for candidate in report.candidates
    ]
    names = [candidate.name for candidate in report.candidates]
    reference = held[names.index(report.reference)] if report.reference in names else {}
    judged, worst = worst_cases(report, most=report.cases)
    place = names.index(judged.name)
    found = []
    for case in worst:
        results = tuple(given.get(case.concept_id) for given in held)
        measure = reference.get(case.concept_id)
        found.append(
            Case(
                case.concept_id,
                results,
                tuple(_lost(result, measure) for result in results),
                tuple(given.get(case.concept_id) for given in texts),
            )
        )
    return sorted(found, key=lambda case: -case.lost[place])


def _lost(result: CaseResult | None, reference: CaseResult | None) -> float:
    """What the answer lost: the repaired, the raw or the reference's metric, whichever is most, less the counted."""
    if result is None:
        return 0.0
    theirs = counted(reference.score) if reference is not None else 0.0
    return max(0.0, max(repaired(result), theirs, result.score.value) - counted(result.score))


def embedded(report: EvaluationReport, cases: Sequence[Case]) -> tuple[str, str]:
    """The cases as JSON, and the texts that they name by number as JSON in gzip in Base64.

    Both can stand in a <script>: nothing in them can end the element. Equal texts stand once. Compressed they take a
    tenth of the room, and a page opens as fast as it is small.
    """
    texts, paths = _Once(), _Once()
    names = [candidate.name for candidate in report.candidates]
    data = {
        "candidates": [title_of(candidate) for candidate in report.candidates],
        "reference": names.index(report.reference) if report.reference in names else None,
        "judged": names.index(report.judged.name),
        "cases": [_case(case, report.candidates, texts, paths) for case in cases],
        "paths": paths.values,
    }
    packed = gzip.compress(_in_a_script(texts.values).encode(), mtime=0)
    return _in_a_script(data), base64.b64encode(packed).decode()


def _in_a_script(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half a character cannot be written to a file; line separators end a line for some readers.
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


class _Once:
    """Texts by number, each kept once."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self._places: dict[str, int] = {}

    def number(self, text: str) -> int:
        place = self._places.setdefault(text, len(self.values))
        if place == len(self.values):
            self.values.append(text)
        return place


def _case(case: Case, candidates: Sequence[CandidateResult], texts: _Once, paths: _Once) -> dict[str, Any]:
    known = case.known
    found: dict[str, Any] = {
        "id": visible(case.concept_id),
        "tier": one_line(known.tier, longest=None),
        "expected": _name(known.expected_label),
        "agreed": _name(next((r.reference_label for r in case.results if r is not None and r.reference_label), None)),
        "watched": known.watched,
    }
    asked = next((one.concept for one in case.completions if one is not None), None)
    if asked is not None:
        found["concept"] = texts.number(visible(asked.concept))
        found["requirements"] = texts.number(visible(asked.requirements_yaml))
    found["answers"] = [
        None if result is None else _answer(result, case.lost[place], case.completions[place], texts, paths)
        for place, result in enumerate(case.results[: len(candidates)])
    ]
    return found


def _answer(
    result: CaseResult, lost: float, completion: Completion | None, texts: _Once, paths: _Once
) -> dict[str, Any]:
    failure, score = result.failure, result.score
    found: dict[str, Any] = {
        "label": _name(answered_label(score)),
        "valid": score.valid,
        "metric": round(counted(score), 4),
        "lost": round(lost, 4),
        "finish": visible(result.finish),
        "seconds": round(result.usage.latency_s, 3),
        "tokens": result.usage.completion_tokens,
    }
    if not score.valid:
        found["raw"] = round(score.value, 4)
    if result.repaired_value is not None:
        found["repaired"] = round(result.repaired_value, 4)
    if failure is not None:
        found |= {"cause": _name(failure.cause), "level": failure.level, "detail": visible(failure.detail)}
        if failure.also:
            found["also"] = list(failure.also)
    if score.violations:
        found["violations"] = [visible(f"{one.kind}: {one.detail}") for one in score.violations]
    if score.parts:
        found["parts"] = {name: round(value, 3) for name, value in score.parts.items()}
    for name in ("coverage", "meaning"):
        if (value := getattr(result, name)) is not None:
            found[name] = round(value, 3)
    if result.tries > 1:
        found["tries"] = result.tries
    if completion is not None:
        found["text"] = texts.number(visible(completion.text))
    if result.changes:
        found["changes"] = [
            [
                paths.number(change.path),
                _CHANGES.index(change.change),
                -1 if change.reference is None else texts.number(visible(change.reference)),
                -1 if change.candidate is None else texts.number(visible(change.candidate)),
            ]
            for change in result.changes
        ]
    return found


def _name(name: str | None) -> str | None:
    """As the page's own lists have it, so that what is chosen there is found here."""
    return None if name is None else one_line(name, longest=None)


def visible(text: str) -> str:
    """The text with its lines, what cannot be printed as a question mark; what is very long is cut, and says so."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}\n… ({len(text) - _LONGEST:,} characters more)"
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else " " if c.isspace() else "\ufffd" for c in text.replace("\r\n", "\n")
    )
