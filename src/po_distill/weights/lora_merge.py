"""Base and adapter as one FP16 checkpoint: W + scale * B A, tensor by tensor, in bounded memory.

The sum is formed in float32 and rounded to float16 once. A model of 7 billion weights passes through
in pieces of a few megabytes; only the adapter is held whole.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from po_distill import artifacts
from po_distill.errors import WeightsError
from po_distill.progress import progress
from po_distill.weights.checkpoint import TOKENIZER_FILES, read_config, read_tensor_infos
from po_distill.weights.half_precision import all_finite, to_float16
from po_distill.weights.lora_adapter import AdapterPlan, delta, plan_merge, read_adapter
from po_distill.weights.safetensors_file import SafetensorsWriter, TensorFiles

_PIECE_ELEMENTS = 1 << 20
INDEX_NAME = "model.safetensors.index.json"
# Buffers of old Llama checkpoints, which transformers computes again and does not load.
COMPUTED_TENSOR = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


@dataclass(frozen=True)
class MergeResult:
    """What a merge wrote."""

    tensors: int  # tensors in the file
    merged_tensors: int  # tensors whose values the adapter changed
    parameters: int
    size_bytes: int


def merge_lora(base: Path, adapter: Path, weights_path: Path) -> MergeResult:
    """Merge an adapter folder into a base folder; the weights go to `weights_path`, the rest beside it.

    Beside the weights stand config.json, the tokenizer and an index that maps every tensor to
    `weights_path`, so that transformers loads the folder. Raises WeightsError where base or adapter cannot
    be merged exactly, where a weight does not fit float16, and where the adapter changes nothing.
    """
    config = read_config(base)
    if config.get("quantization_config"):
        raise WeightsError(
            f"{base} is quantized ({config['quantization_config'].get('quant_method', 'unknown method')}).",
            "Merge into the unquantized base (FP32, FP16 or BF16).",
        )
    infos = {name: info for name, info in read_tensor_infos(base).items() if not COMPUTED_TENSOR.search(name)}
    with TensorFiles(infos) as weights, read_adapter(adapter) as updates:
        plan = plan_merge(adapter, updates, weights, config)
        result = _write_weights(weights, updates, plan, weights_path, adapter)
    _write_companions(base, config, weights_path, infos.keys(), result.size_bytes)
    return result


def _write_weights(
    weights: TensorFiles, updates: TensorFiles, plan: AdapterPlan, path: Path, adapter: Path
) -> MergeResult:
    shapes = {name: info.shape for name, info in sorted(weights.infos.items())}
    parameters = sum(info.elements for info in weights.infos.values())
    changed = 0
    with (
        artifacts.atomic_file(path, "wb") as file,
        progress("Merging", total=round(parameters / 1e6), unit="million weights") as advance,
    ):
        writer = SafetensorsWriter(file, shapes)
        for name in shapes:
            writer.begin(name)
            changed += _write_tensor(name, weights, updates, plan, writer)
            weights.release(name)
            advance(weights.infos[name].elements / 1e6)
        writer.finish()
        if not changed:
            raise WeightsError(
                f"The adapter {adapter} changes no weight of the base.",
                "Train it first: the B matrices of a new adapter are zero.",
            )
    return MergeResult(len(shapes), changed, parameters, writer.total_bytes)


def _write_tensor(
    name: str, weights: TensorFiles, updates: TensorFiles, plan: AdapterPlan, writer: SafetensorsWriter
) -> bool:
    """Write one tensor in pieces of rows; whether the adapter changed it."""
    info = weights.infos[name]
    update = plan.updates.get(name)
    replacement = plan.replacements.get(name)
    left, right = delta(update, updates) if update else (None, None)
    changed = False
    for rows in _pieces(info.shape):
        values = weights.float32(name, rows)
        before = _rounded(name, values, info.path)
        after = before
        if left is not None and right is not None:
            after = _rounded(f"{name} with the adapter", values + left[rows] @ right, info.path)
        elif replacement:
            after = _rounded(f"{name} of the adapter", updates.float32(replacement, rows), info.path)
        changed = changed or (after is not before and not np.array_equal(before.view(np.uint16), after.view(np.uint16)))
        writer.write(after)
    return changed


def _rounded(name: str, values: npt.NDArray[np.float32], path: Path) -> npt.NDArray[np.float16]:
    rounded = to_float16(values)
    if all_finite(rounded):
        return rounded
    if np.isfinite(values).all():
        reason = f"holds {np.abs(values).max():g}, beyond float16's 65504"
        fix = "Such a model cannot be merged into FP16; take another base, or train with a lower learning rate."
    else:
        reason, fix = "holds values that are not finite", "Download the base again, or train the adapter again."
    raise WeightsError(f"{path}: {name} {reason}.", fix)


def _pieces(shape: tuple[int, ...]) -> list[slice]:
    if not shape:
        return [slice(None)]
    width = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    step = max(1, _PIECE_ELEMENTS // width)
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _write_companions(base: Path, config: dict[str, Any], weights_path: Path, names: Any, size: int) -> None:
    folder = weights_path.parent
    merged = {key: value for key, value in config.items() if key not in ("torch_dtype", "_name_or_path")}
    artifacts.write_json(folder / "config.json", {**merged, "dtype": "float16"})
    for name in ("generation_config.json", *TOKENIZER_FILES):
        if (base / name).is_file():
            with artifacts.atomic_file(folder / name, "wb") as target, (base / name).open("rb") as source:
                shutil.copyfileobj(source, target)
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(names), weights_path.name)}
    artifacts.write_json(folder / INDEX_NAME, index)
