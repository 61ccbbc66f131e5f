"""How Llama/Mistral and Qwen2 checkpoints lie in a GGUF: tensor names, rotary order, hyper-parameters.

Sources: llama.cpp's docs/development/HOWTO-add-model.md and the constants of the `gguf` package.
Llama's rotary embedding pairs neighbouring rows in a GGUF, and row i with row i + head_dim / 2 in
transformers, so q and k change their row order; Qwen2 keeps transformers' order.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_BLOCK_NAME = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")


def gguf_name(name: str) -> str | None:
    """A transformers tensor's name in a GGUF; None for one that these families do not have."""
    if match := _BLOCK_NAME.match(name):
        part = _BLOCK.get(match[2])
        return f"blk.{match[1]}.{part}.{match[3]}" if part else None
    stem, _, kind = name.rpartition(".")
    return f"{_TOP[stem]}.{kind}" if stem in _TOP and kind == "weight" else None


def transformers_name(name: str) -> str | None:
    """The way back: a GGUF tensor's name in transformers."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4:
        stem = next((key for key, value in _BLOCK.items() if value == parts[2]), None)
        return f"model.layers.{parts[1]}.{stem}.{parts[3]}" if stem else None
    stem = next((key for key, value in _TOP.items() if value == parts[0]), None)
    return f"{stem}.{parts[1]}" if stem and len(parts) == 2 else None


def rotary_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """For each row of q or k in a GGUF of arch llama, the row of transformers' tensor that it takes."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def rotary_heads(name: str, architecture: str, config: dict[str, Any]) -> int | None:
    """The number of heads by which a tensor's rows change their order; None where they keep it.

    `name` is the tensor's name in the GGUF; key tensors have a count of their own under grouped-query attention.
    """
    if architecture != "llama" or (".attn_q." not in name and ".attn_k." not in name):
        return None
    heads = int(config["num_attention_heads"])
    return int(config.get("num_key_value_heads") or heads) if ".attn_k." in name else heads


def architecture_of(config: dict[str, Any], where: str) -> str:
    """The GGUF architecture of a config. Raises WeightsError where the family is not supported."""
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise WeightsError(
        f"{where} has the architecture {', '.join(map(str, names)) or 'unknown'}; "
        f"supported: {', '.join(ARCHITECTURES)}.",
        "Use a base model of the Llama, Mistral or Qwen2 family.",
    )


def rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary frequencies, wherever this version of transformers puts it."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)


def rope_scaling(config: dict[str, Any]) -> dict[str, Any] | None:
    """The rotary scaling of a config (`rope_type` and its numbers); None where there is none."""
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    return None if kind == "default" else {**scaling, "rope_type": kind}


def head_size(config: dict[str, Any]) -> int:
    """The size of an attention head, in rows of q."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
