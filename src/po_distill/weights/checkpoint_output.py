"""Weights in 16 bits as safetensors: one file, or shards of a given size, as transformers reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from po_distill.weights.block_arithmetic import HalfDtype
from po_distill.weights.direct_io import Bytes
from po_distill.weights.partial_files import OutputFile
from po_distill.weights.safetensors_file import TensorInfo, header_bytes
from po_distill.weights.weight_stream import Block, BlockMemory

_NAMES = {"float16": "F16", "bfloat16": "BF16"}
_WIDTH = 2


class CheckpointOutput:
    """Tensors in their order as `path`; where they take more than `most_shard_bytes`, as numbered shards beside it."""

    def __init__(
        self, path: Path, tensors: Sequence[TensorInfo], dtype: HalfDtype, most_shard_bytes: int | None = None
    ) -> None:
        shards = _shards(tensors, most_shard_bytes)
        self._file_of = {info.name: number for number, shard in enumerate(shards) for info in shard}
        self.files: Sequence[OutputFile] = [
            _file(_shard_path(path, number, len(shards)), shard, dtype) for number, shard in enumerate(shards)
        ]

    @property
    def weight_map(self) -> dict[str, str]:
        """The name of each tensor's file."""
        return {name: self.files[number].path.name for name, number in sorted(self._file_of.items())}

    @property
    def gives_words(self) -> bool:
        return True

    def place(self, block: Block) -> tuple[int, int, int]:
        return self._file_of[block.source.name], _WIDTH * block.elements, 0

    def is_slow(self, block: Block) -> bool:
        return False

    def most_bytes(self, block: Block) -> int:
        return 0

    def encode(self, block: Block, memory: BlockMemory, own: Bytes) -> Bytes:
        return memory.words[: block.elements].view(np.uint8)


def _shards(tensors: Sequence[TensorInfo], most_bytes: int | None) -> list[list[TensorInfo]]:
    shards: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        if most_bytes is not None and shards[-1] and size + _WIDTH * info.elements > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(info)
        size += _WIDTH * info.elements
    return shards


def _shard_path(path: Path, number: int, count: int) -> Path:
    return path if count == 1 else path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.safetensors")


def _file(path: Path, tensors: Sequence[TensorInfo], dtype: HalfDtype) -> OutputFile:
    header = header_bytes({info.name: info.shape for info in tensors}, _NAMES[dtype])
    return OutputFile(path, header, len(header) + sum(_WIDTH * info.elements for info in tensors))
