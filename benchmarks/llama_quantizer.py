"""llama.cpp's own quantizer, out of the shared library of any build of it; for the benchmarks."""

from __future__ import annotations

import ctypes
from pathlib import Path


class QuantizeParameters(ctypes.Structure):
    """llama.h's llama_model_quantize_params, with room for what later versions add."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("pointers", ctypes.c_void_p * 4),
        ("room", ctypes.c_size_t * 8),
    )


def open_quantizer(path: Path) -> ctypes.CDLL:
    """llama.cpp's own library, the quantizer of which is what llama-quantize runs."""
    for name in ("libggml-base", "libggml."):
        for library in sorted(path.parent.glob(f"{name}*.so*")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.llama_model_quantize_default_params.restype = QuantizeParameters
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParameters)]
    library.llama_model_quantize.restype = ctypes.c_uint32
    default = library.llama_model_quantize_default_params()
    assert (default.nthread, default.ftype, default.quantize_output_tensor) == (0, 7, True), "another llama.h"
    library.llama_backend_init()
    return library
