"""A checkpoint folder as one GGUF file, quantized on the way, tensor by tensor.

Format: ggml's docs/gguf.md. The `gguf` package writes header and key-values; the tensors' data follows
here piece by piece, in the order in which they were declared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from po_distill import artifacts
from po_distill.errors import WeightsError
from po_distill.progress import progress
from po_distill.records import GGUFFile, Quantization
from po_distill.weights.checkpoint import read_config, read_tensor_infos
from po_distill.weights.gguf_header import ALIGNMENT_BYTES, window_note, write_header
from po_distill.weights.gguf_layout import architecture_of, rotary_rows
from po_distill.weights.gguf_placement import Placement, place_tensors
from po_distill.weights.gguf_quantization import departures, quantize_rows, size_bytes
from po_distill.weights.gguf_tokenizer import read_tokenizer
from po_distill.weights.half_precision import all_finite, to_float16
from po_distill.weights.lora_merge import COMPUTED_TENSOR
from po_distill.weights.safetensors_file import TensorFiles

_PIECE_ELEMENTS = 1 << 20


def write_gguf(
    checkpoint: Path,
    path: Path,
    quantization: Quantization,
    *,
    name: str | None = None,
    license: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> GGUFFile:
    """Write a checkpoint folder (Llama, Mistral, Qwen2) as a GGUF file.

    `name` and `license` go into the general metadata, `metadata` beside it as `po_distill.<key>`. Raises
    WeightsError where the architecture, the tokenizer or a tensor cannot be written so that llama.cpp
    computes what transformers does.
    """
    config = read_config(checkpoint)
    architecture = architecture_of(config, str(checkpoint))
    if config.get("quantization_config"):
        raise WeightsError(f"{checkpoint} is quantized already.", "Give the FP16 checkpoint.")
    infos = {key: info for key, info in read_tensor_infos(checkpoint).items() if not COMPUTED_TENSOR.search(key)}
    plans = place_tensors(infos, config, architecture, quantization, checkpoint)
    tokenizer = read_tokenizer(checkpoint, config)
    with TensorFiles(infos) as tensors, artifacts.atomic_file(path, "wb") as file:
        general = {"general.name": name or checkpoint.resolve().name, "general.license": license}
        extra = {f"po_distill.{key}": value for key, value in (metadata or {}).items()}
        write_header(file, config, architecture, quantization, tokenizer, plans, {**general, **extra})
        _write_tensors(file, tensors, plans)
    return GGUFFile(
        path=str(path),
        quantization=quantization,
        architecture=architecture,
        size_bytes=path.stat().st_size,
        tensors=dict(sorted(Counter(plan.kind for plan in plans).items())),
        notes=(
            *tokenizer.notes,
            *departures([(plan.name, plan.source.shape, plan.kind) for plan in plans], quantization),
            *window_note(config),
        ),
        digest=artifacts.digest_file(path),
    )


# --- data -----------------------------------------------------------------------------------------


def _write_tensors(file: IO[bytes], tensors: TensorFiles, plans: list[Placement]) -> None:
    total = sum(plan.source.elements for plan in plans)
    with progress("Writing the GGUF", total=round(total / 1e6), unit="million weights") as advance:
        for plan in plans:
            written = 0
            for values in _pieces(tensors, plan):
                data = np.ascontiguousarray(quantize_rows(values, plan.kind))
                file.write(data.data)
                written += data.nbytes
            assert written == size_bytes(plan.source.shape, plan.kind), plan.name
            file.write(b"\0" * (-written % ALIGNMENT_BYTES))
            tensors.release(plan.source.name)
            advance(plan.source.elements / 1e6)


def _pieces(tensors: TensorFiles, plan: Placement) -> Iterator[npt.NDArray[np.float32]]:
    """A tensor's rows in the GGUF's order, in float32, some at a time.

    Matrices are rounded to float16 on the way, so that quantizing a BF16 checkpoint gives the bytes that
    quantizing its FP16 GGUF gives.
    """
    shape = plan.source.shape
    order = rotary_rows(shape[0], plan.rotary_heads) if plan.rotary_heads else None
    step = max(1, _PIECE_ELEMENTS // max(1, int(np.prod(shape[1:], dtype=np.int64))))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        values = tensors.float32(plan.source.name, rows if order is None else order[rows])
        rounded = to_float16(values)
        if not all_finite(rounded):
            raise WeightsError(
                f"{plan.source.path}: {plan.source.name} holds {np.abs(values).max():g}, which float16 cannot.",
                "Such a model cannot be written as a GGUF here; look at how it was trained.",
            )
        yield values if len(shape) == 1 else rounded.astype(np.float32)
