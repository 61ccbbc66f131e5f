"""YAML read within bounds: the only reader of YAML that comes from outside.

`yaml.safe_load` builds no objects, but a few hundred bytes of aliases still grow to gigabytes, and
deep nesting overflows the C stack of libyaml's composer. So the events are counted first, by
libyaml's parser, which is iterative; only a text within the bounds is built.
"""

from __future__ import annotations

from typing import Any

import yaml

from po_distill.errors import UnreadableYAMLError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 40
MAX_ALIASES = 16

# libyaml where PyYAML was built with it (every wheel is); the pure Python loader reads the same.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(text: str, *, what: str = "the YAML text") -> Any:
    """The value that `text` holds, as `yaml.safe_load` reads it; `what` names it in errors.

    Raises UnreadableYAMLError where the text is no YAML, is longer than MAX_CHARACTERS, nests deeper than
    MAX_DEPTH, or uses more than MAX_ALIASES aliases or a recursive one.
    """
    if len(text) > MAX_CHARACTERS:
        raise UnreadableYAMLError(
            f"{what} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read.",
            "Shorten it, or split it into several concepts.",
        )
    try:
        _check_bounds(text, what)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader, bounds checked
    except yaml.YAMLError as error:
        raise UnreadableYAMLError(
            f"{what} is not YAML: {_where(error)}.", "Correct that line; quote text that holds ': ' or '#'."
        ) from error
    except (ValueError, OverflowError, RecursionError, TypeError, UnicodeError) as error:
        # PyYAML's constructors raise these for values such as the timestamp 2023-13-45.
        raise UnreadableYAMLError(
            f"{what} holds a value that YAML cannot build: {error}.", "Put that value in quotes."
        ) from error


def _check_bounds(text: str, what: str) -> None:
    depth = aliases = 0
    open_anchors: list[str | None] = []
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MAX_ALIASES or event.anchor in open_anchors:
                raise UnreadableYAMLError(
                    f"{what} uses more than {MAX_ALIASES} aliases, or one that contains itself.",
                    "Write the repeated parts out; a document that grows when it is read is refused.",
                )
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append(event.anchor)
            if depth > MAX_DEPTH:
                raise UnreadableYAMLError(f"{what} nests deeper than {MAX_DEPTH} levels.", "Flatten it.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            open_anchors.pop()


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).splitlines()[0]
