"""Base and adapters become one checkpoint, a GGUF, or both in one pass, in the student's version folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from po_distill import artifacts
from po_distill.artifacts import digest_file, digest_value
from po_distill.errors import ArtifactError, ContractMismatchError, InputError, SettingsError, WeightsError
from po_distill.records import Adapter, GGUFFile, MergedAdapter, MergedModel, PromptContract, Quantization
from po_distill.weights.block_arithmetic import HalfDtype
from po_distill.weights.checkpoint import BaseCheckpoint, locate, read_json
from po_distill.weights.gguf import GGUFWish, write_gguf
from po_distill.weights.lora_adapter import adapter_weights
from po_distill.weights.lora_merge import INDEX_NAME, MergeResult, merge_lora
from po_distill.weights.parity import measure_merge

ADAPTER_RECORD = "po_distill.json"
STAGE = "merge"
AdapterLike = Adapter | Path | str


class Merger:
    """Merges LoRA adapters. The files are named after the version folder, or after `version_stem` where given.

    `dtype` is that of the checkpoint, which is split into shards of at most `most_shard_bytes` where that is given.
    `gguf` writes a GGUF in the same pass over the weights; with `checkpoint` False it is all that is written.
    """

    def __init__(
        self,
        *,
        version_stem: str | None = None,
        dtype: HalfDtype = "float16",
        most_shard_bytes: int | None = None,
        gguf: Quantization | None = None,
        checkpoint: bool = True,
    ) -> None:
        if not checkpoint and gguf is None:
            raise SettingsError(
                "A merge without a checkpoint and without a GGUF writes nothing.", "Ask for one of them."
            )
        if most_shard_bytes is not None and most_shard_bytes < 1:
            raise SettingsError(f"most_shard_bytes is {most_shard_bytes}.", "Give a positive number of bytes.")
        self.version_stem, self.dtype, self.most_shard_bytes = version_stem, dtype, most_shard_bytes
        self.gguf, self.checkpoint = gguf, checkpoint

    def merge(
        self,
        adapter: AdapterLike | Sequence[tuple[AdapterLike, float]],
        output: Path | str,
        *,
        base: str | None = None,
        verify: Path | str | None = None,
    ) -> MergedModel:
        """Write `<version>.safetensors`, `<version>_lora.safetensors` and the rest of a checkpoint into `output`.

        `adapter` is the trainer's record, the adapter's folder, or the version folder that holds it as `adapter/`; or
        several, each with its weight. `base` is what `locate` takes, by default the first adapter's own. `verify` names
        a dataset: on prompts of it the merged model is compared with base and adapter, and the GGUF with the merged
        model. A merge of the same adapters that is finished already is returned as it stands. Raises WeightsError where
        they do not fit together, ArtifactError where `output` holds another finished merge.
        """
        wanted = [(adapter, 1.0)] if isinstance(adapter, (Adapter, Path, str)) else list(adapter)
        if not wanted:
            raise InputError("There is no adapter to merge.", "Name at least one.")
        opened = [_OpenAdapter(each, weight) for each, weight in wanted]
        output = Path(output)
        checkpoint = _base(base, opened[0])
        for each in opened:
            each.check(checkpoint)
        contract = _contract(opened)
        merged = self._finished(output, opened, checkpoint) or self._merge(opened, output, checkpoint, base, contract)
        return self._verified(merged, opened, checkpoint, Path(verify)) if verify else merged

    def _merge(
        self,
        opened: Sequence[_OpenAdapter],
        output: Path,
        checkpoint: BaseCheckpoint,
        base: str | None,
        contract: PromptContract | None,
    ) -> MergedModel:
        for what, folder in (("base", checkpoint.path), *(("adapter", each.folder) for each in opened)):
            if output.resolve() == folder.resolve():
                raise ArtifactError(
                    f"{output} holds the {what} itself.",
                    "Name a version folder of its own, such as artifacts/models/po_student_v1.",
                )
        stem = self.version_stem or output.resolve().name
        weights_path = output / f"{stem}.safetensors"
        result = merge_lora(
            checkpoint.path,
            [(each.folder, each.weight) for each in opened],
            weights_path if self.checkpoint else None,
            output,
            dtype=self.dtype,
            most_shard_bytes=self.most_shard_bytes,
            gguf=self._wish(output, stem, checkpoint, contract),
        )
        copies = {
            f"{stem}_lora{f'_{number}' if len(opened) > 1 else ''}.safetensors": each
            for number, each in enumerate(opened, start=1)
        }
        for name, each in copies.items():
            with (
                artifacts.atomic_file(output / name, "wb") as target,
                adapter_weights(each.folder).open("rb") as source,
            ):
                shutil.copyfileobj(source, target)
        record = opened[0].record
        merged = MergedModel(
            path=str(output),
            weights_path=str(output / next(iter(result.weights))) if result.weights else None,
            weights=result.weights,
            dtype=self.dtype,
            tensors=result.tensors,
            merged_tensors=result.merged_tensors,
            adapters=tuple(
                MergedAdapter(path=str(each.folder), digest=each.digest, weight=each.weight) for each in opened
            ),
            adapter_digest=_digest_of(opened),
            base_name=base or (record.base_name if record else checkpoint.name),
            contract=contract,
            gguf=result.gguf,
            proof=result.proof,
            digest=_weights_digest(result),
        )
        return _recorded(merged, checkpoint, {name: each.digest for name, each in copies.items()})

    def _wish(
        self, output: Path, stem: str, checkpoint: BaseCheckpoint, contract: PromptContract | None
    ) -> GGUFWish | None:
        """The GGUF as the packager names it by default, so that it need not be made again."""
        if self.gguf is None:
            return None
        name = stem.replace("_", "-")
        license = checkpoint.license.lower() if checkpoint.license else None
        metadata = {"package": name, **({"prompt_contract": contract.digest} if contract else {})}
        return GGUFWish(output / f"{name}.{self.gguf.upper()}.gguf", self.gguf, name, license, metadata)

    def _finished(self, output: Path, opened: Sequence[_OpenAdapter], checkpoint: BaseCheckpoint) -> MergedModel | None:
        """The merge that stands in `output`, if it is of these inputs; a GGUF that it lacks is made of it."""
        manifest = artifacts.read_manifest(output)
        if manifest is None or STAGE not in manifest.stages:
            return None
        merged = artifacts.parse_record(
            manifest.stages[STAGE], MergedModel, f"{output / artifacts.MANIFEST_NAME}, stage {STAGE}"
        )
        same = merged.adapter_digest == _digest_of(opened) and manifest.inputs.get("base") == checkpoint.digest
        if not same:
            raise ArtifactError(
                f"{output} holds a finished merge of another adapter ({merged.adapter_digest[:19]}).",
                "Name another version folder; nothing is written over a finished one.",
            )
        if self.checkpoint and merged.weights_path is not None and merged.dtype != self.dtype:
            raise ArtifactError(
                f"{output} holds a finished merge in {merged.dtype}.", "Name another version folder for another dtype."
            )
        merged = _moved(merged, output)
        if self.checkpoint and (merged.weights_path is None or not _stands(merged, output)):
            return None  # its weights were deleted or never wanted, so they are made again
        if self.gguf is None or (
            merged.gguf and merged.gguf.quantization == self.gguf and Path(merged.gguf.path).exists()
        ):
            return merged
        if merged.weights_path is None or not _stands(merged, output):
            return None
        wish = self._wish(output, self.version_stem or output.resolve().name, checkpoint, merged.contract)
        assert wish is not None
        made = write_gguf(
            output, wish.path, wish.quantization, name=wish.name, license=wish.license, metadata=wish.metadata
        )
        return _recorded(merged.model_copy(update={"gguf": made}), checkpoint, {})

    @staticmethod
    def _verified(
        merged: MergedModel, opened: Sequence[_OpenAdapter], checkpoint: BaseCheckpoint, data: Path
    ) -> MergedModel:
        parity = measure_merge(checkpoint.path, [(each.folder, each.weight) for each in opened], merged, data)
        return _recorded(merged.model_copy(update={"parity": parity}), checkpoint, {})


class _OpenAdapter:
    """An adapter as it was named: its folder, what the trainer noted of it, and the digest of its weights."""

    def __init__(self, adapter: AdapterLike, weight: float) -> None:
        self.weight = weight
        self.folder = _adapter_folder(adapter)
        path = self.folder / ADAPTER_RECORD
        noted = artifacts.read_record(path, Adapter) if path.exists() else None
        self.record = adapter if isinstance(adapter, Adapter) else noted
        self.weights = adapter_weights(self.folder)
        self.digest = digest_file(self.weights)

    def check(self, base: BaseCheckpoint) -> None:
        """Raise WeightsError where the weights or the base are not those of the training run."""
        if self.record is None:
            return
        if self.record.digest != self.digest:
            raise WeightsError(
                f"{self.folder} was trained to the weights {self.record.digest[:19]}, it holds {self.digest[:19]}.",
                f"Train again, or delete {self.folder / ADAPTER_RECORD} if you changed the adapter on purpose.",
            )
        if self.record.base_digest != base.digest:
            raise WeightsError(
                f"{self.folder} was trained on the base {self.record.base_name} ({self.record.base_digest[:19]}); "
                f"{base.path} has the digest {base.digest[:19]}.",
                "Merge into the very weights that it was trained on: name them with --base.",
            )


def _adapter_folder(adapter: AdapterLike) -> Path:
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


def _base(base: str | None, adapter: _OpenAdapter) -> BaseCheckpoint:
    record, folder = adapter.record, adapter.folder
    name = base or (
        record.base_name if record else read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    )
    if not name:
        raise InputError(
            f"{folder}/adapter_config.json does not name its base model.",
            "Name it: --base NAME, a folder or a hub id.",
        )
    return locate(str(name))


def _contract(opened: Sequence[_OpenAdapter]) -> PromptContract | None:
    """The prompt contract of the adapters. Raises ContractMismatchError where they were trained under several."""
    known = [(each.folder, each.record.contract) for each in opened if each.record and each.record.contract]
    for folder, contract in known[1:]:
        if contract.digest != known[0][1].digest:
            raise ContractMismatchError(
                f"{known[0][0]} was trained under the prompt contract {known[0][1].digest[:19]}, "
                f"{folder} under {contract.digest[:19]}.",
                "Merge adapters that were trained under the same --contract and --prompt.",
            )
    return known[0][1] if known else None


def _digest_of(opened: Sequence[_OpenAdapter]) -> str:
    if len(opened) == 1 and opened[0].weight == 1:
        return opened[0].digest
    return digest_value([[each.digest, each.weight] for each in opened])


def _weights_digest(result: MergeResult) -> str:
    if not result.weights:
        assert result.gguf is not None
        return result.gguf.digest
    return next(iter(result.weights.values())) if len(result.weights) == 1 else digest_value(result.weights)


def _recorded(merged: MergedModel, checkpoint: BaseCheckpoint, copies: dict[str, str]) -> MergedModel:
    output = Path(merged.path)
    files = ("config.json", "tokenizer.json", INDEX_NAME)
    artifacts.record_stage(
        output,
        STAGE,
        merged,
        inputs={"base": checkpoint.digest, "adapter": merged.adapter_digest},
        outputs={
            **merged.weights,
            **copies,
            **({Path(merged.gguf.path).name: merged.gguf.digest} if merged.gguf else {}),
            **{name: digest_file(output / name) for name in files if (output / name).exists()},
        },
        contract=merged.contract,
    )
    return merged


def _moved(merged: MergedModel, output: Path) -> MergedModel:
    """The record with the paths of where its folder lies now."""
    gguf: GGUFFile | None = merged.gguf
    return merged.model_copy(
        update={
            "path": str(output),
            "weights_path": str(output / Path(merged.weights_path).name) if merged.weights_path else None,
            "gguf": gguf and gguf.model_copy(update={"path": str(output / Path(gguf.path).name)}),
        }
    )


def _stands(merged: MergedModel, output: Path) -> bool:
    names = merged.weights or ([Path(merged.weights_path).name] if merged.weights_path else [])
    return bool(names) and all((output / name).exists() for name in names)
