"""The weights of a base with the updates of adapters added, block by block, rounded once to 16 bits.

W' = W + sum of weight_i * scale_i * B_i A_i is formed in float32, in pieces that stay in a processor's cache.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError
from po_distill.weights.block_arithmetic import Floats, HalfDtype, Words, add_product, is_finite, narrow, widen
from po_distill.weights.checkpoint import read_tensor_infos
from po_distill.weights.direct_io import ALIGNMENT_BYTES, Bytes, RangeReader, aligned_buffer
from po_distill.weights.foreign_files import escaped
from po_distill.weights.lora_adapter import AdapterPlan, factors
from po_distill.weights.safetensors_file import FLOAT_DTYPES, TensorFiles, TensorInfo, stored_type
from po_distill.weights.weight_stream import Block, BlockMemory, natural

_PIECE_ELEMENTS = 1 << 19
_LARGEST = {"float16": "65504", "bfloat16": "3.39e38"}
# Buffers of old Llama checkpoints, which transformers computes again and does not load.
_COMPUTED_TENSOR = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")

_OUTPUT_LAYER, _EMBEDDING = re.compile(r"(^|\.)lm_head\."), re.compile(r"(^|\.)embed_tokens\.")


def read_weights(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint folder that a model loads, in the order in which they are streamed.

    The output layer comes last (where it is tied, the embedding): it is the slowest to quantize, and is begun early.
    Raises WeightsError where one is stored in another form than floating point.
    """
    infos = {name: info for name, info in read_tensor_infos(folder).items() if not _COMPUTED_TENSOR.search(name)}
    for info in infos.values():
        if info.dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{info.path}: {escaped(info.name)} is stored as {info.dtype}; weights in floating point are expected.",
                "Give an unquantized checkpoint (FP32, FP16 or BF16).",
            )
    names = sorted(infos, key=natural)
    outputs = [name for name in names if _OUTPUT_LAYER.search(name)] or [
        name for name in names if _EMBEDDING.search(name)
    ]
    return {name: infos[name] for name in [*(name for name in names if name not in outputs), *outputs]}


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter, open, with what it does to the base and how much of it is wanted."""

    folder: Path
    tensors: TensorFiles
    plan: AdapterPlan
    weight: float = 1.0


class SummedWeights:
    """A source of blocks for `written_outputs`; `changed` has the tensors whose rounded values the adapters change.

    Raises WeightsError at a block which holds a value that `dtype` cannot.
    """

    def __init__(self, reader: RangeReader, adapters: Sequence[WeightedAdapter], dtype: HalfDtype) -> None:
        self.changed: set[str] = set()
        self._reader, self._adapters, self._dtype = reader, adapters, dtype
        self._own = threading.local()
        self._factors = lru_cache(maxsize=16)(self._read_factors)

    def fill(self, block: Block, memory: BlockMemory) -> None:
        info = block.source
        stored = self._stored(block)
        words = memory.words[: block.elements].reshape(stored.shape)
        rows = max(1, _PIECE_ELEMENTS // max(1, block.width))
        if not info.shape or len(info.shape) == 1:
            memory.exact = np.empty(block.elements, np.float32)
        for first in range(0, len(stored), rows):
            piece = slice(first, min(first + rows, len(stored)))
            rows_of_tensor = slice(block.start + piece.start, block.start + piece.stop)
            self._fill_piece(info, stored[piece], rows_of_tensor, words[piece])
            if memory.exact is not None:
                memory.exact[piece] = self._own.values[: piece.stop - piece.start]

    def look_for_changes(self, blocks: Sequence[Block]) -> None:
        """Complete `changed` for blocks that an earlier run wrote: each such tensor's, up to the first change."""
        buffer = aligned_buffer(2 * max((block.elements for block in blocks), default=0))
        for block in blocks:
            name = block.source.name
            if name not in self.changed and any(self._touches(adapter, name) for adapter in self._adapters):
                self.fill(block, BlockMemory(buffer, []))

    def _fill_piece(self, info: TensorInfo, stored: npt.NDArray[Any], rows: slice, words: Words) -> None:
        changes = [adapter for adapter in self._adapters if self._touches(adapter, info.name)]
        values, product, spare = self._spare(stored.shape)
        if info.dtype == "F16" and self._dtype == "float16" and not changes and len(info.shape) > 1:
            np.copyto(words, stored.view(np.uint16))
        else:
            widen(stored, info.dtype, values)
            for adapter in changes:
                self._add(adapter, info.name, rows, values, product)
            narrow(values, self._dtype, words)
        if not is_finite(words, self._dtype):
            raise self._refusal(info, stored, values, bool(changes))
        if changes and info.name not in self.changed:
            widen(stored, info.dtype, product)
            narrow(product, self._dtype, spare)
            if not np.array_equal(spare, words):
                self.changed.add(info.name)

    @staticmethod
    def _touches(adapter: WeightedAdapter, name: str) -> bool:
        return name in adapter.plan.updates or name in adapter.plan.replacements

    def _add(self, adapter: WeightedAdapter, name: str, rows: slice, values: Floats, product: Floats) -> None:
        if replacement := adapter.plan.replacements.get(name):
            np.copyto(values, adapter.tensors.float32(replacement, rows).reshape(values.shape))
            return
        left, right = self._factors(adapter.folder, name)
        add_product(left[rows], right, adapter.plan.updates[name].scale * adapter.weight, product, values)

    def _read_factors(self, folder: Path, name: str) -> tuple[Floats, Floats]:
        adapter = next(adapter for adapter in self._adapters if adapter.folder == folder)
        return factors(adapter.plan.updates[name], adapter.tensors)

    def _stored(self, block: Block) -> npt.NDArray[Any]:
        """The block as it is stored, shape (rows, elements of a row), read into memory of this thread."""
        info = block.source
        dtype = np.dtype(stored_type(info.dtype))
        row_bytes = block.width * dtype.itemsize
        begin, end = info.begin + block.start * row_bytes, info.begin + block.stop * row_bytes
        wanted = end - begin + 2 * ALIGNMENT_BYTES
        buffer: Bytes | None = getattr(self._own, "read", None)
        if buffer is None or len(buffer) < wanted:
            self._own.read = buffer = aligned_buffer(wanted)
        data = self._reader.read(info.path, begin, end, buffer)
        if data.ctypes.data % dtype.itemsize:
            data = data.copy()
        return data.view(dtype).reshape(block.stop - block.start, block.width)

    def _spare(self, shape: tuple[int, ...]) -> tuple[Floats, Floats, Words]:
        """Memory of this thread: two times float32 and one time 16 bits, of this shape."""
        elements = math.prod(shape)
        if len(getattr(self._own, "values", ())) < elements:
            self._own.values = np.empty(elements, np.float32)
            self._own.product = np.empty(elements, np.float32)
            self._own.words = np.empty(elements, np.uint16)
        own = self._own
        return (
            own.values[:elements].reshape(shape),
            own.product[:elements].reshape(shape),
            own.words[:elements].reshape(shape),
        )

    def _refusal(self, info: TensorInfo, stored: npt.NDArray[Any], values: Floats, is_changed: bool) -> WeightsError:
        widened = np.empty(stored.shape, np.float32)
        widen(stored, info.dtype, widened)
        largest = float(_LARGEST[self._dtype])
        in_base = not np.isfinite(widened).all() or float(np.abs(widened).max()) > largest
        shown = widened if in_base or not is_changed else values
        what = f"{info.path}: {escaped(info.name)}" + ("" if in_base or not is_changed else " with the adapter")
        if not np.isfinite(shown).all():
            return WeightsError(
                f"{what} holds values that are not finite.", "Download the base again, or train the adapter again."
            )
        return WeightsError(
            f"{what} holds {np.abs(shown).max():g}, beyond {self._dtype}'s {_LARGEST[self._dtype]}.",
            "Such a model cannot be written in FP16; take another base, write bfloat16, "
            "or train with a lower learning rate.",
        )
