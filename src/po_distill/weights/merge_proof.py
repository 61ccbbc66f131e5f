"""A sample of what a merge wrote, computed again by another way: numpy, float64, mapped files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError
from po_distill.records import MergeProof
from po_distill.weights.block_arithmetic import HalfDtype
from po_distill.weights.checkpoint_output import CheckpointOutput
from po_distill.weights.gguf import GGUFOutput
from po_distill.weights.gguf_layout import rotary_rows
from po_distill.weights.gguf_quantization import size_bytes
from po_distill.weights.safetensors_file import TensorFiles, TensorInfo, read_header
from po_distill.weights.summed_weights import WeightedAdapter

_T = TypeVar("_T")

_CHANGED, _UNCHANGED = 8, 4  # tensors of the sample
_ROWS = 16
_FRACTION_BITS = {"float16": 10, "bfloat16": 7}
_LOWEST_EXPONENT = {"float16": -14, "bfloat16": -126}
_SUM_ERROR = 2.0**-20  # what float32 may lose in a sum, as a share of the largest number in it
_FAULT = "The disk or the memory may be at fault: merge again, and report it if it comes back."
# What rounding to a block format may leave, as a share of the largest value of the row.
_ROUNDING = {
    "F32": 0.0,
    "F16": 0.0,
    "Q8_0": 0.51 / 127,
    "Q6_K": 1.5 / 32,
    "Q5_0": 1.01 / 16,
    "Q5_1": 1.01 / 16,
    "Q5_K": 1.5 / 31,
    "Q4_0": 1.01 / 8,
    "Q4_K": 1.5 / 15,
}


def prove_merge(
    infos: Mapping[str, TensorInfo],
    adapters: Sequence[WeightedAdapter],
    changed: Collection[str],
    dtype: HalfDtype,
    checkpoint: CheckpointOutput | None,
    gguf: GGUFOutput | None,
) -> MergeProof:
    """The proof of the outputs as they lie under their partial names. Raises WeightsError where a value is not the sum.

    The same tensors and rows are sampled each time: some that the adapters change and some that they do not.
    """
    names = [
        *_spread([name for name in infos if name in changed], _CHANGED),
        *_spread([name for name in infos if name not in changed], _UNCHANGED),
    ]
    digest = hashlib.sha256()
    values, gguf_values, worst = 0, 0, 0.0
    with TensorFiles(infos, scattered=True) as base, TensorFiles(_written(checkpoint), scattered=True) as written:
        for name in names:
            rows = np.array(_spread(list(range(infos[name].shape[0] if infos[name].shape else 1)), _ROWS), np.intp)
            expected, largest = _expected(name, rows, base, adapters)
            values += expected.size
            if checkpoint is not None:
                stored = written.stored(name).reshape(-1, *infos[name].shape[1:])[rows]
                digest.update(np.ascontiguousarray(stored).tobytes())
                found = written.float32(name).reshape(-1) if not infos[name].shape else written.float32(name, rows)
                worst = max(worst, _check(name, expected, largest, found.reshape(expected.shape), dtype))
            if gguf is not None and name in gguf.placements:
                _check_gguf(name, rows, expected, gguf, dtype)
                gguf_values += expected.size
    return MergeProof(
        adapter_keys=sum(len(adapter.tensors.infos) for adapter in adapters),
        sampled_tensors=tuple(names),
        sampled_values=values,
        largest_error_ulp=round(worst, 4),
        sample_digest=f"sha256:{digest.hexdigest()}" if checkpoint is not None else None,
        gguf_values=gguf_values,
    )


def _spread(items: Sequence[_T], count: int) -> list[_T]:
    """At most so many items, from the first to the last in even steps."""
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]


def _written(checkpoint: CheckpointOutput | None) -> dict[str, TensorInfo]:
    files = checkpoint.files if checkpoint is not None else []
    return {name: info for file in files for name, info in read_header(file.partial).items()}


def _expected(
    name: str, rows: npt.NDArray[np.intp], base: TensorFiles, adapters: Sequence[WeightedAdapter]
) -> tuple[npt.NDArray[np.float64], float]:
    """(some rows of the sum in float64, the largest number that went into it)."""
    info = base.infos[name]
    values = (base.float32(name, rows) if info.shape else base.float32(name).reshape(1)).astype(np.float64)
    largest = float(np.abs(values).max(initial=0.0))
    for adapter in adapters:
        if replacement := adapter.plan.replacements.get(name):
            values = adapter.tensors.float32(replacement)[rows].astype(np.float64)
        elif update := adapter.plan.updates.get(name):
            a, b = (adapter.tensors.float32(key).astype(np.float64) for key in (update.a, update.b))
            added = update.scale * adapter.weight * (a.T[rows] @ b.T if update.transposed else b[rows] @ a)
            largest = max(largest, float(np.abs(added).max(initial=0.0)))
            values += added
    return values, largest


def _check(
    name: str, expected: npt.NDArray[np.float64], largest: float, found: npt.NDArray[np.float32], dtype: HalfDtype
) -> float:
    """The largest distance between found and expected, in steps of the format at the expected value."""
    magnitude = np.log2(np.abs(expected), where=expected != 0, out=np.full(expected.shape, -1e3))
    step = np.exp2(np.maximum(np.floor(magnitude), _LOWEST_EXPONENT[dtype]) - _FRACTION_BITS[dtype])
    error = np.abs(found - expected)
    if np.any(error > 0.5 * step + _SUM_ERROR * largest):
        at = np.unravel_index(int((error / step).argmax()), error.shape)
        raise WeightsError(
            f"The merged {name} holds {found[at]:g} where base and adapter make {expected[at]:g}.", _FAULT
        )
    return float((error / step).max(initial=0.0))


def _check_gguf(
    name: str, rows: npt.NDArray[np.intp], expected: npt.NDArray[np.float64], output: GGUFOutput, dtype: HalfDtype
) -> None:
    """Find sampled rows again in the GGUF."""
    placement = output.placements[name]
    shape = placement.source.shape
    stored = np.argsort(rotary_rows(shape[0], placement.rotary_heads))[rows] if placement.rotary_heads else rows
    row_bytes = size_bytes((1, *shape[1:]), placement.kind)
    with output.files[0].partial.open("rb") as file:
        for row, wanted in zip(stored, np.atleast_1d(expected) + placement.added, strict=True):
            file.seek(output.offsets[name] + int(row) * row_bytes)
            found = _dequantized(file.read(row_bytes), placement.kind)
            allowed = (_ROUNDING[placement.kind] + 2.0 ** -_FRACTION_BITS[dtype]) * np.abs(wanted).max() + 1e-6
            if not np.all(np.abs(found - wanted) <= allowed):
                raise WeightsError(
                    f"The GGUF's {placement.name} does not hold what base and adapter make of {name}.", _FAULT
                )


def _dequantized(data: bytes, kind: str) -> npt.NDArray[np.float64]:
    if kind in ("F32", "F16"):
        return np.frombuffer(data, "<f4" if kind == "F32" else "<f2").astype(np.float64)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values: npt.NDArray[np.float32] = dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType[kind])
    return values.astype(np.float64)
