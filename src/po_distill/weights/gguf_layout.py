"""How a checkpoint lies in a GGUF: tensor names, the order of rows, and what of its config llama.cpp takes for granted.

Sources: llama.cpp's docs/development/HOWTO-add-model.md and the constants of the `gguf` package; what differs between
families is in gguf_families. Llama's rotary embedding pairs neighbouring rows in a GGUF, and row i with row
i + head_dim / 2 in transformers, so q and k change their row order; the other families keep transformers' order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError
from po_distill.weights.gguf_families import LLAMA, ModelFamily, family_of
from po_distill.weights.gguf_rope import read_rope

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_BLOCK_NAME = re.compile(r"^model\.layers\.(\d+)\.(.+)\.(weight|bias)$")


def gguf_name(name: str, family: ModelFamily) -> str | None:
    """A transformers tensor's name in a GGUF; None for one that the family does not have."""
    if match := _BLOCK_NAME.match(name):
        part = family.parts.get(match[2])
        known = part is not None and (match[3] == "weight" or match[2] in family.biases)
        return f"blk.{match[1]}.{part}.{match[3]}" if known else None
    stem, _, kind = name.rpartition(".")
    return f"{_TOP[stem]}.{kind}" if stem in _TOP and kind == "weight" else None


def transformers_name(name: str, family: ModelFamily = LLAMA) -> str | None:
    """The way back: a GGUF tensor's name in transformers."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4:
        stem = next((key for key, value in family.parts.items() if value == parts[2]), None)
        return f"model.layers.{parts[1]}.{stem}.{parts[3]}" if stem else None
    stem = next((key for key, value in _TOP.items() if value == parts[0]), None)
    return f"{stem}.{parts[1]}" if stem and len(parts) == 2 else None


def needed_names(config: dict[str, Any], family: ModelFamily) -> Iterator[str]:
    """The names in a GGUF of the tensors without which llama.cpp does not load a model of the family."""
    yield from ("token_embd.weight", "output_norm.weight")
    if not is_tied(config, family):
        yield "output.weight"
    for block in range(int(config["num_hidden_layers"])):
        for part in family.parts.values():
            yield f"blk.{block}.{part}.weight"
        if family.needs_biases:
            for module in sorted(family.biases):
                yield f"blk.{block}.{family.parts[module]}.bias"


def rotary_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """For each row of q or k in a GGUF of arch llama, the row of transformers' tensor that it takes."""
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def rotary_heads(name: str, architecture: str, config: dict[str, Any]) -> int | None:
    """The number of heads by which a tensor's rows change their order; None where they keep it.

    `name` is the tensor's name in the GGUF; key tensors have a count of their own under grouped-query attention.
    """
    if architecture != LLAMA.architecture or (".attn_q." not in name and ".attn_k." not in name):
        return None
    heads = int(config["num_attention_heads"])
    return key_heads(config) if ".attn_k." in name else heads


# --- the config -----------------------------------------------------------------------------------


def architecture_of(config: dict[str, Any], where: str) -> str:
    """The GGUF architecture of a config.

    Raises WeightsError where the family is not supported, or where llama.cpp would compute another model than this
    config describes.
    """
    family = family_of(config, where)
    _check_settings(config, family, where)
    _check_layers(config, family, where)
    _check_heads(config, family, where)
    read_rope(config, family, head_size(config, family))
    return family.architecture


def is_tied(config: dict[str, Any], family: ModelFamily) -> bool:
    """Whether the output layer is the embedding."""
    said = config.get("tie_word_embeddings")
    return family.tied if said is None else bool(said)


def head_size(config: dict[str, Any], family: ModelFamily) -> int:
    """The size of an attention head, in rows of q."""
    return int(config.get("head_dim") or family.head_size or config["hidden_size"] // config["num_attention_heads"])


def key_heads(config: dict[str, Any]) -> int:
    """The number of heads of keys and values."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def window_tokens(config: dict[str, Any], family: ModelFamily) -> int | None:
    """Tokens of the sliding window that the model was made with; None where it has none."""
    if family.window == "none" or (family.window_switch and not config.get(family.window_switch)):
        return None
    return int(config["sliding_window"]) if config.get("sliding_window") else None


def _check_settings(config: dict[str, Any], family: ModelFamily, where: str) -> None:
    for name, known in family.built_in.items():
        if config.get(name) not in (None, known):
            raise WeightsError(
                f"{where} has {name}: {config[name]!r}; llama.cpp computes {family.architecture} with {known!r} only.",
                "Use a base model with that setting.",
            )
    for number in family.numbers:
        if number.default is None and not config.get(number.setting):
            raise WeightsError(
                f"{where} has no {number.setting}, for which llama.cpp would take a value of its own.",
                "Correct config.json, or use another base model.",
            )
    if family.must_tie and not is_tied(config, family):
        raise WeightsError(
            f"{where} unties the output layer (tie_word_embeddings), which {family.architecture} cannot in llama.cpp.",
            "Use a base model whose output layer is its embedding.",
        )


def _check_layers(config: dict[str, Any], family: ModelFamily, where: str) -> None:
    """Raise WeightsError where other layers than llama.cpp's see the whole context."""
    layers = int(config["num_hidden_layers"])
    kinds = config.get("layer_types")
    if not kinds:
        every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or family.full_every
        kinds = [_kind(layer, int(every)) for layer in range(layers)]
    if family.window != "slides" and window_tokens(config, family):
        return  # the context ends with the window, so that all layers see all of it
    if kinds != [_kind(layer, family.full_every) for layer in range(layers)]:
        raise WeightsError(
            f"{where} gives sliding windows to other layers than llama.cpp (layer_types, sliding_window_pattern); "
            f"of {family.architecture} every {family.full_every}. layer sees the whole context.",
            "Use a base model with that pattern.",
        )


def _kind(layer: int, full_every: int) -> str:
    return "sliding_attention" if (layer + 1) % full_every else "full_attention"


def _check_heads(config: dict[str, Any], family: ModelFamily, where: str) -> None:
    size, heads = head_size(config, family), int(config["num_attention_heads"])
    if family.wide_layers:
        is_wide = int(config["num_hidden_layers"]) == family.wide_layers
        known = int(config["hidden_size"]) // heads if is_wide else size
        if float(config.get("query_pre_attn_scalar") or known) != known:
            raise WeightsError(
                f"{where} has query_pre_attn_scalar {config['query_pre_attn_scalar']!r}; "
                f"llama.cpp computes {family.architecture} of this size with {known}.",
                "Use a base model with that scale.",
            )
    if "self_attn.qkv_proj" in family.parts and size * heads != int(config["hidden_size"]):
        raise WeightsError(
            f"{where} has {heads} heads of {size} for a hidden_size of {config['hidden_size']}; "
            f"llama.cpp knows {family.architecture} only where these agree.",
            "Use a base model where they do.",
        )
