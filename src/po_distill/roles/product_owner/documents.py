"""The two documents of a Product Owner as models, and the one form they are written in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from po_distill.interfaces import Documents
from po_distill.records import Record, Violation
from po_distill.roles.product_owner.scoring import STATUSES, is_timestamp

VISION = "product_vision"
REVIEW = "product_owner_review"
UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""Written where a document holds no usable time and the library was given none."""


class ProductVision(Record):
    """What a product is for, kept across iterations."""

    product_name: str = Field(min_length=1)
    product_summary: str = Field(min_length=1)
    target_users: list[str]
    value_proposition: list[str]
    key_capabilities: list[str]
    non_goals: list[str]
    success_metrics: list[str]
    last_updated: str  # ISO 8601


class RequirementsAlignment(Record):
    """Each requirement sorted by how it fits the vision; what is wrong stands first, behind the evidence of it."""

    gaps: list[str]
    conflicts: list[str]
    aligned: list[str]


class ProductOwnerReview(Record):
    """The requirements held against the vision, the evidence before the verdict that follows from it."""

    summary: list[str]
    requirements_alignment: RequirementsAlignment
    status: Literal["aligned", "needs_adjustment", "misaligned"]
    recommended_actions: list[str]
    narrative: str = Field(min_length=1)


class ProductOwnerDocuments(Record):
    """Both documents in one object: the JSON schema for structured output."""

    product_vision: ProductVision
    product_owner_review: ProductOwnerReview


_MODELS: dict[str, type[Record]] = {VISION: ProductVision, REVIEW: ProductOwnerReview}


# --- text ---------------------------------------------------------------------------------------

_TAG = re.compile(r"<\s*(/?)\s*(VISION|REVIEW)\s*>", re.IGNORECASE)
# Control characters, lone surrogates, zero width space and byte order mark, and the two non-characters of each plane.
_UNWRITABLE_CHARACTERS = "\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b\ufeff" + "".join(
    chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
_UNWRITABLE = re.compile(f"[{_UNWRITABLE_CHARACTERS}]")
# What `normalised_text` changes; most texts have nothing of it. White space other than a space is among it.
_ABNORMAL = re.compile(rf"""["\\`<{_UNWRITABLE_CHARACTERS}]|  |^ | $|[^\S ]""")
_REPLACED = str.maketrans({'"': "'", "\\": "/", "`": "'"})


def normalised_text(value: Any) -> str:
    """A value as one line of text that needs no escape in any contract.

    Straight double quotes and backticks become apostrophes, backslashes become slashes, the tags of
    the tagged contract lose their brackets, white space is single, and what YAML cannot hold
    (control characters, lone surrogates, non-characters) is left out.
    """
    text = plain_text(value)
    if _ABNORMAL.search(text) is None:
        return text
    text = " ".join(text.translate(_REPLACED).split())
    text = _UNWRITABLE.sub("", text)
    text = _TAG.sub(r"(\1\2)", text)
    return " ".join(text.split())


def normalised_status(text: str) -> str:
    """A status in the enum's own spelling where only case or white space differ; else as it is."""
    word = text.strip().lower()
    return word if word in STATUSES else text


def plain_text(value: Any) -> str:
    """A YAML scalar as the text that was meant; a mapping or list as its parts in order."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "; ".join(f"{plain_text(key)}: {plain_text(item)}".strip() for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(plain_text(item) for item in value)
    return str(value)


# --- documents ----------------------------------------------------------------------------------


def normalised(documents: Documents, *, stamp: str | None = None) -> dict[str, dict[str, Any]]:
    """Both documents with every key, in order, each text as `normalised_text` writes it.

    Items that are empty are left out. `stamp` is put where the vision holds its time; without one
    a usable time in the document stays.
    """
    vision = _normalised_model(ProductVision, documents.get(VISION, {}))
    time = documents.get(VISION, {}).get("last_updated")
    vision["last_updated"] = stamp or _normalised_time(time)
    return {VISION: vision, REVIEW: _normalised_model(ProductOwnerReview, documents.get(REVIEW, {}))}


def _normalised_model(model: type[Record], document: Any) -> dict[str, Any]:
    source = document if isinstance(document, Mapping) else {}
    result: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = source.get(name)
        if field.annotation == list[str]:
            result[name] = [text for item in as_items(value) if (text := normalised_text(item))]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Record):
            result[name] = _normalised_model(field.annotation, value)
        else:
            text = normalised_text(value)
            result[name] = normalised_status(text) if name == "status" else text
    return result


def as_items(value: Any) -> list[Any]:
    """A list as it is; a lone scalar or mapping as one item; nothing as no item."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None or value == "" or value == {} else [value]


def _normalised_time(value: Any) -> str:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    text = normalised_text(value)
    return text if is_timestamp(text) else UNKNOWN_TIME


def schema_violations(documents: Documents) -> list[Violation]:
    """What the documents lack or hold wrongly, by the models above."""
    found: list[Violation] = []
    for name, model in _MODELS.items():
        if name not in documents:
            found.append(Violation(kind=f"missing_{'vision' if name == VISION else 'review'}", detail=name))
            continue
        try:
            model.model_validate(_with_few_keys(model, documents[name]), strict=True)
        except ValidationError as error:
            found += [_violation(name, dict(detail)) for detail in error.errors(include_url=False)]
        if name == VISION and not is_timestamp(documents[name].get("last_updated")):
            found.append(Violation(kind="wrong_type", detail=f"{name}.last_updated is no ISO 8601 text"))
    return found


_MOST_KEYS = 40  # twice as many as a document has


def _with_few_keys(model: type[Record], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A document without most of its unknown keys: each is a violation of its own, and some answers hold thousands."""
    if not any(len(held) > _MOST_KEYS for held in (document, *document.values()) if isinstance(held, dict)):
        return document
    unknown = (name for name in document if name not in model.model_fields)
    names = [*(name for name in model.model_fields if name in document), *itertools.islice(unknown, _MOST_KEYS)]
    result = {name: document[name] for name in names}
    for name, field in model.model_fields.items():
        held = document.get(name)
        if isinstance(held, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, Record):
            result[name] = _with_few_keys(field.annotation, held)
    return result


def _violation(document: str, detail: Mapping[str, Any]) -> Violation:
    path = ".".join(str(part) for part in (document, *detail["loc"]))
    if path == f"{REVIEW}.status" and detail["type"] == "literal_error":
        return Violation(
            kind="status_outside_enum", detail=f"status {_short(detail['input'])} is none of {', '.join(STATUSES)}"
        )
    kinds = {"missing": "missing_key", "extra_forbidden": "unknown_key", "string_too_short": "empty_text"}
    path = _cut(path, 200)
    return Violation(kind=kinds.get(detail["type"], "wrong_type"), detail=f"{path}: {detail['msg'].lower()}")


def _short(value: Any) -> str:
    return _cut(repr(value), 60)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# --- YAML ---------------------------------------------------------------------------------------


def render_yaml(document: Mapping[str, Any]) -> str:
    """A normalised document as YAML text: every text in double quotes, no folding, no escapes."""
    return "\n".join(_yaml_lines(document, ""))


def _yaml_lines(document: Mapping[str, Any], indent: str) -> Iterable[str]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from _yaml_lines(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}{name}:" + ("" if value else " []")
            yield from (f'{indent}  - "{item}"' for item in value)
        else:
            yield f'{indent}{name}: "{value}"'
