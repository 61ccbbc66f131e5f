"""The types of a GGUF's values and tensors, by the numbers that a file has for them.

Sources: ggml's docs/gguf.md (gguf_metadata_value_type, ggml_type) and the sizes of ggml's blocks (ggml-common.h).
"""

from __future__ import annotations

from dataclasses import dataclass

UINT32, BOOL, STRING, ARRAY = 4, 7, 8, 9
VALUE_TYPES = {  # number -> name, struct format where it has one
    0: ("uint8", "<B"),
    1: ("int8", "<b"),
    2: ("uint16", "<H"),
    3: ("int16", "<h"),
    UINT32: ("uint32", "<I"),
    5: ("int32", "<i"),
    6: ("float32", "<f"),
    BOOL: ("bool", "<B"),
    STRING: ("string", ""),
    ARRAY: ("array", ""),
    10: ("uint64", "<Q"),
    11: ("int64", "<q"),
    12: ("float64", "<d"),
}


@dataclass(frozen=True)
class TensorType:
    """How a tensor's values are stored: so many of a row in a block of so many bytes."""

    name: str
    elements: int
    size_bytes: int


TENSOR_TYPES = {
    number: TensorType(name, elements, size_bytes)
    for number, name, elements, size_bytes in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 40),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}
REMOVED_TENSOR_TYPES = {  # llama.cpp reads them no more
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
