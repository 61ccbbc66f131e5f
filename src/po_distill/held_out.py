"""Held-out cases: read, kept apart from what was trained on, and chosen by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from po_distill.artifacts import digest_value, read_jsonl
from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.records import Concept
from po_distill.source_rows import concept_of


def read_cases(path: Path | str, role: Role) -> list[Concept]:
    """The concepts of a JSONL file of Concept, Example or Completion rows, or any that source_rows reads."""
    return [concept_in(row, f"{path}, line {number}", role) for number, row in read_jsonl(path)]


def concept_in(row: Mapping[str, Any], where: str, role: Role) -> Concept:
    """The concept of a row, whose prompt may be a chat. Raises InputError where it holds none."""
    prompt = _prompt_text(row)
    return concept_of(row if prompt is None else {**row, "prompt": prompt}, where, role)


def refuse_leaks(concepts: Iterable[Concept], train_path: Path | str, role: Role) -> None:
    """Raise InputError, with the ids, where a concept or one that it is a variation of was trained on."""
    families, prompts = set(), set()
    for number, row in read_jsonl(train_path):
        if (prompt := _prompt_text(row)) is not None:
            prompts.add(_squeezed(prompt))
        try:
            families.add(_family(concept_in(row, f"{train_path}, line {number}", role)))
        except InputError:
            if prompt is None:
                raise
    leaked = [
        concept.concept_id
        for concept in concepts
        if _family(concept) in families or _squeezed(role.render(concept)[-1].content) in prompts
    ]
    if leaked:
        raise InputError(
            f"{len(leaked)} held-out concepts are in the training file {train_path}: {listed(leaked)}.",
            "Evaluate on the test split of the dataset, or leave these concepts out.",
        )


def stratified(concepts: Sequence[Concept], most: int | None) -> list[Concept]:
    """`most` of the concepts, equally many of each planted class as far as there are.

    Equal, because what is asked of a class is its accuracy, and a rare one is the one to know about.
    Which ones depends on their ids alone, not on their order.
    """
    if most is None or most >= len(concepts):
        return list(concepts)
    classes: dict[str, list[str]] = {}
    for concept in sorted(concepts, key=lambda concept: digest_value(concept.concept_id)):
        classes.setdefault(concept.planted_label or "", []).append(concept.concept_id)
    places = [
        (number, label, concept_id) for label, members in classes.items() for number, concept_id in enumerate(members)
    ]
    chosen = {concept_id for _, _, concept_id in sorted(places)[:most]}
    return [concept for concept in concepts if concept.concept_id in chosen]


def content(concept: Concept) -> tuple[str, str]:
    """What makes two concepts the same case: text and requirements, spaces aside."""
    return _squeezed(concept.concept), _squeezed(concept.requirements_yaml)


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _family(concept: Concept) -> str:
    """What a concept shares with its variations; the dataset is split by the same."""
    return _squeezed(str(concept.metadata.get("group", concept.concept))).lower()


def _prompt_text(row: Mapping[str, Any]) -> str | None:
    """The row's prompt as one text: of a chat's messages, the last one of the user."""
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        return prompt if isinstance(prompt, str) else None
    texts = [turn.get("content") for turn in prompt if isinstance(turn, dict) and turn.get("role") == "user"]
    return texts[-1] if texts and isinstance(texts[-1], str) else None


def _squeezed(text: str) -> str:
    return " ".join(text.split())
