"""JSON schemas under which decoding comes to an end: no list and no text in them is without a limit.

Lengths are in characters, and two of them are taken for a token: tokens of plain text have three and more.
"""

from __future__ import annotations

import json
import re._parser as _parser  # type: ignore[import-not-found]  # the only measure of a pattern's width
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from po_distill.errors import SettingsError

CHARACTERS_PER_TOKEN = 2
_MOST_ITEMS = 6  # of a list whose schema says nothing
_SHORTEST_TEXT, _LONGEST_TEXT = 24, 600  # what a text may be given, where its schema says nothing
_NUMBER = 24  # characters of the longest number
_UNBOUNDED = ("pattern", "format")  # texts that are what they are: their length is not ours to choose

Schema = Mapping[str, Any]


def tokens_for(schema: Schema) -> int | None:
    """How many tokens an answer may be allowed, so that none is cut; None where it has no longest."""
    longest = longest_answer(schema)
    return None if longest is None else -(-longest // CHARACTERS_PER_TOKEN)


def longest_answer(schema: Schema) -> int | None:
    """The most characters of a JSON text that the schema takes; None where it takes texts of any length.

    A text without a pattern may hold what JSON writes as two characters.
    """
    return _longest(schema, schema.get("$defs", {}), frozenset())


def bounded_schema(schema: Schema, max_tokens: int, name: str) -> dict[str, JsonValue]:
    """The schema with a limit to every list and text that has none, such that an answer fits into `max_tokens`.

    References are put where they point to, nothing is optional and nothing may be added. Texts share what is left
    evenly. Raises SettingsError where `max_tokens` does not suffice or the schema, that of the role `name`, allows
    what no limit helps: an object of any keys, a part that holds itself.
    """
    most = _LONGEST_TEXT
    while True:
        found: dict[str, JsonValue] = _bounded(schema, schema.get("$defs", {}), most)
        needed = tokens_for(found)
        if needed is None:
            raise SettingsError(
                f"The JSON schema of the role {name} takes answers of any length, so no answer can be guaranteed.",
                "Give the role a method decoding_schema(concept, max_tokens) with limits (docs/guaranteed.md).",
            )
        if needed <= max_tokens:
            return found
        if most == _SHORTEST_TEXT:
            raise too_few_tokens(needed, max_tokens)
        most = max(most * 3 // 4, _SHORTEST_TEXT)


def too_few_tokens(needed: int, max_tokens: int) -> SettingsError:
    """The error for an answer that may be longer than it is allowed to be."""
    return SettingsError(
        f"A guaranteed-valid answer may take {needed} tokens, and max_tokens is {max_tokens}.",
        f"Set max_tokens to {needed} or more.",
    )


# --- measuring ------------------------------------------------------------------------------------


def _longest(schema: Schema, definitions: Schema, inside: frozenset[str]) -> int | None:
    if reference := schema.get("$ref"):
        name = str(reference).rpartition("/")[2]
        return None if name in inside else _longest(definitions[name], definitions, inside | {name})
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return _most(_longest(one, definitions, inside) for one in schema[choice])
    if "const" in schema or "enum" in schema:
        return max(len(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "object":
            return _longest_object(schema, definitions, inside)
        case "array":
            item = _longest(schema["items"], definitions, inside) if "items" in schema else None
            most = schema.get("maxItems")
            return None if item is None or most is None else 2 + most * (item + 2)
        case "string":
            return _longest_text(schema)
        case "integer" | "number" | "boolean" | "null":
            return _NUMBER
    return None


def _longest_text(schema: Schema) -> int | None:
    if "pattern" in schema:
        pattern = str(schema["pattern"])
        longest = _parser.parse(pattern).getwidth()[1] if pattern.startswith("^") and pattern.endswith("$") else None
        return None if longest is None or longest >= _parser.MAXREPEAT else 2 + longest
    most = schema.get("maxLength")
    return None if most is None else 2 + 2 * most


def _longest_object(schema: Schema, definitions: Schema, inside: frozenset[str]) -> int | None:
    if schema.get("additionalProperties", True) is not False:
        return None
    total = 2
    for name, held in schema.get("properties", {}).items():
        longest = _longest(held, definitions, inside)
        if longest is None:
            return None
        total += len(json.dumps(name)) + longest + 4  # ": " and ", "
    return total


def _most(lengths: Any) -> int | None:
    found = list(lengths)
    return None if not found or None in found else max(found)


# --- bounding -------------------------------------------------------------------------------------


def _bounded(schema: Schema, definitions: Schema, most: int, inside: frozenset[str] = frozenset()) -> Any:
    if reference := schema.get("$ref"):
        name = str(reference).rpartition("/")[2]
        return {} if name in inside else _bounded(definitions[name], definitions, most, inside | {name})
    found = {key: value for key, value in schema.items() if key not in ("$defs", "title", "description", "default")}
    for choice in ("anyOf", "oneOf"):
        if choice in found:
            found[choice] = [_bounded(one, definitions, most, inside) for one in found[choice]]
    match schema.get("type"):
        case "object" if "properties" in schema:
            held = {name: _bounded(one, definitions, most, inside) for name, one in schema["properties"].items()}
            found |= {"properties": held, "required": list(held), "additionalProperties": False}
        case "array":
            found["items"] = _bounded(schema.get("items", {}), definitions, most, inside)
            found.setdefault("maxItems", max(_MOST_ITEMS, schema.get("minItems", 0)))
        case "string" if not any(key in schema for key in ("enum", "const", *_UNBOUNDED)):
            found.setdefault("maxLength", max(most, schema.get("minLength", 0)))
    return found
