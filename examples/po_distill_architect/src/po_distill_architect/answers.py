"""Reading an answer: forgivingly, for the gate, and strictly, as production does; and why it could not be read."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError
from po_distill.records import Answer, Failure, Score, Violation
from po_distill_architect.documents import (
    ARCHITECTURE,
    FEASIBILITY,
    MODELS,
    STORIES,
    Architecture,
    Component,
    Stories,
    Story,
    forgiven,
    normalised_text,
    schema_violations,
)

LABELS = {STORIES: "STORIES", ARCHITECTURE: "ARCHITECTURE"}
_STRICT = {name: re.compile(rf"```yaml {label}\n(.*?)\n```", re.DOTALL) for name, label in LABELS.items()}
# A fence may lack its language or its end.
_LOOSE = re.compile(r"```[ \t]*+(?:ya?ml)?[ \t:]*+(STORIES|ARCHITECTURE)[ \t]*+:?[ \t]*+(?=\n|\Z)", re.IGNORECASE)


# --- strictly ------------------------------------------------------------------------------------


def production_faults(text: str, contract: str) -> list[Violation]:
    """Why production could not read an answer as it stands; empty where it can. It does not mind unknown keys."""
    documents: dict[str, Any] = {}
    if contract == "json":
        value = _load_json(text)
        documents = {name: value[name] for name in MODELS if isinstance(value.get(name), dict)}
        if not documents:
            return [Violation(kind="unreadable_json", detail=f"no JSON object with {' and '.join(MODELS)}")]
    else:
        for name, block in _STRICT.items():
            if found := block.search(text):
                try:
                    documents[name] = safe_yaml.load_shared(found[1], what=f"the block {LABELS[name]}")
                except UnreadableYAMLError as error:
                    return [Violation(kind="unreadable_yaml", detail=error.problem)]
    return [fault for fault in schema_violations(documents) if fault.kind != "unknown_key"]


def _load_json(text: str) -> dict[str, Any]:
    """The object in a JSON text; empty where it holds none, or one that nests deeper than YAML may."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    inside = [value]
    for _ in range(safe_yaml.MAX_DEPTH):
        held = [item.values() if isinstance(item, dict) else item for item in inside if isinstance(item, (dict, list))]
        if not held:
            return value if isinstance(value, dict) else {}
        inside = list(itertools.chain.from_iterable(held))
    return {}


# --- forgivingly ---------------------------------------------------------------------------------


def find_blocks(text: str) -> tuple[str | None, dict[str, Any]]:
    """(contract, YAML text by document, or in JSON the mapping) of an answer, as far as blocks are found."""
    blocks: dict[str, Any] = {}
    openings = list(_LOOSE.finditer(text))
    for number, opening in enumerate(openings):
        end = openings[number + 1].start() if number + 1 < len(openings) else len(text)
        body = text[opening.end() : end].split("```", 1)[0]
        blocks.setdefault(opening[1].lower(), body.strip("\n"))
    if blocks:
        return "fenced", blocks
    begin, end = text.find("{"), text.rfind("}")
    value = _load_json(text[begin : end + 1]) if begin >= 0 else {}
    blocks = {name: value[name] for name in MODELS if isinstance(value.get(name), dict)}
    return ("json" if blocks else None), blocks


def parse_answer(text: str) -> Answer:
    """The documents in an answer, in either contract, and what could not be read as it should be."""
    contract, blocks = find_blocks(text)
    documents: dict[str, dict[str, Any]] = {}
    found: list[Violation] = []
    for name in MODELS:
        if name not in blocks:
            continue
        try:
            value = safe_yaml.load_shared(blocks[name]) if isinstance(blocks[name], str) else blocks[name]
        except UnreadableYAMLError as error:
            found.append(Violation(kind="unreadable_yaml", detail=error.problem))
            value = {}
        if isinstance(value, list) and name == STORIES:  # the list without its key
            value = {STORIES: value}
        documents[name] = forgiven(MODELS[name], value) if isinstance(value, dict) else {}
    unread = {name for name, document in documents.items() if not document}
    # Of a document that could not be read at all, nothing more is said.
    schema = [one for one in schema_violations(documents) if one.detail.split(".")[0] not in unread or not found]
    return Answer(documents=documents, violations=(*found, *schema), contract=contract)


# --- why an answer failed ------------------------------------------------------------------------

_KEYS = "|".join(name for model in (Stories, Story, Architecture, Component) for name in model.model_fields)
_LINE = re.compile(rf"(\s*(?:- +)?(?:(?:{_KEYS}):(?= |$) *)?)(.*)")
_OUTER_QUOTES = re.compile("^[\"']|[\"']$")


def repair(text: str, contract: str) -> str | None:
    """The answer with every text of its blocks put in double quotes; None where that changes nothing."""
    found, blocks = find_blocks(text)
    if contract != "fenced" or found != "fenced" or set(blocks) != set(MODELS) or text.count("```") % 2:
        return None
    made = "\n".join(f"```yaml {LABELS[name]}\n{_requoted(blocks[name])}\n```" for name in MODELS)
    return None if made == text.strip() else made


def _requoted(block: str) -> str:
    lines = []
    for line in filter(str.strip, block.split("\n")):
        key, value = _LINE.fullmatch(line.rstrip()).groups()  # type: ignore[union-attr]
        text = normalised_text(_OUTER_QUOTES.sub("", value))
        lines.append(f"{key}{value}" if value in ("", "[]") else f'{key}"{text}"')
    return "\n".join(lines)


_SCHEMA_CAUSES = {"feasibility_outside_enum": "wrong_enum"}
_CONTENT_CAUSES = {  # the gravest first
    "unknown_requirement_id": "invented_ids",
    "verdict_contradicts_lists": "contradiction",
    "requirement_without_story": "requirement_without_story",
    "repeated_story_id": "repeated_story_id",
}


def attribute(
    text: str, contract: str, *, score: Score, finish: str = "stop", expected: str | None = None
) -> tuple[Failure, ...]:
    """Why an answer with that score failed, the gravest cause first. The causes are po_distill's where it has one, so
    that the report knows what helps against them.
    """
    if not text.strip():
        return (Failure(level="format", cause="no_answer", detail=f"the model answered nothing (finish: {finish})"),)
    faults = [] if score.valid else production_faults(text, contract)
    if faults and faults[0].kind.startswith(("missing_st", "missing_arch", "unreadable")):
        return (_format_failure(text, contract, faults[0], finish),)
    found = [
        Failure(level="schema", cause=_SCHEMA_CAUSES.get(fault.kind, fault.kind), detail=fault.detail)
        for fault in {fault.kind: fault for fault in reversed(faults)}.values()
    ]
    if expected in FEASIBILITY and score.label is not None and score.label != expected:
        detail = f"feasibility {score.label}, {expected} is right"
        found.append(Failure(level="content", cause="swapped_verdict", detail=detail))
    details = {violation.kind: violation.detail for violation in score.violations}
    found += [
        Failure(level="content", cause=cause, detail=details[kind])
        for kind, cause in _CONTENT_CAUSES.items()
        if kind in details
    ]
    return tuple(found)


def _format_failure(text: str, contract: str, fault: Violation, finish: str) -> Failure:
    if finish == "length" or (contract == "fenced" and text.count("```") % 2):
        return Failure(level="format", cause="truncated", detail=f"the answer ends in the middle (finish: {finish})")
    mended = repair(text, contract) if fault.kind == "unreadable_yaml" else None
    if mended is not None and not production_faults(mended, contract):
        return Failure(level="format", cause="unquoted_colon", detail=fault.detail)
    if fault.kind.startswith("missing") and not find_blocks(text)[1]:
        return Failure(level="format", cause="no_blocks", detail="neither document is there")
    return Failure(level="format", cause=fault.kind, detail=fault.detail)
