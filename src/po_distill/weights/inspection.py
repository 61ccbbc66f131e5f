"""A weight file or folder looked at from outside: what it says of itself, and none of the values in it.

Needs neither torch nor the packages of the formats. Files are read whole only for their digests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from po_distill.artifacts import digest_value
from po_distill.records import (
    AdapterScale,
    InspectedAdapter,
    InspectedFile,
    InspectedTensor,
    TensorGroup,
    WeightsInspection,
)
from po_distill.weights.adapter_config import CONFIG_NAME, rank_and_alpha, read_adapter_config, scale_of
from po_distill.weights.checkpoint import TOKENIZER_FILES, gather_tensors, read_json, weight_files
from po_distill.weights.foreign_files import escaped
from po_distill.weights.gguf_file import GGUFArray, read_gguf_head
from po_distill.weights.inspected_files import INDEX_NAME, Kind, find_weights, inspect_files
from po_distill.weights.inspected_text import (
    TEMPLATE_KEY,
    template_form,
    template_of_folder,
    tokenizer_of_folder,
    tokenizer_of_gguf,
)
from po_distill.weights.lora_adapter import adapter_weights
from po_distill.weights.safetensors_header import HeaderEntry, read_safetensors_header

_RECORD = "po_distill.json"  # what the trainer writes beside an adapter
_OURS = "po_distill."  # what begins the keys that the packager writes into a GGUF


def inspect_weights(path: Path, *, digests: bool = True) -> WeightsInspection:
    """What a safetensors file, a checkpoint folder, an adapter folder or a GGUF file is.

    A folder that holds one GGUF or one safetensors file stands for it, and a version folder for its adapter. Without
    `digests` no file is read beyond its head. Raises InputError where there is nothing of the kind, WeightsError where
    it is broken, and where it is a pickle file, which is not opened.
    """
    place, kind = find_weights(path)
    look: dict[Kind, Callable[[Path], _Looked]] = {
        "gguf": _gguf,
        "safetensors": _safetensors,
        "checkpoint": _checkpoint,
        "adapter": _adapter,
    }
    tensors, files, facts = look[kind](place)
    inspected = inspect_files(files, digests=digests)
    notes = facts.pop("notes", ())
    if kind == "adapter" and digests:
        notes += _notes_on_record(facts["ours"], inspected[0])
    weights = {file.name: file.digest for file in inspected if file.name.endswith(".safetensors")}
    template = facts.get("template")
    return WeightsInspection(
        path=str(path),
        kind=kind,
        parameters=sum(tensor.parameters for tensor in tensors),
        size_bytes=sum(tensor.size_bytes for tensor in tensors),
        files=inspected,
        digest=digest_value(weights) if kind == "checkpoint" and digests else None,
        by_type=_by_type(tensors),
        by_part=_groups(tensors, lambda tensor: _part_of(tensor.name)),
        template_form=template_form(template) if template else None,
        notes=notes,
        tensors=tuple(tensors),
        **facts,
    )


# --- each kind ------------------------------------------------------------------------------------

_Looked = tuple[list[InspectedTensor], list[Path], dict[str, Any]]  # tensors, files, fields of the record


def _safetensors(path: Path) -> _Looked:
    header = read_safetensors_header(path)
    tensors = [_tensor(entry) for entry in header.entries.values()]
    return tensors, [path], {"architecture": None, "metadata": dict(header.metadata)}


def _checkpoint(folder: Path) -> _Looked:
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    entries = gather_tensors(folder, lambda file: read_safetensors_header(file).entries)
    weights = weight_files(folder)
    classes = config.get("architectures")
    architecture = classes[0] if isinstance(classes, list) and classes else config.get("model_type")
    others = (INDEX_NAME, "config.json", "generation_config.json", *TOKENIZER_FILES, "tokenizer.model")
    files = [*weights, *(folder / name for name in others if (folder / name).is_file())]
    facts = {
        "architecture": architecture if isinstance(architecture, str) else None,
        "metadata": config,
        "tokenizer": tokenizer_of_folder(folder),
        "template": template_of_folder(folder),
        "notes": () if config else ("there is no config.json",),
    }
    return [_tensor(entry) for entry in entries.values()], files, facts


def _adapter(folder: Path) -> _Looked:
    config = read_adapter_config(folder)
    path = adapter_weights(folder)
    entries = read_safetensors_header(path).entries
    scales, notes = _scales(folder, config, entries.values())
    others = (CONFIG_NAME, _RECORD, *TOKENIZER_FILES)
    kind = str(config.get("peft_type") or "unknown")
    targets = config.get("target_modules")
    files = [path, *(folder / name for name in others if (folder / name).is_file())]
    facts = {
        "architecture": kind,
        "adapter": InspectedAdapter(
            kind=kind,
            base_name=config.get("base_model_name_or_path"),
            rs_lora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            scales=scales,
            target_modules=targets if isinstance(targets, str) else tuple(targets or ()),
            modules_to_save=tuple(config.get("modules_to_save") or ()),
        ),
        "metadata": config,
        "template": template_of_folder(folder),
        "ours": read_json(folder / _RECORD) if (folder / _RECORD).exists() else {},
        "notes": notes,
    }
    return [_tensor(entry) for entry in entries.values()], files, facts


def _scales(
    folder: Path, config: dict[str, Any], entries: Iterable[HeaderEntry]
) -> tuple[tuple[AdapterScale, ...], tuple[str, ...]]:
    """By what the updates are multiplied; and a note where a tensor has another rank than the config gives it."""
    counts: Counter[tuple[float, float]] = Counter()
    other: list[str] = []
    for entry in entries:
        module, mark, _ = entry.name.partition(".lora_A.")
        if mark:
            rank, alpha = rank_and_alpha(config, module.removeprefix("base_model.model."), folder / CONFIG_NAME)
            counts[rank, alpha] += 1
            if entry.shape[:1] != (rank,):
                other.append(entry.name)
    scales = (
        AdapterScale(rank=rank, alpha=alpha, scale=scale_of(config, rank, alpha), modules=modules)
        for (rank, alpha), modules in counts.most_common()
    )
    first = (
        f"{len(other)} tensors have another rank than {CONFIG_NAME} says, {escaped(other[0])} first" if other else ""
    )
    return tuple(scales), (first,) if first else ()


def _notes_on_record(record: dict[str, Any], weights: InspectedFile) -> tuple[str, ...]:
    if record and record.get("digest") != weights.digest:
        return (f"{weights.name} is not the file that {_RECORD} was written for",)
    return ()


def _gguf(path: Path) -> _Looked:
    head = read_gguf_head(path)
    values, template = head.values, head.values.get(TEMPLATE_KEY)
    architecture, parts = values.get("general.architecture"), values.get("split.count")
    split = (f"it is one of {parts} parts",) if isinstance(parts, int) and parts > 1 else ()
    facts = {
        "architecture": architecture if isinstance(architecture, str) else None,
        "tokenizer": tokenizer_of_gguf(values),
        "template": template if isinstance(template, str) else None,
        "ours": {key.removeprefix(_OURS): _plain(value) for key, value in values.items() if key.startswith(_OURS)},
        "metadata": {"gguf.version": head.version, **{key: _plain(value) for key, value in values.items()}},
        "notes": (*split, *head.notes),
    }
    tensors = [
        InspectedTensor(
            name=tensor.name,
            type=tensor.type,
            shape=tensor.shape,
            parameters=math.prod(tensor.shape),
            size_bytes=tensor.end - tensor.begin,
            file=path.name,
        )
        for tensor in head.tensors.values()
    ]
    return tensors, [path], facts


def _plain(value: Any) -> Any:
    """A value of a GGUF as JSON; a long array is its type and its count."""
    if isinstance(value, GGUFArray):
        return [_plain(item) for item in value.items] if value.items is not None else _counted(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _counted(array: GGUFArray) -> dict[str, Any]:
    return {"array": array.kind, "count": array.count}


# --- tensors --------------------------------------------------------------------------------------


def _tensor(entry: HeaderEntry) -> InspectedTensor:
    return InspectedTensor(
        name=entry.name,
        type=entry.dtype,
        shape=entry.shape,
        parameters=math.prod(entry.shape),
        size_bytes=entry.end - entry.begin,
        file=entry.path.name,
    )


def _part_of(name: str) -> str:
    """A tensor's name with * for each number in it, so that the layers' tensors have one name."""
    return ".".join("*" if word.isdecimal() else word for word in name.removeprefix("base_model.model.").split("."))


def _by_type(tensors: Iterable[InspectedTensor]) -> tuple[TensorGroup, ...]:
    groups = _groups(tensors, lambda tensor: tensor.type)
    return tuple(sorted(groups, key=lambda group: -group.size_bytes))


def _groups(tensors: Iterable[InspectedTensor], name: Callable[[InspectedTensor], str]) -> tuple[TensorGroup, ...]:
    """The tensors by name, in the order in which the names come first."""
    found: dict[str, list[InspectedTensor]] = {}
    for tensor in tensors:
        found.setdefault(name(tensor), []).append(tensor)
    return tuple(
        TensorGroup(
            name=group,
            tensors=len(members),
            parameters=sum(tensor.parameters for tensor in members),
            size_bytes=sum(tensor.size_bytes for tensor in members),
        )
        for group, members in found.items()
    )
