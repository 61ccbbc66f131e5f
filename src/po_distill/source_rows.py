"""The rows that users have, read as concepts and answers, whichever of their tools wrote them.

Accepted: our own `Concept` and `Completion` rows; concepts with `concept` and `requirements_yaml`, at
the top or under `input`; answers as `response`, as `{prompt, response}`, or as one YAML text per
document (`product_vision`, `vision_yaml`, `teacher_product_vision`, ..., at the top or under
`output`), which are joined in the role's own form.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from po_distill.artifacts import digest_value, read_jsonl
from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.records import Concept, Rejection


class Recorded(NamedTuple):
    """One recorded answer. `stored_score` is what its file says, which is never trusted."""

    where: str
    concept: Concept
    text: str
    model: str
    created_at: str | None
    stored_score: float | None


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
    """Whether the first row of a JSONL file carries an answer, so that no teacher needs to be asked."""
    _, row = next(iter(read_jsonl(path)))
    return answer_of(row, role) is not None


def read_answers(path: Path | str, role: Role, *, most: int | None = None) -> Iterator[Recorded | Rejection]:
    """The recorded answers of a JSONL file; a row without a concept or an answer is a Rejection.

    Raises InputError, with the line, where the file is not JSONL.
    """
    for count, (number, row) in enumerate(read_jsonl(path)):
        if most is not None and count >= most:
            return
        where = f"{path}, line {number}"
        try:
            concept = concept_of(row, where, role)
        except InputError as error:
            yield Rejection(where=where, reason="no_concept", detail=error.problem)
            continue
        text = answer_of(row, role)
        if text is None:
            yield Rejection(where=where, reason="no_answer", detail="the row holds no answer")
            continue
        score = row.get("score")
        yield Recorded(
            where=where,
            concept=concept,
            text=text,
            model=str(row.get("model") or "recorded"),
            created_at=row["created_at"] if isinstance(row.get("created_at"), str) else None,
            stored_score=float(score) if isinstance(score, (int, float)) else None,
        )


def concept_of(row: Mapping[str, Any], where: str, role: Role) -> Concept:
    """The concept that a row holds. Raises InputError, with `where` and the field, where it holds none."""
    source = row.get("input") if isinstance(row.get("input"), Mapping) else row
    if isinstance(row.get("concept"), Mapping):  # a Completion row carries its concept whole
        source = row["concept"]
    assert isinstance(source, Mapping)
    if "concept" not in source and isinstance(row.get("prompt"), str):
        found = role.read_prompt(row["prompt"])
        if found is None:
            raise InputError(f"{where}: the prompt holds no concept with requirements.", _CONCEPT_FIX)
        return found.model_copy(update={"concept_id": _identifier(found.concept, found.requirements_yaml)})
    concept, requirements = source.get("concept"), source.get("requirements_yaml", source.get("requirements"))
    for name, value in (("concept", concept), ("requirements_yaml", requirements)):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}: {name!r} is missing, empty or not text.", _CONCEPT_FIX)
    assert isinstance(concept, str)
    assert isinstance(requirements, str)
    metadata, vision = source.get("metadata"), source.get("existing_vision")
    return Concept(
        concept_id=str(source.get("concept_id") or row.get("concept_id") or _identifier(concept, requirements)),
        concept=concept,
        requirements_yaml=requirements,
        existing_vision=vision if isinstance(vision, str) and vision.strip() else None,
        tier=str(source.get("tier") or "medium"),
        planted_label=source["planted_label"] if isinstance(source.get("planted_label"), str) else None,
        metadata=dict(metadata) if isinstance(metadata, Mapping) else {},
    )


def _named_id(row: Mapping[str, Any]) -> str:
    """The id that a row of a concept gives itself; empty where it gives none."""
    sources = [source for source in (row.get("concept"), row.get("input"), row) if isinstance(source, Mapping)]
    return next((str(source["concept_id"]) for source in sources if source.get("concept_id")), "")


def answer_of(row: Mapping[str, Any], role: Role) -> str | None:
    """The answer that a row holds, as one text; None where it holds none."""
    for name in ("response", "text", "raw_response", "raw"):
        if isinstance(row.get(name), str) and row[name].strip():
            return str(row[name])
    if isinstance(row.get("completion"), list) and row["completion"]:  # an Example row
        last = row["completion"][-1]
        return str(last["content"]) if isinstance(last, Mapping) and "content" in last else None
    output = row.get("output")
    if isinstance(output, str):
        return output
    return role.join_documents({**row, **output} if isinstance(output, Mapping) else row)


def _identifier(concept: str, requirements: str) -> str:
    return f"row-{digest_value([concept, requirements])[7:19]}"


_CONCEPT_FIX = "A row needs `concept` and `requirements_yaml`, at the top or under `input`, both text."
