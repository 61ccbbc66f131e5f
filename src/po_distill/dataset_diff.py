"""How one dataset differs from another, told by the content of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from po_distill.artifacts import read_jsonl, read_record
from po_distill.errors import InputError
from po_distill.gate import digest64
from po_distill.records import Dataset, DatasetChange, Split

_Name = TypeVar("_Name", bound=str)
_NAMED = 10


class _Row(NamedTuple):
    split: Split
    answer: int  # digest of the target
    concept_id: str


def find_dataset(place: Path | str) -> Dataset:
    """The record of a dataset, given as its manifest, its train split, or a folder that holds one manifest.

    Raises InputError where there is none, or several.
    """
    place = Path(place)
    if place.is_dir():
        found = sorted(place.glob("*.manifest.json"))
        if len(found) != 1:
            raise InputError(f"{place} holds {len(found)} datasets (*.manifest.json).", "Name the manifest itself.")
        return _read(found[0])
    if place.name.endswith(".manifest.json"):
        return _read(place)
    found_one = manifest_of(place)
    if found_one is None:
        raise InputError(f"{place} has no manifest beside it.", "Name a dataset that `po-distill dataset` wrote.")
    return found_one


def manifest_of(path: Path | str) -> Dataset | None:
    """The record of the dataset that a file is a split of; None where no manifest lies beside it."""
    path = Path(path)
    stem = path.stem if path.suffix == ".jsonl" else path.name
    for split in ("", ".validation", ".test"):
        manifest = path.with_name(f"{stem.removesuffix(split)}.manifest.json")
        if manifest.is_file():
            return _read(manifest)
    return None


def compare(before: Path | str, after: Path | str) -> DatasetChange:
    """What changed between two datasets. Raises what `find_dataset` raises."""
    old, new = find_dataset(before), find_dataset(after)
    rows, others = _rows(old), _rows(new)
    changed = [prompt for prompt, row in rows.items() if prompt in others and others[prompt].answer != row.answer]
    moved = [prompt for prompt, row in rows.items() if prompt in others and others[prompt].split != row.split]
    added = [prompt for prompt in others if prompt not in rows]
    removed = [prompt for prompt in rows if prompt not in others]
    settings = {name: (old.settings.get(name), new.settings.get(name)) for name in {**old.settings, **new.settings}}
    kinds = {"added": (others, added), "removed": (rows, removed), "changed": (others, changed), "moved": (rows, moved)}
    return DatasetChange(
        before=old.paths["train"],
        after=new.paths["train"],
        rows_before=sum(old.counts.values()),
        rows_after=sum(new.counts.values()),
        kept=sum(prompt in others and others[prompt].answer == row.answer for prompt, row in rows.items()),
        added=len(added),
        removed=len(removed),
        changed=len(changed),
        moved=len(moved),
        labels=_pairs(old.labels, new.labels),
        splits=_pairs(old.counts, new.counts),
        settings={name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        contract_changed=old.contract != new.contract,
        examples={
            kind: tuple(sorted(held[prompt].concept_id for prompt in prompts)[:_NAMED])
            for kind, (held, prompts) in kinds.items()
        },
    )


def _read(manifest: Path) -> Dataset:
    """The record, with the paths of the splits beside the manifest where they are no longer where they were."""
    dataset = read_record(manifest, Dataset)
    if all(Path(path).exists() for path in dataset.paths.values()):
        return dataset
    paths = {name: str(manifest.parent / Path(path).name) for name, path in dataset.paths.items()}
    return dataset.model_copy(update={"paths": paths})


def _rows(dataset: Dataset) -> dict[int, _Row]:
    """Each row by the digest of what it asks: the last message of its prompt."""
    found = {}
    for split, path in dataset.paths.items():
        if not dataset.counts[split]:
            continue
        for number, row in read_jsonl(path):
            try:
                asked, answer = row["prompt"][-1]["content"], row["completion"][-1]["content"]
                name = str(row.get("concept", {}).get("concept_id") or row["example_id"])
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number}: no row of a dataset.", "Build the dataset again.") from error
            found[digest64(str(asked))] = _Row(split, digest64(str(answer)), name)
    return found


def _pairs(before: Mapping[_Name, int], after: Mapping[_Name, int]) -> dict[str, tuple[int, int]]:
    return {name: (before.get(name, 0), after.get(name, 0)) for name in sorted({*before, *after})}
