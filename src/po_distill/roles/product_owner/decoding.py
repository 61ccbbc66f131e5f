"""The JSON schema that a Product Owner's answer is decoded under where it must be valid: bounded, and of one concept.

Lists hold what the metric and the gate ask for, no text is blank or needs an escape, the lists fit the status, and what
names a requirement has an id that the concept has. The time is left out: the library stamps it.

Lengths stand in the patterns: no converter of llama.cpp takes a `maxLength` beside a pattern.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from po_distill.answer_bounds import tokens_for, too_few_tokens
from po_distill.records import Concept
from po_distill.roles.product_owner.documents import REVIEW, VISION
from po_distill.roles.product_owner.scoring import list_requirements

# What recorded teachers' answers need, at their 99th percentile: how many items (the least is what the metric counts,
# and for actions what the gate asks for) and how many characters. Where there is no room, all texts are shorter alike.
_ITEMS = {
    "target_users": (2, 4, 110),
    "value_proposition": (2, 5, 130),
    "key_capabilities": (2, 10, 100),
    "non_goals": (0, 5, 110),
    "success_metrics": (2, 5, 90),
    "summary": (2, 3, 500),  # the evidence of the embedded rules: longer than a teacher's findings
    "aligned": (0, 12, 180),
    "gaps": (0, 4, 320),
    "conflicts": (0, 4, 320),
    "recommended_actions": (2, 4, 320),
}
_TEXTS = {"product_name": (1, 60), "product_summary": (40, 420), "narrative": (40, 680)}
_NAMED = {"aligned": "ID: WORDS", "conflicts": "WORDS: ID"}  # items that name a requirement
_SHARES = tuple(percent / 100 for percent in range(100, 4, -5))  # of these lengths
_SHORTEST_ITEM = 24

# No text begins blank, and none holds what JSON, YAML or the fences around it would need an escape for.
_FIRST = r'[^"\\`\x00-\x20\x7F-\xA0\u2000-\u206F\u3000\uFEFF]'
_NEXT = r'[^"\\`\x00-\x1F\x7F-\x9F]'
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,23}")
_MOST_IDENTIFIERS = 40  # in one pattern


def decoding_schema(concept: Concept, max_tokens: int) -> dict[str, JsonValue]:
    """The schema with the longest texts that `max_tokens` has room for. Raises SettingsError where none has."""
    needed = 0
    for schema in (_schema(concept, share) for share in _SHARES):
        needed = tokens_for(schema) or 0
        if needed <= max_tokens:
            return schema
    raise too_few_tokens(needed, max_tokens)


def _schema(concept: Concept, share: float) -> dict[str, JsonValue]:
    def text(name: str) -> dict[str, Any]:
        least, most = _TEXTS[name]
        return _text(least, max(int(most * share), least, _SHORTEST_ITEM))

    def items(name: str, least: int | None = None, most: int | None = None) -> dict[str, Any]:
        own_least, own_most, length = _ITEMS[name]
        return {
            "type": "array",
            "items": _text(1, max(int(length * share), _SHORTEST_ITEM), _NAMED.get(name), ids),
            "minItems": own_least if least is None else least,
            "maxItems": own_most if most is None else most,
        }

    def review(status: str, gaps: dict[str, Any], conflicts: dict[str, Any]) -> dict[str, Any]:
        lists = {"gaps": gaps, "conflicts": conflicts, "aligned": items("aligned", most=most_aligned)}
        return _object(
            {
                "summary": items("summary"),
                "requirements_alignment": _object(lists),
                "status": {"type": "string", "enum": [status]},
                "recommended_actions": items("recommended_actions"),
                "narrative": text("narrative"),
            }
        )

    requirements = list_requirements(concept.requirements_yaml)
    ids = [identifier for identifier, _ in requirements]
    most_aligned = max(1, min(len(requirements), _ITEMS["aligned"][1]))
    names = ("target_users", "value_proposition", "key_capabilities", "non_goals", "success_metrics")
    vision = {
        "product_name": text("product_name"),
        "product_summary": text("product_summary"),
        **{name: items(name) for name in names},
    }
    no_gaps, no_conflicts = items("gaps", most=0), items("conflicts", most=0)
    reviews = [  # the verdict is written behind the lists, and fits what they hold
        review("aligned", no_gaps, no_conflicts),
        review("needs_adjustment", items("gaps", 1), no_conflicts),
        review("misaligned", items("gaps"), items("conflicts", 1)),
    ]
    return _object({VISION: _object(vision), REVIEW: {"anyOf": reviews}})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _text(least: int, most: int, form: str | None = None, identifiers: Sequence[str] = ()) -> dict[str, Any]:
    """A text of so many characters; in a form of `_NAMED`, with one of the ids where they are fit for a pattern."""
    words = rf"{_FIRST}{_NEXT}{{{least - 1},{most - 1}}}"
    known = [one for one in dict.fromkeys(identifiers) if _IDENTIFIER.fullmatch(one)]
    if form and known and len(known) <= _MOST_IDENTIFIERS:
        words = form.replace("WORDS", words).replace("ID", f"({'|'.join(known)})")
    return {"type": "string", "pattern": f"^{words}$"}
