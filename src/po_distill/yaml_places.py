"""Where each value of a YAML text stands, in characters: what an edit of the text itself needs to know.

Read from the events of PyYAML's own parser in Python, whose marks count characters. `yaml.compose` would not do: the
node of an alias carries the marks of its anchor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import yaml

from po_distill.errors import InputError, UnreadableYAMLError

_RESOLVER: Any = yaml.resolver.Resolver()
_EMPTY_BEFORE_COLON = frozenset(" \t\r\n\x85\u2028\u2029")


@dataclass(slots=True)
class Place:
    """A value of a text and where it stands: `text[start:end]`, an anchor or a tag before it included.

    A block collection ends where its last value ends, without the comments behind.
    """

    kind: Literal["mapping", "sequence", "scalar", "alias"]
    start: int
    end: int
    line: int  # counted from 1
    column: int  # counted from 0
    flow: bool = False  # a collection in brackets
    style: str | None = None  # of a scalar: ' or " or | or >; None where it is plain
    value: str = ""  # of a scalar, as written; of an alias, its name
    tag: str | None = None  # of a scalar, also where the text leaves it to be guessed
    tagged: bool = False  # whether the text spells a tag out
    anchor: str | None = None
    colon: bool = True  # False for a key's missing value where the colon is missing too
    children: list[Place] = field(default_factory=list)  # of a mapping: key, value, key, value, ...

    def entries(self) -> list[tuple[Place, Place]]:
        """A mapping's keys and values; nothing of what is no mapping."""
        return list(zip(self.children[::2], self.children[1::2], strict=True)) if self.kind == "mapping" else []

    def named(self, name: str) -> list[tuple[Place, Place]]:
        """The entries whose key is the text `name`; more than one where the key stands there twice."""
        return [(key, value) for key, value in self.entries() if key.is_text and key.value == name]

    def inside(self) -> Iterator[Place]:
        """The place itself and all that it holds, in the order of the text."""
        yield self
        for child in self.children:
            yield from child.inside()

    @property
    def is_text(self) -> bool:
        """Whether YAML reads the scalar as a text."""
        return self.kind == "scalar" and self.tag == "tag:yaml.org,2002:str"

    @property
    def is_null(self) -> bool:
        """Whether YAML reads the scalar as nothing: written as nothing, as ~ or as null."""
        return self.kind == "scalar" and self.tag == "tag:yaml.org,2002:null"


@dataclass(slots=True)
class Document:
    """The one document of a text."""

    root: Place | None  # None where the text holds no document at all
    begins: int | None  # behind its `---`; None where it has none


def find_places(text: str, *, what: str) -> Document:
    """The places of all values in a text that `safe_yaml` can read, without a byte order mark.

    Raises InputError where the text holds several documents, UnreadableYAMLError where it is no YAML; `what` names
    it in errors.
    """
    document = Document(root=None, begins=None)
    found, open_places = False, [Place("sequence", 0, 0, 1, 0)]
    events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
    try:
        for event in events:
            begins, ends = cast(yaml.Mark, event.start_mark), cast(yaml.Mark, event.end_mark)
            if isinstance(event, yaml.DocumentStartEvent):
                if found:
                    line = begins.line + 1
                    raise InputError(
                        f"{what} holds several YAML documents, the second from line {line} on; which of them counts "
                        f"is not known here.",
                        "Leave one document in the file, or edit it by hand.",
                    )
                found = True
                document.begins = ends.index if event.explicit else None
            elif isinstance(event, yaml.CollectionStartEvent):
                open_places.append(_place(event, text))
            elif isinstance(event, yaml.CollectionEndEvent):
                closed = open_places.pop()
                closed.end = ends.index if closed.flow else _last_end(closed)
                _attach(open_places[-1], closed, text)
            elif isinstance(event, yaml.NodeEvent):
                _attach(open_places[-1], _place(event, text), text)
    except yaml.YAMLError as error:
        raise UnreadableYAMLError(f"{what} is not YAML: {str(error).splitlines()[0]}.", "Correct it.") from error
    document.root = open_places[0].children[0] if open_places[0].children else None
    return document


def _place(event: Any, text: str) -> Place:
    mark = event.start_mark
    place = Place("alias", mark.index, event.end_mark.index, mark.line + 1, mark.column)
    place.anchor = event.anchor
    if isinstance(event, yaml.AliasEvent):
        place.anchor, place.value = None, str(event.anchor)
    elif isinstance(event, yaml.ScalarEvent):
        place.kind, place.style, place.value = "scalar", event.style, event.value
        place.tagged = event.tag is not None
        place.tag = event.tag or _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    else:
        place.kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
        place.flow, place.tagged = bool(event.flow_style), event.tag is not None
    return place


def _attach(parent: Place, child: Place, text: str) -> None:
    is_value = parent.kind == "mapping" and len(parent.children) % 2 == 1
    if is_value and child.start == child.end:
        # Of `? key` or `{key}` alone the parser says that the missing value stands before whatever follows.
        key = parent.children[-1]
        after = key.end
        while after < len(text) and text[after] in _EMPTY_BEFORE_COLON:
            after += 1
        if text[after : after + 1] != ":":
            child.start = child.end = key.end
            child.colon = False
    if not parent.children and parent.kind == "mapping" and not parent.flow:
        parent.column = child.column  # where further keys have to stand, whatever stands before the first
    parent.children.append(child)


def _last_end(collection: Place) -> int:
    return collection.children[-1].end if collection.children else collection.start
