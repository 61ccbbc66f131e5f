"""Go's text/template, rendered: the part of the language that TEMPLATEs of Ollama use, with Go's own refusals.

Rendered: text, trim marks, comments, fields, variables, pipelines, parentheses, if, with, range (lists, maps and
numbers), break, continue, literals and the functions in go_template_functions. Not: define, template, block, and
the functions for web pages; these raise NotRenderedError, which is no refusal of Go's. Data is plain: None, bool,
int, float, str, list, dict, and Struct for what Go has as a struct. A map's missing key is "no value"
(`missingkey=zero` on a map of any, as Ollama has it).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NoReturn

from fakes.go_template_functions import FUNCTIONS, UNRENDERED, CallError, Function, Struct, shown, truth, type_name
from fakes.go_template_lexer import NotRenderedError, TemplateError
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
from fakes.go_template_parser import parse

__all__ = ["NotRenderedError", "Struct", "Template", "TemplateError"]

_UNPIPED = object()  # None is a value that may be piped


class Template:
    """A parsed template. Raises TemplateError with Go's words where Go would refuse to parse it."""

    def __init__(self, text: str, functions: Mapping[str, Function] | None = None) -> None:
        self.text = text
        self.functions = {**FUNCTIONS, **(functions or {})}
        self.root: list[Node] = parse(text, self.functions, known=UNRENDERED)

    def render(self, data: Any) -> str:
        """The text for the data. Raises TemplateError where Go's execution fails."""
        run = _Run(self, data)
        run.walk(data, self.root)
        return "".join(run.out)

    def with_root(self, root: list[Node]) -> Template:
        """The same template with another tree."""
        other = copy.copy(self)
        other.root = root
        return other


class _JumpError(Exception):
    """A break or continue on its way to its range."""


class _Run:
    def __init__(self, template: Template, data: Any) -> None:
        self.out: list[str] = []
        self._template = template
        self._variables: list[tuple[str, Any]] = [("$", data)]
        self._node: Node | None = None

    # --- statements -----------------------------------------------------------------------------

    def walk(self, dot: Any, nodes: list[Node]) -> None:
        for node in nodes:
            self._node = node
            if isinstance(node, Text):
                self.out.append(node.text)
            elif isinstance(node, Action):
                value = self._pipeline(dot, node.pipe)
                if not node.pipe.declared:
                    self.out.append(shown(value))
            elif isinstance(node, Jump):
                raise _JumpError(node.kind)
            elif isinstance(node, Branch):
                self._branch(dot, node)

    def _branch(self, dot: Any, node: Branch) -> None:
        mark = len(self._variables)
        try:
            if node.kind == "range":
                self._range(dot, node)
                return
            value = self._pipeline(dot, node.pipe)
            if truth(value):
                self.walk(value if node.kind == "with" else dot, node.body)
            elif node.otherwise is not None:
                self.walk(dot, node.otherwise)
        finally:
            del self._variables[mark:]

    def _range(self, dot: Any, node: Branch) -> None:
        value = self._pipeline(dot, node.pipe)
        mark = len(self._variables)
        pairs = self._pairs(value)
        for pair in pairs:
            for name, part in zip(node.pipe.declared, pair[-len(node.pipe.declared) :], strict=False):
                self._set(node.pipe, name, part)
            try:
                self.walk(pair[1], node.body)
            except _JumpError as jump:
                if str(jump) == "break":
                    return
            del self._variables[mark:]
        if not pairs and node.otherwise is not None:
            self.walk(dot, node.otherwise)

    def _pairs(self, value: Any) -> list[tuple[Any, Any]]:
        if isinstance(value, list):
            return list(enumerate(value))
        if isinstance(value, dict):
            return [(key, value[key]) for key in sorted(value)]
        if isinstance(value, int) and not isinstance(value, bool):
            return [(number, number) for number in range(value)]
        if value is not None:
            self._fail(f"range can't iterate over {shown(value, inside=True)}")
        return []

    def _set(self, pipe: Pipe, name: str, value: Any) -> None:
        if not pipe.assigns:
            self._variables.append((name, value))
            return
        places = [place for place, variable in enumerate(self._variables) if variable[0] == name]
        if not places:
            self._fail(f"undefined variable: {name}")
        self._variables[places[-1]] = (name, value)

    # --- pipelines ------------------------------------------------------------------------------

    def _pipeline(self, dot: Any, pipe: Pipe) -> Any:
        self._node = pipe
        value: Any = _UNPIPED
        for command in pipe.commands:
            value = self._command(dot, command, value)
        for name in pipe.declared:
            self._set(pipe, name, value)
        return value

    def _command(self, dot: Any, command: Command, piped: Any) -> Any:
        first, rest = command.arguments[0], command.arguments[1:]
        self._node = first
        if isinstance(first, Identifier):
            return self._call(dot, command, first.name, rest, piped)
        if isinstance(first, Field | Chain | Variable):
            value = self._operand(dot, first)
            if rest or piped is not _UNPIPED:
                self._refuse_arguments(dot, first)
            return value
        if rest or piped is not _UNPIPED:
            self._fail(f"can't give argument to non-function {first}")
        if isinstance(first, Nil):
            self._fail("nil is not a command")
        return self._operand(dot, first)

    def _refuse_arguments(self, dot: Any, node: Field | Chain | Variable) -> NoReturn:
        if isinstance(node, Variable) and len(node.names) == 1:
            self._fail(f"can't give argument to non-function {node}")
        start = self._operand(dot, node.node) if isinstance(node, Chain) else dot
        names = node.names
        if isinstance(node, Variable):
            start, names = self._variable(names[0]), names[1:]
        self._node = node
        if isinstance(self._fields(start, names[:-1]), Struct):
            self._fail(f"{names[-1]} has arguments but cannot be invoked as function")
        self._fail(f"{names[-1]} is not a method but has arguments")

    def _operand(self, dot: Any, node: Node) -> Any:
        self._node = node
        if isinstance(node, Dot):
            return dot
        if isinstance(node, Nil):
            return None
        if isinstance(node, Literal):
            return node.value
        if isinstance(node, Field):
            return self._fields(dot, node.names)
        if isinstance(node, Variable):
            return self._fields(self._variable(node.names[0]), node.names[1:])
        if isinstance(node, Identifier):
            return self._call(dot, node, node.name, [], _UNPIPED)
        if isinstance(node, Pipe):
            return self._pipeline(dot, node)
        assert isinstance(node, Chain)
        return self._fields(self._operand(dot, node.node), node.names)

    def _variable(self, name: str) -> Any:
        found = [value for known, value in self._variables if known == name]
        if not found:
            self._fail(f"undefined variable: {name}")
        return found[-1]

    def _fields(self, value: Any, names: tuple[str, ...]) -> Any:
        untyped = False  # Go knows what comes out of a map as an interface only
        for name in names:
            if isinstance(value, dict):
                value, untyped = value.get(name), True
            elif isinstance(value, Struct) and name in value.fields:
                value, untyped = value.fields[name], False
            elif value is None:
                return None
            else:
                kind = "interface {}" if untyped else type_name(value)
                self._fail(f"can't evaluate field {name} in type {kind}")
        return value

    def _call(self, dot: Any, node: Node, name: str, arguments: list[Node], piped: Any) -> Any:
        function = self._template.functions[name]
        count = len(arguments) + (piped is not _UNPIPED)
        if problem := function.arity_problem(name, count):
            self._fail(problem)
        if name in ("and", "or"):
            value: Any = None
            for argument in arguments:
                value = self._operand(dot, argument)
                if truth(value) == (name == "or"):
                    return value
            return value if piped is _UNPIPED else piped
        values = [self._operand(dot, argument) for argument in arguments]
        try:
            return function.call(*values, *(() if piped is _UNPIPED else (piped,)))
        except CallError as error:
            self._node = node
            self._fail(f"error calling {name}: {error}")

    def _fail(self, message: str) -> NoReturn:
        node = self._node
        assert node is not None
        text = self._template.text
        column = len(text[text.rfind("\n", 0, node.at) + 1 : node.at].encode())
        raise TemplateError(f'template: :{node.line}:{column}: executing "" at <{node}>: {message}')
