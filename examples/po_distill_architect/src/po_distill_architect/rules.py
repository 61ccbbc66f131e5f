"""The embedded rule-based architect: deterministic, and grounded in vision and requirements alone.

It stands in for a teacher where there is none. On requirements that are not as short as the generator's it finds few
blockers and questions, so it is no match for a model there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from po_distill.records import Concept
from po_distill_architect.documents import ARCHITECTURE, FEASIBILITY, STORIES, normalised_text
from po_distill_architect.scoring import FUNCTIONAL, Requirement, list_requirements, read_mapping

_WITHOUT = re.compile(r"\bwithout\s+(?:an?\s+)?([^.;,]+)", re.IGNORECASE)
_OPEN = re.compile(r"\ban?\s+\w+\s+to be (?:decided|agreed|set)\b|\bTBD\b", re.IGNORECASE)
_LET = re.compile(r"let\s+(.+)", re.IGNORECASE)


def write_documents(concept: Concept) -> dict[str, dict[str, Any]]:
    """Both documents for a concept."""
    vision = read_mapping(concept.existing_vision)
    users = _first(vision.get("target_users")) or "users"
    requirements = list_requirements(concept.requirements_yaml)
    wants = [(one, _want(one.description, users)) for one in requirements if one.section == FUNCTIONAL]
    reason = _first(vision.get("value_proposition")) or "the product keeps its promise"
    stories = [_story(number, one.id, want, users, reason) for number, (one, want) in enumerate(wants, start=1)]
    return {STORIES: {STORIES: stories}, ARCHITECTURE: _architecture(requirements, wants)}


def _first(value: Any) -> str:
    return normalised_text(value[0]) if isinstance(value, list) and value else ""


def _want(description: str, users: str) -> str:
    """What a requirement lets its users do: `book a walk` of `Let dog owners book a walk`."""
    text = normalised_text(description).rstrip(".")
    if (let := _LET.fullmatch(text)) is None:
        return text[:1].lower() + text[1:]
    named = next((name for name in (users, "users") if let[1].lower().startswith(f"{name.lower()} ")), "")
    return let[1][len(named) :].strip()


def _story(number: int, identifier: str, want: str, users: str, reason: str) -> dict[str, Any]:
    plain = _OPEN.split(want)[0].strip()
    return {
        "id": f"S{number}",
        "title": want[:1].upper() + want[1:],
        "as_a": users,
        "i_want": f"to {want}",
        "so_that": reason,
        "acceptance": [f"The {users} can {want}", f"A failure to {plain.split(' ')[0]} is explained"],
        "requirement_ids": [identifier],
        "estimate": "2" if len(want.split()) <= 3 else "3" if len(want.split()) <= 5 else "5",
    }


def _architecture(requirements: Sequence[Requirement], wants: Sequence[tuple[Requirement, str]]) -> dict[str, Any]:
    blockers = [
        f"{one.id}: it needs {thing}, which {limit} rules out" for one, thing, limit in _ruled_out(requirements)
    ]
    questions = [f"{one.id}: {found[0]}" for one in requirements if (found := _OPEN.search(one.description))]
    decided = [f"{one.id}: {normalised_text(one.description)}" for one in requirements if one.section != FUNCTIONAL]
    components = [
        {
            "name": f"Service {number}",
            "responsibility": f"It lets users {want}",
            "interfaces": [f"POST /{want.split(' ')[0]}"],
        }
        for number, (_, want) in enumerate(wants, start=1)
    ]
    store = {"name": "Store", "responsibility": "It keeps the data of all services", "interfaces": ["SQL"]}
    return {
        "components": [*components, store],
        "decisions": [*decided, "One store for all services"],
        "risks": [f"More people want to {wants[0][1]} than planned" if wants else "The requirements are not complete"],
        "blockers": blockers,
        "questions": questions,
        "feasibility": FEASIBILITY[2 if blockers else 1 if questions else 0],
    }


def _ruled_out(requirements: Sequence[Requirement]) -> list[tuple[Requirement, str, str]]:
    """(requirement, what it needs, the constraint that rules it out)."""
    found = []
    for limit in requirements:
        without = _WITHOUT.search(limit.description) if limit.section == "constraints" else None
        thing = normalised_text(without[1]) if without else ""
        found += [
            (one, thing, limit.id)
            for one in requirements
            if thing and one.section != "constraints" and re.search(rf"\b{re.escape(thing)}\b", one.description, re.I)
        ]
    return found
