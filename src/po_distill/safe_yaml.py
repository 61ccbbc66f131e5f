"""YAML read within bounds: the only reader of YAML that comes from outside.

`yaml.safe_load` builds no objects, but a few hundred bytes of aliases still grow to gigabytes, and
deep nesting overflows the C stack of libyaml's composer. So the events are counted first, by
libyaml's parser, which is iterative; only a text within the bounds is built. Numbers are bounded
too: Python writes no integer of more than 4,300 digits as text.
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
MAX_ALIASED_CHARACTERS = 20_000
MAX_NUMBER_CHARACTERS = 1_000

_STR, _SEQ, _MAP, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map", "int", "float"))


# libyaml where PyYAML was built with it (every wheel is); the pure Python loader reads the same.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader without two detours: most of a document is quoted text, and needs no resolver; and
    collections are built at once, as nothing within the bounds contains itself.
    """

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode:
            if not implicit[0]:
                return _STR
            return _tag_of_plain(value) if len(value) <= _MOST_KEPT_PLAIN else _resolved(value)
        return _SEQ if kind is yaml.SequenceNode else _MAP

    def construct_number(self, node: Any) -> Any:
        if len(str(node.value)) > MAX_NUMBER_CHARACTERS:
            raise ValueError(f"a number of more than {MAX_NUMBER_CHARACTERS:,} characters")
        return self.construct_yaml_int(node) if node.tag == _INT else self.construct_yaml_float(node)


def _resolved(value: str) -> Any:
    return _RESOLVER.resolve(yaml.ScalarNode, value, (True, False))


_tag_of_plain = functools.lru_cache(maxsize=4096)(_resolved)
_MOST_KEPT_PLAIN = 100  # characters; longer ones hardly come again, and would fill the memory
_RESOLVER: Any = yaml.resolver.Resolver()
_Loader.add_constructor(_SEQ, lambda loader, node: loader.construct_sequence(node, deep=True))
_Loader.add_constructor(_MAP, lambda loader, node: loader.construct_mapping(node, deep=True))
_Loader.add_constructor(_INT, _Loader.construct_number)
_Loader.add_constructor(_FLOAT, _Loader.construct_number)


def load(text: str, *, what: str = "the YAML text") -> Any:
    """The value that `text` holds, as `yaml.safe_load` reads it; `what` names it in errors.

    Raises UnreadableYAMLError where the text is no YAML, is longer than MAX_CHARACTERS, nests deeper than
    MAX_DEPTH, uses more than MAX_ALIASES aliases or a recursive one, or aliases that repeat more than
    MAX_ALIASED_CHARACTERS.
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
    except (ValueError, OverflowError, RecursionError, TypeError, LookupError, AttributeError) as error:
        # PyYAML's constructors raise these for values such as the timestamp 2023-13-45 and `!!bool x`.
        raise UnreadableYAMLError(
            f"{what} holds a value that YAML cannot build: {_cut(str(error))}.", "Put that value in quotes."
        ) from error


def load_shared(text: str, *, what: str = "the YAML text") -> Any:
    """As `load`; equal texts may give the same value, so it must not be changed.

    Scoring reads the same few texts again and again: what was read last is kept, and why it could not be read.
    """
    value, refused = (_kept if len(text) <= _LONG else _kept_long)(text)
    if refused is not None:
        problem, fix = refused
        raise UnreadableYAMLError(problem.replace(_UNNAMED, what, 1), fix)
    return value


def _loaded(text: str) -> tuple[Any, tuple[str, str] | None]:
    """The value, or (problem, fix)."""
    try:
        return load(text, what=_UNNAMED), None
    except UnreadableYAMLError as error:
        return None, (error.problem, error.fix)


_UNNAMED = "\x00"  # stands for the name of a text in what is kept of it
_LONG = 20_000  # characters
_kept = functools.lru_cache(maxsize=1024)(_loaded)
_kept_long = functools.lru_cache(maxsize=4)(_loaded)


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
    aliases = repeated = 0  # how many, and of how many characters
    sizes: dict[str, int] = {}  # anchor -> characters of its node, with what aliases repeat in it
    opened: list[tuple[str | None, int]] = []  # (anchor, where it begins, with what was repeated before)
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
            repeated += sizes.get(str(event.anchor), 0)
            recursive = any(event.anchor == anchor for anchor, _ in opened)
            if aliases > MAX_ALIASES or recursive or repeated > MAX_ALIASED_CHARACTERS:
                raise UnreadableYAMLError(
                    f"{what} uses more than {MAX_ALIASES} aliases, one that contains itself, or ones that repeat more "
                    f"than {MAX_ALIASED_CHARACTERS:,} characters.",
                    "Write the repeated parts out; a document that grows when it is read is refused.",
                )
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, _span(event)[0] + repeated))
            if len(opened) > MAX_DEPTH:
                raise UnreadableYAMLError(f"{what} nests deeper than {MAX_DEPTH} levels.", "Flatten it.")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, begin = opened.pop()
            if anchor is not None:
                sizes[anchor] = _span(event)[1] + repeated - begin
        elif isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            begin, end = _span(event)
            sizes[event.anchor] = end - begin


def _span(event: Any) -> tuple[int, int]:
    """The characters of the text that an event begins and ends at."""
    return event.start_mark.index, event.end_mark.index


def _where(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {_cut(str(error.problem))}"
    return _cut(str(error).splitlines()[0])


def _cut(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
