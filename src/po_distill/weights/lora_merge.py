"""Base and adapters as one checkpoint of 16 bits, as a GGUF, or as both, in one pass over the weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill import artifacts
from po_distill.errors import WeightsError
from po_distill.records import GGUFFile, MergeProof
from po_distill.weights.block_arithmetic import HalfDtype
from po_distill.weights.checkpoint import TOKENIZER_FILES, read_config
from po_distill.weights.checkpoint_output import CheckpointOutput
from po_distill.weights.direct_io import RangeReader
from po_distill.weights.gguf import GGUFOutput, GGUFWish
from po_distill.weights.lora_adapter import adapter_weights, plan_merge, read_adapter
from po_distill.weights.merge_proof import prove_merge
from po_distill.weights.safetensors_file import TensorFiles, TensorInfo
from po_distill.weights.summed_weights import SummedWeights, WeightedAdapter, read_weights
from po_distill.weights.weight_stream import Block, Output, cut_blocks, written_outputs

INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote."""

    tensors: int  # tensors of the model
    merged_tensors: int  # tensors whose values the adapters changed
    parameters: int
    size_bytes: int  # of the checkpoint's tensors
    weights: dict[str, str]  # the checkpoint's weight files -> their digests, sha256:<hex>
    gguf: GGUFFile | None
    proof: MergeProof
    resumed: bool  # whether an earlier run's part was gone on with


def merge_lora(
    base: Path,
    adapters: Path | Sequence[tuple[Path, float]],
    weights_path: Path | None,
    folder: Path | None = None,
    *,
    dtype: HalfDtype = "float16",
    most_shard_bytes: int | None = None,
    gguf: GGUFWish | None = None,
) -> MergeResult:
    """Merge adapter folders, each with its weight, into a base folder.

    The weights go to `weights_path`, or to numbered shards of that name where they take more than `most_shard_bytes`;
    into `folder`, by default theirs, go config.json, the tokenizer and an index of the tensors, so that transformers
    loads it. The GGUF goes where its wish says. Raises WeightsError where base and adapters cannot be merged exactly,
    where a weight does not fit `dtype`, and where the adapters change nothing; ArtifactError where the files cannot be
    written.
    """
    config = read_config(base)
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise WeightsError(
            f"{base} is quantized ({method or 'unknown method'}).",
            "Merge into the unquantized base (FP32, FP16 or BF16).",
        )
    infos = read_weights(base)
    wanted = [(adapters, 1.0)] if isinstance(adapters, Path) else list(adapters)
    with _opened(wanted, infos, config) as opened, RangeReader() as reader:
        tensors = list(infos.values())
        checkpoint = CheckpointOutput(weights_path, tensors, dtype, most_shard_bytes) if weights_path else None
        gguf_output = GGUFOutput(base, infos, gguf, rounds_vectors=True, dtype=dtype) if gguf else None
        outputs: list[Output] = [output for output in (checkpoint, gguf_output) if output is not None]
        source = SummedWeights(reader, opened, dtype)
        blocks = gguf_output.blocks(tensors) if gguf_output else _blocks(infos)
        with written_outputs("Merging", blocks, source, outputs, _key(infos, wanted, dtype)) as written:
            source.look_for_changes(blocks[: written.resumed_blocks])
            if not source.changed:
                raise WeightsError(
                    f"The adapter {' with '.join(str(folder) for folder, _ in wanted)} changes no weight of the base.",
                    "Train it first: the B matrices of a new adapter are zero.",
                )
            proof = prove_merge(infos, opened, source.changed, dtype, checkpoint, gguf_output)
    beside = folder or (weights_path or (gguf.path if gguf else base)).parent
    _write_companions(base, config, beside, checkpoint, dtype)
    return MergeResult(
        tensors=len(infos),
        merged_tensors=len(source.changed),
        parameters=sum(info.elements for info in infos.values()),
        size_bytes=sum(2 * info.elements for info in infos.values()),
        weights={file.path.name: written.digests[file.path] for file in checkpoint.files} if checkpoint else {},
        gguf=gguf_output.record(written) if gguf_output else None,
        proof=proof,
        resumed=written.resumed_blocks > 0,
    )


@contextmanager
def _opened(
    adapters: Sequence[tuple[Path, float]], infos: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Iterator[list[WeightedAdapter]]:
    """The adapters, matched to the base. Raises WeightsError where one does not fit, or two do not fit together."""
    with ExitStack() as stack:
        base = stack.enter_context(TensorFiles(infos))
        opened: list[WeightedAdapter] = []
        for folder, weight in adapters:
            if not math.isfinite(weight) or weight == 0:
                raise WeightsError(f"The adapter {folder} has the weight {weight:g}.", "Give a weight that is not 0.")
            if any(folder.resolve() == other.folder.resolve() for other in opened):
                raise WeightsError(f"The adapter {folder} is named twice.", "Name each once, with its whole weight.")
            tensors = stack.enter_context(read_adapter(folder))
            opened.append(WeightedAdapter(folder, tensors, plan_merge(folder, tensors, base, config), weight))
        for adapter in opened:
            _check_replacements(adapter, opened)
        yield opened


def _check_replacements(adapter: WeightedAdapter, opened: Sequence[WeightedAdapter]) -> None:
    """A whole tensor of modules_to_save takes the base's place; there is no part of it, and no second one."""
    for name in adapter.plan.replacements:
        others = [
            other.folder
            for other in opened
            if other is not adapter and name in {*other.plan.updates, *other.plan.replacements}
        ]
        if others or adapter.weight != 1:
            why = f"and {others[0]} changes it too" if others else f"which has the weight {adapter.weight:g}"
            raise WeightsError(
                f"{adapter.folder} replaces {name} as a whole (modules_to_save), {why}.",
                "Merge that adapter alone and with the weight 1, or train it without modules_to_save.",
            )


def _blocks(infos: Mapping[str, TensorInfo]) -> list[Block]:
    return [block for info in infos.values() for block in cut_blocks(info)]


def _key(
    infos: Mapping[str, TensorInfo], adapters: Sequence[tuple[Path, float]], dtype: HalfDtype
) -> dict[str, object]:
    """What a merge is made of, by which a killed one knows itself again."""
    files = sorted({info.path for info in infos.values()})
    return {
        "base": {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in files},
        "adapters": [
            [*map(artifacts.digest_file, (adapter_weights(folder), folder / "adapter_config.json")), weight]
            for folder, weight in adapters
        ],
        "dtype": dtype,
    }


def _write_companions(
    base: Path, config: dict[str, Any], folder: Path, checkpoint: CheckpointOutput | None, dtype: HalfDtype
) -> None:
    merged = {key: value for key, value in config.items() if key not in ("torch_dtype", "_name_or_path")}
    artifacts.write_json(folder / "config.json", {**merged, "dtype": dtype})
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (base / name).is_file():
            with artifacts.atomic_file(folder / name, "wb") as target, (base / name).open("rb") as source:
                shutil.copyfileobj(source, target)
    if checkpoint is None:
        return
    size = sum(file.size_bytes - len(file.header) for file in checkpoint.files)
    artifacts.write_json(folder / INDEX_NAME, {"metadata": {"total_size": size}, "weight_map": checkpoint.weight_map})
