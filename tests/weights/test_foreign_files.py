import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_distill.weights.foreign_files import escaped, parse_json

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(_values)
def test_ordinary_json_comes_as_pythons_reader_gives_it(value: Any) -> None:
    data = json.dumps(value)
    if "\\ud" not in data.lower():
        assert parse_json(data.encode()) == json.loads(data)


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_survives_written_with_escapes_or_without(value: str) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "the key a stands twice"),
        ('{"x": {"\\u001b": 1, "\\u001b": 3}}', r"the key \\x1b stands twice"),
        ("[NaN]", "holds NaN"),
        ("[-Infinity]", "holds -Infinity"),
        ("[1e999]", "too large"),
        ("9" * 41, "41 digits"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "\\ud83d"}', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ("\ufeff{}", "BOM"),
        ("[1, 2] x", "Extra data"),
        ("", "Expecting value"),
        ('["\x00"]', "control character"),
    ],
)
def test_what_two_readers_could_take_differently_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text.encode())


PIECES = ["\\\\", "\\ud83d", "\\uDBFF", "\\ude00", "\\uDC00", "\\u0041", "ud83d", "ude00"]


@given(st.lists(st.sampled_from(PIECES), max_size=6))
def test_halves_of_surrogate_pairs_are_refused_and_only_they(pieces: list[str]) -> None:
    text = '["' + "".join(pieces) + '"]'
    if any("\ud800" <= character <= "\udfff" for character in json.loads(text)[0]):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            parse_json(text.encode())
    else:
        assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("data", [b"\xff\xfe{\x00}\x00", '{"a": 1}'.encode("utf-16"), b'{"\xff": 1}'])
def test_other_encodings_than_utf_8_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(data)


def test_a_hundred_levels_and_transformers_number_for_no_limit_are_read() -> None:
    assert parse_json(b"[" * 100 + b"]" * 100)
    assert parse_json(b'{"model_max_length": 1000000000000000019884624838656}')


@given(st.text(max_size=300))
def test_an_escaped_name_is_printable_short_and_the_same_where_nothing_is_odd(name: str) -> None:
    shown = escaped(name)
    assert shown.isprintable() and len(shown) <= 10 * 121
    if name.isprintable() and len(name) <= 120:
        assert shown == name


def test_control_characters_are_shown_as_escapes() -> None:
    assert escaped("a\x1b[2J\nb\u202e") == r"a\x1b[2J\nb\u202e"
    assert escaped(str(Path("x" * 200))) == "x" * 120 + "…"
