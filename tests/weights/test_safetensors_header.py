import json
import random
from pathlib import Path
from typing import Any

import pytest

from hostile_weights import good_header, mutated_safetensors, safetensors_bytes
from po_distill.errors import WeightsError
from po_distill.weights.safetensors_file import read_header
from po_distill.weights.safetensors_header import read_safetensors_header

SHAPES = {"a": (2,), "b": (3,)}  # 8 and 12 bytes


def refusal(data: bytes, tmp_path: Path) -> str:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        read_safetensors_header(path)
    assert caught.value.problem.startswith(f"{path} cannot be read as safetensors: ")
    return caught.value.problem


def changed(entry: dict[str, Any], data: bytes | None = None, name: str = "b") -> bytes:
    header, whole = good_header(SHAPES)
    header[name] = {**header.get(name, {}), **entry}
    return safetensors_bytes(header, whole if data is None else data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed({"data_offsets": [4, 16]}), "b overlaps a"),
        (changed({"data_offsets": [12, 24]}, b"\0" * 24), "between a and b is a hole of 4 bytes"),
        (changed({}, b"\0" * 21), "1 bytes are left over behind b"),
        (changed({}, b"\0" * 19), "it ends within b"),
        (changed({"dtype": "F128"}), "b has the dtype 'F128', which is not known"),
        (changed({"dtype": "F4", "shape": [3]}), "b takes 12 bytes"),
        (changed({"shape": [True, 3]}), "no whole numbers from 0"),
        (changed({"shape": [-3]}), "no whole numbers from 0"),
        (changed({"shape": [3.0]}), "no whole numbers from 0"),
        (changed({"shape": "3"}), "no whole numbers from 0"),
        (changed({"data_offsets": [8, 20, 20]}), "no whole numbers from 0"),
        (changed({"shape": [2**62, 2**62]}), "which no memory holds"),
        (changed({"shape": [0, 2**62, 4], "data_offsets": [8, 8]}, b"\0" * 8), "which no memory holds"),
        (changed({"shape": [3] + [1] * 32}), "33 dimensions"),
        (changed({"stride": 4}), "the entry of b is malformed"),
        (changed({"dtype": "F32"}, name="\x1b[2J"), r"the entry of \x1b[2J is malformed"),
        (safetensors_bytes({"__metadata__": {"a": 1}}, b""), "__metadata__ is no object of texts"),
        (safetensors_bytes({"__metadata__": []}, b""), "__metadata__ is no object of texts"),
        (safetensors_bytes(b'{"a": 1, "a": 1}', b""), "the key a stands twice"),
        (safetensors_bytes([], b""), "no JSON object"),
        (b"1234567", "the file has 7"),
        ((10**8 + 1).to_bytes(8, "little"), "would be 100000001 bytes long"),
    ],
)
def test_a_broken_header_is_refused_with_what_is_wrong(data: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(data, tmp_path)


def test_a_header_of_more_than_100_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((10**8 + 1).to_bytes(8, "little"))
    with path.open("r+b") as file:
        file.truncate(2 * 10**8)
    assert "100,000,001 bytes, more than 100,000,000" in refusal_of(path)


def refusal_of(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_safetensors_header(path)
    return caught.value.problem


def test_tensors_may_stand_in_any_order_and_empty_ones_between_them(tmp_path: Path) -> None:
    header, data = good_header(SHAPES)
    header = {"empty": {"dtype": "F32", "shape": [0, 3], "data_offsets": [8, 8]}, **dict(reversed(header.items()))}
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    sizes = {name: entry.end - entry.begin for name, entry in read_safetensors_header(path).entries.items()}
    assert sizes == {"empty": 0, "b": 12, "a": 8}


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U16", "C64"])
def test_a_dtype_that_no_merge_reads_is_known_here_and_named_by_the_merges_reader(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    size = {"U16": 2, "C64": 8}.get(dtype, 1)
    path.write_bytes(
        safetensors_bytes({"w": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}, b"\0" * 3 * size)
    )
    assert read_safetensors_header(path).entries["w"].dtype == dtype
    with pytest.raises(WeightsError, match=f"w has the dtype {dtype}, which is not read here"):
        read_header(path)


def test_what_the_safetensors_package_refuses_is_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    chance, path, refused = random.Random(3), tmp_path / "w.safetensors", 0
    for _ in range(300):
        path.write_bytes(mutated_safetensors(chance, SHAPES))
        try:
            safetensors.safe_open(path, framework="numpy").__enter__()
        except (safetensors.SafetensorError, OSError):
            refused += 1
            refusal_of(path)
    assert refused > 100


def test_metadata_comes_as_texts(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(json.dumps({"__metadata__": {"é": "b"}}).encode(), b""))
    assert read_safetensors_header(path).metadata == {"é": "b"}
