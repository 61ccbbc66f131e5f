"""What other people's weight files hold, taken with care: plain files only, strict JSON, names shown harmless.

JSON (RFC 8259) that two readers could take for different things is refused, not guessed at: a key that stands
twice, NaN, numbers that no reader keeps exactly, half characters, objects in objects without end.
"""

from __future__ import annotations

import errno
import json
import re
import stat
from collections import Counter
from pathlib import Path
from typing import IO, Any

_LONGEST_JSON_BYTES = 256_000_000  # the tokenizer.json of a vocabulary of 256k takes 35 MB
_MOST_LEVELS = 100  # serde_json, which reads these files for transformers, stops at 128
_LONGEST_NUMBER = 40  # digits; transformers writes 10**30 for "no limit"
_LONGEST_NAME = 120  # characters of a name that a message shows
# An escaped half of a surrogate pair that may be without its other half; certain is only what Python made of it.
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F]"
_LONE_HALF = re.compile(rf"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}|\\\\u[dD][89a-fA-F]")


def escaped(text: str) -> str:
    """A name out of a foreign file as a message may show it: on one line, not endless, without escape sequences."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_LONGEST_NAME])
    return shown if len(text) <= _LONGEST_NAME else f"{shown}…"


def open_regular(path: Path) -> IO[bytes]:
    """A file open for reading. Raises OSError, also where it is a folder, a pipe or a device, which could hang."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.open("rb")


def read_json_value(path: Path) -> Any:
    """The JSON value of a file. Raises OSError and, with the reason, ValueError."""
    with open_regular(path) as file:
        data = file.read(_LONGEST_JSON_BYTES + 1)
    if len(data) > _LONGEST_JSON_BYTES:
        raise ValueError(f"it takes more than {_LONGEST_JSON_BYTES:,} bytes")
    return parse_json(data)


def parse_json(data: bytes) -> Any:
    """UTF-8 bytes as a JSON value. Raises ValueError with the reason."""
    text = data.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole, parse_float=_fraction
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _is_deep(value):
        raise ValueError("it is nested too deeply")
    if _LONE_HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("it holds half of a surrogate pair") from error
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {escaped(twice)} stands twice in one object")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"it holds {text}, which is not JSON")


def _whole(text: str) -> int | float:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return -0.0 if text == "-0" else int(text)  # as serde_json takes it


def _fraction(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"it holds the number {escaped(text)}, which is too large")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
