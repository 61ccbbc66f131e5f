"""The head of a safetensors file, read as strictly as the safetensors package does, and a little more.

Layout (huggingface/safetensors, README "Format"): 8 bytes little-endian length of the header, the header as
JSON {name: {dtype, shape, data_offsets}}, then the tensors' bytes without overlap, hole or rest. Beyond that, a
name that stands twice, a field that the format does not have, and a shape that numpy cannot take are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.weights.foreign_files import escaped, open_regular, parse_json

_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # as the safetensors package allows
_MOST_DIMENSIONS = 32  # as numpy 1 allows
_LARGEST = 2**63 - 1
_FIELDS = ("dtype", "shape", "data_offsets")
_BITS = {  # of one element, by dtype
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor as its header describes it; `begin` and `end` are bytes from the file's start."""

    name: str
    dtype: str  # in safetensors' words
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What stands before the tensors' bytes."""

    entries: dict[str, HeaderEntry]  # in the order of the header
    metadata: dict[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """The tensors of a safetensors file and its metadata; none of the tensors' bytes are read.

    Raises WeightsError where the file is missing, truncated or no safetensors file.
    """
    header, start, size = _read(path)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise unreadable(path, "its __metadata__ is no object of texts")
    entries = {name: _entry(path, name, value, start) for name, value in header.items()}
    _check_places(path, entries, start, size)
    return SafetensorsHeader(entries, metadata)


def _read(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header, where the tensors' bytes begin, the file's size)."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
                raise unreadable(path, f"its header would be {length} bytes long, the file has {size}")
            if length > _LONGEST_HEADER_BYTES:
                raise unreadable(path, f"its header takes {length:,} bytes, more than {_LONGEST_HEADER_BYTES:,}")
            header = parse_json(file.read(length))
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise unreadable(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise unreadable(path, "its header is no JSON object")
    return header, _LENGTH_BYTES + length, size


def _entry(path: Path, name: str, value: Any, start: int) -> HeaderEntry:
    """A tensor's entry, with its size checked against its shape."""
    if not isinstance(value, dict) or value.keys() != set(_FIELDS):
        raise unreadable(
            path, f"the entry of {escaped(name)} is malformed: it has to give {', '.join(sorted(_FIELDS))}"
        )
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise unreadable(path, f"{escaped(name)} has the dtype {escaped(repr(dtype))}, which is not known")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise unreadable(path, f"{escaped(name)} has a shape or offsets that are no whole numbers from 0 to 2^63 - 1")
    if len(shape) > _MOST_DIMENSIONS:
        raise unreadable(path, f"{escaped(name)} has {len(shape)} dimensions")
    bits = whole = _BITS[dtype]
    for number in shape:
        bits, whole = bits * number, whole * max(1, number)  # numpy refuses (0, 2^62, 2^62) too
        if whole > _LARGEST:
            raise unreadable(path, f"{escaped(name)} has the shape {escaped(str(shape))}, which no memory holds")
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        said = f"takes {offsets[1] - offsets[0]} bytes, its shape {escaped(str(shape))} in {dtype} needs another number"
        raise unreadable(path, f"{escaped(name)} {said}")
    return HeaderEntry(name, dtype, tuple(shape), path, start + offsets[0], start + offsets[1])


def _are_sizes(value: Any) -> bool:
    """Whether a value is a list of whole numbers from 0 on; true and false are none, though Python counts with them."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number <= _LARGEST for number in value)


def _check_places(path: Path, entries: dict[str, HeaderEntry], start: int, size: int) -> None:
    """Raise WeightsError where the tensors do not lie one behind the other up to the file's end."""
    place, last = start, "the header"
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        name = escaped(entry.name)
        if entry.end > size:
            raise unreadable(path, f"it ends within {name}: {size} bytes, at least {entry.end} are needed")
        if entry.begin < place:
            raise unreadable(path, f"{name} overlaps {last}")
        if entry.begin > place:
            raise unreadable(path, f"between {last} and {name} is a hole of {entry.begin - place} bytes")
        place, last = entry.end, name
    if place != size:
        raise unreadable(path, f"{size - place} bytes are left over behind {last}")


def unreadable(path: Path, reason: str) -> WeightsError:
    """The error of a file that is no sound safetensors file."""
    return WeightsError(
        f"{path} cannot be read as safetensors: {reason}.",
        "Copy or download that file again; a checkpoint in another format has to be saved as safetensors first.",
    )
