"""The card of a dataset: what is in it, where it comes from, and how to load it, as Markdown that the Hub reads."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml
from pydantic import JsonValue

from po_distill.records import Dataset, InputFile
from po_distill.reporting.checkup_lines import many, percent
from po_distill.reporting.foreign_text import fenced, for_markdown, one_line

# The Hub's size classes: the first bound that the rows stay under.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
_LARGEST = "100M<n<1B"


def render_card(dataset: Dataset, role_name: str) -> str:
    """`dataset_card.md`, to lie beside the train split: paths are told from that folder.

    Its head is the YAML of a Hub dataset: saved as README.md, `datasets.load_dataset(folder)` finds the splits. The
    licence is given as unknown, since nothing that was read says under what terms the rows stand.
    """
    sections = (
        f"# Dataset for the role {for_markdown(role_name)}\n\n{_summary(dataset)}",
        "## Rows\n\n" + _splits(dataset),
        _counts("By class of the answer", dataset.labels, dataset),
        _counts("By tier", dataset.tiers, dataset),
        _counts("By language", dataset.languages, dataset),
        _counts("By prompt contract", dataset.contracts, dataset),
        _missing(dataset),
        _inputs(dataset),
        _files("Sources", "The answers were read from these files.", dataset.sources),
        _files("Held out", "No row is in one of these files.", dataset.held_out),
        _use(dataset),
        _other_shapes(dataset),
        _contract(dataset),
        _settings(dataset),
        _licence(),
    )
    return _head(dataset, role_name) + "\n\n".join(section for section in sections if section) + "\n"


def _head(dataset: Dataset, role_name: str) -> str:
    """The front matter. The YAML writer quotes whatever could be read as something else."""
    languages = sorted(name for name in dataset.languages if re.fullmatch("[a-z]{2}", name))
    head: dict[str, Any] = {
        "pretty_name": one_line(f"Dataset for the role {role_name}", longest=120),
        **({"language": languages} if languages else {}),
        "license": "unknown",
        "task_categories": ["text-generation"],
        "size_categories": [next((size for bound, size in _SIZES if _rows(dataset) < bound), _LARGEST)],
        "tags": ["distillation", "po-distill", "synthetic"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": name, "path": path} for name, path in _filled(dataset)],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=float('inf'))}---\n\n"


def _summary(dataset: Dataset) -> str:
    made = "" if dataset.contract is None else ", scored by the role's metric and rendered in the role's canonical form"
    return (
        f"{many(_rows(dataset), 'row')} to train a student on: each is a prompt and the target answer{made}.\n\n"
        f"Digest of the splits: `{dataset.digest}`. Built by po_distill {for_markdown(dataset.po_distill)}."
    )


def _splits(dataset: Dataset) -> str:
    rows = [
        [name, for_markdown(_from_card(dataset, path), longest=None), f"{dataset.counts.get(name, 0):,}"]
        for name, path in dataset.paths.items()
    ]
    told = _table(["Split", "File", "Rows"], rows)
    empty = [name for name, _, count in rows if count == "0"]
    return told + (f"\n\nWithout rows, and so not in the head of this card: {', '.join(empty)}." if empty else "")


def _counts(title: str, counts: Mapping[str, int], dataset: Dataset) -> str:
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[for_markdown(name), f"{count:,}", percent(count, _rows(dataset))] for name, count in ordered]
    return f"### {title}\n\n" + _table(["", "Rows", "Share"], rows)


def _missing(dataset: Dataset) -> str:
    lacking = {name: count for name, count in sorted(dataset.missing.items()) if count}
    if not lacking:
        return ""
    rows = [[for_markdown(name), f"{count:,}"] for name, count in lacking.items()]
    told = f"The target lacks {many(sum(lacking.values()), 'row')}."
    return f"## Missing\n\n{told}\n\n" + _table(["Class", "Rows"], rows)


def _inputs(dataset: Dataset) -> str:
    rejected = sum(dataset.rejected.values())
    told = f"{dataset.inputs:,} inputs = {_rows(dataset):,} accepted + {rejected:,} rejected"
    if not rejected:
        return f"## Inputs\n\n{told}."
    ordered = sorted(dataset.rejected.items(), key=lambda item: (-item[1], item[0]))
    rows = [["accepted", f"{_rows(dataset):,}"], *([for_markdown(name), f"{count:,}"] for name, count in ordered)]
    where = for_markdown(_from_card(dataset, dataset.rejected_path), longest=None)
    return f"## Inputs\n\n{told}. Each rejection with its reason: {where}\n\n" + _table(
        ["What became of them", "Inputs"], rows
    )


def _files(title: str, told: str, given: Sequence[InputFile]) -> str:
    if not given:
        return ""
    rows = [[for_markdown(file.path, longest=None), f"{file.rows:,}", f"`{file.digest}`"] for file in given]
    return f"## {title}\n\n{told}\n\n" + _table(["File", "Rows", "Digest"], rows)


def _use(dataset: Dataset) -> str:
    files = "\n".join(f"    {json.dumps(name)}: {json.dumps(path)}," for name, path in _filled(dataset))
    load = f'from datasets import load_dataset\n\nrows = load_dataset("json", data_files={{\n{files}\n}})'
    train = f"po-distill train --data {shlex.quote(_from_card(dataset, dataset.paths['train']))}"
    return (
        "## Use\n\nThe rows are in the conversational prompt-completion form that TRL's `SFTTrainer` takes as it is "
        f'(`train_dataset=rows["train"]`). In the folder of this card:\n\n{fenced(load, "python")}\n\n'
        f"{fenced(train, 'bash')}"
    )


def _other_shapes(dataset: Dataset) -> str:
    if not dataset.also:
        return ""
    rows = [
        [for_markdown(shape), for_markdown(_from_card(dataset, path), longest=None)]
        for shape, path in dataset.also.items()
    ]
    return "## The same rows in other shapes\n\n" + _table(["Shape", "File"], rows)


def _contract(dataset: Dataset) -> str:
    contract = dataset.contract
    if contract is None:
        return "## Prompt contract\n\nThe rows came as prompt and response: under which contract is not known."
    name = f"{for_markdown(contract.role)}/{for_markdown(contract.name)}"
    system = fenced(contract.system, "text") if contract.system else "The contract has no system text."
    return (
        f"## Prompt contract\n\nPrompts are rendered by {name}, targets in its form "
        f"{for_markdown(contract.output_format)}: `{contract.digest}`. Train, evaluate and serve under the same.\n\n"
        f"<details>\n<summary>System text and template</summary>\n\n{system}\n\n"
        f"{fenced(contract.template, 'text')}\n\n</details>"
    )


def _settings(dataset: Dataset) -> str:
    if not dataset.settings:
        return ""
    rows = [[for_markdown(name), for_markdown(_json(value))] for name, value in sorted(dataset.settings.items())]
    return "## Settings\n\nWhat the rows were gated and split by.\n\n" + _table(["Setting", "Value"], rows)


def _licence() -> str:
    return (
        "## Licence\n\nNot known to po_distill. What the rows may be used for depends on the terms of the model that "
        "wrote the targets, and of the concepts. Put the licence into the head of this card before you publish it."
    )


def _rows(dataset: Dataset) -> int:
    return sum(dataset.counts.values())


def _filled(dataset: Dataset) -> Iterable[tuple[str, str]]:
    """The splits that hold rows, with their paths from the card's folder. An empty file is none that can be loaded."""
    # `datasets` reads a path as a pattern.
    filled = [(name, path) for name, path in dataset.paths.items() if dataset.counts.get(name)]
    return [(name, glob.escape(_from_card(dataset, path))) for name, path in filled]


def _from_card(dataset: Dataset, path: str) -> str:
    """A path as seen from the folder of the train split, with forward slashes."""
    try:
        return PurePath(os.path.relpath(path, PurePath(dataset.paths["train"]).parent)).as_posix()
    except ValueError:  # on another drive
        return PurePath(path).as_posix()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _json(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
