"""Which storage type each tensor of a GGUF gets, and rows of float32 in that type.

The mixes are those of llama.cpp's src/llama-quant.cpp. Vectors are F32 in all of them. In Q4_0 and Q4_K_M the output
layer (the token embedding where both are one) is Q6_K; in Q4_K_M so are the values of attention and the way down in
the first and last eighth of the layers and in every third between. The arithmetic is ggml's own, through libgguf, or
for Q4_0 and Q8_0 its numpy version in the `gguf` package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from po_distill.errors import MissingExtraError
from po_distill.records import Quantization
from po_distill.weights.half_precision import to_float16

BLOCK_ELEMENTS = {
    "F32": 1, "F16": 1, "Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q5_1": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256,
}  # fmt: skip
BLOCK_BYTES = {
    "F32": 4, "F16": 2, "Q8_0": 34, "Q4_0": 18, "Q5_0": 22, "Q5_1": 24, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210,
}  # fmt: skip
FILE_TYPES: dict[Quantization, int] = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}  # gguf.LlamaFileType
_FALLBACKS = {"Q6_K": "Q8_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1"}  # where a row is no multiple of the block


def has_libgguf() -> bool:
    """Whether ggml's own quantizers are installed."""
    return importlib.util.find_spec("libgguf") is not None


def check_quantizer(quantization: Quantization) -> None:
    """Raise MissingExtraError where a mix needs types that only libgguf can write."""
    if quantization == "q4_k_m" and not has_libgguf():
        raise MissingExtraError("libgguf", "gguf", "Writing Q4_K_M")


def storage_type(
    name: str,
    shape: tuple[int, ...],
    quantization: Quantization,
    *,
    tied: bool,
    q6_k: bool,
    layers: int = 1,
    is_70b: bool = False,
) -> str:
    """The storage type of a tensor by its name in the GGUF; `tied` where there is no output.weight.

    `q6_k` says whether Q6_K can be written; `is_70b` whether llama.cpp takes the model of `layers` layers for a Llama
    of 70B, whose few values of attention it stores more finely.
    """
    if len(shape) == 1:
        return "F32"
    is_output = name == ("token_embd.weight" if tied else "output.weight")
    wanted = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K"}[quantization]
    if is_output and quantization in ("q4_0", "q4_k_m"):
        wanted = "Q6_K" if q6_k else "Q8_0"
    elif quantization == "q4_k_m" and name.startswith("blk."):
        _, block, part, _ = name.split(".")
        is_value = part in ("attn_v", "attn_qkv")
        if (is_value or part == "ffn_down") and _gets_more_bits(int(block), layers):
            wanted = "Q6_K"
        elif is_value and is_70b:
            wanted = "Q5_K"
    if shape[-1] % BLOCK_ELEMENTS[wanted]:
        wanted = _FALLBACKS.get(wanted, "F16")
    return wanted if shape[-1] % BLOCK_ELEMENTS[wanted] == 0 else "F16"


def _gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def size_bytes(shape: tuple[int, ...], kind: str) -> int:
    """The bytes that a tensor takes in a storage type."""
    return int(np.prod(shape, dtype=np.int64)) // BLOCK_ELEMENTS[kind] * BLOCK_BYTES[kind]


def quantize_rows(values: npt.NDArray[np.float32], kind: str) -> npt.NDArray[Any]:
    """Rows of float32, shape (rows, columns), in a storage type: an array with the bytes as they are stored."""
    if kind == "F32":
        return values
    if kind == "F16":
        return to_float16(values)
    if has_libgguf():
        import libgguf

        quantized: npt.NDArray[np.uint8] = libgguf.quantize_rows(values, libgguf.GGMLQuantizationType[kind])
        return quantized
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "Quantizing") from error
    # Adding zero makes -0.0 a 0.0, of which ggml's C does not take the sign into the scale of an empty block.
    in_numpy: npt.NDArray[np.uint8] = quantize(values + np.float32(0), GGMLQuantizationType[kind])
    return in_numpy


def departures(kinds: Iterable[tuple[str, tuple[int, ...], str]], quantization: Quantization) -> tuple[str, ...]:
    """Where the types of (name, shape, kind) differ from llama.cpp's mix for want of libgguf, in words."""
    if quantization != "q4_0" or has_libgguf():
        return ()
    missed = [name for name, shape, kind in kinds if kind == "Q8_0" and shape[-1] % BLOCK_ELEMENTS["Q6_K"] == 0]
    return tuple(
        f"{name} is stored as Q8_0 where llama.cpp takes Q6_K, because libgguf is not installed." for name in missed
    )
