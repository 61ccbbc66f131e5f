"""The JSON schema that an answer is decoded under where it must be valid: bounded, and of one concept."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from po_distill.answer_bounds import bounded_schema
from po_distill.records import Concept
from po_distill_architect.documents import ArchitectDocuments
from po_distill_architect.scoring import FUNCTIONAL, list_requirements


def decoding_schema(concept: Concept, max_tokens: int) -> dict[str, JsonValue]:
    """A story for each functional requirement, ids that exist, short lists; texts as long as `max_tokens` has room for.

    Raises SettingsError where there is none.
    """
    requirements = list_requirements(concept.requirements_yaml)
    stories = sum(one.section == FUNCTIONAL for one in requirements)
    schema: dict[str, Any] = ArchitectDocuments.model_json_schema()
    held = {name: definition["properties"] for name, definition in schema["$defs"].items()}
    held["Stories"]["stories"] |= {"minItems": stories, "maxItems": stories}
    held["Story"]["requirement_ids"] = _list({"type": "string", "enum": [one.id for one in requirements]}, 1, 1)
    held["Story"]["acceptance"] = _list(_TEXT, 2, 2)
    held["Component"]["interfaces"] = _list(_TEXT, 1, 1)
    held["Architecture"]["components"] |= {"minItems": 2, "maxItems": max(2, stories + 1)}
    others = len(requirements) - stories
    for name, least, most in (("decisions", 1, others + 1), ("risks", 1, 1), ("blockers", 0, 2), ("questions", 0, 2)):
        held["Architecture"][name] = _list(_TEXT, least, most)
    return bounded_schema(schema, max_tokens, "architect")


_TEXT = {"type": "string", "minLength": 1}


def _list(items: dict[str, Any], least: int, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}
