"""A checkpoint folder as one GGUF file, quantized on the way, tensor by tensor.

Format: ggml's docs/gguf.md. The `gguf` package writes header and key-values; the tensors' data follows
here piece by piece, in the order in which they were declared.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from po_distill import artifacts
from po_distill.errors import MissingExtraError, WeightsError
from po_distill.progress import progress
from po_distill.records import GGUFFile, Quantization
from po_distill.weights.checkpoint import read_config, read_tensor_infos
from po_distill.weights.gguf_layout import (
    architecture_of,
    gguf_name,
    head_size,
    rope_scaling,
    rope_theta,
    rotary_heads,
    rotary_rows,
)
from po_distill.weights.gguf_quantization import (
    FILE_TYPES,
    departures,
    has_libgguf,
    quantize_rows,
    size_bytes,
    storage_type,
)
from po_distill.weights.gguf_tokenizer import GGUFTokenizer, read_tokenizer
from po_distill.weights.half_precision import all_finite, to_float16
from po_distill.weights.lora_merge import COMPUTED_TENSOR
from po_distill.weights.safetensors_file import TensorFiles, TensorInfo

_ALIGNMENT_BYTES = 32
_PIECE_ELEMENTS = 1 << 20
_QUANTIZATION_VERSION = 2  # gguf.GGML_QUANT_VERSION


@dataclass(frozen=True)
class _Plan:
    """One tensor on its way into the GGUF."""

    name: str  # in the GGUF
    source: TensorInfo
    kind: str  # its storage type
    rotary_heads: int | None  # the number of heads whose rows change their order


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
    plans = _plans(infos, config, architecture, quantization, checkpoint)
    tokenizer = read_tokenizer(checkpoint, config)
    with TensorFiles(infos) as tensors, artifacts.atomic_file(path, "wb") as file:
        general = {"general.name": name or checkpoint.resolve().name, "general.license": license}
        extra = {f"po_distill.{key}": value for key, value in (metadata or {}).items()}
        _write_header(file, config, architecture, quantization, tokenizer, plans, {**general, **extra})
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
            *_window_note(config),
        ),
        digest=artifacts.digest_file(path),
    )


# --- what goes in ---------------------------------------------------------------------------------


def _plans(
    infos: dict[str, TensorInfo],
    config: dict[str, Any],
    architecture: str,
    quantization: Quantization,
    checkpoint: Path,
) -> list[_Plan]:
    """Every tensor with its name and storage type in the GGUF, in the order in which it is written."""
    embedding = infos.get("model.embed_tokens.weight")
    if embedding is not None and embedding.shape[0] != int(config["vocab_size"]):
        raise WeightsError(
            f"{checkpoint}: the embedding has {embedding.shape[0]} rows, config.json says {config['vocab_size']}.",
            "Correct vocab_size in config.json.",
        )
    tied = bool(config.get("tie_word_embeddings"))
    named = {}
    for key, info in infos.items():
        target = gguf_name(key)
        if target is None:
            raise WeightsError(
                f"{checkpoint}: the tensor {key} is none of a plain Llama, Mistral or Qwen2 model.",
                "Use a base model of these families, without adapters or extra heads.",
            )
        if not (tied and target == "output.weight"):
            named[target] = info
    if missing := [target for target in _expected(config, tied) if target not in named]:
        raise WeightsError(f"{checkpoint} lacks the tensor {missing[0]} (its name in a GGUF).", "Download it again.")
    layers = int(config["num_hidden_layers"])
    if beyond := [target for target in named if target.startswith("blk.") and _order(target)[0] > layers]:
        raise WeightsError(
            f"{checkpoint} holds {beyond[0]} (its name in a GGUF), but config.json counts {layers} layers.",
            "Correct num_hidden_layers in config.json.",
        )
    return [
        _Plan(
            target,
            info,
            storage_type(target, info.shape, quantization, tied=tied, q6_k=has_libgguf()),
            rotary_heads(target, architecture, config),
        )
        for target, info in sorted(named.items(), key=lambda item: _order(item[0]))
    ]


def _expected(config: dict[str, Any], tied: bool) -> Iterator[str]:
    yield from ("token_embd.weight", "output_norm.weight")
    if not tied:
        yield "output.weight"
    for block in range(int(config["num_hidden_layers"])):
        for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{block}.{part}.weight"
        for part in ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"):
            yield f"blk.{block}.{part}.weight"


def _order(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[1]) + 1, name) if parts[0] == "blk" else (0 if parts[0] == "token_embd" else 1 << 30, name)


def _window_note(config: dict[str, Any]) -> tuple[str, ...]:
    if _context_tokens(config) == int(config["max_position_embeddings"]):
        return ()
    return (f"The context ends at {_context_tokens(config)} tokens, the model's sliding window.",)


def _context_tokens(config: dict[str, Any]) -> int:
    """llama.cpp does not slide a window over these architectures, so the context ends with it."""
    longest = int(config["max_position_embeddings"])
    if config.get("model_type") == "mistral" and config.get("sliding_window"):
        return min(longest, int(config["sliding_window"]))
    return longest


# --- header ---------------------------------------------------------------------------------------


def _write_header(
    file: IO[bytes],
    config: dict[str, Any],
    architecture: str,
    quantization: Quantization,
    tokenizer: GGUFTokenizer,
    plans: list[_Plan],
    strings: dict[str, str | None],
) -> None:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", "Writing a GGUF file") from error
    # The package's writer opens its file by name, so the header passes through a file of its own.
    with tempfile.TemporaryDirectory(prefix="po_distill_") as folder:
        header = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(header, architecture)
        writer.add_type(gguf.GGUFType.MODEL)
        for key, value in strings.items():
            if value:
                writer.add_string(key, value)
        writer.add_file_type(FILE_TYPES[quantization])
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        _add_hyper_parameters(writer, config)
        _add_tokenizer(writer, tokenizer)
        for plan in plans:
            writer.add_tensor_info(
                plan.name,
                plan.source.shape,
                np.dtype(np.float32),
                size_bytes(plan.source.shape, plan.kind),
                gguf.GGMLQuantizationType[plan.kind],
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        data = header.read_bytes()
    file.write(data + b"\0" * (-len(data) % _ALIGNMENT_BYTES))


def _add_hyper_parameters(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    heads = int(config["num_attention_heads"])
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(_context_tokens(config))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    size = head_size(config)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope_theta(config))
    scaling = rope_scaling(config)
    if scaling is None:
        return
    if scaling["rope_type"] not in ("linear", "yarn"):
        raise WeightsError(
            f"config.json asks for the rotary scaling {scaling['rope_type']!r}.", "Known here: linear and yarn."
        )
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
    writer.add_rope_scaling_factor(float(scaling["factor"]))
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))


def _add_tokenizer(writer: Any, tokenizer: GGUFTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    for kind, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if kind in tokenizer.ids:
            add(tokenizer.ids[kind])
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(tokenizer.add_space_prefix)
    writer.add_chat_template(tokenizer.chat_template)


# --- data -----------------------------------------------------------------------------------------


def _write_tensors(file: IO[bytes], tensors: TensorFiles, plans: list[_Plan]) -> None:
    total = sum(plan.source.elements for plan in plans)
    with progress("Writing the GGUF", total=round(total / 1e6), unit="million weights") as advance:
        for plan in plans:
            written = 0
            for values in _pieces(tensors, plan):
                data = np.ascontiguousarray(quantize_rows(values, plan.kind))
                file.write(data.data)
                written += data.nbytes
            assert written == size_bytes(plan.source.shape, plan.kind), plan.name
            file.write(b"\0" * (-written % _ALIGNMENT_BYTES))
            tensors.release(plan.source.name)
            advance(plan.source.elements / 1e6)


def _pieces(tensors: TensorFiles, plan: _Plan) -> Iterator[npt.NDArray[np.float32]]:
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
