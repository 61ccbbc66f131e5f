"""Which storage type each tensor of a GGUF gets, and rows of float32 in that type.

The mixes are llama.cpp's: vectors in F32; for Q4_0 the output layer (the token embedding where both are
one) in Q6_K, or in Q8_0 where a row is no multiple of 256. The arithmetic is ggml's own, through
libgguf, or its numpy version in the `gguf` package, which has no Q6_K.
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

BLOCK_ELEMENTS = {"F32": 1, "F16": 1, "Q8_0": 32, "Q4_0": 32, "Q6_K": 256}
BLOCK_BYTES = {"F32": 4, "F16": 2, "Q8_0": 34, "Q4_0": 18, "Q6_K": 210}
FILE_TYPES: dict[Quantization, int] = {"f16": 1, "q4_0": 2, "q8_0": 7}  # gguf.LlamaFileType


def has_libgguf() -> bool:
    """Whether ggml's own quantizers are installed."""
    return importlib.util.find_spec("libgguf") is not None


def storage_type(name: str, shape: tuple[int, ...], quantization: Quantization, *, tied: bool, q6_k: bool) -> str:
    """The storage type of a tensor by its name in the GGUF; `tied` where there is no output.weight.

    `q6_k` says whether Q6_K can be written.
    """
    if len(shape) == 1:
        return "F32"
    wanted = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}[quantization]
    if quantization == "q4_0" and name == ("token_embd.weight" if tied else "output.weight"):
        wanted = "Q6_K" if q6_k and shape[-1] % BLOCK_ELEMENTS["Q6_K"] == 0 else "Q8_0"
    return wanted if shape[-1] % BLOCK_ELEMENTS[wanted] == 0 else "F16"


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
