"""YAML read within bounds: the only reader of YAML that comes from outside.

`yaml.safe_load` builds no objects, but a few hundred bytes of aliases still grow to gigabytes, and
deep nesting overflows the C stack of libyaml's composer. So the events are counted first, by
libyaml's parser, which is iterative; only a text within the bounds is built.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml

from po_distill.errors import UnreadableYAMLError

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 40
MAX_ALIASES = 16

_STR, _SEQ, _MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))


# libyaml where PyYAML was built with it (every wheel is); the pure Python loader reads the same.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader without two detours: most of a document is quoted text, and needs no resolver; and
    collections are built at once, as nothing within the bounds contains itself.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode:
            return _tag_of_plain(value) if implicit[0] else _STR
        return _SEQ if kind is yaml.SequenceNode else _MAP


@functools.lru_cache(maxsize=4096)
def _tag_of_plain(value: str) -> Any:
    return _RESOLVER.resolve(yaml.ScalarNode, value, (True, False))


_RESOLVER: Any = yaml.resolver.Resolver()
_Loader.add_constructor(_SEQ, lambda loader, node: loader.construct_sequence(node, deep=True))
_Loader.add_constructor(_MAP, lambda loader, node: loader.construct_mapping(node, deep=True))


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
    if (document := _read_own_form(text)) is not None:
        return document
    try:
        if not _is_plainly_within_bounds(text):
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


def load_shared(text: str, *, what: str = "the YAML text") -> Any:
    """As `load`; equal texts may give the same value, so it must not be changed.

    Scoring reads the same few texts again and again: what was read last is kept.
    """
    if len(text) > _MOST_KEPT_CHARACTERS:
        return load(text, what=what)
    try:
        return _kept(text)
    except UnreadableYAMLError:
        return load(text, what=what)  # raises again, with the right name in it


@functools.lru_cache(maxsize=1024)
def _kept(text: str) -> Any:
    return load(text)


_MOST_KEPT_CHARACTERS = 20_000


# --- what this library writes itself ------------------------------------------------------------

# A line of a document as roles write it: `key:`, `key: []`, `key: "text"` or `- "text"`; no escapes, and nothing in
# the text that YAML refuses. Keys that YAML 1.1 reads as a boolean or as nothing are left to the loader.
_PRINTABLE = r"[^\x00-\x1f\x7f-\x9f\"\\\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
_OWN_LINE = re.compile(
    rf'((?:  ){{0,2}})(?:((?!(?:y|n|yes|no|on|off|true|false|null):)[a-z][a-z_]*):(?: (?:(\[\])|"({_PRINTABLE}*)"))?'
    rf'|- "({_PRINTABLE}*)")'
)
_OPEN: Any = object()


def _read_own_form(text: str) -> dict[str, Any] | None:
    """What the loader would read, for texts in the form of a role's documents; None for any other text.

    That is a mapping of texts, lists of texts, and mappings of those. Most of what is read was written by this
    library, and this takes a fifth of the loader's time.
    """
    top: dict[str, Any] = {}
    inner: dict[str, Any] = {}  # the mapping under the last key of `top`, where it has one
    owner, name, depth = top, "", -9  # the key that was opened last; only under it may items stand
    for line in text.split("\n"):
        if (match := _OWN_LINE.fullmatch(line)) is None:
            return None
        indent, key, empty, value, item = match.groups()
        if item is not None:
            if len(indent) != depth + 2:
                return None
            if owner[name] is _OPEN:
                owner[name] = []
            owner[name].append(item)
            continue
        opened = bool(name) and owner[name] is _OPEN
        if opened and len(indent) == depth + 2 == 2:
            owner[name] = inner = {}
        elif opened or len(indent) == 4 or (indent and top.get(next(reversed(top), "")) is not inner):
            return None
        owner = inner if indent else top
        if key in owner:
            return None
        owner[key] = [] if empty else _OPEN if value is None else value
        name, depth = (key, len(indent)) if value is None and not empty else ("", -9)
    return None if name and owner[name] is _OPEN else top


# --- bounds -------------------------------------------------------------------------------------


def _is_plainly_within_bounds(text: str) -> bool:
    """Whether the look of a text shows that it has no alias and nests less deeply than MAX_DEPTH.

    Most texts do, and counting events costs as much as loading. An alias needs a `*`. A block collection stands to
    the right of the one around it, or, a sequence in a mapping, in the same column; it is opened by white space or by
    an indicator (`- `, `? `), and a flow collection by a bracket.
    """
    # An alias; what ends lines in YAML 1.1; a byte order mark, which may stand before an indicator.
    if any(character in text for character in "*\r\x85\u2028\u2029\ufeff"):
        return False
    brackets = 2 * (text.count("[") + text.count("{"))  # `[a: ` opens a sequence and a mapping
    widest = max((len(lead[0]) for lead in _LEAD.finditer(text)), default=0)
    return brackets + 2 * (widest + 1) < MAX_DEPTH


# The white space and the block indicators that a line begins with.
_LEAD = re.compile(r"^(?:[ \t]|[-?:](?=[ \t]))+", re.MULTILINE)


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
