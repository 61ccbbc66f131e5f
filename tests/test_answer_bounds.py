import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_distill.answer_bounds import bounded_schema, longest_answer, tokens_for
from po_distill.errors import SettingsError
from po_distill.roles.product_owner.role import ProductOwnerRole

CLOSED = {"additionalProperties": False}
TEXTS = st.integers(0, 40).map(lambda most: {"type": "string", "maxLength": most})
LEAVES = TEXTS | st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "string", "enum": ["a", "abc"]},
        {"const": 'a "quoted" text'},
        {"type": "string", "pattern": "^(FR1|FR22): [a-z]{1,9}$"},
    ]
)


def deeper(inner: Any) -> Any:
    lists = st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 4))
    objects = st.dictionaries(st.text("abc_", min_size=1, max_size=8), inner, max_size=4)
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda ones: {"anyOf": ones})
    return lists | choices | objects.map(lambda held: {"type": "object", "properties": held, **CLOSED})


def largest(schema: dict[str, Any]) -> Any:
    """A value of the schema that is as long as can be: every list full, every text at its limit and to be escaped."""
    if "anyOf" in schema:
        return max(map(largest, schema["anyOf"]), key=lambda value: len(json.dumps(value)))
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return max(schema["enum"], key=len)
    match schema["type"]:
        case "object":
            return {name: largest(held) for name, held in schema["properties"].items()}
        case "array":
            return [largest(schema["items"])] * schema["maxItems"]
        case "boolean":
            return False
    return '"' * schema["maxLength"] if "maxLength" in schema else "FR22: " + "z" * 9


@given(st.recursive(LEAVES, deeper, max_leaves=8))
def test_no_answer_of_a_schema_is_longer_than_its_longest(schema: dict[str, Any]) -> None:
    longest = longest_answer(schema)
    assert longest is not None
    assert len(json.dumps(largest(schema))) <= longest


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"type": "string"},
        {"type": "string", "pattern": "^a+$"},
        {"type": "string", "pattern": "a{1,3}"},  # not anchored: anything may stand around it
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "array", "maxItems": 3},
        {"anyOf": [{"type": "boolean"}, {"type": "string"}]},
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}, "maxItems": 2}}},
    ],
)
def test_what_has_no_end_has_no_longest_answer(schema: dict[str, Any]) -> None:
    assert longest_answer(schema) is None


@pytest.mark.parametrize("max_tokens", [1850, 4096, 20_000])
def test_limits_are_put_where_there_are_none_until_the_answer_fits(max_tokens: int) -> None:
    found = bounded_schema(ProductOwnerRole().json_schema(), max_tokens, "product_owner")
    needed = tokens_for(found)
    assert needed is not None
    assert max_tokens / 4 < needed <= max_tokens
    vision: Any = found["properties"]["product_vision"]  # type: ignore[index,call-overload]
    assert vision["additionalProperties"] is False and len(vision["required"]) == 8
    assert vision["properties"]["target_users"]["maxItems"] == 6


def test_limits_that_are_there_stay() -> None:
    text = {"type": "string", "maxLength": 1000}
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": text, "maxItems": 1}}}
    assert bounded_schema(schema, 1008, "x")["properties"] == schema["properties"]
    with pytest.raises(SettingsError, match=r"may take 1008 tokens, and max_tokens is 1007"):
        bounded_schema(schema, 1007, "x")


def test_a_schema_of_any_keys_is_refused_with_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"any length.*decoding_schema"):
        bounded_schema({"type": "object"}, 4096, "haiku")
