"""What would have made a block of an answer readable: lines unfolded, texts quoted.

This serves the evaluation's counterfactual ("had this been repaired, the score would be ..."), never a score itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError
from po_distill.roles.product_owner.documents import ProductOwnerReview, ProductVision, RequirementsAlignment

FOLDED = "folded_list_item"
UNQUOTED = "unquoted_colon"
UNESCAPED = "unescaped_quote"
UNREADABLE = "unreadable_yaml"

_KEYS = frozenset(
    name for model in (ProductVision, ProductOwnerReview, RequirementsAlignment) for name in model.model_fields
)
_ITEM = re.compile(r"(\s*- +)(\S.*)?$")
_ENTRY = re.compile(r"(\s*(?:- +)?([A-Za-z_]+): *)(.*)$")
_BLOCK_SCALAR = re.compile(r"[|>][+-]?\d?$")
_WHOLE = re.compile(r'"(?:[^"\\]|\\.)*"$|\'(?:[^\']|\'\')*\'$')
_NEEDS_QUOTES = re.compile(r"[@`%&*!?|>{}\[\],#-]|.*(?::(?:\s|$)|\s#)")


class Repair(NamedTuple):
    """A block made readable, and what kept it from being read."""

    block: str
    cause: str


def repaired(block: str) -> Repair | None:
    """The block as it would be read; None where it is readable as it stands, or is not made so here."""
    problem = _problem(block)
    if problem is None:
        return None
    if _reads(flat := unfolded(block)):
        return Repair(flat, FOLDED)
    for mended, cause in ((quoted(block), UNQUOTED), (requoted(block), UNESCAPED)):
        if _reads(mended):
            return Repair(mended, cause)
    both = requoted(quoted(flat))
    if _reads(both):
        # libyaml's words: a colon in running text, or a line that should have been a key.
        return Repair(both, UNQUOTED if "mapping values" in problem else FOLDED)
    return None


def unfolded(block: str) -> str:
    """Lines that are neither an item nor one of the role's keys are joined to the line before them."""
    lines: list[str] = []
    for line in block.split("\n"):
        if not line.strip():
            continue
        entry = _ENTRY.match(line)
        if not lines or _ITEM.match(line) or (entry and entry[2] in _KEYS):
            lines.append(line.rstrip())
        else:
            lines[-1] = f"{_BLOCK_SCALAR.sub('', lines[-1]).rstrip()} {line.strip()}"
    return "\n".join(lines)


def quoted(block: str) -> str:
    """Texts that YAML reads as something else, put in double quotes."""

    def mend(text: str) -> str:
        return json.dumps(text, ensure_ascii=False) if _NEEDS_QUOTES.match(text) and text[0] not in "\"'" else text

    return _with_texts(block, mend)


def requoted(block: str) -> str:
    """Texts in quotes with a quote inside, quoted anew."""

    def mend(text: str) -> str:
        if text[0] not in "\"'" or _WHOLE.match(text):
            return text
        inner = text[1:-1] if len(text) > 1 and text[-1] == text[0] else text[1:]
        return json.dumps(inner, ensure_ascii=False)

    return _with_texts(block, mend)


def _with_texts(block: str, mend: Callable[[str], str]) -> str:
    return "\n".join(_mended_lines(block, mend))


def _mended_lines(block: str, mend: Callable[[str], str]) -> Iterator[str]:
    for line in block.split("\n"):
        entry = _ENTRY.match(line)
        match = entry if entry and entry[2] in _KEYS else _ITEM.match(line)
        text = (match[match.lastindex] if match and match.lastindex else "") or ""
        text = text.rstrip()
        if match is None or not text or text in ("[]", "{}") or _BLOCK_SCALAR.fullmatch(text):
            yield line
        else:
            yield match[1] + mend(text)


def _reads(block: str) -> bool:
    return _problem(block) is None


def _problem(block: str) -> str | None:
    """Why a block is no mapping; None where it is one."""
    try:
        value = safe_yaml.load_shared(block.strip("\n"))
    except UnreadableYAMLError as error:
        return error.problem
    return None if isinstance(value, dict) else "it is no mapping"
