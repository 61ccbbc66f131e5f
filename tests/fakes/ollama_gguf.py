"""What the fake of Ollama reads of a GGUF, and how it writes it anew (layout: ggml's docs/gguf.md)."""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_QUANTIZATION_VERSION = 2
_PIECE_BYTES = 1 << 20
_MOST_ENTRIES = 1 << 24
# ggml type -> (elements, bytes) of a block; a type that is not here has no known extent
_BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
           11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2)}  # fmt: skip
_FILE_TYPE_OF_TENSORS = {0: 0, 1: 1, 2: 2, 3: 3, 6: 8, 7: 9, 8: 7, 12: 15, 13: 17, 14: 18, 30: 32}
_FILE_TYPES = {1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 14: "Q4_K_S",
               15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16"}  # fmt: skip


class NotGGUFError(Exception):
    """The file does not begin as a GGUF does."""


class BrokenGGUFError(Exception):
    """The file begins as a GGUF and is none to its end."""


@dataclass
class GGUFHead:
    """A GGUF without its tensors' data. `entries` are the key-values as bytes, by name and in order."""

    version: int
    metadata: dict[str, Any] = field(default_factory=dict)  # arrays are None, as where Ollama shows a model
    entries: list[tuple[str, bytes]] = field(default_factory=list)
    tensor_table: bytes = b""
    tensor_kinds: list[int] = field(default_factory=list)
    tensors: dict[str, tuple[list[int], int, int]] = field(default_factory=dict)  # name -> shape, ggml type, offset
    data_start: int = 0
    alignment: int = 32

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture") or "unknown")

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(shape) for shape, _, _ in self.tensors.values())

    @property
    def file_type(self) -> str:
        """As Ollama names it: it cannot tell F32, type 0, from a file that does not say."""
        return _FILE_TYPES.get(self.metadata.get("general.file_type", 0), "unknown")

    @property
    def context_tokens(self) -> int:
        """The context that the model was trained for, 0 where it does not say."""
        return int(self.metadata.get(f"{self.architecture}.context_length") or 0)

    @property
    def chat_template(self) -> str:
        return str(self.metadata.get("tokenizer.chat_template") or "")

    def data_end(self) -> int:
        """The place in the file where the last tensor ends."""
        ends = [offset + math.prod(shape) // _BLOCKS[kind][0] * _BLOCKS[kind][1]
                for shape, kind, offset in self.tensors.values() if kind in _BLOCKS]  # fmt: skip
        return self.data_start + max(ends, default=0)


def begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_head(path: Path) -> GGUFHead:
    """The head of a GGUF. Raises NotGGUFError, BrokenGGUFError."""
    if not begins_as_gguf(path):
        raise NotGGUFError
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).read()
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, ValueError) as error:
        raise BrokenGGUFError("unexpected EOF") from error


def rewritten(path: Path, head: GGUFHead, report: Callable[[int, int], None]) -> Iterator[bytes]:
    """The pieces of the file as `llama-quantize COPY` writes it, which Ollama runs on each GGUF of a user.

    Two entries are set anew, and so move behind all others: general.quantization_version and general.file_type.
    The digest changes; tensors and all other entries do not. `report` is told (bytes done, bytes in all). Raises
    BrokenGGUFError where the data is cut off.
    """
    size = path.stat().st_size
    if size < head.data_end() or "general.architecture" not in head.metadata:
        raise BrokenGGUFError("exit status 1")  # llama-quantize says more, but to the server's log
    most = Counter(head.tensor_kinds).most_common(1)
    kind = head.metadata.get("general.file_type", _FILE_TYPE_OF_TENSORS.get(most[0][0] if most else 0, 0))
    anew = {"general.quantization_version": _QUANTIZATION_VERSION, "general.file_type": kind}
    entries = [data for name, data in head.entries if name not in anew]
    entries += [_text(name) + struct.pack("<II", _UINT32, value) for name, value in anew.items()]
    top = struct.pack("<4sIQQ", b"GGUF", head.version, len(head.tensors), len(entries))
    top += b"".join(entries) + head.tensor_table
    yield top + b"\0" * (-len(top) % head.alignment)
    done = 0
    with path.open("rb") as file:
        file.seek(head.data_start)
        while piece := file.read(_PIECE_BYTES):
            yield piece
            done += len(piece)
            report(done, size - head.data_start)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


class _Cursor:
    """Reads a GGUF from its beginning to its tensors' data."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> GGUFHead:
        _, version, tensors, entries = self._take("<4sIQQ")
        if version not in (2, 3) or max(tensors, entries) > _MOST_ENTRIES:
            raise BrokenGGUFError(f"unsupported version: {version}")
        head = GGUFHead(version)
        for _ in range(entries):
            start = self._at
            key = self._string()
            head.metadata[key] = self._value(self._take("<I")[0])
            head.entries.append((key, self._data[start : self._at]))
        head.alignment = int(head.metadata.get("general.alignment") or 32)
        start = self._at
        for _ in range(tensors):
            name = self._string()
            (dimensions,) = self._take("<I")
            shape = list(self._take(f"<{dimensions}Q"))
            kind, offset = self._take("<IQ")
            head.tensors[name] = (shape, kind, offset)
            head.tensor_kinds.append(kind)
        head.tensor_table = self._data[start : self._at]
        head.data_start = -(-self._at // head.alignment) * head.alignment
        return head

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if length > len(self._data) - self._at:
            raise BrokenGGUFError("unexpected EOF")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise BrokenGGUFError(f"invalid type: {kind}")
            return self._take("<" + _SCALARS[kind])[0]
        item, length = self._take("<IQ")
        if length > len(self._data):
            raise BrokenGGUFError("unexpected EOF")
        if item in _SCALARS:
            self._at += struct.calcsize("<" + _SCALARS[item]) * length
        else:
            for _ in range(length):
                self._value(item)
        return None
