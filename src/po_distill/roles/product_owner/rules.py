"""The embedded rule-based Product Owner: deterministic, and grounded in concept and requirements alone.

It reads from the concept what is needed and what is out of scope, finds the requirement for each,
and writes both documents from what it found. It stands in for a teacher where there is none; it is
no match for one on free prose, where it finds few needs and objects to little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError
from po_distill.records import Concept
from po_distill.roles.product_owner.concepts import listed
from po_distill.roles.product_owner.documents import REVIEW, VISION, normalised_text
from po_distill.roles.product_owner.scoring import list_requirements, read_mapping

_NEEDS = re.compile(r"\b(?:also needs|needs|must have|must include|requires)\b:?\s+([^.;]+)", re.IGNORECASE)
_EXCLUSIONS = re.compile(r"\b(?:out of scope|must not have|excludes)\b:?\s+([^.;]+)", re.IGNORECASE)
_AUDIENCE = re.compile(r"\b(?:for|helps)\s+(?:the\s+)?([^.;,]+)", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_FILLERS = frozenset(["a", "an", "and", "for", "in", "of", "on", "or", "the", "to", "with"])


class _Findings(NamedTuple):
    """What the rules read out of a concept and its requirements."""

    needs: list[str]
    exclusions: list[str]
    aligned: list[tuple[str, str]]  # (requirement, what it is about)
    gaps: list[str]
    conflicts: list[tuple[str, str]]  # (requirement, the exclusion it contradicts)
    asked: list[tuple[str, list[tuple[str, bool]]]]  # (requirement, what it is about: (phrase, whether it is needed))

    @property
    def status(self) -> str:
        if self.conflicts:
            return "misaligned"
        return "needs_adjustment" if self.gaps else "aligned"


def write_documents(concept: Concept) -> dict[str, dict[str, Any]]:
    """Both documents for a concept, with two or more items wherever the metric asks for them."""
    found = _find(concept)
    return {VISION: _vision(concept, found), REVIEW: _review(found)}


def _find(concept: Concept) -> _Findings:
    needs, exclusions = _phrases(_NEEDS, concept.concept), _phrases(_EXCLUSIONS, concept.concept)
    requirements = [
        (identifier or f"requirement {number}", description)
        for number, (identifier, description) in enumerate(list_requirements(concept.requirements_yaml), start=1)
    ]
    conflicts = [(i, phrase) for i, text in requirements for phrase in exclusions if _is_about(text, phrase)]
    contradicting = {identifier for identifier, _ in conflicts}
    aligned = [(i, _subject(text, needs)) for i, text in requirements if i not in contradicting]
    gaps = [need for need in needs if not any(_is_about(text, need) for _, text in requirements)]
    wanted = [*((phrase, False) for phrase in exclusions), *((phrase, True) for phrase in needs)]
    asked = [
        (i, [(phrase, needed) for phrase, needed in wanted if _is_about(text, phrase)]) for i, text in requirements
    ]
    return _Findings(needs, exclusions, aligned, gaps, conflicts, asked)


def _phrases(pattern: re.Pattern[str], text: str) -> list[str]:
    found = (
        piece.strip()
        for match in pattern.finditer(text)
        for piece in re.split(r",\s+(?:and\s+)?|\s+and\s+", match[1].strip())
    )
    return list(dict.fromkeys(piece for piece in found if piece))


def _is_about(requirement: str, phrase: str) -> bool:
    """Whether a requirement holds nearly all words of a phrase, plural or not."""
    wanted = _stems(phrase)
    return bool(wanted) and len(wanted & _stems(requirement)) >= 0.75 * len(wanted)


def _stems(text: str) -> set[str]:
    words = {word.lower() for word in _WORD.findall(text)} - _FILLERS
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words}


def _subject(requirement: str, needs: Iterable[str]) -> str:
    return next((need for need in needs if _is_about(requirement, need)), requirement) or "a stated need"


# --- the vision ---------------------------------------------------------------------------------


def _vision(concept: Concept, found: _Findings) -> dict[str, Any]:
    title = read_mapping(concept.requirements_yaml).get("title")
    sentence = normalised_text(concept.concept.split(". ")[0]).rstrip(".")
    name = normalised_text(title) or " ".join(sentence.split()[:4])
    audience = m[1].strip() if (m := _AUDIENCE.search(sentence)) else "the people it is made for"
    capabilities = found.needs or [subject for _, subject in found.aligned] or [name]
    first, last = capabilities[0], capabilities[-1]
    kept = _existing_goals(concept.existing_vision)
    leaves = f" It leaves out {listed(found.exclusions)}." if found.exclusions else ""
    return {
        "product_name": name,
        "product_summary": f"{sentence}. It brings {listed(capabilities)} together in one place.{leaves}",
        "target_users": [audience, f"Staff who run {name}"],
        "value_proposition": [f"Less manual work through {first}", f"Better service through {last}"],
        "key_capabilities": list(dict.fromkeys([*kept, *capabilities])),
        "non_goals": found.exclusions,
        "success_metrics": [f"Weekly use of {first}", f"Hours saved by {last}"],
    }


def _existing_goals(existing_vision: str | None) -> list[str]:
    """The capabilities of an earlier vision, which are carried on."""
    try:
        value = safe_yaml.load(existing_vision or "")
    except UnreadableYAMLError:
        return []
    goals = value.get("key_capabilities") if isinstance(value, dict) else None
    return [text for goal in goals if (text := normalised_text(goal))] if isinstance(goals, list) else []


# --- the review ---------------------------------------------------------------------------------


def _review(found: _Findings) -> dict[str, Any]:
    return {
        "summary": _evidence(found),
        "requirements_alignment": {
            "gaps": [f"No requirement for {gap}" for gap in found.gaps],
            "conflicts": [f"{phrase} is out of scope: {identifier}" for identifier, phrase in found.conflicts],
            "aligned": [f"{identifier}: {subject}" for identifier, subject in found.aligned],
        },
        "status": found.status,
        "recommended_actions": _actions(found),
        "narrative": _narrative(found),
    }


def _evidence(found: _Findings) -> list[str]:
    """What the concept wants, what each requirement is about, and what is left over: the verdict follows from it.

    In words in which a small student can find it. Needs are counted down and conflicts up, so that it never compares
    two lists. All requirements are gone through, once and in their order, the ones about something else too: which id
    comes next, and where the line ends, is then seen in the requirements. Each has both counts, so that the last line
    has them from right before it. A phrase stands before what is known of it. The last line has the words of the
    lists behind it, by which they are found; a conflict begins with its phrase, since a list that begins with an id
    goes on to the next id.
    """
    scope = [f"{need} need {number}" for number, need in enumerate(found.needs, start=1)]
    scope += [f"{phrase} out of scope" for phrase in found.exclusions]
    left, conflicts = set(found.needs), 0
    asked = [f"left {len(left)} conflicts 0"]
    for identifier, about in found.asked:
        for phrase, needed in about:
            left.discard(phrase)
            conflicts += not needed
            judged = "covered" if needed else "out of scope"
            asked.append(f"{identifier} {phrase} {judged} left {len(left)} conflicts {conflicts}")
        if not about:
            asked.append(f"{identifier} other left {len(left)} conflicts {conflicts}")
    contradicted = [f"{phrase} {identifier}" for identifier, phrase in found.conflicts]
    return [
        f"Scope: {', '.join(scope) or 'none'}",
        f"Asked for: {', '.join(asked)}",
        f"{_counted('Gaps', found.gaps)}, {_counted('conflicts', contradicted)}",
    ]


def _counted(name: str, items: Sequence[str]) -> str:
    """Such as `Gaps 2 weekly reports, price alerts`, and `Gaps 0` where there are none."""
    return " ".join([f"{name} {len(items)}", ", ".join(items)]).rstrip()


def _actions(found: _Findings) -> list[str]:
    actions = [f"Remove {identifier} or change the scope" for identifier, _ in found.conflicts]
    actions += [f"Add a requirement for {gap}" for gap in found.gaps]
    spare = [f"Write acceptance tests for {identifier}" for identifier, _ in found.aligned]
    return [*actions, *spare, "Review the scope with the sponsor", "Confirm the priorities"][: max(2, len(actions))]


def _narrative(found: _Findings) -> str:
    if found.conflicts:
        identifier, phrase = found.conflicts[0]
        return (
            f"The concept leaves {phrase} out, yet {identifier} asks for it. "
            "The requirements contradict the vision and must change before work starts."
        )
    if found.gaps:
        return (
            f"The requirements respect the scope, but none of them asks for {listed(found.gaps)}. "
            "Adding that makes them complete, so they need an adjustment before work starts."
        )
    return (
        "The requirements cover what the concept needs and respect what it leaves out. "
        "They fit the vision as they stand, so work can start."
    )
