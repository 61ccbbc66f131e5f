"""The head of a GGUF file: its key-values and the table of its tensors, written by the `gguf` package."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from po_distill.errors import MissingExtraError, WeightsError
from po_distill.records import Quantization
from po_distill.weights.gguf_families import family_of
from po_distill.weights.gguf_layout import head_size, key_heads, window_tokens
from po_distill.weights.gguf_placement import Placement
from po_distill.weights.gguf_quantization import FILE_TYPES, size_bytes
from po_distill.weights.gguf_rope import read_rope, rope_keys
from po_distill.weights.gguf_sentencepiece import PHI3_NAMES
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
                writer.add_string(key, _name(value, tokenizer) if key == gguf.Keys.General.NAME else value)
        writer.add_file_type(FILE_TYPES[quantization])
        writer.add_quantization_version(_QUANTIZATION_VERSION)
        _add_hyper_parameters(writer, config, architecture)
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


def _name(name: str, tokenizer: GGUFTokenizer) -> str:
    """A model's name, by which llama.cpp knows Phi-3's tokens that swallow white space."""
    is_phi3 = any(known in name.lower() for known in PHI3_NAMES)
    if is_phi3 and not tokenizer.strips_right:
        raise WeightsError(
            f"The name {name!r} makes llama.cpp read white space behind special tokens as Phi-3 does, "
            "which this tokenizer does not.",
            f"Choose a name without {' and '.join(PHI3_NAMES)}.",
        )
    return f"{name} ({PHI3_NAMES[0]})" if tokenizer.strips_right and not is_phi3 else name


def _add_hyper_parameters(writer: Any, config: dict[str, Any], architecture: str) -> None:
    family = family_of(config)
    size = head_size(config, family)
    rope = read_rope(config, family, size)
    numbers: dict[str, int | float | str] = {
        "vocab_size": int(config["vocab_size"]),
        "context_length": context_tokens(config),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": int(config["num_attention_heads"]),
        "attention.head_count_kv": key_heads(config),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": size,
        "attention.value_length": size,
        **{number.key: number.of(config) for number in family.numbers},
        **{f"rope.{key}": value for key, value in rope_keys(rope, config, architecture).items()},
    }
    for key, value in numbers.items():
        name = f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)


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
    """Words for people where the context ends before the model's own length, or changes the model; else nothing."""
    notes = []
    if context_tokens(config) != int(config["max_position_embeddings"]):
        notes.append(f"The context ends at {context_tokens(config)} tokens, the model's sliding window.")
    family = family_of(config)
    rope = read_rope(config, family, head_size(config, family))
    if rope.kind == "longrope":
        notes.append(
            f"llama.cpp takes the rotary factors for long texts wherever its context is longer than "
            f"{rope.trained_tokens} tokens, transformers only where the text is; with a context of at most "
            f"{rope.trained_tokens} both are the same."
        )
    return tuple(notes)


def context_tokens(config: dict[str, Any]) -> int:
    """The longest context; where llama.cpp does not slide a model's window, the context ends with it."""
    longest, family = int(config["max_position_embeddings"]), family_of(config)
    window = window_tokens(config, family) if family.window == "ends" else None
    return min(longest, window) if window else longest
