"""Adapter and base become one FP16 checkpoint in the student's version folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from po_distill import artifacts
from po_distill.artifacts import digest_file
from po_distill.errors import ArtifactError, InputError, WeightsError
from po_distill.records import Adapter, MergedModel
from po_distill.weights.checkpoint import BaseCheckpoint, locate, read_json
from po_distill.weights.lora_adapter import adapter_weights
from po_distill.weights.lora_merge import INDEX_NAME, merge_lora

ADAPTER_RECORD = "po_distill.json"
STAGE = "merge"


class Merger:
    """Merges LoRA adapters. The files are named after the version folder, or after `version_stem` where given."""

    def __init__(self, *, version_stem: str | None = None) -> None:
        self.version_stem = version_stem

    def merge(self, adapter: Adapter | Path | str, output: Path | str, *, base: str | None = None) -> MergedModel:
        """Write `<version>.safetensors`, `<version>_lora.safetensors` and the rest of a checkpoint into `output`.

        `adapter` is the trainer's record, the adapter's folder, or the version folder that holds it as
        `adapter/`; `base` is what `locate` takes, by default the adapter's own. A merge of the same adapter
        that is finished already is returned as it stands. Raises WeightsError where the two do not fit,
        ArtifactError where `output` holds another finished merge.
        """
        folder = _adapter_folder(adapter)
        output = Path(output)
        record = _adapter_record(adapter, folder)
        digest = digest_file(adapter_weights(folder))
        checkpoint = _base(base, record, folder)
        _check_digests(record, digest, checkpoint, folder)
        if finished := _finished(output, digest, checkpoint):
            return finished
        if output.resolve() in (checkpoint.path.resolve(), folder.resolve()):
            raise ArtifactError(
                f"{output} holds the {'adapter' if output.resolve() == folder.resolve() else 'base'} itself.",
                "Name a version folder of its own, such as artifacts/models/po_student_v1.",
            )
        stem = self.version_stem or output.resolve().name
        weights_path, lora_path = output / f"{stem}.safetensors", output / f"{stem}_lora.safetensors"
        _clear_partials(weights_path, lora_path)
        result = merge_lora(checkpoint.path, folder, weights_path)
        with artifacts.atomic_file(lora_path, "wb") as target, adapter_weights(folder).open("rb") as source:
            shutil.copyfileobj(source, target)
        merged = MergedModel(
            path=str(output),
            weights_path=str(weights_path),
            dtype="float16",
            tensors=result.tensors,
            merged_tensors=result.merged_tensors,
            adapter_digest=digest,
            base_name=base or (record.base_name if record else checkpoint.name),
            contract=record.contract if record else None,
            digest=digest_file(weights_path),
        )
        artifacts.record_stage(
            output,
            STAGE,
            merged,
            inputs={"base": checkpoint.digest, "adapter": digest},
            outputs={
                weights_path.name: merged.digest,
                lora_path.name: digest,
                **{name: digest_file(output / name) for name in ("config.json", "tokenizer.json", INDEX_NAME)},
            },
            contract=merged.contract,
        )
        return merged


def _adapter_folder(adapter: Adapter | Path | str) -> Path:
    folder = Path(adapter.path if isinstance(adapter, Adapter) else adapter)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder.", "Give the adapter's folder: po-distill train writes one.")
    if not (folder / "adapter_config.json").exists() and (folder / "adapter" / "adapter_config.json").exists():
        return folder / "adapter"
    if not (folder / "adapter_config.json").exists():
        raise InputError(
            f"{folder} holds no adapter (adapter_config.json is missing).",
            "Give the folder that po-distill train or peft's save_pretrained wrote.",
        )
    return folder


def _adapter_record(adapter: Adapter | Path | str, folder: Path) -> Adapter | None:
    if isinstance(adapter, Adapter):
        return adapter
    path = folder / ADAPTER_RECORD
    return artifacts.read_record(path, Adapter) if path.exists() else None


def _base(base: str | None, record: Adapter | None, folder: Path) -> BaseCheckpoint:
    name = base or (
        record.base_name if record else read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    )
    if not name:
        raise InputError(
            f"{folder}/adapter_config.json does not name its base model.",
            "Name it: --base NAME, a folder or a hub id.",
        )
    return locate(str(name))


def _check_digests(record: Adapter | None, digest: str, checkpoint: BaseCheckpoint, folder: Path) -> None:
    if record is None:
        return
    if record.digest != digest:
        raise WeightsError(
            f"{folder} was trained to the weights {record.digest[:19]}, it holds {digest[:19]}.",
            f"Train again, or delete {folder / ADAPTER_RECORD} if you changed the adapter on purpose.",
        )
    if record.base_digest != checkpoint.digest:
        raise WeightsError(
            f"{folder} was trained on the base {record.base_name} ({record.base_digest[:19]}); "
            f"{checkpoint.path} has the digest {checkpoint.digest[:19]}.",
            "Merge into the very weights that it was trained on: name them with --base.",
        )


def _finished(output: Path, adapter_digest: str, checkpoint: BaseCheckpoint) -> MergedModel | None:
    """The merge that stands in `output`, if it is of these inputs."""
    manifest = artifacts.read_manifest(output)
    if manifest is None or STAGE not in manifest.stages:
        return None
    merged = artifacts.parse_record(
        manifest.stages[STAGE], MergedModel, f"{output / artifacts.MANIFEST_NAME}, stage {STAGE}"
    )
    weights_path = output / Path(merged.weights_path).name
    same = merged.adapter_digest == adapter_digest and manifest.inputs.get("base") == checkpoint.digest
    if same and weights_path.exists():
        return merged.model_copy(update={"path": str(output), "weights_path": str(weights_path)})
    if same:
        return None  # its weights were deleted, so they are made again
    raise ArtifactError(
        f"{output} holds a finished merge of another adapter ({merged.adapter_digest[:19]}).",
        "Name another version folder; nothing is written over a finished one.",
    )


def _clear_partials(*paths: Path) -> None:
    """Delete what a killed merge left behind: gigabytes under names that begin with a dot."""
    for path in paths:
        for partial in path.parent.glob(f".{path.name}.*.partial"):
            partial.unlink(missing_ok=True)
