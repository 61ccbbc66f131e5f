"""A model as a judge: which of two answers to the same concept is better, by a fixed rubric, asked in both orders.

A judge that changes its mind when the answers change places has no opinion of them, only of the places: such a case is
a tie, and counted apart. Off by default: a judge costs a call per order and case, and no rule of the gate reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from po_distill.calls import Caller, Retries
from po_distill.interfaces import Role
from po_distill.journal import Journal
from po_distill.progress import progress
from po_distill.records import (
    Completion,
    GenerationSettings,
    Judgement,
    Message,
    ProviderSettings,
    Request,
)

RUBRIC = """\
You compare two answers to the same task. Judge what they say, not how long they are or how they look:
1. Are the claims true to the task's own text? An invented fact or identifier counts most against an answer.
2. Is everything that the task asks for dealt with?
3. Is the conclusion right, and does the rest of the answer support it?
4. Could somebody act on it without asking back?
An answer without content loses to any answer with content. Reply with one word: A, B or TIE."""

_ANSWERED = re.compile(r"\b(A|B|TIE)\b", re.IGNORECASE)
_GENERATION = GenerationSettings(temperature=0.0, max_tokens=512)
_RETRIES = Retries()


class _Pair(NamedTuple):
    """One candidate's answer and the reference's, in one of the two orders."""

    name: str
    candidate: Completion
    reference: Completion
    swapped: bool


def judge_answers(
    answers: Mapping[str, Sequence[Completion]],
    reference: str,
    settings: ProviderSettings,
    role: Role,
    *,
    journal: Path,
    concurrency: int = 1,
    log_path: Path | str | None = None,
    retries: Retries = _RETRIES,
) -> dict[str, Judgement]:
    """What the judge says of each candidate's answers against the reference's, which lie in the same order.

    Journalled: the same answers are not judged twice by the same model.
    """
    pairs = [
        _Pair(name, candidate, against, swapped)
        for name, given in answers.items()
        if name != reference
        for candidate, against in zip(given, answers[reference], strict=True)
        for swapped in (False, True)
    ]
    said: dict[tuple[str, str], list[str | None]] = {}
    with Journal(journal) as opened:
        caller = Caller(settings, role, opened, most=concurrency, log_path=log_path, retries=retries)

        async def ask(pair: _Pair) -> tuple[_Pair, str | None]:
            answered = await caller.ask(_request(pair, role))
            return pair, _preferred(answered.response.text, pair.swapped)

        with (
            progress("Asking the judge", len(pairs), "comparisons") as advance,
            closing(caller.stream(pairs, ask, concurrency, in_order=True)) as results,
        ):
            for pair, preferred in results:
                said.setdefault((pair.name, pair.candidate.concept.concept_id), []).append(preferred)
                advance()
    model = settings.model or settings.provider
    return {name: _judgement(name, said, model) for name in answers if name != reference}


def _request(pair: _Pair, role: Role) -> Request:
    first, second = (pair.reference, pair.candidate) if pair.swapped else (pair.candidate, pair.reference)
    task = role.render(pair.candidate.concept)[-1].content
    text = f"TASK:\n{task}\n\nANSWER A:\n{first.text}\n\nANSWER B:\n{second.text}\n\nWhich is better: A, B or TIE?"
    messages = (Message(speaker="system", content=RUBRIC), Message(speaker="user", content=text))
    return Request(messages=messages, generation=_GENERATION, concept=pair.candidate.concept)


def _preferred(text: str, swapped: bool) -> str | None:
    """candidate, reference or tie; None where the judge says none of the three words. The last word counts."""
    words = [word.upper() for word in _ANSWERED.findall(text)]
    if not words:
        return None
    return {"A": "reference" if swapped else "candidate", "B": "candidate" if swapped else "reference"}.get(
        words[-1], "tie"
    )


def _judgement(name: str, said: Mapping[tuple[str, str], Sequence[str | None]], model: str) -> Judgement:
    counts: Counter[str] = Counter()
    for (candidate, _), both in said.items():
        if candidate != name:
            continue
        if None in both:
            counts["unreadable"] += 1
        elif both[0] == both[1]:
            counts[str(both[0])] += 1
        else:
            counts["inconsistent"] += "tie" not in both
            counts["tie"] += "tie" in both
    return Judgement(
        judge=model,
        n=counts.total(),
        better=counts["candidate"],
        worse=counts["reference"],
        tied=counts["tie"],
        inconsistent=counts["inconsistent"],
        unreadable=counts["unreadable"],
    )
