"""The rows that users have, read as concepts and answers, whichever of their tools wrote them.

Accepted: our own `Concept` and `Completion` rows; concepts with `concept` and `requirements_yaml`, at
the top or under `input`; answers as `response`, as `{prompt, response}`, or as one YAML text per
document (`product_vision`, `vision_yaml`, `teacher_product_vision`, ..., at the top or under
`output`), which are joined in the role's own form.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from po_distill.artifacts import digest_value, read_jsonl
from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.records import Concept, Message, Rejection
from po_distill.row_files import RawRow, raw_rows, row_in


class Recorded(NamedTuple):
    """One recorded answer. `stored_score` is what its file says, which is never trusted."""

    where: str
    concept: Concept
    text: str
    model: str
    created_at: str | None
    stored_score: float | None
    prompt: tuple[Message, ...] | None = None  # what the row says the answer is to, where it says it


def read_concepts(path: Path | str, role: Role) -> list[Concept]:
    """The concepts of a JSONL file as a list; see ConceptFile."""
    return list(ConceptFile(path, role))


class ConceptFile:
    """The concepts of a JSONL file, read anew each time they are gone through: however many, few are held.

    The file is checked whole on opening: raises InputError, with file, line and field, at the first row that is no
    concept, that repeats an id, or whose requirements the role refuses. `most` reads only so many, and after them
    those whose id is in `keep`.
    """

    def __init__(
        self, path: Path | str, role: Role, *, most: int | None = None, keep: Collection[str] = frozenset()
    ) -> None:
        self._path, self._role, self._most, self._keep = Path(path), role, most, keep
        seen: set[bytes] = set()
        for number, concept in self._rows():
            where = f"{path}, line {number}"
            try:
                role.check(concept)
            except InputError as error:
                raise InputError(f"{where}: {error.problem}", error.fix) from error
            # Sixteen bytes an id, whatever its length.
            digest = hashlib.blake2b(concept.concept_id.encode("utf-8", "replace"), digest_size=16).digest()
            if digest in seen:
                raise InputError(f"{where}: the concept_id {concept.concept_id!r} is used twice.", "Make ids unique.")
            seen.add(digest)
        self._count = len(seen)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Concept]:
        return (concept for _, concept in self._rows())

    def _rows(self) -> Iterator[tuple[int, Concept]]:
        rows = read_jsonl(self._path)
        for number, row in itertools.islice(rows, self._most):
            yield number, concept_of(row, f"{self._path}, line {number}", self._role)
        for number, row in rows if self._keep else ():
            if _named_id(row) in self._keep:
                yield number, concept_of(row, f"{self._path}, line {number}", self._role)


def vary_all(role: Role, given: Sequence[Concept], count: int, seed: int) -> list[Concept]:
    """`count` concepts, the given ones and variations. Raises InputError where there are not so many."""
    made = role.vary_concepts(given, count, seed)
    if len(made) < count:
        raise InputError(
            f"{len(given)} concepts have {len(made) - len(given)} variations, not {count - len(given)}.",
            f"Give more concepts, or ask for {len(made)} at most: --count {len(made)}.",
        )
    return made


def has_answers(path: Path | str, role: Role) -> bool:
    """Whether a row among the first of a file carries an answer, so that no teacher needs to be asked."""
    rows = (row_in(raw) for raw in raw_rows(path, most=_LOOKED_AT))
    return any(not isinstance(row, Rejection) and answer_of(row, role) is not None for row in rows)


def read_answers(path: Path | str, role: Role, *, most: int | None = None) -> Iterator[Recorded | Rejection]:
    """The recorded answers of a file; a row that holds no concept or no answer is a Rejection."""
    return (answer_in(raw, role) for raw in raw_rows(path, most=most))


def answer_in(raw: RawRow, role: Role) -> Recorded | Rejection:
    """The recorded answer that a row holds, or why it holds none."""
    row = row_in(raw)
    return row if isinstance(row, Rejection) else recorded_of(row, raw.where, role)


def recorded_of(row: Mapping[str, Any], where: str, role: Role) -> Recorded | Rejection:
    """The recorded answer in a mapping, or why it holds none."""
    try:
        concept = concept_of(row, where, role)
    except InputError as error:
        return Rejection(where=where, reason="no_concept", detail=error.problem)
    text = answer_of(row, role)
    if text is None:
        return Rejection(where=where, reason="no_answer", detail="the row holds no answer")
    score = row.get("score")
    if isinstance(score, Mapping):  # a Completion row
        score = score.get("value")
    return Recorded(
        where=where,
        concept=concept,
        text=text,
        model=str(row.get("model") or "recorded"),
        created_at=row["created_at"] if isinstance(row.get("created_at"), str) else None,
        stored_score=_number_of(score),
        prompt=_prompt_of(row),
    )


def _number_of(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _prompt_of(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """The messages of a row's prompt: a chat's, or a text as the user's."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return (Message(speaker="user", content=prompt),)
    turns = prompt if isinstance(prompt, list) else row.get("messages")
    if not isinstance(turns, list):
        return None
    try:
        messages = tuple(Message.model_validate(turn) for turn in turns)
    except ValidationError:
        return None
    return messages if isinstance(prompt, list) else messages[:-1]


def concept_of(row: Mapping[str, Any], where: str, role: Role) -> Concept:
    """The concept that a row holds. Raises InputError, with `where` and the field, where it holds none."""
    source = row.get("input") if isinstance(row.get("input"), Mapping) else row
    if isinstance(row.get("concept"), Mapping):  # an Example or a Completion carries its concept whole
        source = row["concept"]
    assert isinstance(source, Mapping)
    if "concept" not in source and (asked := prompt_text(row)) is not None:
        found = role.read_prompt(asked)
        if found is None:
            raise InputError(f"{where}: the prompt holds no concept with requirements.", _CONCEPT_FIX)
        return found.model_copy(update={"concept_id": _identifier(found.concept, found.requirements_yaml)})
    concept, requirements = source.get("concept"), source.get("requirements_yaml", source.get("requirements"))
    for name, value in (("concept", concept), ("requirements_yaml", requirements)):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {name!r} is missing, empty or not text.", _CONCEPT_FIX)
    assert isinstance(concept, str)
    assert isinstance(requirements, str)
    vision, label = source.get("existing_vision"), source.get("planted_label")
    try:
        return Concept(
            concept_id=str(source.get("concept_id") or row.get("concept_id") or _identifier(concept, requirements)),
            concept=concept,
            requirements_yaml=requirements,
            existing_vision=vision if isinstance(vision, str) and vision.strip() else None,
            tier=str(source.get("tier") or "medium"),
            planted_label=label if isinstance(label, str) and label else None,
            metadata=_metadata_of(source.get("metadata")),
        )
    except (ValidationError, RecursionError) as error:
        raise InputError(f"{where}: {str(error)[:200]}", _CONCEPT_FIX) from error


def _metadata_of(value: Any) -> dict[str, Any]:
    """A mapping, or one as JSON text, as the rows of a dataset hold it; anything else is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return dict(value) if isinstance(value, Mapping) else {}


def prompt_text(row: Mapping[str, Any]) -> str | None:
    """The row's prompt as one text: of a chat's messages, the last one of the user."""
    prompt = row.get("prompt", row.get("messages"))
    if not isinstance(prompt, list):
        return prompt if isinstance(prompt, str) else None
    texts = [turn.get("content") for turn in prompt if isinstance(turn, dict) and turn.get("role") == "user"]
    return texts[-1] if texts and isinstance(texts[-1], str) else None


def _named_id(row: Mapping[str, Any]) -> str:
    """The id that a row of a concept gives itself; empty where it gives none."""
    sources = [source for source in (row.get("concept"), row.get("input"), row) if isinstance(source, Mapping)]
    return next((str(source["concept_id"]) for source in sources if source.get("concept_id")), "")


def answer_of(row: Mapping[str, Any], role: Role) -> str | None:
    """The answer that a row holds, as one text; None where it holds none."""
    for name in ("response", "text", "raw_response"):
        if isinstance(row.get(name), str) and row[name].strip():
            return str(row[name])
    for name in ("completion", "messages"):  # an Example, a chat
        if isinstance(row.get(name), list) and row[name]:
            last = row[name][-1]
            spoken = isinstance(last, Mapping) and last.get("role") == "assistant" and last.get("content")
            return spoken if isinstance(spoken, str) and spoken.strip() else None
    if isinstance(row.get("raw"), str) and row["raw"].strip():
        return str(row["raw"])
    output = row.get("output")
    if isinstance(output, str):
        return output
    return role.join_documents({**row, **output} if isinstance(output, Mapping) else row)


def _identifier(concept: str, requirements: str) -> str:
    return f"row-{digest_value([concept, requirements])[7:19]}"


_LOOKED_AT = 20
_CONCEPT_FIX = "A row needs `concept` and `requirements_yaml`, at the top or under `input`, both text."
