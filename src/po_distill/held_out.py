"""Held-out cases: read, kept apart from what was trained on, and chosen by class."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from po_distill.artifacts import digest_file, digest_value, read_jsonl
from po_distill.errors import InputError
from po_distill.gate import asked_of
from po_distill.interfaces import Role
from po_distill.records import Concept, InputFile, Rejection
from po_distill.row_files import files_of, raw_rows, row_in
from po_distill.source_rows import concept_of, prompt_text

if TYPE_CHECKING:
    from po_distill.row_table import RowTable


def read_cases(path: Path | str, role: Role) -> list[Concept]:
    """The concepts of a JSONL file of Concept, Example or Completion rows, or any that source_rows reads."""
    return [concept_of(row, f"{path}, line {number}", role) for number, row in read_jsonl(path)]


def read_held_out(paths: Iterable[Path | str], role: Role) -> tuple[RowTable, tuple[InputFile, ...]]:
    """What files of held-out rows ask, and which files they are. Raises InputError where a row holds no concept."""
    from po_distill.row_table import RowTable

    table, files = RowTable(), []
    for path in paths:
        rows = 0
        for raw in raw_rows(path):
            row = row_in(raw)
            if isinstance(row, Rejection):
                raise InputError(f"{raw.where}: {row.reason}: {row.detail}.", "Correct or delete that line.")
            table.add_asked(asked_of(concept_of(row, raw.where, role)))
            rows += 1
        files.append(input_file(path, rows))
    return table, tuple(files)


def input_file(path: Path | str, rows: int) -> InputFile:
    """The record of a file (or folder) that was read."""
    digests = [digest_file(file) for file in files_of(path)]
    return InputFile(path=str(path), digest=digests[0] if Path(path).is_file() else digest_value(digests), rows=rows)


def refuse_leaks(concepts: Iterable[Concept], train_path: Path | str, role: Role) -> None:
    """Raise InputError, with the ids, where a concept or one that it is a variation of was trained on."""
    families, prompts = set(), set()
    for number, row in read_jsonl(train_path):
        if (prompt := prompt_text(row)) is not None:
            prompts.add(_squeezed(prompt))
        try:
            families.add(_family(concept_of(row, f"{train_path}, line {number}", role)))
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


def stratified(
    concepts: Sequence[Concept],
    most: int | None,
    *,
    keep: Collection[str] = frozenset(),
    labels: Mapping[str, str | None] | None = None,
) -> list[Concept]:
    """`most` of the concepts, equally many of each class, and in a class of each tier, as far as there are.

    The class is the planted one, else the one that `labels` has for the concept's id.
    Equal, because what is asked of a class is its accuracy, and a rare one is the one to know about.
    Which ones depends on their ids alone, not on their order. Those whose id is in `keep` are among them first.
    """
    if most is None or most >= len(concepts):
        return list(concepts)
    classes: dict[str, dict[str, list[str]]] = {}
    for concept in sorted(concepts, key=lambda one: (one.concept_id not in keep, digest_value(one.concept_id))):
        label = concept.planted_label or (labels or {}).get(concept.concept_id)
        tiers = classes.setdefault(label or "", {})
        tiers.setdefault(concept.tier, []).append(concept.concept_id)
    places = []
    for label, tiers in classes.items():
        in_turn = sorted((number, tier, name) for tier, names in tiers.items() for number, name in enumerate(names))
        places += [(name not in keep, place, label, name) for place, (_, _, name) in enumerate(in_turn)]
    chosen = {name for _, _, _, name in sorted(places)[:most]}
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


def _squeezed(text: str) -> str:
    return " ".join(text.split())
