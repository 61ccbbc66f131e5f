"""An extension of griffe: the comment of a field in the source is its documentation on the site.

The fields of records and settings are documented by a comment behind them, or by comment lines over them.
"""

from __future__ import annotations

import ast
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Gives attributes without a docstring their comment."""

    def on_attribute_instance(
        self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, agent: Any, **kwargs: Any
    ) -> None:
        if attr.docstring is None and attr.lineno and attr.endlineno and isinstance(attr.parent, griffe.Class):
            lines = agent.code.splitlines()
            end = getattr(node, "end_col_offset", 0) or 0
            behind = lines[attr.endlineno - 1].encode()[end:].decode()
            text = _comment(behind) or _over(lines, attr.lineno - 1)
            if text:
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno, endlineno=attr.endlineno, parent=attr)


def _comment(text: str) -> str:
    """What a line says that holds nothing but a comment."""
    text = text.strip()
    return text.removeprefix("#").strip() if text.startswith("#") and not text.startswith("# noqa") else ""


def _over(lines: list[str], line: int) -> str:
    """The comment in the lines right over a line."""
    found: list[str] = []
    while line > 0 and (text := _comment(lines[line - 1])):
        found.insert(0, text)
        line -= 1
    return " ".join(found)
