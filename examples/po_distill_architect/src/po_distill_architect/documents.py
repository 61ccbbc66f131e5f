"""The architect's two documents as models, and the one form they are written in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from po_distill.interfaces import Documents
from po_distill.records import Record, Violation

STORIES = "stories"
ARCHITECTURE = "architecture"
FEASIBILITY = ("feasible", "needs_clarification", "infeasible")
ESTIMATES = ("1", "2", "3", "5", "8")


class Story(Record):
    """A piece of work that a user gets something from."""

    id: str = Field(min_length=1)
    title: str = Field(min_length=1)
    as_a: str = Field(min_length=1)
    i_want: str = Field(min_length=1)
    so_that: str = Field(min_length=1)
    acceptance: list[str] = Field(min_length=1)
    requirement_ids: list[str] = Field(min_length=1)
    estimate: Literal["1", "2", "3", "5", "8"]  # story points


class Stories(Record):
    """All stories; a document is a mapping, so the list has a key."""

    stories: list[Story] = Field(min_length=1)


class Component(Record):
    """A part of the system."""

    name: str = Field(min_length=1)
    responsibility: str = Field(min_length=1)
    interfaces: list[str]


class Architecture(Record):
    """The system that carries the stories. What speaks against building it stands before the verdict on it."""

    components: list[Component] = Field(min_length=1)
    decisions: list[str]
    risks: list[str]
    blockers: list[str]  # requirements that cannot be built
    questions: list[str]  # requirements that say too little to be built
    feasibility: Literal["feasible", "needs_clarification", "infeasible"]


class ArchitectDocuments(Record):
    """Both documents in one object: the JSON schema for structured output."""

    stories: Stories
    architecture: Architecture


MODELS: dict[str, type[Record]] = {STORIES: Stories, ARCHITECTURE: Architecture}


# --- reading: what can be read in one way only ---------------------------------------------------


def forgiven(model: type[Record], document: Mapping[Any, Any]) -> dict[str, Any]:
    """The document with its values as the model wants them where that is plain: a lone item for a list, a number for
    a text, an item that YAML took for a mapping (`- FR001: text`). Nothing is added or left out.
    """
    return {str(key): _forgiven_value(model, str(key), value) for key, value in document.items()}


def _forgiven_value(model: type[Record], name: str, value: Any) -> Any:
    if name not in model.model_fields:
        return value
    if (inner := _held_by(model, name)) is not None:
        return [forgiven(inner, item) if isinstance(item, Mapping) else item for item in _items(value)]
    if _is_list(model, name):
        return [_plain(item) for item in _items(value)]
    if value is None or isinstance(value, (Mapping, list)):
        return value
    text = _plain(value)
    word = text.strip().lower()
    return word if name == "feasibility" and word in FEASIBILITY else text


def _items(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None or value in ("", {}) else [value]


def _plain(value: Any) -> str:
    """A YAML value as the text that was meant."""
    if isinstance(value, Mapping):
        return "; ".join(f"{_plain(key)}: {_plain(held)}".strip() for key, held in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_plain, value))
    return "" if value is None else str(value)


def _held_by(model: type[Record], name: str) -> type[Record] | None:
    """The model of a list's items: Story for `stories`; None for texts and lists of texts."""
    held = get_args(model.model_fields[name].annotation)
    return held[0] if held and isinstance(held[0], type) and issubclass(held[0], Record) else None


def _is_list(model: type[Record], name: str) -> bool:
    return bool(model.model_fields[name].annotation == list[str])


# --- the canonical form --------------------------------------------------------------------------

_REPLACED = str.maketrans({'"': "'", "\\": "/", "`": "'"})
# Control characters, lone surrogates, zero width space, byte order mark, non-characters: what YAML cannot hold.
_UNWRITABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u200b\ufeff"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


def normalised_text(value: Any) -> str:
    """A value as one line of text that needs no escape in double quotes."""
    text = " ".join(_plain(value).translate(_REPLACED).split())
    return " ".join(_UNWRITABLE.sub("", text).split())


def normalised(documents: Documents) -> dict[str, dict[str, Any]]:
    """Both documents with every key, in order, and no other; each text as `normalised_text` writes it."""
    return {name: _normalised(model, documents.get(name, {})) for name, model in MODELS.items()}


def _normalised(model: type[Record], document: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    source = forgiven(model, document)
    for name in model.model_fields:
        value = source.get(name)
        if (inner := _held_by(model, name)) is not None:
            result[name] = [_normalised(inner, item) for item in value or () if isinstance(item, Mapping)]
        elif _is_list(model, name):
            result[name] = [text for item in value or () if (text := normalised_text(item))]
        else:
            result[name] = normalised_text(value)
    return result


def render_yaml(document: Mapping[str, Any]) -> str:
    """A normalised document as YAML: every text in double quotes, one line each, nothing that depends on the text."""
    return "\n".join(_lines(document, ""))


def _lines(document: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in document.items():
        if isinstance(value, str):
            yield f'{indent}{name}: "{value}"'
            continue
        yield f"{indent}{name}:" + ("" if value else " []")
        for item in value:
            if isinstance(item, str):
                yield f'{indent}  - "{item}"'
            else:
                first, *rest = _lines(item, f"{indent}    ")
                yield f"{indent}  - {first.lstrip()}"
                yield from rest


# --- the schema ----------------------------------------------------------------------------------

_MOST_TOLD = 20  # violations of one document: an answer that repeats itself has thousands
_KINDS = {"missing": "missing_key", "extra_forbidden": "unknown_key", "string_too_short": "empty_text"}


def schema_violations(documents: Documents) -> list[Violation]:
    """What the documents lack or hold wrongly, by the models above."""
    found: list[Violation] = []
    for name, model in MODELS.items():
        if name not in documents:
            found.append(Violation(kind=f"missing_{name}", detail=f"there is no document {name}"))
            continue
        try:
            model.model_validate(documents[name], strict=True)
        except ValidationError as error:
            found += [_violation(name, detail) for detail in error.errors(include_url=False)[:_MOST_TOLD]]
    return found


def _violation(document: str, detail: Mapping[str, Any]) -> Violation:
    path = ".".join(str(part)[:60] for part in (document, *detail["loc"]))
    kind = _KINDS.get(detail["type"], "wrong_type")
    if detail["type"] == "literal_error":
        kind = "feasibility_outside_enum" if path.endswith("feasibility") else "estimate_outside_scale"
    return Violation(kind=kind, detail=f"{path}: {detail['msg'].lower()}")
