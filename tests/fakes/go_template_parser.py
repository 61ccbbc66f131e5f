"""Go's text/template parsed into a tree, with the refusals of Go's own parser (Go 1.23)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NoReturn

from fakes.go_template_lexer import NotRenderedError, TemplateError, Token, quote, tokens
from fakes.go_template_nodes import (
    Action,
    Branch,
    Chain,
    Command,
    Dot,
    Field,
    Identifier,
    Jump,
    Literal,
    Nil,
    Node,
    Pipe,
    Text,
    Variable,
)

_OPERANDS = ("bool", "character", "dot", "field", "identifier", "number", "nil", "raw", "string", "variable", "open")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}
_ESCAPE = re.compile(r"\\([0-7]{3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.?)", re.DOTALL)


def parse(text: str, functions: Collection[str], *, known: Collection[str] = ()) -> list[Node]:
    """The tree of a template that may call `functions`.

    Raises TemplateError as Go would; NotRenderedError for define, template, block, and for a function that is in
    `known` only: one that Go's has and this renderer lacks.
    """
    return _Parser(text, functions, known).read()


class _Parser:
    def __init__(self, text: str, functions: Collection[str], known: Collection[str]) -> None:
        self._tokens = tokens(text)
        self._ahead: list[Token] = []
        self._line = 1  # of the token looked at last
        self._functions, self._known = functions, known
        self._variables = ["$"]
        self._action_line = 0
        self._loops = 0

    def read(self) -> list[Node]:
        body, end = self._list()
        if end is not None:
            self._fail(f"unexpected {{{{{end}}}}}")
        return body

    # --- tokens ---------------------------------------------------------------------------------

    def _next(self) -> Token:
        token = self._ahead.pop() if self._ahead else next(self._tokens)
        self._line = token.line
        return token

    def _back(self, token: Token) -> None:
        self._ahead.append(token)

    def _peek(self) -> Token:
        token = self._next()
        self._back(token)
        return token

    def _next_solid(self) -> Token:
        token = self._next()
        while token.kind == "space":
            token = self._next()
        return token

    def _peek_solid(self) -> Token:
        token = self._next_solid()
        self._back(token)
        return token

    def _fail(self, message: str) -> NoReturn:
        raise TemplateError(f"template: :{self._line}: {message}")

    def _unexpected(self, token: Token, context: str) -> NoReturn:
        if token.kind != "error":
            self._fail(f"unexpected {token} in {context}")
        where = ""
        if self._action_line and self._action_line != token.line:
            started = f" started at :{self._action_line}"
            where = started if token.text.endswith(" action") else f" in action{started}"
        self._fail(f"{token}{where}")

    def _expect(self, kind: str, context: str) -> Token:
        token = self._next_solid()
        if token.kind != kind:
            self._unexpected(token, context)
        return token

    # --- statements -----------------------------------------------------------------------------

    def _list(self) -> tuple[list[Node], str | None]:
        """(the nodes, "end" or "else" where that word stopped them, None at the end of the text)."""
        nodes: list[Node] = []
        while True:
            token = self._next()
            if token.kind == "eof":
                return nodes, None
            if token.kind == "text":
                nodes.append(Text(token.at, token.line, token.text))
                continue
            if token.kind != "left":
                self._unexpected(token, "input")
            self._action_line = token.line
            found = self._action()
            self._action_line = 0
            if isinstance(found, str):
                return nodes, found
            nodes.append(found)

    def _body(self) -> tuple[list[Node], str]:
        nodes, end = self._list()
        if end is None:
            self._fail("unexpected EOF")
        return nodes, end

    def _action(self) -> Node | str:
        token = self._next_solid()
        if token.kind != "keyword":
            self._back(token)
            pipe = self._pipeline("command", "right")
            return Action(pipe.at, pipe.line, pipe)
        if token.text in ("if", "with", "range"):
            return self._branch(token)
        if token.text in ("break", "continue"):
            return self._jump(token)
        if token.text == "end":
            self._expect("right", "end")
            return "end"
        if token.text == "else":
            if self._peek_solid().text not in ("if", "with"):  # else if and else with are read by their branch
                self._expect("right", "else")
            return "else"
        raise NotRenderedError(f"{token.text} is not rendered here")

    def _branch(self, token: Token) -> Branch:
        mark, kind = len(self._variables), token.text
        pipe = self._pipeline(kind, "right")
        self._loops += kind == "range"
        body, end = self._body()
        self._loops -= kind == "range"
        otherwise: list[Node] | None = None
        if end == "else":
            follower = self._peek()
            if follower.kind == "keyword" and follower.text == kind:
                otherwise = [self._branch(self._next())]  # one {{end}} closes both
            else:
                otherwise, end = self._body()
                if end != "end":
                    self._fail(f"expected end; found {{{{{end}}}}}")
        del self._variables[mark:]
        return Branch(token.at, token.line, kind, pipe, body, otherwise)

    def _jump(self, token: Token) -> Jump:
        if (follower := self._next_solid()).kind != "right":
            self._unexpected(follower, f"{{{{{token.text}}}}}")
        if not self._loops:
            self._fail(f"{{{{{token.text}}}}} outside {{{{range}}}}")
        return Jump(token.at, token.line, token.text)

    # --- pipelines ------------------------------------------------------------------------------

    def _pipeline(self, context: str, end: str) -> Pipe:
        token = self._peek_solid()
        pipe = Pipe(token.at, token.line, [], False, [])
        self._declarations(pipe, context)
        while True:
            token = self._next_solid()
            if token.kind == end:
                self._check(pipe, context)
                return pipe
            if token.kind not in _OPERANDS:
                self._unexpected(token, context)
            self._back(token)
            pipe.commands.append(self._command())

    def _declarations(self, pipe: Pipe, context: str) -> None:
        while (name := self._peek_solid()).kind == "variable":
            self._next()
            gap = self._peek()
            mark = self._peek_solid()
            if mark.kind in ("assign", "declare"):
                self._next_solid()
                pipe.assigns = mark.kind == "assign"
                pipe.declared.append(name.text)
                self._variables.append(name.text)
                return
            if mark.kind == "char" and mark.text == ",":
                self._next_solid()
                pipe.declared.append(name.text)
                self._variables.append(name.text)
                if context == "range" and len(pipe.declared) < 2:
                    if self._peek_solid().kind in ("variable", "right", "close"):
                        continue
                    self._fail("range can only initialize variables")
                self._fail(f"too many declarations in {context}")
            if gap.kind == "space" and mark is not gap:
                self._back(gap)
            self._back(name)
            return

    def _check(self, pipe: Pipe, context: str) -> None:
        if not pipe.commands:
            self._fail(f"missing value for {context}")
        for number, command in enumerate(pipe.commands[1:], start=2):
            if isinstance(command.arguments[0], Literal | Dot | Nil):
                self._fail(f"non executable command in pipeline stage {number}")

    def _command(self) -> Command:
        start = self._peek_solid()
        command = Command(start.at, start.line, [])
        while True:
            self._peek_solid()
            operand = self._operand()
            if operand is not None:
                command.arguments.append(operand)
            token = self._next()
            if token.kind == "space":
                continue
            if token.kind in ("right", "close"):
                self._back(token)
            elif token.kind != "pipe":
                self._unexpected(token, "operand")
            if not command.arguments:
                self._fail("empty command")
            return command

    def _operand(self) -> Node | None:
        node = self._term()
        if node is None or self._peek().kind != "field":
            return node
        at, names = self._peek().at, []
        while self._peek().kind == "field":
            names.append(self._next().text[1:])
        if isinstance(node, Field):
            return Field(at, node.line, (*node.names, *names))
        if isinstance(node, Variable):
            return Variable(at, node.line, (*node.names, *names))
        if isinstance(node, Literal | Nil | Dot):
            self._fail(f"unexpected . after term {quote(str(node))}")
        return Chain(at, node.line, node, tuple(names))

    def _term(self) -> Node | None:
        token = self._next_solid()
        at, line, text = token.at, token.line, token.text
        if token.kind == "identifier":
            return self._function(token)
        if token.kind == "dot":
            return Dot(at, line)
        if token.kind == "nil":
            return Nil(at, line)
        if token.kind == "variable":
            if text not in self._variables:
                self._fail(f"undefined variable {quote(text)}")
            return Variable(at, line, (text,))
        if token.kind == "field":
            return Field(at, line, (text[1:],))
        if token.kind == "bool":
            return Literal(at, line, text, text == "true")
        if token.kind in ("number", "character"):
            return Literal(at, line, text, self._number(token))
        if token.kind in ("string", "raw"):
            return Literal(at, line, text, text[1:-1] if token.kind == "raw" else self._unquoted(text))
        if token.kind == "open":
            return self._pipeline("parenthesized pipeline", "close")
        self._back(token)
        return None

    def _function(self, token: Token) -> Identifier:
        if token.text not in self._functions:
            if token.text in self._known:
                raise NotRenderedError(f"the function {token.text} is not rendered here")
            self._fail(f"function {quote(token.text)} not defined")
        return Identifier(token.at, token.line, token.text)

    def _unquoted(self, text: str) -> str:
        try:
            return _unquoted(text)
        except ValueError:
            self._fail("invalid syntax")

    def _number(self, token: Token) -> int | float:
        if token.kind == "character":
            characters = self._unquoted(token.text)
            if len(characters) > 1:
                self._fail(f"malformed character constant: {token.text}")
            return ord(characters or self._fail("invalid syntax"))
        digits = token.text.lstrip("+-")
        old_octal = digits.isdigit() and digits.startswith("0")
        try:
            if digits[:2].lower() in ("0x", "0b", "0o"):
                return int(token.text, 0)
            return int(token.text, 8 if old_octal else 10) if digits.replace("_", "").isdigit() else float(token.text)
        except ValueError:
            self._fail(f"illegal number syntax: {quote(token.text)}")


def _unquoted(text: str) -> str:
    """A quoted Go string without its quotes, its escapes read. Raises ValueError for one that Go has not."""
    return _ESCAPE.sub(lambda match: _read_escape(match.group(1), text[0]), text[1:-1])


def _read_escape(escape: str, mark: str) -> str:
    if escape in _ESCAPES and escape not in {"'", '"'} - {mark}:
        return _ESCAPES[escape]
    base = 8 if escape[:1].isdigit() else 16
    code = int(escape if base == 8 else escape[1:], base)
    if 0xD800 <= code < 0xE000:
        raise ValueError(escape)
    return chr(code)
