"""A model as one GGUF file, quantized block by block while its weights stream by.

Format: ggml's docs/gguf.md. The `gguf` package writes header and key-values; the tensors' data follows
here in the order in which they were declared.
"""

from __future__ import annotations

import gc
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError
from po_distill.records import GGUFFile, Quantization
from po_distill.weights.block_arithmetic import HalfDtype, is_finite, narrow, widen
from po_distill.weights.checkpoint import read_config
from po_distill.weights.direct_io import Bytes, RangeReader
from po_distill.weights.gguf_header import ALIGNMENT_BYTES, window_note, write_header
from po_distill.weights.gguf_layout import architecture_of
from po_distill.weights.gguf_placement import Placement, place_tensors
from po_distill.weights.gguf_quantization import quantize_into, size_bytes, slower_ways
from po_distill.weights.gguf_tokenizer import read_tokenizer
from po_distill.weights.half_precision import to_float16
from po_distill.weights.partial_files import OutputFile
from po_distill.weights.safetensors_file import TensorInfo
from po_distill.weights.summed_weights import SummedWeights, read_weights
from po_distill.weights.weight_stream import Block, BlockMemory, Written, cut_blocks, written_outputs

_PIECE_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class GGUFWish:
    """What is wanted of a GGUF: where it goes, how it is rounded and what it says of itself."""

    path: Path
    quantization: Quantization
    name: str | None = None  # general.name; by default that of the checkpoint's folder
    license: str | None = None
    metadata: Mapping[str, str] | None = None  # written as po_distill.<key>


def write_gguf(
    checkpoint: Path,
    path: Path,
    quantization: Quantization,
    *,
    name: str | None = None,
    license: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> GGUFFile:
    """Write a checkpoint folder of a known family as a GGUF file.

    `name` and `license` go into the general metadata, `metadata` beside it as `po_distill.<key>`. Raises
    WeightsError where the architecture, the tokenizer or a tensor cannot be written so that llama.cpp
    computes what transformers does.
    """
    wish = GGUFWish(path, quantization, name, license, metadata)
    infos = read_weights(checkpoint)
    output = GGUFOutput(checkpoint, infos, wish)
    with RangeReader() as reader:
        source = SummedWeights(reader, [], "float16")
        stamps = {info.path.name: info.path.stat().st_mtime_ns for info in infos.values()}
        with written_outputs(
            "Writing the GGUF", output.blocks(list(infos.values())), source, [output], stamps
        ) as written:
            pass
    return output.record(written)


class GGUFOutput:
    """A GGUF among the outputs of a stream over `infos`, the tensors of a checkpoint folder in their order.

    `rounds_vectors` says that vectors pass through 16 bits too, as those of a merged checkpoint do; `dtype` is
    that of the words that the source gives. Raises WeightsError as `write_gguf`.
    """

    def __init__(
        self,
        checkpoint: Path,
        infos: Mapping[str, TensorInfo],
        wish: GGUFWish,
        *,
        rounds_vectors: bool = False,
        dtype: HalfDtype = "float16",
    ) -> None:
        config = read_config(checkpoint)
        self._architecture = architecture_of(config, str(checkpoint))
        if config.get("quantization_config"):
            raise WeightsError(f"{checkpoint} is quantized already.", "Give the FP16 checkpoint.")
        order = {name: number for number, name in enumerate(infos)}
        placements = place_tensors(infos, config, self._architecture, wish.quantization, checkpoint)
        computed = [placement for placement in placements if placement.values is not None]
        streamed = [placement for placement in placements if placement.values is None]
        streamed.sort(key=lambda placement: order[placement.source.name])
        self.placements = {placement.source.name: placement for placement in streamed}  # by the source's name
        self._kinds = Counter(placement.kind for placement in placements)
        self._wish, self._rounds_vectors, self._dtype = wish, rounds_vectors, dtype
        head = io.BytesIO()
        with _no_collections():
            tokenizer = read_tokenizer(checkpoint, config)
            general = {"general.name": wish.name or checkpoint.resolve().name, "general.license": wish.license}
            extra = {f"po_distill.{key}": value for key, value in (wish.metadata or {}).items()}
            every, strings = [*computed, *streamed], {**general, **extra}
            write_header(head, config, self._architecture, wish.quantization, tokenizer, every, strings)
        self._notes = (
            *tokenizer.notes,
            *slower_ways(wish.quantization),
            *window_note(config),
        )
        for placement in computed:  # tensors of a few numbers, which stand before those that are streamed
            data = np.array(placement.values, "<f4").tobytes()
            head.write(data + b"\0" * (-len(data) % ALIGNMENT_BYTES))
        end = len(head.getvalue())
        self.offsets: dict[str, int] = {}  # where in the file a tensor of the source begins
        for placement in streamed:
            self.offsets[placement.source.name] = end
            size = size_bytes(placement.source.shape, placement.kind)
            end += size + -size % ALIGNMENT_BYTES
        self.files: Sequence[OutputFile] = [OutputFile(wish.path, head.getvalue(), end)]

    def blocks(self, infos: Sequence[TensorInfo]) -> list[Block]:
        """Tensors in blocks that hold whole heads where rows change their order."""
        blocks: list[Block] = []
        for info in infos:
            placement = self.placements.get(info.name)
            heads = placement.rotary_heads if placement else None
            blocks += cut_blocks(info, info.shape[0] // heads if heads else 1)
        return blocks

    def record(self, written: Written) -> GGUFFile:
        """The file, once it is written."""
        return GGUFFile(
            path=str(self._wish.path),
            quantization=self._wish.quantization,
            architecture=self._architecture,
            size_bytes=self.files[0].size_bytes,
            tensors=dict(sorted(self._kinds.items())),
            notes=self._notes,
            digest=written.digests[self._wish.path],
        )

    # --- as an Output ---------------------------------------------------------------------------

    @property
    def gives_words(self) -> bool:
        return False

    def place(self, block: Block) -> tuple[int, int, int] | None:
        placement = self.placements.get(block.source.name)
        if placement is None:
            return None
        whole = size_bytes(block.source.shape, placement.kind)
        return 0, _size(block, placement), (-whole % ALIGNMENT_BYTES) if block.is_last else 0

    def is_slow(self, block: Block) -> bool:
        placement = self.placements.get(block.source.name)
        return placement is not None and placement.kind == "Q6_K"

    def most_bytes(self, block: Block) -> int:
        """Room for the block, twice where its rows change their order, and for a piece of it in float32."""
        placement = self.placements.get(block.source.name)
        if placement is None:
            return 0
        size = -(-_size(block, placement) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return 2 * size + 6 * min(block.elements, max(_PIECE_ELEMENTS, block.width)) + 64

    def encode(self, block: Block, memory: BlockMemory, own: Bytes) -> Bytes:
        placement = self.placements[block.source.name]
        size = _size(block, placement)
        room = -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        target, other, spare = own[:size], own[room : room + size], own[2 * room :]
        if memory.exact is not None:
            self._encode_vector(memory, target, block, placement)
        else:
            self._encode_rows(memory, target, spare, block, placement)
        return _reordered(target, other, block, placement.rotary_heads) if placement.rotary_heads else target

    def _encode_vector(self, memory: BlockMemory, target: Bytes, block: Block, placement: Placement) -> None:
        assert memory.exact is not None and placement.kind == "F32", placement.name
        values = target.view(np.float32)
        np.copyto(values, memory.exact)
        if self._rounds_vectors:
            widen(memory.words[: block.elements], "BF16" if self._dtype == "bfloat16" else "F16", values)
        if placement.added:
            values += np.float32(placement.added)
            if self._dtype == "float16" and (self._rounds_vectors or block.source.dtype == "F16"):
                values[:] = to_float16(values)  # llama.cpp's converter adds in the dtype of the checkpoint

    def _encode_rows(
        self, memory: BlockMemory, target: Bytes, spare: Bytes, block: Block, placement: Placement
    ) -> None:
        words = memory.words[: block.elements].reshape(-1, block.width)
        rows = min(len(words), max(1, _PIECE_ELEMENTS // block.width))
        row_bytes = len(target) // len(words)
        values = spare[: 4 * rows * block.width].view(np.float32)
        halves = spare[4 * rows * block.width :].view(np.uint16)
        for first in range(0, len(words), rows):
            piece = words[first : first + rows]
            out = target[first * row_bytes : (first + len(piece)) * row_bytes]
            wide = values[: piece.size].reshape(piece.shape)
            if self._dtype == "bfloat16":
                piece = self._in_float16(piece, wide, halves[: piece.size].reshape(piece.shape), block)
            if placement.kind == "F16":
                np.copyto(out.view(np.uint16).reshape(piece.shape), piece)
                continue
            widen(piece.view(np.float16), "F16", wide)
            quantize_into(wide, placement.kind, out)

    @staticmethod
    def _in_float16(
        piece: npt.NDArray[np.uint16], wide: npt.NDArray[np.float32], halves: npt.NDArray[np.uint16], block: Block
    ) -> npt.NDArray[np.uint16]:
        widen(piece, "BF16", wide)
        narrow(wide, "float16", halves)
        if not is_finite(halves, "float16"):
            raise WeightsError(
                f"{block.source.path}: {block.source.name} holds {np.abs(wide).max():g}, beyond float16's 65504.",
                "Such a model cannot be written as a GGUF here; look at how it was trained.",
            )
        return halves


@contextmanager
def _no_collections() -> Iterator[None]:
    """Let Python's collector rest: a vocabulary is many small objects, of which it would only count again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _size(block: Block, placement: Placement) -> int:
    shape = (block.stop - block.start, *block.source.shape[1:]) if block.source.shape else ()
    return size_bytes(shape, placement.kind)


def _reordered(rows: Bytes, other: Bytes, block: Block, heads: int) -> Bytes:
    """The rows in the order of a GGUF of arch llama: within a head, the two halves by turns (see gguf_layout)."""
    head_rows = block.source.shape[0] // heads
    row_bytes = len(rows) // (block.stop - block.start)
    halves = rows.reshape(-1, 2, head_rows // 2, row_bytes)
    np.copyto(other.reshape(-1, head_rows // 2, 2, row_bytes), halves.swapaxes(1, 2))
    return other
