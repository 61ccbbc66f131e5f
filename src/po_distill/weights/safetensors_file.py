"""safetensors files read and written tensor by tensor, in constant memory.

Layout (huggingface/safetensors, README "Format"): 8 bytes little-endian length of the header, the
header as JSON {name: {dtype, shape, data_offsets}}, then the tensors' bytes, C order, little-endian.
The package itself only writes whole dictionaries of tensors; the writer here knows every offset
from the shapes, writes the header first and then takes the tensors one after the other.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError
from po_distill.weights.foreign_files import escaped
from po_distill.weights.safetensors_header import HeaderEntry, read_safetensors_header, unreadable

_ALIGNMENT_BYTES = 8
_DTYPES: dict[str, tuple[str, int]] = {  # safetensors name -> numpy type of the stored words, bytes
    "F64": ("<f8", 8),
    "F32": ("<f4", 4),
    "F16": ("<f2", 2),
    "BF16": ("<u2", 2),
    "I64": ("<i8", 8),
    "I32": ("<i4", 4),
    "I16": ("<i2", 2),
    "I8": ("i1", 1),
    "U8": ("u1", 1),
    "BOOL": ("?", 1),
}
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its header describes it; `begin` and `end` are bytes from the file's start."""

    name: str
    dtype: str  # in safetensors' words: F32, F16, BF16
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, by name, checked against the file's size.

    Raises WeightsError where the file is missing, truncated or no safetensors file, and where a tensor has a dtype
    that numpy does not have (the 8-bit floats F8_E4M3 and the like).
    """
    return {name: _tensor_info(entry) for name, entry in read_safetensors_header(path).entries.items()}


def _tensor_info(entry: HeaderEntry) -> TensorInfo:
    if entry.dtype not in _DTYPES:
        raise unreadable(entry.path, f"{escaped(entry.name)} has the dtype {entry.dtype}, which is not read here")
    return TensorInfo(entry.name, entry.dtype, entry.shape, entry.path, entry.begin, entry.end)


class TensorFiles:
    """The tensors of several safetensors files under one roof, mapped into memory and read as numpy.

    `infos` maps each tensor's name to where it lies. `scattered` says that few rows of each are wanted: the system then
    reads nothing around them. Use as a context manager: leaving it unmaps.
    """

    def __init__(self, infos: Mapping[str, TensorInfo], *, scattered: bool = False) -> None:
        self.infos = dict(infos)
        self._scattered = scattered
        self._maps: dict[Path, mmap.mmap] = {}

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files. Arrays that still look into one keep it alive until they go."""
        for mapped in self._maps.values():
            try:
                mapped.close()
            except BufferError:
                continue
        self._maps.clear()

    def stored(self, name: str) -> npt.NDArray[Any]:
        """A tensor as it is stored, without a copy; BF16 comes as its 16-bit words."""
        info = self.infos[name]
        mapped = self._maps.get(info.path)
        if mapped is None:
            with info.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if self._scattered and hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)
            self._maps[info.path] = mapped
        dtype = np.dtype(_DTYPES[info.dtype][0])
        flat = np.frombuffer(mapped, dtype=dtype, count=info.elements, offset=info.begin)
        return flat.reshape(info.shape)

    def float32(self, name: str, rows: slice | npt.NDArray[np.intp] = slice(None)) -> npt.NDArray[np.float32]:
        """A tensor, or some of its rows, in float32. Raises WeightsError where it holds no floats."""
        info = self.infos[name]
        if info.dtype not in FLOAT_DTYPES:
            raise WeightsError(
                f"{info.path}: {name} is stored as {info.dtype}; weights in floating point are expected.",
                "Give an unquantized checkpoint (FP32, FP16 or BF16).",
            )
        stored = self.stored(name)[rows] if info.shape else self.stored(name)
        if info.dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)


def stored_type(dtype: str) -> str:
    """numpy's word for how a dtype of safetensors is stored; BF16 is read as 16-bit words."""
    return _DTYPES[dtype][0]


def header_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: str, metadata: Mapping[str, str] | None = None) -> bytes:
    """All that stands before the first tensor of a file with these tensors, in this order and all of one dtype."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * _DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes one safetensors file, the header first and then each tensor's bytes in the order given.

    `shapes` maps each name to its shape; all tensors have the dtype `dtype` (F16 by default).
    """

    def __init__(
        self,
        file: IO[bytes],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str = "F16",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._file = file
        self._pending: Iterator[tuple[str, int]]
        self._left = 0
        file.write(header_bytes(shapes, dtype, metadata))
        sizes = [(name, math.prod(shape) * _DTYPES[dtype][1]) for name, shape in shapes.items()]
        self._pending = iter(sizes)
        self.total_bytes = sum(size for _, size in sizes)

    def begin(self, name: str) -> None:
        """Start on a tensor: it must be the next of the header, and the last one must be whole."""
        expected, size = next(self._pending)
        assert expected == name and self._left == 0, f"{name} written where {expected} was due"
        self._left = size

    def write(self, data: npt.NDArray[Any]) -> None:
        """The next rows of the tensor begun last."""
        piece = np.ascontiguousarray(data)
        self._left -= piece.nbytes
        assert self._left >= 0, "more bytes than the tensor's shape holds"
        self._file.write(piece.data)

    def finish(self) -> None:
        """Check that every tensor of the header was written whole."""
        assert self._left == 0 and next(self._pending, None) is None, "a tensor was not written"
