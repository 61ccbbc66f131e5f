"""The tokens of Go's text/template, as its own lexer cuts them (Go 1.23)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

KEYWORDS = ("block", "break", "continue", "define", "else", "end", "if", "range", "template", "with")
_SPACES = " \t\r\n"
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9_]*(?:\.[0-9_]*)?(?:(?<=[0-9_.])[eE][+-]?[0-9_]+)?)"
)
_WORD = re.compile(r"\w*")
_SPACE_RUN = re.compile(r"[ \t\r\n]+")
_STRING = re.compile(r'"(?:\\[^\n]|[^"\\\n])*"', re.ASCII)
_CHARACTER = re.compile(r"'(?:\\[^\n]|[^'\\\n])*'")


class TemplateError(Exception):
    """What Go says of the template, without the type's own words."""


class NotRenderedError(Exception):
    """A part of Go's language that this renderer does not know: no refusal of Go's."""


@dataclass(frozen=True)
class Token:
    """`kind`: text, left, right, space, field, variable, identifier, keyword, dot, nil, bool, number, character,
    string, raw, pipe, open, close, declare, assign, char, error or eof.
    """

    kind: str
    text: str
    at: int  # characters from the start
    line: int

    def __str__(self) -> str:
        if self.kind == "eof":
            return "EOF"
        if self.kind == "error":
            return self.text
        if self.kind in ("keyword", "dot", "nil"):
            return f"<{self.text}>"
        return quote(self.text[:10]) + "..." if len(self.text) > 10 else quote(self.text)


def quote(text: str) -> str:
    """The text as Go's %q puts it: its quotes, backslashes and control characters escaped."""
    named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f",
             "\v": "\\v"}  # fmt: skip
    return '"' + "".join(named.get(c) or (c if c.isprintable() else _escaped(c)) for c in text) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def tokens(text: str) -> Iterator[Token]:
    """The tokens, one after the other; an error is the last."""
    lexer = _Lexer(text)
    yield from lexer.run()


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._parens = 0

    def run(self) -> Iterator[Token]:
        while True:
            start = self._at
            left = self._text.find("{{", start)
            if left < 0:
                if start < len(self._text):
                    yield self._token("text", start, len(self._text))
                yield self._token("eof", len(self._text), len(self._text))
                return
            trimmed = self._text[left + 2 : left + 3] == "-" and self._text[left + 3 : left + 4] in tuple(_SPACES)
            end = len(self._text[start:left].rstrip(_SPACES)) + start if trimmed else left
            if end > start:
                yield self._token("text", start, end)
            inside = left + (4 if trimmed else 2)
            if self._text.startswith("/*", inside):
                if error := self._skip_comment(inside):
                    yield error
                    return
                continue
            yield self._token("left", left, left + 2)
            self._at, self._parens = inside, 0
            for token in self._action():
                yield token
                if token.kind == "error":
                    return

    def _token(self, kind: str, start: int, end: int) -> Token:
        return Token(kind, self._text[start:end], start, 1 + self._text.count("\n", 0, start))

    def _error(self, message: str, at: int) -> Token:
        return Token("error", message, at, 1 + self._text.count("\n", 0, at))

    def _skip_comment(self, start: int) -> Token | None:
        end = self._text.find("*/", start)
        if end < 0:
            return self._error("unclosed comment", start)
        self._at = end + 2
        if not self._ends_action():
            return self._error("comment ends before closing delimiter", start)
        self._leave_action()
        return None

    def _ends_action(self) -> bool:
        return self._text.startswith("}}", self._at) or self._ends_trimming()

    def _ends_trimming(self) -> bool:
        at = self._at
        return self._text[at : at + 1] in tuple(_SPACES) and self._text.startswith("-}}", at + 1)

    def _leave_action(self) -> Token:
        trims = self._ends_trimming()
        start = self._at + (2 if trims else 0)
        self._at = start + 2
        if trims:
            self._at = len(self._text) - len(self._text[self._at :].lstrip(_SPACES))
        return self._token("right", start, start + 2)

    def _action(self) -> Iterator[Token]:
        while True:
            if self._ends_action():
                if self._parens:
                    yield self._error("unclosed left paren", self._at)
                    return
                yield self._leave_action()
                return
            token = self._next_in_action()
            yield token
            if token.kind == "error":
                return

    def _next_in_action(self) -> Token:
        start, text = self._at, self._text
        character = text[start : start + 1]
        if not character:
            return self._error("unclosed action", start)
        if character in _SPACES:
            return self._space()
        if character in "\"`'":
            return self._quoted(character)
        if character in "+-" or character.isdigit() or (character == "." and text[start + 1 : start + 2].isdigit()):
            return self._number()
        if character in ".$":
            return self._field_or_variable(character)
        if character == "_" or character.isalnum():
            return self._word()
        return self._mark(character)

    def _space(self) -> Token:
        match = _SPACE_RUN.match(self._text, self._at)
        assert match is not None
        end = match.end()
        if self._text.startswith("-}}", end):
            end -= 1  # the last space is the closing delimiter's
        token = self._token("space", self._at, end)
        self._at = end
        return token

    def _quoted(self, mark: str) -> Token:
        start = self._at
        if mark == "`":
            end = self._text.find("`", start + 1)
            if end < 0:
                return self._error("unterminated raw quoted string", start)
            self._at = end + 1
            return self._token("raw", start, end + 1)
        match = (_STRING if mark == '"' else _CHARACTER).match(self._text, start)
        if match is None:
            what = "quoted string" if mark == '"' else "character constant"
            return self._error(f"unterminated {what}", start)
        self._at = match.end()
        return self._token("string" if mark == '"' else "character", start, match.end())

    def _number(self) -> Token:
        match = _NUMBER.match(self._text, self._at)
        assert match is not None
        end = match.end()
        if self._text[end : end + 1].isalnum():
            return self._error(f"bad number syntax: {quote(self._text[self._at : end + 1])}", self._at)
        token = self._token("number", self._at, end)
        self._at = end
        return token

    def _field_or_variable(self, mark: str) -> Token:
        start = self._at
        match = _WORD.match(self._text, start + 1)
        assert match is not None
        self._at = match.end()
        if error := self._bad_character(start):
            return error
        if self._at == start + 1:
            return self._token("dot" if mark == "." else "variable", start, self._at)
        return self._token("field" if mark == "." else "variable", start, self._at)

    def _word(self) -> Token:
        start = self._at
        match = _WORD.match(self._text, start)
        assert match is not None
        self._at = match.end()
        if error := self._bad_character(start):
            return error
        word = match.group()
        kind = "keyword" if word in KEYWORDS else "bool" if word in ("true", "false") else "identifier"
        return self._token("nil" if word == "nil" else kind, start, self._at)

    def _bad_character(self, start: int) -> Token | None:
        character = self._text[self._at : self._at + 1]
        if not character or character in _SPACES + ".,|:)(" or self._text.startswith("}}", self._at):
            return None
        return self._error(f"bad character U+{ord(character):04X}{_shown(character)}", start)

    def _mark(self, character: str) -> Token:
        start = self._at
        self._at += 1
        if character == ":":
            if not self._text.startswith("=", self._at):
                return self._error("expected :=", start)
            self._at += 1
            return self._token("declare", start, self._at)
        if character == "(":
            self._parens += 1
        elif character == ")":
            self._parens -= 1
            if self._parens < 0:
                return self._error("unexpected right paren", start)
        kinds = {"=": "assign", "|": "pipe", "(": "open", ")": "close"}
        if character in kinds or (character.isascii() and character.isprintable()):
            return self._token(kinds.get(character, "char"), start, self._at)
        return self._error(f"unrecognized character in action: U+{ord(character):04X}{_shown(character)}", start)


def _shown(character: str) -> str:
    return f" '{character}'" if character.isprintable() else ""
