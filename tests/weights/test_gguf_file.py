import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostile_gguf import array, good_gguf, text
from po_distill.errors import WeightsError
from po_distill.weights.gguf_file import GGUFArray, read_gguf_head
from po_distill.weights.gguf_types import REMOVED_TENSOR_TYPES, TENSOR_TYPES, VALUE_TYPES


def read(data: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "w.gguf"
    path.write_bytes(data)
    return read_gguf_head(path)


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_every_type_of_value_and_the_places_of_the_tensors_are_read(version: int, tmp_path: Path) -> None:
    head = read(bytes(replace(good_gguf(), version=version)), tmp_path)
    assert head.version == version and head.alignment == 32 and head.notes == ()
    assert head.values == {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 1,
        "llama.rope.freq_base": 10_000.0,
        "a.u8": 7,
        "a.i8": -1,
        "a.u16": 65_535,
        "a.i16": -2,
        "a.i32": -3,
        "a.bool": True,
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f64": 0.5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": GGUFArray("string", 100, None),
        "tokenizer.ggml.token_type": GGUFArray("int32", 100, None),
        "tokenizer.chat_template": "{{ '<|im_start|>' }}",
        "po_distill.package": "po-student-v1",
    }
    start = head.size_bytes - len(good_gguf().data)
    assert [(t.name, t.type, t.shape, t.begin - start, t.end - start) for t in head.tensors.values()] == [
        ("token_embd.weight", "Q4_0", (4, 64), 0, 144),
        ("blk.0.attn_q.weight", "F16", (2, 64), 160, 416),
        ("output_norm.weight", "F32", (64,), 416, 672),
    ]


def test_short_arrays_come_with_their_items_and_odd_bytes_as_escapes(tmp_path: Path) -> None:
    keys = (
        (text("a"), 9, array(8, [text("en"), text(b"\xff")])),
        (text("b"), 9, array(9, [array(0, [b"\1", b"\2"])])),
        (text("c"), 8, text(b"\xffx")),
    )
    values = read(bytes(replace(good_gguf(), keys=keys)), tmp_path).values
    assert values == {
        "a": GGUFArray("string", 2, ("en", "\\xff")),
        "b": GGUFArray("array", 1, None),
        "c": "\\xffx",
    }


def test_bytes_that_belong_to_no_tensor_are_noted(tmp_path: Path) -> None:
    good = good_gguf()
    assert read(bytes(replace(good, data=good.data + b"\0" * 1_000)), tmp_path).notes == (
        "992 bytes belong to no tensor",
    )
    assert read(bytes(replace(good, tensors=good.tensors[1:])), tmp_path).notes == ("160 bytes belong to no tensor",)


def test_the_sizes_of_types_are_those_of_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf").constants
    theirs = {int(kind): (kind.name, *constants.GGML_QUANT_SIZES[kind]) for kind in constants.GGMLQuantizationType}
    ours = {number: (kind.name, kind.elements, kind.size_bytes) for number, kind in TENSOR_TYPES.items()}
    assert theirs == {number: ours[number] for number in theirs}
    assert not ours.keys() & REMOVED_TENSOR_TYPES.keys()
    assert {number: name for number, (name, _) in VALUE_TYPES.items()} == {
        int(kind): kind.name.lower() for kind in constants.GGUFValueType
    }


_keys = st.dictionaries(
    st.from_regex(r"[a-z]{1,5}\.[a-z_]{1,8}", fullmatch=True),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)  # the package leaves out an empty one
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=99),
    max_size=6,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=_keys, shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=4))
def test_what_the_gguf_package_writes_is_read(keys: dict[str, Any], shapes: list[Any], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_int32, list: writer.add_array}
    keys = {key: value for key, value in keys.items() if key != "general.architecture"}
    for key, value in keys.items():
        add[type(value)](key, value)
    for number, shape in enumerate(shapes):
        writer.add_tensor(f"t.{number}", np.full(shape, number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    head = read_gguf_head(tmp_path / "theirs.gguf")
    found = {key: value for key, value in head.values.items() if key != "general.architecture"}
    lists = {
        key: GGUFArray("string", len(v), tuple(v) if len(v) <= 64 else None)
        for key, v in keys.items()
        if isinstance(v, list)
    }
    assert found == {**keys, **lists}
    data = (tmp_path / "theirs.gguf").read_bytes()
    for number, (shape, tensor) in enumerate(zip(shapes, head.tensors.values(), strict=True)):
        assert (tensor.name, tensor.shape) == (f"t.{number}", shape)
        assert data[tensor.begin : tensor.end] == np.full(shape, number, np.float32).tobytes()


# --- what is refused ------------------------------------------------------------------------------

_GOOD = good_gguf()
_FIRST, _SECOND, _THIRD = _GOOD.tensors


def _tensors(*tensors: Any) -> bytes:
    return bytes(replace(_GOOD, tensors=tensors))


def _keys_of(*keys: Any) -> bytes:
    return bytes(replace(_GOOD, keys=keys))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "ends within the magic bytes"),
        (b"GGML" + bytes(_GOOD)[4:], "begins with b'GGML'"),
        (bytes(replace(_GOOD, version=1)), "version 1, versions 2 and 3"),
        (bytes(replace(_GOOD, version=0x03000000)), "big-endian"),
        (bytes(_GOOD)[:-1], "ends within output_norm"),
        (bytes(_GOOD)[:300], "ends within"),
        (bytes(replace(_GOOD, key_count=10**6)), "declares 1000000 of keys"),
        (_tensors(_FIRST, _FIRST), "token_embd.weight stands twice"),
        (_keys_of((text("a\x1b"), 7, b"\1"), (text("a\x1b"), 7, b"\1")), r"the key a\\x1b stands twice"),
        (_keys_of((text("a"), 7, b"\2")), "neither true nor false"),
        (_keys_of((text("a"), 13, b"\2")), "unknown type 13"),
        (_keys_of((text("a"), 9, array(13, [b"\0"]))), "array of the unknown type 13"),
        (_keys_of((text(b"\xff"), 7, b"\1")), "no UTF-8"),
        (_tensors(_FIRST, (text("b"), (64, 2), 1, 128)), "b overlaps token_embd"),
        (_tensors((text("b"), (64, 2), 1, 8)), "no multiple of the alignment 32"),
        (_tensors((text("b"), (64, 2), 1, 4096)), "ends within b"),
        (_tensors((text("b"), (64, 2), 4, 0)), r"b has the type 4 \(Q4_2, which ggml has given up\)"),
        (_tensors((text("b"), (64, 2), 99, 0)), "b has the type 99, which is not known"),
        (_tensors((text("b"), (33, 2), 2, 0)), "rows of 33, no multiple of the 32 of Q4_0"),
        (_tensors((text("b"), (), 2, 0)), "rows of 1, no multiple"),
        (_tensors((text("b"), (2**32, 2**32), 0, 0)), "which no memory holds"),
        (_tensors((text("b"), (0, 2**63), 0, 0)), "which no memory holds"),
        (_tensors((text("b"), (1, 1, 1, 1, 1), 0, 0)), "5 dimensions"),
        (_tensors((text("b" * 300), (1,), 0, 0)), "at most 256"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words) as caught:
        read(data, tmp_path)
    assert str(tmp_path / "w.gguf") in caught.value.problem


@pytest.mark.parametrize(("kind", "value"), [(4, 0), (4, 1), (4, 3), (4, 24), (4, 2**32 - 1), (10, 32), (5, 32)])
def test_an_alignment_that_is_no_uint32_and_power_of_two_from_8_on_is_refused(
    kind: int, value: int, tmp_path: Path
) -> None:
    form = "<Q" if kind == 10 else "<I"
    with pytest.raises(WeightsError, match=r"general\.alignment"):
        read(_keys_of((text("general.alignment"), kind, struct.pack(form, value))), tmp_path)


@pytest.mark.parametrize("levels", [5, 9, 2_000])
def test_arrays_in_arrays_without_end_are_refused(levels: int, tmp_path: Path) -> None:
    nested = array(0, [b"\0"])
    for _ in range(levels):
        nested = array(9, [nested])
    with pytest.raises(WeightsError, match="more than 4 deep"):
        read(_keys_of((text("a"), 9, nested)), tmp_path)
