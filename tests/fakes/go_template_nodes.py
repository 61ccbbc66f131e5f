"""The tree of a Go template; str() of a node is how Go names it in an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Node:
    at: int  # characters from the start of the template
    line: int


@dataclass
class Text(Node):
    text: str


@dataclass
class Dot(Node):
    def __str__(self) -> str:
        return "."


@dataclass
class Nil(Node):
    def __str__(self) -> str:
        return "nil"


@dataclass
class Literal(Node):
    """A bool, a number or a string, as written and as a value."""

    source: str
    value: Any

    def __str__(self) -> str:
        return self.source


@dataclass
class Field(Node):
    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass
class Variable(Node):
    """`$x.Field` is ("$x", "Field")."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.names)


@dataclass
class Identifier(Node):
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass
class Chain(Node):
    """Fields of what a term in parentheses gives."""

    node: Node
    names: tuple[str, ...]

    def __str__(self) -> str:
        inner = f"({self.node})" if isinstance(self.node, Pipe) else str(self.node)
        return inner + "".join(f".{name}" for name in self.names)


@dataclass
class Command(Node):
    arguments: list[Node]

    def __str__(self) -> str:
        return " ".join(f"({one})" if isinstance(one, Pipe) else str(one) for one in self.arguments)


@dataclass
class Pipe(Node):
    declared: list[str]
    assigns: bool  # `=`, not `:=`
    commands: list[Command]

    def __str__(self) -> str:
        declared = f"{', '.join(self.declared)} {'=' if self.assigns else ':='} " if self.declared else ""
        return declared + " | ".join(str(command) for command in self.commands)


@dataclass
class Action(Node):
    pipe: Pipe

    def __str__(self) -> str:
        return f"{{{{{self.pipe}}}}}"


@dataclass
class Branch(Node):
    """`kind` is if, with or range."""

    kind: str
    pipe: Pipe
    body: list[Node]
    otherwise: list[Node] | None = field(default=None)


@dataclass
class Jump(Node):
    """`kind` is break or continue."""

    kind: str
