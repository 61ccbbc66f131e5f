"""A version folder, as the merger leaves one, of a model that always gives the same answer.

Its next token depends on the last one alone: no attention, no feed-forward, one direction of the hidden state per
token, and an output matrix that leads from each piece of the answer to the next, then to the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fakes.scripted_gguf import CHATML, SPECIALS
from po_distill.artifacts import digest_file, record_stage
from po_distill.records import Adapter, MergedModel, PromptContract, TrainingSummary

_DIGEST = "sha256:" + "0" * 64


def scripted_student(
    folder: Path,
    answer: str,
    *,
    contract: PromptContract | None = None,
    base_name: str = "scripted",
    chat_template: str = CHATML,
    context_tokens: int = 8192,
    longest: int | None = None,
    stops: bool = True,
) -> Path:
    """The folder. `longest` is the longest training row, where it was trained; without `stops` it never ends."""
    folder.mkdir(parents=True)
    half = len(answer) // 2
    vocabulary, end = _write_tokenizer(folder, [answer[:half], answer[half:]], chat_template)
    _write_weights(folder, vocabulary, vocabulary - 2, end if stops else vocabulary - 2, context_tokens)
    weights = folder / "model.safetensors"
    merged = MergedModel(
        path=str(folder), weights_path=str(weights), dtype="float32", tensors=11, merged_tensors=0,
        adapter_digest=_DIGEST, base_name=base_name, contract=contract, digest=digest_file(weights),
    )  # fmt: skip
    if longest is not None:
        summary = {name: 1 for name, field in TrainingSummary.model_fields.items() if field.is_required()}
        training = TrainingSummary.model_validate({**summary, "longest": longest})
        adapter = Adapter(path="a", base_name=base_name, base_digest=_DIGEST, contract=contract, digest=_DIGEST,
                          training=training)  # fmt: skip
        record_stage(folder, "train", adapter, inputs={}, outputs={}, contract=contract)
    record_stage(folder, "merge", merged, inputs={}, outputs={}, contract=contract)
    return folder


def _write_tokenizer(folder: Path, pieces: Sequence[str], chat_template: str) -> tuple[int, int]:
    """(tokens in the vocabulary, the id of the one that ends). The pieces of the answer are the last tokens."""
    visible = _visible_bytes()
    texts = [*visible.values(), visible[ord("a")] + visible[ord("b")]]
    specials = {text: len(texts) + place for place, text in enumerate(SPECIALS)}
    first = len(texts) + len(SPECIALS)
    vocab = {text: number for number, text in enumerate(texts)} | specials
    vocab |= {"".join(visible[b] for b in piece.encode()): first + place for place, piece in enumerate(pieces)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": number, "content": text, **flags} for text, number in specials.items()],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b"]},
    }  # fmt: skip
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(chat_template)
    return first + len(pieces), specials["<|im_end|>"]


def _write_weights(folder: Path, vocabulary: int, first: int, end: int, context_tokens: int) -> None:
    width = -(-vocabulary // 64) * 64
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
        "head_dim": 64, "max_position_embeddings": context_tokens, "rms_norm_eps": 1e-5, "eos_token_id": end,
        "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 10000.0,
    }  # fmt: skip
    output = np.zeros((vocabulary, width), dtype=np.float32)
    output[first] = 1.0  # whatever came before
    output[first, first], output[first + 1, first] = 0.0, 1.0
    output[first, first + 1], output[end, first + 1] = 0.0, 1.0
    shapes = {"self_attn.q_proj": (64, width), "self_attn.k_proj": (64, width), "self_attn.v_proj": (64, width),
              "self_attn.o_proj": (width, 64), "mlp.gate_proj": (64, width), "mlp.up_proj": (64, width),
              "mlp.down_proj": (width, 64)}  # fmt: skip
    norms = ("model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm")
    tensors = {
        "model.embed_tokens.weight": np.eye(vocabulary, width, dtype=np.float32),
        "lm_head.weight": output,
        **{f"model.layers.0.{name}.weight": np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()},
        **{f"{name}.weight": np.ones(width, dtype=np.float32) for name in norms},
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def _visible_bytes() -> dict[int, str]:
    """Each byte as the character that GPT-2's vocabulary has for it."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    moved = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {byte: moved.get(byte, chr(byte)) for byte in range(256)}
