"""The head of a GGUF file, read and checked without loading the model.

Layout: ggml's docs/gguf.md. A runtime reads a file of unknown origin in C, in our own process; so that
it is whole is established first.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from po_distill.errors import ProviderError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_MOST_ENTRIES = 1 << 24
# ggml type -> (elements, bytes) of a block, for the types in common use.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2),
}  # fmt: skip


def read_metadata(path: Path) -> dict[str, Any]:
    """The key-values of a GGUF file, without its arrays; arrays are given as their lengths.

    Raises ProviderError (fault "refused") where the file is missing, no GGUF, or shorter than its own
    tensor table says.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise _broken(path, "it is too short")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data, path).read()
    except FileNotFoundError as error:
        raise ProviderError(
            f"{path} does not exist.", "Give the path of a GGUF file: po-distill package writes one.", fault="refused"
        ) from error
    except OSError as error:
        raise ProviderError(f"{path} cannot be read: {error.strerror}.", "Check the path.", fault="refused") from error
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise _broken(path, "its header is cut off or damaged") from error


def _broken(path: Path, reason: str) -> ProviderError:
    return ProviderError(
        f"{path} is no whole GGUF file: {reason}.",
        "Copy it again, or delete it and run po-distill package.",
        fault="refused",
    )


class _Cursor:
    """Reads a GGUF header from its beginning to its end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def read(self) -> dict[str, Any]:
        magic, version, tensors, entries = self._take("<4sIQQ")
        if magic != b"GGUF":
            raise _broken(self._path, "it does not begin with GGUF")
        if version not in (2, 3) or max(tensors, entries) > _MOST_ENTRIES:
            raise _broken(
                self._path, f"version {version} with {tensors} tensors and {entries} entries is not read here"
            )
        metadata = {}
        for _ in range(entries):
            key = self._string()
            metadata[key] = self._value(self._take("<I")[0])
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise _broken(self._path, f"its alignment is {alignment!r}")
        self._check_extent(tensors, alignment)
        return metadata

    def _check_extent(self, tensors: int, alignment: int) -> None:
        end = 0
        for _ in range(tensors):
            self._string()
            (dimensions,) = self._take("<I")
            if dimensions > 8:
                raise _broken(self._path, f"a tensor has {dimensions} dimensions")
            elements = 1
            for size in self._take(f"<{dimensions}Q"):
                elements *= size
            kind, offset = self._take("<IQ")
            per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
            end = max(end, offset + elements // per_block * block_bytes)
        start = -(-self._at // alignment) * alignment
        if start + end > len(self._data):
            raise _broken(self._path, f"{len(self._data)} bytes of {start + end} are there")

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if length > len(self._data) - self._at:
            raise _broken(self._path, "its header is cut off or damaged")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise _broken(self._path, f"it holds a value of the unknown type {kind}")
            return self._take("<" + _SCALARS[kind])[0]
        item, length = self._take("<IQ")
        if length > len(self._data) or item == _ARRAY:
            raise _broken(self._path, "its header is cut off or damaged")
        if item in _SCALARS:
            self._at += struct.calcsize("<" + _SCALARS[item]) * length
        else:
            for _ in range(length):
                self._value(item)
        return length
