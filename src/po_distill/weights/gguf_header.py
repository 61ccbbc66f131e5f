"""The head of a GGUF file: its key-values and the table of its tensors, written by the `gguf` package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from po_distill.errors import MissingExtraError, WeightsError
from po_distill.records import Quantization
from po_distill.weights.gguf_layout import head_size, rope_scaling, rope_theta
from po_distill.weights.gguf_placement import Placement
from po_distill.weights.gguf_quantization import FILE_TYPES, size_bytes
from po_distill.weights.gguf_tokenizer import GGUFTokenizer

ALIGNMENT_BYTES = 32
_QUANTIZATION_VERSION = 2  # gguf.GGML_QUANT_VERSION


def write_header(
    file: IO[bytes],
    config: dict[str, Any],
    architecture: str,
    quantization: Quantization,
    tokenizer: GGUFTokenizer,
    placements: Sequence[Placement],
    strings: Mapping[str, str | None],
) -> None:
    """Write the head of a GGUF, padded up to where the first tensor's data begins; `strings` are general key-values."""
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
        for plan in placements:
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
    file.write(data + b"\0" * (-len(data) % ALIGNMENT_BYTES))


def _add_hyper_parameters(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    heads = int(config["num_attention_heads"])
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(context_tokens(config))
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


def window_note(config: dict[str, Any]) -> tuple[str, ...]:
    """Words for people where the context ends before the model's own length; else nothing."""
    if context_tokens(config) == int(config["max_position_embeddings"]):
        return ()
    return (f"The context ends at {context_tokens(config)} tokens, the model's sliding window.",)


def context_tokens(config: dict[str, Any]) -> int:
    """llama.cpp does not slide a window over these architectures, so the context ends with it."""
    longest = int(config["max_position_embeddings"])
    if config.get("model_type") == "mistral" and config.get("sliding_window"):
        return min(longest, int(config["sliding_window"]))
    return longest
