"""Reading a Product Owner's answer: forgivingly, for the gate, and strictly, as production does."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from po_distill import safe_yaml
from po_distill.dspy_form import CONTRACT as DSPY
from po_distill.dspy_form import read_fields
from po_distill.errors import UnreadableYAMLError
from po_distill.records import Answer, Violation
from po_distill.roles.product_owner.documents import (
    REVIEW,
    VISION,
    ProductOwnerReview,
    ProductVision,
    RequirementsAlignment,
    as_items,
    normalised_status,
    plain_text,
    schema_violations,
)
from po_distill.roles.product_owner.scoring import STATUSES, is_timestamp, read_mapping

_LABELS = {VISION: "VISION", REVIEW: "REVIEW"}
# contract -> document -> (what opens its block, what closes it). The runs of spaces here and below are possessive: they
# are never read twice, however many there are.
_STRICT = {
    "fenced": {name: (re.compile(rf"```yaml {label}[ \t]*+\n"), "```") for name, label in _LABELS.items()},
    "tagged": {name: (re.compile(rf"<{label}>"), f"</{label}>") for name, label in _LABELS.items()},
}
# A fence may lack its language, its line end, or its end; what follows is the other block or nothing.
_LOOSE_FENCE = re.compile(
    r"```[ \t]*+(?:ya?ml)?[ \t:]*+\n?[ \t]*+(VISION|REVIEW)[ \t]*+:?[ \t]*+(?=\n|\Z)", re.IGNORECASE
)
_LOOSE_TAG = re.compile(r"<\s*(VISION|REVIEW)\s*>", re.IGNORECASE)
_BLOCK_END = re.compile(r"```|<\s*/\s*(?:VISION|REVIEW)\s*>", re.IGNORECASE)
_INNER_FENCE = re.compile(r"\s*+```[ \t]*+(?:ya?ml)?[ \t]*+\n", re.IGNORECASE)  # a fence just inside a tag
_PLAIN_FENCE = re.compile(r"```[ \t]*+(?:ya?ml)?[ \t]*+\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_FIRST_KEY = {
    VISION: re.compile(r"^product_name\s*:", re.MULTILINE),
    REVIEW: re.compile(r"^(?:summary|status)\s*:", re.MULTILINE),  # teachers write either first
}
_SPACES = str.maketrans({"\u00a0": " ", "\u2007": " ", "\u202f": " ", "\ufeff": None, "\u200b": None})


# --- strictly -----------------------------------------------------------------------------------


def production_faults(text: str, contract: str) -> list[Violation]:
    """Why production could not read an answer as it stands; empty where it can.

    The labelled blocks are found, `yaml.safe_load` takes each (JSON: `json.loads` takes the text),
    every key is there and is text or a list as it should be, and the status is in the enum.
    """
    try:
        documents = _strict_json(text) if contract == "json" else _strict_yaml(text, contract)
    except _FaultError as fault:
        return [fault.violation]
    return [
        *_shape_faults(ProductVision, documents[VISION], VISION),
        *_shape_faults(ProductOwnerReview, documents[REVIEW], REVIEW),
    ]


class _FaultError(Exception):
    """One reason that ends a strict reading."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.violation = Violation(kind=kind, detail=detail)


def _strict_yaml(text: str, contract: str) -> dict[str, Any]:
    blocks = read_fields(text) if contract == DSPY else _strict_blocks(text, contract)
    documents = {}
    for name, label in _LABELS.items():
        if name not in blocks:
            raise _FaultError(f"missing_{label.lower()}", f"no {label} block")
        try:
            # Line ends around a block are no part of what it says.
            documents[name] = safe_yaml.load_shared(blocks[name].strip("\n"), what=f"the {label} block")
        except UnreadableYAMLError as error:
            raise _FaultError("unreadable_yaml", error.problem) from error
    return documents


def _strict_blocks(text: str, contract: str) -> dict[str, str]:
    blocks = {}
    for name, (opening, closing) in _STRICT[contract].items():
        opened = opening.search(text)
        end = text.find(closing, opened.end()) if opened else -1
        if opened is not None and end >= 0:
            blocks[name] = text[opened.end() : end]
    return blocks


def _strict_json(text: str) -> dict[str, Any]:
    value = _load_json(text)
    if not isinstance(value, dict) or VISION not in value or REVIEW not in value:
        raise _FaultError("unreadable_json", f"no JSON object with {VISION} and {REVIEW}")
    return value


def _load_json(text: str) -> Any:
    """The value of a JSON text; None where it has none, or one that nests deeper than YAML may."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    inside = [value]
    for _ in range(safe_yaml.MAX_DEPTH):
        held = [item.values() if isinstance(item, dict) else item for item in inside if isinstance(item, (dict, list))]
        if not held:
            return value
        inside = list(itertools.chain.from_iterable(held))
    return None


def _shape_faults(model: type[Any], document: Any, path: str) -> Iterable[Violation]:
    if not isinstance(document, Mapping):
        yield Violation(kind="wrong_type", detail=f"{path} is no mapping")
        return
    for name, field in _FIELDS[model].items():
        value = document.get(name)
        if name not in document:
            yield Violation(kind="missing_key", detail=f"{path}.{name}")
        elif field.annotation == list[str]:
            if not isinstance(value, list):
                yield Violation(kind="wrong_type", detail=f"{path}.{name} is no list")
        elif field.annotation is RequirementsAlignment:
            yield from _shape_faults(RequirementsAlignment, value, f"{path}.{name}")
        elif name == "status":
            if not (isinstance(value, str) and value in STATUSES):
                yield Violation(kind="status_outside_enum", detail=f"status {str(value)[:60]!r}")
        elif isinstance(value, (Mapping, list)) or value is None or not str(value).strip():
            yield Violation(kind="wrong_type", detail=f"{path}.{name} is no text")


# --- forgivingly --------------------------------------------------------------------------------


def find_blocks(text: str) -> tuple[str | None, dict[str, str]]:
    """(contract, raw block by document) of an answer in any contract, as far as blocks are found."""
    contract, found = _find(text)
    return contract, {name: block if isinstance(block, str) else yaml_of(block) for name, block in found.items()}


@functools.lru_cache(maxsize=8)  # an answer is looked at several times, one after the other
def _find(text: str) -> tuple[str | None, Mapping[str, str | dict[str, Any]]]:
    """(contract, YAML text or, in JSON, mapping by document)."""
    text = text.translate(_SPACES).replace("\r\n", "\n")
    if sections := {name: block for name, block in read_fields(text).items() if name in _LABELS}:
        return DSPY, {name: _unfenced(block) for name, block in sections.items()}
    if fenced := _labelled_blocks(text, _LOOSE_FENCE):
        return "fenced", fenced
    if tagged := _labelled_blocks(text, _LOOSE_TAG):
        return "tagged", tagged
    if documents := _json_documents(text):
        return "json", documents
    plain = _unlabelled_blocks(text)
    return ("fenced" if plain else None), plain


def _labelled_blocks(text: str, opening: re.Pattern[str]) -> dict[str, str]:
    blocks: dict[str, str] = {}
    for match in opening.finditer(text):
        name = VISION if match[1].upper() == "VISION" else REVIEW
        if name in blocks:
            continue
        inner = _INNER_FENCE.match(text, match.end())
        rest = text[inner.end() if inner else match.end() :]
        end = _BLOCK_END.search(rest)
        blocks[name] = rest[: end.start()] if end else rest
    return blocks


def _unfenced(block: str) -> str:
    """What a section holds, without a fence that is put around it, labelled or not."""
    found = _LOOSE_FENCE.match(block) or _INNER_FENCE.match(block)
    return _BLOCK_END.split(block[found.end() :])[0] if found else block


def _unlabelled_blocks(text: str) -> dict[str, str]:
    """Fences without labels, told apart by their first keys; or both documents without any fence."""
    pieces = [match[1] for match in _PLAIN_FENCE.finditer(text)] or [text]
    blocks: dict[str, str] = {}
    for piece in pieces:
        starts = sorted((m.start(), name) for name, key in _FIRST_KEY.items() if (m := key.search(piece)))
        for (start, name), (end, _) in itertools.pairwise([*starts, (len(piece), "")]):
            blocks.setdefault(name, _BLOCK_END.split(piece[start:end])[0])
    return blocks


def _json_documents(text: str) -> dict[str, Any]:
    start, end = text.find("{"), text.rfind("}")
    value = _load_json(text[start : end + 1]) if start >= 0 else None
    if not isinstance(value, dict):
        return {}
    return {name: value[name] for name in (VISION, REVIEW) if isinstance(value.get(name), dict)}


# libyaml where PyYAML was built with it; the pure Python emitter is ten times slower.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def yaml_of(document: Mapping[str, Any]) -> str:
    """Any JSON document as YAML text. JSON is YAML, but for how it is laid out, and for lone surrogates: `?` here."""
    try:
        return str(yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20))
    except UnicodeEncodeError:
        whole = json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
        return yaml_of(json.loads(whole))


@functools.lru_cache(maxsize=8)  # an answer is looked at several times, one after the other
def parse_shared(text: str) -> Answer:
    """As `parse_answer`; equal texts may give the same value, so it must not be changed."""
    return parse_answer(text)


def parse_answer(text: str) -> Answer:
    """The documents in an answer, in whatever contract, and what could not be read as they should be.

    Forgiven, because it can be read in one way only: stray fences, a leading `]`, no-break spaces,
    list items that parse as mappings (`- FR001: text`) or as scalars, a lone item where a list is
    meant, an unquoted timestamp.
    """
    contract, blocks = _find(text)
    documents: dict[str, dict[str, Any]] = {}
    violations: list[Violation] = []
    for name, label in _LABELS.items():
        if name not in blocks:
            continue
        block = blocks[name]
        try:
            value = block
            if isinstance(block, str):
                value = safe_yaml.load_shared(block.strip().lstrip("]").strip(), what=f"the {label} block")
        except UnreadableYAMLError as error:
            violations.append(Violation(kind="unreadable_yaml", detail=error.problem))
            documents[name] = {}
            continue
        if isinstance(value, dict):
            model = ProductVision if name == VISION else ProductOwnerReview
            documents[name] = _repaired(model, value)
        else:
            violations.append(Violation(kind="wrong_type", detail=f"the {label} block is no mapping"))
            documents[name] = {}
    unread = {name for name, document in documents.items() if not document}
    found = [v for v in schema_violations(documents) if v.detail.split(".")[0].split(":")[0] not in unread]
    return Answer(documents=documents, violations=(*violations, *found), contract=contract)


def inspect_answer(text: str) -> tuple[dict[str, int], dict[str, str]]:
    """(counts, values) of an answer as YAML reads it, before anything is forgiven."""
    documents: dict[str, dict[Any, Any]] = {}
    for name, block in _find(text)[1].items():
        documents[name] = block if isinstance(block, dict) else read_mapping(block)
    review, vision = documents.get(REVIEW, {}), documents.get(VISION, {})
    lists = review.get("requirements_alignment")
    held = lists.values() if isinstance(lists, dict) else ()
    items = [item for value in held if isinstance(value, list) for item in value]
    time = vision.get("last_updated")
    counts = {
        "alignment_items": len(items),
        "alignment_items_as_mappings": sum(isinstance(item, Mapping) for item in items),
        "timestamps_not_text": int(VISION in documents and not is_timestamp(time)),
    }
    day = plain_text(time)[:10] if not isinstance(time, (Mapping, list)) else ""
    return counts, {"last_updated": day} if day else {}


# pydantic makes the mapping anew each time that it is asked.
_FIELDS: dict[type[Any], dict[str, Any]] = {
    model: dict(model.model_fields) for model in (ProductVision, ProductOwnerReview, RequirementsAlignment)
}


def _repaired(model: type[Any], document: Mapping[Any, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in document.items():
        name = str(key)
        field = _FIELDS[model].get(name)
        if field is None:
            result[name] = value
        elif field.annotation == list[str]:
            items = as_items(value)
            result[name] = items if all(type(item) is str for item in items) else [plain_text(item) for item in items]
        elif field.annotation is RequirementsAlignment:
            result[name] = _repaired(RequirementsAlignment, value) if isinstance(value, Mapping) else value
        elif value is not None and not isinstance(value, (Mapping, list)):
            text = plain_text(value)
            result[name] = normalised_status(text) if name == "status" else text
        else:
            result[name] = value
    return result
