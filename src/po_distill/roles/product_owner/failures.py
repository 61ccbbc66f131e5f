"""Why a Product Owner's answer failed: its form, its schema or what it says; and what repair would have made of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from po_distill.dspy_form import CONTRACT as DSPY
from po_distill.dspy_form import read_fields
from po_distill.interfaces import Documents
from po_distill.records import Concept, Failure, Score
from po_distill.roles.product_owner.answers import find_blocks, parse_shared, production_faults
from po_distill.roles.product_owner.documents import REVIEW, VISION, plain_text
from po_distill.roles.product_owner.program_prompt import write_answer
from po_distill.roles.product_owner.scoring import STATUSES, covered_share, list_requirements
from po_distill.roles.product_owner.yaml_repair import UNREADABLE, repaired

_SCHEMA_CAUSES = {"status_outside_enum": "wrong_enum"}
_CONTENT_CAUSES = {
    "verdict_contradicts_lists": "contradiction",
    "too_few_actions": "too_few_actions",
}
_WORD = re.compile(r"[^\W\d_]{3,}")
_IDENTIFIER = re.compile(r"\b[A-Z]{1,6}-?\d{1,4}\b")
_FEWEST_WORDS = 12  # different ones, in both documents together
_FEWEST_ITEM_WORDS = 6  # different ones, in all lists together
_FEWEST_SHARED = 3  # of them, words of the concept or its requirements
_LEAST_COVERAGE = 0.5


def attribute(
    concept: Concept, text: str, contract: str, *, score: Score, finish: str = "stop", expected: str | None = None
) -> tuple[Failure, ...]:
    """Why an answer with that score failed, the gravest cause first; empty where nothing did.

    `expected` is the right status, as planted or as the reference answered.
    """
    if not text.strip():
        return (Failure(level="format", cause="no_answer", detail=f"the model answered nothing (finish: {finish})"),)
    faults = [] if score.valid else production_faults(text, contract)
    kinds = {fault.kind: fault.detail for fault in reversed(faults)}
    unread = [kind for kind in kinds if kind.startswith(("missing_v", "missing_r", "unreadable"))]
    if {"missing_key", "wrong_type"} & kinds.keys() and _ends_early(text, finish):
        unread += kinds  # cut between two lines, so that what is there can be read
    if unread:
        return (_format_failure(text, unread[0], kinds[unread[0]], finish),)
    schema = [
        Failure(level="schema", cause=_SCHEMA_CAUSES.get(kind, kind), detail=detail) for kind, detail in kinds.items()
    ]
    return (
        *sorted(schema, key=_enum_first),
        *_content_failures(concept, parse_shared(text).documents, score, expected),
    )


def _enum_first(failure: Failure) -> bool:
    return failure.cause != "wrong_enum"


def _format_failure(text: str, kind: str, detail: str, finish: str) -> Failure:
    _, blocks = find_blocks(text)
    if _ends_early(text, finish):
        return Failure(level="format", cause="truncated", detail=f"the answer ends in the middle (finish: {finish})")
    if kind == "unreadable_yaml":
        causes = [mended.cause for block in blocks.values() if (mended := repaired(block)) is not None]
        return Failure(level="format", cause=causes[0] if causes else UNREADABLE, detail=detail)
    if kind == "unreadable_json":
        return Failure(level="format", cause=kind, detail=detail)
    missing = VISION if kind == "missing_vision" else REVIEW
    if missing in blocks:
        return Failure(level="format", cause="wrong_fences", detail=f"{detail}, but one in another form")
    if not blocks:
        return Failure(level="format", cause="no_blocks", detail="neither document is there")
    return Failure(level="format", cause=kind, detail=detail)


def _ends_early(text: str, finish: str) -> bool:
    return finish == "length" or _is_cut(text)


def _is_cut(text: str) -> bool:
    """Whether the text ends inside a block, or inside the fence that opens or closes one."""
    end = text.rstrip()
    if end.startswith("{"):
        return not end.endswith("}")
    if sections := read_fields(end):
        return "completed" not in sections
    opened, closed = (len(re.findall(rf"<{slash}(?:VISION|REVIEW)>", end)) for slash in ("", "/"))
    return end.count("```") % 2 == 1 or bool(re.search(r"(?<!`)``?$", end)) or opened > closed


def _content_failures(concept: Concept, documents: Documents, score: Score, expected: str | None) -> Iterator[Failure]:
    found = {violation.kind: violation.detail for violation in score.violations}
    if (said := _says_nothing(concept, documents)) is not None:
        yield Failure(level="content", cause="contentless", detail=said)
    if "unknown_requirement_id" in found:
        yield Failure(level="content", cause="invented_ids", detail=found["unknown_requirement_id"])
    if expected in STATUSES and score.label is not None and score.label != expected:
        yield Failure(level="content", cause="swapped_verdict", detail=f"status {score.label}, {expected} is right")
    for kind, cause in _CONTENT_CAUSES.items():
        if kind in found:
            yield Failure(level="content", cause=cause, detail=found[kind])
    share = coverage(concept, documents)
    if share is not None and share < _LEAST_COVERAGE:
        yield Failure(
            level="content",
            cause="missed_requirements",
            detail=f"the review deals with {share:.2f} of the requirements",
        )


def coverage(concept: Concept, documents: Documents) -> float | None:
    """The share of the requirements that the review deals with; None where none are listed."""
    requirements = list_requirements(concept.requirements_yaml)
    return covered_share(requirements, documents.get(REVIEW, {})) if requirements else None


def repair(text: str, contract: str) -> str | None:
    """The answer with its blocks unfolded and quoted, in the contract's form; None where that changes nothing."""
    if contract == "json":
        return None
    _, blocks = find_blocks(text)
    if set(blocks) != {VISION, REVIEW} or _is_cut(text):
        return None
    mended = {name: found.block if (found := repaired(block)) else block for name, block in blocks.items()}
    vision, review = mended[VISION].strip("\n"), mended[REVIEW].strip("\n")
    if contract == DSPY:
        made = write_answer(vision, review).strip()
    elif contract == "tagged":
        made = f"<VISION>\n{vision}\n</VISION>\n<REVIEW>\n{review}\n</REVIEW>"
    else:
        made = f"```yaml VISION\n{vision}\n```\n```yaml REVIEW\n{review}\n```"
    return None if made == text.strip() else made


# --- content ------------------------------------------------------------------------------------


def _says_nothing(concept: Concept, documents: Documents) -> str | None:
    """Why an answer is without content, ids aside: hardly a word, or none of what it is about."""
    known = _words_of_concept(f"{concept.concept} {concept.requirements_yaml}")
    fewest_shared = min(_FEWEST_SHARED, len(known))
    items = _words("\n".join(_items(documents)))
    if len(items) >= _FEWEST_WORDS and len(items & known) >= fewest_shared:
        return None
    said = _words("\n".join(_texts(documents)))
    if len(said) < _FEWEST_WORDS:
        return f"{len(said)} different words in both documents"
    if len(items) < _FEWEST_ITEM_WORDS:
        return f"{len(items)} different words in all lists together"
    if len(said & known) < fewest_shared:
        return f"{len(said & known)} of its {len(said)} words are of the concept or its requirements"
    return None


@functools.lru_cache(maxsize=64)
def _words_of_concept(text: str) -> frozenset[str]:
    return frozenset(_words(text))


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(_IDENTIFIER.sub(" ", text))} - _EMPTY_WORDS


_EMPTY_WORDS = frozenset(
    _WORD.findall("""
    the and for with that this from into are not all any its per via can has have will must should would each item
    requirement requirements text product vision review user users none todo tbd placeholder content description
    functional non constraints priority title high medium low
    """)
)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, held in value.items():
            if key not in ("status", "last_updated", "product_name"):
                yield from _texts(held)
    elif value is not None:
        yield plain_text(value)


def _items(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for held in value.values():
            yield from _items(held)
    elif isinstance(value, list):
        yield from map(plain_text, value)
