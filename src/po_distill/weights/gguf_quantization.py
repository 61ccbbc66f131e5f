"""Which storage type each tensor of a GGUF gets, and rows of float32 in that type.

The mixes are those of llama.cpp's src/llama-quant.cpp. Vectors are F32 in all of them. In Q4_0 and Q4_K_M the output
layer (the token embedding where both are one) is Q6_K; in Q4_K_M so are the values of attention and the way down in
the first and last eighth of the layers and in every third between. The arithmetic is ggml's own, through libgguf, or
for Q4_0 and Q8_0 its numpy version in the `gguf` package; for Q6_K see gguf_q6_k.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import numpy.typing as npt

from po_distill.errors import MissingExtraError
from po_distill.records import Quantization
from po_distill.weights.gguf_q6_k import quantize_q6_k

BLOCK_ELEMENTS = {
    "F32": 1, "F16": 1, "Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q5_1": 32, "Q4_K": 256, "Q5_K": 256, "Q6_K": 256,
}  # fmt: skip
BLOCK_BYTES = {
    "F32": 4, "F16": 2, "Q8_0": 34, "Q4_0": 18, "Q5_0": 22, "Q5_1": 24, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210,
}  # fmt: skip
FILE_TYPES: dict[Quantization, int] = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}  # gguf.LlamaFileType
_MOST_ROWS = 32  # of more than 48, libgguf makes threads of its own for each call; ours are on threads already
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
    layers: int = 1,
    is_70b: bool = False,
) -> str:
    """The storage type of a tensor by its name in the GGUF; `tied` where there is no output.weight.

    `is_70b` says whether llama.cpp takes the model of `layers` layers for a Llama of 70B, whose few values of attention
    it stores more finely.
    """
    if len(shape) == 1:
        return "F32"
    is_output = name == ("token_embd.weight" if tied else "output.weight")
    wanted = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K"}[quantization]
    if is_output and quantization in ("q4_0", "q4_k_m"):
        wanted = "Q6_K"
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


def quantize_into(values: npt.NDArray[np.float32], kind: str, out: npt.NDArray[np.uint8]) -> None:
    """Rows of finite float32 in one of the block formats, into `out`, which has just their bytes."""
    if kind == "Q6_K":
        quantize_q6_k(values, out)
    elif has_libgguf():
        import libgguf

        row_bytes = len(out) // max(1, len(values))
        for first in range(0, len(values), _MOST_ROWS):
            piece = values[first : first + _MOST_ROWS]
            target = out[first * row_bytes : (first + len(piece)) * row_bytes]
            libgguf.quantize_rows_into_raw(libgguf.GGMLQuantizationType[kind], piece, target, *piece.shape)
    else:
        _quantize_by_numpy(values, kind, out)


def _quantize_by_numpy(values: npt.NDArray[np.float32], kind: str, out: npt.NDArray[np.uint8]) -> None:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "Quantizing") from error
    # Adding zero makes -0.0 a 0.0, of which ggml's C does not take the sign into the scale of an empty block.
    np.copyto(out, quantize(values + np.float32(0), GGMLQuantizationType[kind]).reshape(-1))


def slower_ways(quantization: Quantization) -> tuple[str, ...]:
    """What is slower for want of libgguf, in words; the bytes are the same."""
    if quantization not in ("q4_0", "q8_0") or has_libgguf():
        return ()
    return (
        f"{quantization.upper()} is made by numpy, with the same bytes and about a third as fast, "
        "because libgguf is not installed.",
    )
