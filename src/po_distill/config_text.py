"""Values set in the text of a YAML file, with every other byte as it was.

The text is edited where its parser says that the values stand, then read again: unless it now holds the former value
with exactly the wanted entries changed, nothing of the edit is given out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from po_distill import safe_yaml
from po_distill.errors import InputError, UnreadableYAMLError
from po_distill.yaml_places import Document, Place, find_places
from po_distill.yaml_spelling import Quote, Scalar, spell, spell_in_brackets, spell_in_lines

LINE_ENDS = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what ends a line in YAML 1.1
_BYTE_ORDER_MARK = "\ufeff"
_COMMENT_LINE = re.compile("(?:\r\n|[\r\n\x85\u2028\u2029])([ \t]*)#[^\r\n\x85\u2028\u2029]*")
_ANCHOR = re.compile(r"&\S+[ \t]*")
_DEFAULT_STEP = 2  # columns by which a nested mapping is indented, where a file does not show it


def set_entries(text: str, path: Sequence[str], entries: Mapping[str, Scalar], *, what: str = "the YAML text") -> str:
    """The text with `entries` in the mapping under the keys `path`, and nothing else of it changed.

    What is missing is added in the style of what stands beside it: indentation, line ends, quotes, brackets. Raises
    InputError, which says what to write by hand, where that cannot be done without changing something else.
    """
    former = _load_one(text, what)
    edit = _Edit(text, tuple(path), entries, what)
    section = edit.check_path(former)
    if section is None or not edit.is_written_out():
        edit.put(edit.path, dict(entries))
    else:
        for key, value in entries.items():
            if key not in section or not _same(section[key], value):
                edit.put((*edit.path, key), value)
    edit.prove(former)
    return edit.text


def _load_one(text: str, what: str) -> Any:
    """The value of a text with one document."""
    try:
        return safe_yaml.load(text, what=what)
    except UnreadableYAMLError:
        if len(text) <= safe_yaml.MAX_CHARACTERS:
            with contextlib.suppress(UnreadableYAMLError):
                find_places(text, what=what)  # says what to do where there are several documents
        raise


class _Edit:
    """A text on its way to another value of the mapping under `path`."""

    def __init__(self, text: str, path: tuple[str, ...], entries: Mapping[str, Scalar], what: str) -> None:
        self.path, self._entries, self._what = path, entries, what
        self._mark = _BYTE_ORDER_MARK if text.startswith(_BYTE_ORDER_MARK) else ""
        self._body = text.removeprefix(_BYTE_ORDER_MARK)
        if self._body.startswith(_BYTE_ORDER_MARK):
            self._refuse("it begins with two byte order marks, which parsers of YAML read differently")

    @property
    def text(self) -> str:
        return self._mark + self._body

    def check_path(self, former: Any) -> dict[Any, Any] | None:
        """The section under the path; None where there is none. Refuses where something else than mappings is there."""
        value: Any = former
        for depth in range(len(self.path) + 1):
            if value is None:
                return None
            if not isinstance(value, dict):
                where = _dotted(self.path[:depth]) or "the whole file"
                self._refuse(f"{where} is no mapping, but of the type {type(value).__name__}")
            if depth < len(self.path):
                value = value.get(self.path[depth])
        return dict(value)

    def is_written_out(self) -> bool:
        """Whether the section, which exists, stands there as a mapping of its own. False where it is an alias."""
        place = self._document().root
        for depth, name in enumerate(self.path):
            where = _dotted(self.path[: depth + 1])
            found = self._entry(place, name, where) if place and place.kind == "mapping" else None
            if found is None:
                self._refuse(f"{where} is not written out there, but comes from an alias or a merge key (<<)")
            place = found[1]
        return place is not None and place.kind != "alias"

    def put(self, path: tuple[str, ...], value: Any) -> None:
        """Write `value`, a scalar or a mapping, under `path`; mappings that are missing are made."""
        document = self._document()
        mapping = document.root
        if mapping is None or mapping.is_null:
            self._begin(document, _nested(path, value))
            return
        if mapping.kind != "mapping":
            self._refuse(f"line {mapping.line} is read in two ways by two parsers of YAML")
        for depth, name in enumerate(path):
            where, inner = _dotted(path[: depth + 1]), _nested(path[depth + 1 :], value)
            entry = self._entry(mapping, name, where)
            if entry is None:
                self._add(document, mapping, name, inner)
                return
            if depth == len(path) - 1 or entry[1].is_null:
                self._replace(document, mapping, entry, inner, where)
                return
            mapping = entry[1]
            if mapping.kind != "mapping":
                self._refuse(f"{where} in line {mapping.line} is an alias")

    def prove(self, former: Any) -> None:
        """Refuse unless the text now holds the former value with the entries in it."""
        wanted = _with(former, self.path, self._entries)
        try:
            if _same(safe_yaml.load(self.text, what=self._what), wanted):
                return
        except UnreadableYAMLError:
            pass
        self._refuse(self._obstacle() or "the edit would change more than the wanted values")

    def _document(self) -> Document:
        return find_places(self._body, what=self._what)

    def _entry(self, mapping: Place, name: str, where: str) -> tuple[Place, Place] | None:
        found = mapping.named(name)
        if len(found) > 1:
            lines = " and ".join(str(key.line) for key, _ in found)
            self._refuse(f"{where} stands there {len(found)} times, in lines {lines}")
        return found[0] if found else None

    def _obstacle(self) -> str | None:
        """An anchor on the way to the values that is used elsewhere too."""
        root = self._document().root
        if root is None:
            return None
        aliases = {found.value: found.line for found in root.inside() if found.kind == "alias"}
        on_the_way = [root]
        for name in self.path:
            on_the_way += [value for _, value in on_the_way[-1].named(name)[:1]]
        on_the_way += [value for key, value in on_the_way[-1].entries() if key.value in self._entries]
        for place in on_the_way:
            if place.anchor in aliases:
                return f"line {aliases[place.anchor]} uses the anchor &{place.anchor} of line {place.line} too"
        return None

    def _refuse(self, why: str) -> NoReturn:
        wanted = ", ".join(f"{key}: {spell(value)}" for key, value in self._entries.items())
        raise InputError(
            f"{self._what} cannot be edited in place: {why}.",
            f"Write {wanted} under {_dotted(self.path)} by hand, then run the same command again.",
        )

    # --- the edits themselves -----------------------------------------------------------------

    def _splice(self, start: int, end: int, new: str) -> None:
        self._body = self._body[:start] + new + self._body[end:]

    def _insert_lines(self, at: int, lines: Sequence[str]) -> None:
        """New lines behind the line that ends at `at`, with its line end; a last line without one stays without."""
        line_end = self._line_end_at(at)
        self._splice(at, at, "".join(line_end + line for line in lines))

    def _begin(self, document: Document, value: Mapping[str, Any]) -> None:
        """The first mapping of a text that holds none: nothing at all, comments, or `---`."""
        if document.root is not None and document.root.start != document.root.end:
            self._refuse(f"line {document.root.line} says that it is empty")
        lines = spell_in_lines(value, 0, _DEFAULT_STEP)
        if document.begins is not None:
            self._insert_lines(_end_of_line(self._body, document.begins), lines)
        elif self._body and self._body[-1] not in "\r\n\x85\u2028\u2029":
            self._insert_lines(len(self._body), lines)
        else:
            line_end = self._line_end_at(len(self._body))
            self._body += "".join(line + line_end for line in lines)

    def _add(self, document: Document, mapping: Place, name: str, value: Any) -> None:
        """A new entry behind the last one of a mapping."""
        entries = mapping.entries()
        keys = entries[-1][0].style if entries else None
        siblings = [found for _, found in entries if found.kind == "mapping" and found.children]
        texts = _text_quote(siblings[-1] if siblings and isinstance(value, Mapping) else mapping, keys)
        in_brackets = f"{spell(name, keys)}: {spell_in_brackets(value, keys, texts)}"
        if mapping.flow:
            at = entries[-1][1].end if entries else self._body.index("{", mapping.start) + 1
            self._splice(at, at, f", {in_brackets}" if entries else in_brackets)
            return
        if isinstance(value, Mapping) and siblings and all(sibling.flow for sibling in siblings):
            lines = [" " * mapping.column + in_brackets]
        else:
            lines = spell_in_lines({name: value}, mapping.column, _step(mapping, document), keys, texts)
        gap = [""] if isinstance(value, Mapping) and self._has_gaps(entries) else []
        self._insert_lines(self._end_of_entry(entries[-1][1], mapping.column), gap + lines)

    def _replace(self, document: Document, mapping: Place, entry: tuple[Place, Place], value: Any, where: str) -> None:
        """Another value in the place of one that stands there, or of nothing behind a key's colon."""
        key, place = entry
        written = self._body[place.start : place.end]
        over_lines = place.style in ("|", ">") or (place.anchor and LINE_ENDS.search(written))
        if place.tagged or not place.colon or place.kind in ("mapping", "sequence") or over_lines:
            self._refuse(f"{where} in line {key.line} is no plain value on the line of its key")
        if not isinstance(value, Mapping):
            self._write(place, spell(value, place.style if place.is_text else key.style))
        elif place.kind == "alias":
            self._write(place, spell_in_brackets(value, key.style, key.style, first=f"<<: {written}"))
        elif mapping.flow or _ANCHOR.sub("", written):
            self._write(place, spell_in_brackets(value, key.style, key.style))
        else:
            step = _step(mapping, document)
            lines = spell_in_lines(value, mapping.column + step, step, key.style, key.style)
            self._insert_lines(_end_of_line(self._body, place.end), lines)

    def _write(self, place: Place, new: str) -> None:
        """`new` where a value stands, behind its anchor; where none stands, behind the colon and a space."""
        anchor = _ANCHOR.match(self._body, place.start, place.end) if place.anchor else None
        start = anchor.end() if anchor else place.start
        space = "" if start < place.end or self._body[start - 1] in " \t" else " "
        self._splice(start, place.end, space + new)

    # --- lines --------------------------------------------------------------------------------

    def _end_of_entry(self, value: Place, column: int) -> int:
        """Where the last line of a value ends, and of the comments below it that are indented as parts of it."""
        last = _last_leaf(value)
        at = self._end_of_block_text(last) if last.style in ("|", ">") else _end_of_line(self._body, last.end)
        while (comment := _COMMENT_LINE.match(self._body, at)) and len(comment[1]) > column:
            at = comment.end()
        return at

    def _end_of_block_text(self, place: Place) -> int:
        """Before the line end that closes a block text; before its empty lines too, unless it keeps them (|+)."""
        written = self._body[place.start : place.end]
        ends = list(LINE_ENDS.finditer(written))
        head = (LINE_ENDS.split(written)[0]).split("#")[0]
        if not ends or ends[-1].end() != len(written):
            if "-" not in head:  # a line end behind it would become a part of it
                self._refuse(f"the block text from line {place.line} on ends the file without a line end")
            return place.end
        keeps = "+" in head
        while not keeps and len(ends) > 1 and ends[-2].end() == ends[-1].start():
            ends.pop()
        return place.start + ends[-1].start()

    def _line_end_at(self, at: int) -> str:
        """The line end that stands at `at`; where none does, the one before it; where there is none, a line feed."""
        if here := LINE_ENDS.match(self._body, at):
            return here[0]
        before = [found[0] for found in LINE_ENDS.finditer(self._body, 0, at)]
        return before[-1] if before else "\n"

    def _has_gaps(self, entries: Sequence[tuple[Place, Place]]) -> bool:
        """Whether an empty line stands before the last entry, and one may stand behind it."""
        if len(entries) < 2 or _last_leaf(entries[-1][1]).style in ("|", ">"):  # where it could become a part of it
            return False
        between = self._body[_end_of_line(self._body, entries[-2][1].end) : entries[-1][0].start]
        return any(not line.strip() for line in LINE_ENDS.split(between)[1:-1])


def _last_leaf(place: Place) -> Place:
    """What a value ends with: the last scalar, alias or collection in brackets."""
    while place.children and not place.flow:
        place = place.children[-1]
    return place


def _end_of_line(text: str, at: int) -> int:
    found = LINE_ENDS.search(text, at)
    return found.start() if found else len(text)


# --- the style of a file ------------------------------------------------------------------------


def _text_quote(mapping: Place, keys: Quote) -> Quote:
    """The quotes of the last text value inside a mapping; those of its keys where it has none."""
    values = [value for found in mapping.inside() for _, value in found.entries() if value.is_text]
    styles = [value.style for value in values if value.style not in ("|", ">")]
    return styles[-1] if styles else keys


def _step(mapping: Place, document: Document) -> int:
    """By how many columns a file indents a nested mapping: as in this mapping, or as anywhere in it."""
    assert document.root is not None
    for place in (mapping, *document.root.inside()):
        for _, value in place.entries() if not place.flow else ():
            if value.kind == "mapping" and not value.flow and value.column > place.column:
                return value.column - place.column
    return _DEFAULT_STEP


# --- values ---------------------------------------------------------------------------------------


def _dotted(path: Sequence[str]) -> str:
    return ".".join(path)


def _nested(path: Sequence[str], value: Any) -> Any:
    for name in reversed(path):
        value = {name: value}
    return value


def _with(value: Any, path: tuple[str, ...], entries: Mapping[str, Scalar]) -> Any:
    """The value with entries in the mapping under `path`; what aliases share with it is not touched."""
    former = value or {}
    return {**former, **({path[0]: _with(former.get(path[0]), path[1:], entries)} if path else entries)}


def _same(one: Any, other: Any) -> bool:
    """Whether two values that YAML gave are the same in their types too; the order of keys does not count."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        keys = {(type(key), repr(key)) for key in one}
        return keys == {(type(key), repr(key)) for key in other} and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)  # .nan is the same as .nan, and 0.0 not as -0.0
    return bool(one == other)
