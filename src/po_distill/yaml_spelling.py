"""How values are written into a YAML text, so that parsers of YAML 1.1 and 1.2 read the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

Scalar: TypeAlias = str | int | float
Quote: TypeAlias = str | None
"""How texts are written: in ' or in " or, None, plain. A text that would be read otherwise is quoted in any case."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# Read otherwise than as texts by parsers of YAML 1.1 or 1.2, in any case of their letters.
_NO_TEXTS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def spell(value: Scalar, quote: Quote = None) -> str:
    """A scalar on one line."""
    if not isinstance(value, str):
        written = json.dumps(value)
        # YAML 1.1 takes 1e-05 for a text.
        return written.replace("e", ".0e", 1) if "e" in written and "." not in written else written
    if quote == "'" and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    if quote != '"' and _PLAIN.fullmatch(value) and value.lower() not in _NO_TEXTS:
        return value
    return '"' + "".join(_escaped(sign) for sign in value) + '"'


def spell_in_brackets(value: Any, keys: Quote = None, texts: Quote = None, *, first: str | None = None) -> str:
    """A scalar, or a mapping in brackets on one line; `first` is written before its entries."""
    if not isinstance(value, Mapping):
        return spell(value, texts)
    parts = [f"{spell(key, keys)}: {spell_in_brackets(inner, keys, texts)}" for key, inner in value.items()]
    return "{" + ", ".join([first, *parts] if first else parts) + "}"


def spell_in_lines(
    value: Mapping[str, Any], indent: int, step: int, keys: Quote = None, texts: Quote = None
) -> list[str]:
    """A mapping with each key on a line of its own, `indent` columns from the left, each level `step` further."""
    lines = []
    for key, inner in value.items():
        name = f"{' ' * indent}{spell(key, keys)}:"
        if isinstance(inner, Mapping):
            lines += [name, *spell_in_lines(inner, indent + step, step, keys, texts)]
        else:
            lines.append(f"{name} {spell(inner, texts)}")
    return lines


def _escaped(sign: str) -> str:
    if sign in '"\\':
        return "\\" + sign
    if sign.isprintable():  # which no white space is but the plain one
        return sign
    number = ord(sign)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
