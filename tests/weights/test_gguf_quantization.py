import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

gguf = pytest.importorskip("gguf")
libgguf = pytest.importorskip("libgguf")
from gguf.quants import quantize  # noqa: E402

from po_distill.weights import gguf_quantization  # noqa: E402
from po_distill.weights.gguf_quantization import (  # noqa: E402
    BLOCK_BYTES,
    BLOCK_ELEMENTS,
    quantize_into,
    size_bytes,
    storage_type,
)
from po_distill.weights.half_precision import to_float16  # noqa: E402

# What a float16 checkpoint can hold: zeros of both signs, subnormals, ties, the largest.
EDGES = [0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 1.0, -1.0, 0.5, 7.5, -8.0, 65504.0, -65504.0]
half_floats = st.one_of(st.sampled_from(EDGES), st.floats(-65504, 65504, width=16))


def quantize_rows(values, kind):
    out = np.empty((len(values), size_bytes(values.shape[1:], kind)), np.uint8)
    quantize_into(values, kind, out.reshape(-1))
    return out


def ggmls(values, kind):
    return libgguf.quantize_rows(values, libgguf.GGMLQuantizationType[kind]).tobytes()


def rows(columns):
    shape = st.tuples(st.integers(1, 4), st.just(columns))
    return hnp.arrays(np.float32, shape, elements=half_floats, fill=st.sampled_from(EDGES))


@settings(max_examples=150, deadline=None)
@given(rows(64), st.sampled_from(["Q4_0", "Q8_0"]))
def test_quantized_bytes_are_those_of_ggml_and_of_its_numpy_version(values, kind):
    ours = quantize_rows(values, kind)
    assert ours.nbytes == size_bytes(values.shape, kind)
    assert ours.tobytes() == ggmls(values, kind)
    # The numpy version gives a block of zeros another sign of zero as its scale where it begins with -0.0.
    assert ours.tobytes() == quantize(values + np.float32(0), gguf.GGMLQuantizationType[kind]).tobytes()


@settings(max_examples=60, deadline=None)
@given(rows(512))
def test_q6_k_is_ggmls_and_restores_each_value_to_within_a_step(values):
    ours = quantize_rows(values, "Q6_K")
    assert ours.tobytes() == ggmls(values, "Q6_K")
    restored = gguf.quants.dequantize(ours, gguf.GGMLQuantizationType.Q6_K)
    blocks = np.abs(values).reshape(len(values), -1, 256).max(axis=-1, keepdims=True)
    error = np.abs(restored - values).reshape(len(values), -1, 256)
    # The scales of 16 values each are stored in 8 bits against the block's largest, that one in float16.
    assert (error <= blocks / 16 + 3e-4).all()


@pytest.mark.parametrize("spread", [1e-12, 1e-7, 1e-3, 0.02, 1.0, 300.0])
@pytest.mark.parametrize("form", ["normal", "of bfloat16", "mostly zeros", "of three values", "one large", "rising"])
def test_many_rows_in_q6_k_are_ggmls(form, spread):
    random = np.random.default_rng(len(form))
    values = random.standard_normal((70, 1024)).astype(np.float32)  # more super-blocks than are worked on together
    if form == "of bfloat16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    elif form == "mostly zeros":
        values[random.random(values.shape) < 0.9] = 0
    elif form == "of three values":
        values = np.sign(values) * (np.abs(values) > 0.3)
    elif form == "one large":
        values[:, ::100] *= 1000
    elif form == "rising":
        values = np.sort(values, axis=1)
    values = np.clip(values * spread, -65504, 65504).astype(np.float16).astype(np.float32)
    assert quantize_rows(values, "Q6_K").tobytes() == ggmls(values, "Q6_K")


@pytest.fixture(scope="module")
def runtimes_quantizer():
    """ggml_quantize_chunk of the llama.cpp that xllamacpp runs."""
    xllamacpp = pytest.importorskip("xllamacpp.xllamacpp")
    function = ctypes.CDLL(xllamacpp.__file__).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return function


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_libggufs_bytes_are_those_of_the_llama_cpp_that_runs_the_file(runtimes_quantizer, kind):
    random = np.random.default_rng(0)
    values = random.standard_normal((24, 512)).astype(np.float16).astype(np.float32)
    values[1] = 0.0
    values[2] *= 1e-4
    values[3, ::3] = 0.0
    values[4, 7] = 65504.0
    values[5] = np.sign(values[5])
    theirs = np.empty(size_bytes(values.shape, kind), np.uint8)
    number = gguf.GGMLQuantizationType[kind].value
    written = runtimes_quantizer(number, values.ctypes.data, theirs.ctypes.data, 0, *values.shape, None)
    assert written == theirs.nbytes
    assert quantize_rows(values, kind).tobytes() == theirs.tobytes()


def test_the_blocks_are_ggmls():
    for kind in BLOCK_ELEMENTS:
        expected = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert (BLOCK_ELEMENTS[kind], BLOCK_BYTES[kind]) == expected


@settings(max_examples=60, deadline=None)
@given(rows(64), st.integers(1, 3))
def test_rows_are_quantized_one_by_one_so_pieces_and_row_order_do_not_matter(values, cut):
    whole = quantize_rows(values, "Q4_0")
    pieces = [quantize_rows(piece, "Q4_0") for piece in (values[:cut], values[cut:]) if len(piece)]
    assert whole.tobytes() == b"".join(piece.tobytes() for piece in pieces)
    assert quantize_rows(np.ascontiguousarray(values[::-1]), "Q4_0").tobytes() == whole[::-1].tobytes()


@settings(max_examples=60, deadline=None)
@given(rows(64), st.sampled_from(["Q4_0", "Q8_0"]))
def test_without_libgguf_the_numpy_version_gives_the_same_bytes(values, kind):
    whole = quantize_rows(values, kind).tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_quantization, "has_libgguf", lambda: False)
        assert quantize_rows(values, kind).tobytes() == whole


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.uint32, 16))
def test_float16_is_the_same_by_torch_and_by_numpy_for_any_bits(words):
    values = words.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    ours = to_float16(values)
    not_a_number = np.isnan(expected)
    assert np.array_equal(np.isnan(ours), not_a_number)
    assert np.array_equal(ours[~not_a_number].view(np.uint16), expected[~not_a_number].view(np.uint16))


@pytest.mark.parametrize(
    ("name", "shape", "quantization", "tied", "kind"),
    [
        ("blk.0.attn_norm.weight", (64,), "q4_0", False, "F32"),
        ("blk.0.attn_q.weight", (64, 64), "q4_0", False, "Q4_0"),
        ("blk.0.attn_q.weight", (64, 40), "q4_0", False, "F16"),
        ("blk.0.attn_q.weight", (64, 40), "q8_0", False, "F16"),
        ("token_embd.weight", (9, 256), "q4_0", False, "Q4_0"),
        ("token_embd.weight", (9, 256), "q4_0", True, "Q6_K"),
        ("token_embd.weight", (9, 576), "q4_0", True, "Q8_0"),
        ("output.weight", (9, 256), "q4_0", False, "Q6_K"),
        ("output.weight", (9, 256), "q8_0", False, "Q8_0"),
        ("output.weight", (9, 256), "f16", False, "F16"),
    ],
)
def test_each_tensor_gets_the_type_of_llama_cpps_mix(name, shape, quantization, tied, kind):
    assert storage_type(name, shape, quantization, tied=tied) == kind


@pytest.mark.parametrize(
    ("name", "shape", "tied", "is_70b", "kind"),
    [
        ("token_embd.weight", (9, 256), False, False, "Q4_K"),
        ("token_embd.weight", (9, 256), True, False, "Q6_K"),
        ("output.weight", (9, 256), False, False, "Q6_K"),
        ("output.weight", (9, 576), False, False, "Q8_0"),
        ("output_norm.weight", (256,), False, False, "F32"),
        ("blk.9.attn_q.weight", (64, 256), False, False, "Q4_K"),
        ("blk.9.attn_q.weight", (64, 96), False, False, "Q5_0"),
        ("blk.9.attn_q.weight", (64, 40), False, False, "F16"),
        ("blk.3.attn_v.weight", (64, 256), False, False, "Q6_K"),
        ("blk.3.attn_v.weight", (64, 96), False, False, "Q8_0"),
        ("blk.4.attn_v.weight", (64, 256), False, False, "Q4_K"),
        ("blk.4.attn_v.weight", (64, 256), False, True, "Q5_K"),
        ("blk.4.attn_v.weight", (64, 96), False, True, "Q5_1"),
        ("blk.3.attn_qkv.weight", (64, 256), False, False, "Q6_K"),
        ("blk.4.attn_qkv.weight", (64, 256), False, False, "Q4_K"),
        ("blk.4.ffn_down.weight", (64, 256), False, True, "Q4_K"),
    ],
)
def test_each_tensor_gets_the_type_of_llama_cpps_q4_k_m(name, shape, tied, is_70b, kind):
    mix = {"tied": tied, "layers": 32, "is_70b": is_70b}
    assert storage_type(name, shape, "q4_k_m", **mix) == kind


def test_of_32_layers_the_first_and_last_eighth_and_every_third_between_get_more_bits():
    kinds = [storage_type(f"blk.{n}.ffn_down.weight", (9, 256), "q4_k_m", tied=False, layers=32)
             for n in range(32)]  # fmt: skip
    more = [number for number, kind in enumerate(kinds) if kind == "Q6_K"]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
