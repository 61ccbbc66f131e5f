"""The head of a GGUF file (ggml's docs/gguf.md, versions 2 and 3, little-endian), read strictly and in bounded memory.

Nothing is believed before it is checked: a count or a length is held against the bytes that the file has left
before anything of that size is read, and every tensor has to lie in the file, aligned, and over no other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from po_distill.errors import WeightsError
from po_distill.weights.foreign_files import escaped, open_regular
from po_distill.weights.gguf_types import ARRAY, BOOL, REMOVED_TENSOR_TYPES, STRING, TENSOR_TYPES, UINT32, VALUE_TYPES

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LONGEST_HEAD_BYTES = 1 << 26  # a vocabulary of 256k with its merges takes 20 MB
_MOST_KEYS = 1 << 16
_MOST_TENSORS = 1 << 17
_LONGEST_KEY_BYTES = 65_535
_LONGEST_TENSOR_NAME_BYTES = 256  # llama.cpp stops at 63
_MOST_DIMENSIONS = 4
_DEEPEST_ARRAY = 4  # arrays in arrays; llama.cpp reads none
_MOST_ITEMS_KEPT = 64
_LARGEST = 2**63 - 1
_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT, _LEAST_ALIGNMENT = "general.alignment", 32, 8
_SMALLEST_KEY_BYTES = 8 + 4 + 1  # an empty key and one byte of a value
_SMALLEST_TENSOR_BYTES = 8 + 4 + 4 + 8  # no name and no dimensions
_SMALLEST_ITEM_BYTES = {STRING: 8, ARRAY: 12}


@dataclass(frozen=True)
class GGUFArray:
    """An array of a head. Its items are kept where they are few and no arrays themselves."""

    kind: str  # of its items: string, int32, array
    count: int
    items: tuple[Any, ...] | None


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor as the head describes it; `begin` and `end` are bytes from the file's start."""

    name: str
    type: str  # F32, Q4_0
    shape: tuple[int, ...]  # rows first, as in safetensors; the file gives the dimensions the other way round
    begin: int
    end: int


@dataclass(frozen=True)
class GGUFHead:
    """What stands before the tensors' data."""

    version: int
    values: dict[str, Any]  # int, float, bool, str or GGUFArray by key, in the file's order
    tensors: dict[str, GGUFTensor]  # in the file's order
    alignment: int
    size_bytes: int  # of the file
    notes: tuple[str, ...] = field(default=())  # what is odd about the file, and yet no mistake


def read_gguf_head(path: Path) -> GGUFHead:
    """The key-values and the tensors of a GGUF file; none of the tensors' data is read.

    Bytes of a text that are not UTF-8 come as escapes. Raises WeightsError where the file is missing, truncated,
    contradicts itself or is no GGUF of a version and byte order that is read here.
    """
    try:
        with open_regular(path) as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


class _Reader:
    """Reads one head from front to back."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        file.seek(0)
        self._place = 0

    def read(self) -> GGUFHead:
        """The head, once all of it is checked."""
        version = self._version()
        tensors, keys = self._number("<Q", "the count of tensors"), self._number("<Q", "the count of keys")
        self._check_count(keys, _SMALLEST_KEY_BYTES, _MOST_KEYS, "keys")
        self._check_count(tensors, _SMALLEST_TENSOR_BYTES, _MOST_TENSORS, "tensors")
        values: dict[str, Any] = {}
        for _ in range(keys):
            key = self._name("a key", _LONGEST_KEY_BYTES)
            if key in values:
                raise self._broken(f"the key {escaped(key)} stands twice in it")
            kind = self._number("<I", f"the type of {key}")
            if key == _ALIGNMENT_KEY and VALUE_TYPES.get(kind) != VALUE_TYPES[UINT32]:
                raise self._broken(f"its {key} has the type {kind}, not uint32")
            values[key] = self._value(kind, key)
        alignment = self._alignment(values)
        declared = [self._tensor() for _ in range(tensors)]
        start = -(-self._place // alignment) * alignment
        found, notes = self._placed(declared, start, alignment)
        return GGUFHead(version, values, found, alignment, self._size, notes)

    def _version(self) -> int:
        magic = self._take(4, "the magic bytes")
        if magic != MAGIC:
            raise self._broken(f"it begins with {escaped(repr(magic))}, not with {MAGIC!r}")
        version: int = self._number("<I", "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            why = "; it is big-endian" if swapped in _VERSIONS else ""
            raise self._broken(f"it says version {version}, versions 2 and 3 are read here{why}")
        return version

    def _alignment(self, values: dict[str, Any]) -> int:
        """A power of two, as llama.cpp asks for, and a multiple of 8, as the format does."""
        given: int = values.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if given < _LEAST_ALIGNMENT or given & (given - 1):
            raise self._broken(f"its {_ALIGNMENT_KEY} is {given}, no power of two from 8 on")
        return given

    # --- values -----------------------------------------------------------------------------------

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind not in VALUE_TYPES:
            raise self._broken(f"{escaped(key)} has the unknown type {kind}")
        if kind == STRING:
            return self._text(key).decode("utf-8", "backslashreplace")
        if kind == ARRAY:
            return self._array(key, depth)
        value = self._number(VALUE_TYPES[kind][1], key)
        if kind == BOOL:
            if value > 1:
                raise self._broken(f"{escaped(key)} is {value}, neither true nor false")
            return bool(value)
        return value

    def _array(self, key: str, depth: int) -> GGUFArray:
        kind = self._number("<I", f"the type of {key}")
        count = self._number("<Q", f"the length of {key}")
        if kind not in VALUE_TYPES:
            raise self._broken(f"{escaped(key)} is an array of the unknown type {kind}")
        if depth == _DEEPEST_ARRAY:
            raise self._broken(f"{escaped(key)} holds arrays in arrays, more than {_DEEPEST_ARRAY} deep")
        name, form = VALUE_TYPES[kind]
        self._check_count(count, _SMALLEST_ITEM_BYTES.get(kind) or struct.calcsize(form), _LARGEST, escaped(key))
        if count <= _MOST_ITEMS_KEPT and kind != ARRAY:
            return GGUFArray(name, count, tuple(self._value(kind, key) for _ in range(count)))
        if form:
            self._skip(count * struct.calcsize(form), key)
        for _ in range(0 if form else count):
            if kind == STRING:
                self._skip(int.from_bytes(self._take(8, key), "little"), key)
            else:
                self._array(key, depth + 1)
        return GGUFArray(name, count, None)

    # --- tensors ----------------------------------------------------------------------------------

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type's number, offset) as they are declared."""
        name = self._name("a tensor's name", _LONGEST_TENSOR_NAME_BYTES)
        dimensions = self._number("<I", f"the dimensions of {name}")
        if dimensions > _MOST_DIMENSIONS:
            raise self._broken(f"{escaped(name)} has {dimensions} dimensions, at most {_MOST_DIMENSIONS} are possible")
        shape = tuple(self._number("<Q", f"the shape of {name}") for _ in range(dimensions))
        kind = self._number("<I", f"the type of {name}")
        return name, shape[::-1], kind, self._number("<Q", f"the offset of {name}")

    def _placed(
        self, declared: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> tuple[dict[str, GGUFTensor], tuple[str, ...]]:
        """The tensors by name, each of them inside the file and over no other; and notes on what lies between them."""
        found: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in declared:
            if name in found:
                raise self._broken(f"the tensor {escaped(name)} stands twice in it")
            size = self._tensor_bytes(name, shape, kind)
            if offset % alignment:
                raise self._broken(f"{escaped(name)} lies at {offset}, no multiple of the alignment {alignment}")
            if start + offset + size > self._size:
                raise self._broken(
                    f"it ends within {escaped(name)}: {self._size} bytes, at least {start + offset + size} are needed"
                )
            found[name] = GGUFTensor(name, TENSOR_TYPES[kind].name, shape, start + offset, start + offset + size)
        place, last, unused = start, "the head", 0
        for tensor in sorted(found.values(), key=lambda tensor: (tensor.begin, tensor.end)):
            if tensor.begin < place:
                raise self._broken(f"{escaped(tensor.name)} overlaps {last}")
            unused += (tensor.begin - place) // alignment * alignment
            place, last = tensor.end, escaped(tensor.name)
        unused += max(0, self._size - place) // alignment * alignment
        return found, (f"{unused:,} bytes belong to no tensor",) if unused else ()

    def _tensor_bytes(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        if kind not in TENSOR_TYPES:
            known = f" ({REMOVED_TENSOR_TYPES[kind]}, which ggml has given up)" if kind in REMOVED_TENSOR_TYPES else ""
            raise self._broken(f"{escaped(name)} has the type {kind}{known}, which is not known")
        form = TENSOR_TYPES[kind]
        if (width := shape[-1] if shape else 1) % form.elements:
            raise self._broken(
                f"{escaped(name)} has rows of {width}, no multiple of the {form.elements} of {form.name}"
            )
        elements = 1
        for number in shape:
            elements *= number
            if max(number, elements) > _LARGEST // form.size_bytes:
                raise self._broken(f"{escaped(name)} has the shape {shape}, which no memory holds")
        return elements // form.elements * form.size_bytes

    # --- bytes ------------------------------------------------------------------------------------

    def _name(self, what: str, longest: int) -> str:
        data = self._text(what, longest)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"{what} is no UTF-8: {escaped(repr(data))}") from error

    def _text(self, what: str, longest: int = _LONGEST_HEAD_BYTES) -> bytes:
        length = self._number("<Q", f"the length of {what}")
        if length > longest:
            raise self._broken(f"{escaped(what)} would be {length} bytes long, at most {longest} are possible")
        return self._take(length, what)

    def _number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form), what))[0]

    def _check_count(self, count: int, least_bytes: int, most: int, what: str) -> None:
        """Raise WeightsError where the bytes that are left cannot hold so many."""
        if count * least_bytes > self._size - self._place:
            raise self._broken(f"it declares {count} of {what}, which {self._size - self._place} bytes cannot hold")
        if count > most:
            raise self._broken(f"it declares {count} {what}, at most {most} are possible")

    def _take(self, count: int, what: str) -> bytes:
        self._move(count, what)
        data = self._file.read(count)
        if len(data) != count:
            raise self._broken(f"it was cut while it was read, within {escaped(what)}")
        return data

    def _skip(self, count: int, what: str) -> None:
        self._move(count, what)
        self._file.seek(count, 1)

    def _move(self, count: int, what: str) -> None:
        if count > self._size - self._place:
            raise self._broken(f"it ends within {escaped(what)}: {self._size} bytes, {self._place + count} are needed")
        self._place += count
        if self._place > _LONGEST_HEAD_BYTES:
            raise self._broken(f"its head takes more than {_LONGEST_HEAD_BYTES:,} bytes")

    def _broken(self, reason: str) -> WeightsError:
        return _unreadable(self._path, reason)


def _unreadable(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path} cannot be read as GGUF: {reason}.", "Copy or download that file again.")
