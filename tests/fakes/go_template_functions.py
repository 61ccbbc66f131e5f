"""The functions of Go's text/template, and how Go compares and prints values (Go 1.23).

Values are None (Go's nil or "no value"), bool, int, float, str, list, dict and Struct.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from fakes.go_template_lexer import NotRenderedError, quote

UNRENDERED = ("call", "currentDate", "html", "js", "toTypeScriptType", "urlquery", "yesterdayDate")
_VERB = re.compile(r"%([-+# 0]*)(\d*)(\.\d+)?(.)", re.DOTALL)


class CallError(Exception):
    """A function's refusal of its arguments."""


@dataclass(frozen=True)
class Struct:
    """A Go struct, seen by a template through its fields."""

    type_name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def type_name(value: Any) -> str:
    """The Go type of a value, as it would come out of JSON."""
    if isinstance(value, Struct):
        return value.type_name
    names = {bool: "bool", int: "int", float: "float64", str: "string", list: "[]interface {}",
             dict: "map[string]interface {}"}  # fmt: skip
    return names.get(type(value), "nil")


def truth(value: Any) -> bool:
    """Whether Go's `if` takes the value as true: a struct always, else what is not empty or zero."""
    return isinstance(value, Struct) or bool(value)


def shown(value: Any, *, inside: bool = False) -> str:
    """The value as Go's fmt.Fprint writes it."""
    if value is None:
        return "<nil>" if inside else "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _shown_float(value)
    if isinstance(value, list):
        return "[" + " ".join(shown(item, inside=True) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{shown(value[key], inside=True)}" for key in sorted(value)) + "]"
    if isinstance(value, Struct):
        return "{" + " ".join(shown(item, inside=True) for item in value.fields.values()) + "}"
    return str(value)


def _shown_float(value: float) -> str:
    sign, digits, scale = Decimal(repr(value)).normalize().as_tuple()
    exponent = len(digits) + int(scale) - 1
    if -4 <= exponent < 6 or not any(digits):
        return repr(value).removesuffix(".0")
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if digits[1:] else "")
    return f"{'-' * sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def to_json(value: Any) -> str:
    """As Go's json.Marshal: keys sorted, no spaces, and what HTML would read escaped."""
    text = json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return {name: _plain(item) for name, item in value.fields.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# --- comparison ---------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    if value is None:
        return "nil"
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "string")):
        if isinstance(value, kind):
            return name
    return "other"


def _equal(left: Any, *rights: Any) -> bool:
    if not rights:
        raise CallError("missing argument for comparison")
    for right in rights:
        kinds = _kind(left), _kind(right)
        if kinds[0] != kinds[1] and "nil" not in kinds:
            raise CallError("incompatible types for comparison")
        if kinds == ("other", "other") and not isinstance(right, Struct):
            raise CallError(f"non-comparable type {shown(right, inside=True)}: {type_name(right)}")
        if kinds[0] == kinds[1] and (left is right or (kinds[0] != "other" and left == right)):
            return True
    return False


def _not_equal(left: Any, right: Any) -> bool:
    return not _equal(left, right)


def _less(left: Any, right: Any) -> bool:
    kinds = _kind(left), _kind(right)
    for kind in kinds:
        if kind in ("nil", "other", "bool") and (kind != "bool" or kinds[0] == kinds[1]):
            raise CallError("invalid type for comparison")
    if kinds[0] != kinds[1]:
        raise CallError("incompatible types for comparison")
    return bool(left.encode() < right.encode() if kinds[0] == "string" else left < right)


def _less_or_equal(left: Any, right: Any) -> bool:
    return _less(left, right) or _equal(left, right)


# --- sequences ----------------------------------------------------------------------------------


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list | dict):
        return len(value)
    if value is None:
        raise CallError("reflect: call of reflect.Value.Type on zero Value")
    raise CallError(f"len of type {type_name(value)}")


def _place(place: Any, most: int) -> int:
    if place is None:
        raise CallError("cannot index slice/array with nil")
    if isinstance(place, bool) or not isinstance(place, int):
        raise CallError(f"cannot index slice/array with type {type_name(place)}")
    if not 0 <= place <= most:
        raise CallError(f"index out of range: {place}")
    return place


def _index(value: Any, *places: Any) -> Any:
    if value is None:
        raise CallError("index of untyped nil")
    for place in places:
        if isinstance(value, dict):
            if place is None:
                raise CallError("value is nil; should be of type string")
            if not isinstance(place, str):
                raise CallError(f"value has type {type_name(place)}; should be string")
            value = value.get(place)
        elif isinstance(value, list | str):
            items = value.encode() if isinstance(value, str) else value
            value = items[_place(place, len(items) - 1)]
        else:
            raise CallError("index of nil pointer" if value is None else f"can't index item of type {type_name(value)}")
    return value


def _slice(value: Any, *places: Any) -> Any:
    if value is None:
        raise CallError("slice of untyped nil")
    if len(places) > 3:
        raise CallError(f"too many slice indexes: {len(places)}")
    if not isinstance(value, list | str):
        raise CallError(f"can't slice item of type {type_name(value)}")
    if isinstance(value, str) and len(places) == 3:
        raise CallError("cannot 3-index slice a string")
    items = value.encode() if isinstance(value, str) else value
    ends = [0, len(items)]
    for number, place in enumerate(places[:2]):
        ends[number] = _place(place, len(items))
    if ends[0] > ends[1]:
        raise CallError(f"invalid slice index: {ends[0]} > {ends[1]}")
    part = items[ends[0] : ends[1]]
    return part.decode(errors="surrogateescape") if isinstance(part, bytes) else part


# --- printing -----------------------------------------------------------------------------------


def _print(*values: Any) -> str:
    out = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            out += " "
        out += shown(value, inside=True)
    return out


def _println(*values: Any) -> str:
    return " ".join(shown(value, inside=True) for value in values) + "\n"


def _printf(form: Any, *values: Any) -> str:
    if not isinstance(form, str):
        raise CallError(f"wrong type for value; expected string; got {type_name(form)}")
    rest = list(values)

    def put(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        return _formatted(flags, width, precision, verb, rest.pop(0))

    text = _VERB.sub(put, form)
    extra = ", ".join("<nil>" if value is None else f"{type_name(value)}={shown(value)}" for value in rest)
    return f"{text}%!(EXTRA {extra})" if extra else text


def _formatted(flags: str, width: str, precision: str | None, verb: str, value: Any) -> str:
    fits = {"s": isinstance(value, str), "q": isinstance(value, str), "v": True, "t": isinstance(value, bool),
            "d": isinstance(value, int) and not isinstance(value, bool), "f": isinstance(value, float)}  # fmt: skip
    if verb not in fits or set(flags) - {"-", "0"} or (precision and verb != "f"):
        raise NotRenderedError(f"printf's %{flags}{width}{precision or ''}{verb} is not rendered here")
    if not fits[verb]:
        if value is None:
            return f"%!{verb}(<nil>)"
        return f"%!{verb}({type_name(value)}={shown(value, inside=True)})"
    if verb == "f":
        text = f"{value:{precision or '.6'}f}"
    else:
        text = quote(value) if verb == "q" else shown(value, inside=True)
    if not width:
        return text
    if "-" in flags:
        return text.ljust(int(width))
    return text.zfill(int(width)) if "0" in flags and verb in "df" else text.rjust(int(width))


@dataclass(frozen=True)
class Function:
    """A function and how many arguments it takes; `most` None is any number."""

    call: Callable[..., Any]
    least: int
    most: int | None

    def arity_problem(self, name: str, count: int) -> str | None:
        if self.most is None:
            return f"wrong number of args for {name}: want at least {self.least} got {count}" \
                if count < self.least else None  # fmt: skip
        return f"wrong number of args for {name}: want {self.least} got {count}" if count != self.least else None


# and and or are here for their names and arity: the executor runs them, argument by argument.
FUNCTIONS: dict[str, Function] = {
    "and": Function(lambda *values: values[-1], 1, None),
    "or": Function(lambda *values: values[-1], 1, None),
    "not": Function(lambda value: not truth(value), 1, 1),
    "eq": Function(_equal, 1, None),
    "ne": Function(_not_equal, 2, 2),
    "lt": Function(_less, 2, 2),
    "le": Function(_less_or_equal, 2, 2),
    "gt": Function(lambda left, right: not _less_or_equal(left, right), 2, 2),
    "ge": Function(lambda left, right: not _less(left, right), 2, 2),
    "len": Function(_length, 1, 1),
    "index": Function(_index, 1, None),
    "slice": Function(_slice, 1, None),
    "print": Function(_print, 0, None),
    "println": Function(_println, 0, None),
    "printf": Function(_printf, 1, None),
}
