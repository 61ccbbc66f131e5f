"""The rotary embedding of a model, out of config.json and into a GGUF.

transformers has had three ways to write it down: `rope_theta` beside `rope_scaling`, both in `rope_parameters`, and
`rope_parameters` for each kind of layer. Its computations are in transformers' modeling_rope_utils.py; llama.cpp has
them in ggml's rope and, for llama3 and longrope, takes factors for each frequency as tensors of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from po_distill.errors import WeightsError
from po_distill.weights.gguf_families import ModelFamily

# Numbers that change what a scaling computes, with the value that llama.cpp has for them.
_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "attention_factor": None, "mscale": None}


@dataclass(frozen=True)
class Rope:
    """A model's rotary embedding."""

    kind: str  # how frequencies are scaled for longer texts: default, linear, yarn, llama3, longrope
    theta: float
    local_theta: float | None  # of the layers with a sliding window, where they have one of their own
    dimensions: int  # rows of a head that turn
    numbers: dict[str, Any]  # of the scaling, as config.json names them
    trained_tokens: int  # the context before it was stretched


def read_rope(config: dict[str, Any], family: ModelFamily, head_size: int) -> Rope:
    """The rotary embedding of a config. Raises WeightsError where llama.cpp would compute another one."""
    parameters = config.get("rope_parameters") or {}
    full, local = parameters.get("full_attention", parameters), parameters.get("sliding_attention") or {}
    numbers = {**(config.get("rope_scaling") or {}), **full}
    kind = numbers.get("rope_type") or numbers.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind not in family.rope_kinds:
        raise _refusal(f"the rotary scaling {kind!r}", f"Known for {family.architecture}: {_listed(family)}.")
    turned = float(numbers.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    if turned != 1.0 and not family.turns_part:
        raise _refusal(f"partial_rotary_factor {turned:g}", f"{family.architecture} turns the whole head in llama.cpp.")
    theta = float(numbers.get("rope_theta") or config.get("rope_theta") or family.rope_theta)
    local_theta = family.local_rope_theta
    if local_theta is not None:
        local_theta = float(local.get("rope_theta") or config.get("rope_local_base_freq") or local_theta)
    if (local.get("rope_type") or "default") != "default" or (local and family.local_rope_theta is None):
        raise _refusal("a rotary embedding of its own for sliding_attention", "llama.cpp has no key for it.")
    trained = numbers.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    tokens = int(config["max_position_embeddings"])
    rope = Rope(kind, theta, local_theta, int(head_size * turned), numbers, int(trained or tokens))
    _check_numbers(rope, tokens)
    return rope


def _check_numbers(rope: Rope, tokens: int) -> None:
    numbers = rope.numbers
    if rope.kind == "yarn":
        for name, known in _YARN.items():
            if numbers.get(name) not in (None, known):
                raise _refusal(f"{name} {numbers[name]!r} for yarn", f"Known here: {known!r}, llama.cpp's own.")
    if rope.kind == "longrope":
        stretched = tokens / rope.trained_tokens
        if numbers.get("factor") not in (None, stretched) or numbers.get("attention_factor") is not None:
            raise _refusal("a factor of its own for longrope", f"Known here: {stretched:g}, that of the contexts.")
        lengths = {len(numbers.get(f"{which}_factor") or ()) for which in ("short", "long")}
        if lengths != {rope.dimensions // 2}:
            raise _refusal(f"longrope factors of the lengths {sorted(lengths)}", f"Needed: {rope.dimensions // 2}.")
    needed = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
    for name in needed.get(rope.kind, ()):
        if not isinstance(numbers.get(name), int | float):
            raise _refusal(f"the rotary scaling {rope.kind!r} without {name}", "Correct config.json.")


def _listed(family: ModelFamily) -> str:
    return ", ".join(family.rope_kinds)


def _refusal(what: str, fix: str) -> WeightsError:
    return WeightsError(f"config.json asks for {what}.", fix)


def rope_keys(rope: Rope, config: dict[str, Any], architecture: str) -> dict[str, int | float | str]:
    """The header's `<architecture>.rope.<key>` of a rotary embedding."""
    keys: dict[str, int | float | str] = {"dimension_count": rope.dimensions, "freq_base": rope.theta}
    if rope.local_theta is not None:
        keys["freq_base_swa"] = rope.local_theta
    if rope.kind in ("linear", "yarn"):
        keys |= {"scaling.type": rope.kind, "scaling.factor": float(rope.numbers["factor"])}
    if rope.kind == "yarn" or architecture == "phi3":
        keys["scaling.original_context_length"] = rope.trained_tokens
    if rope.kind == "longrope":
        keys["scaling.attn_factor"] = _attention_factor(rope, int(config["max_position_embeddings"]))
    return keys


def _attention_factor(rope: Rope, tokens: int) -> float:
    """What longrope multiplies queries and keys by, for a context of `tokens`.

    LongRoPE (Ding et al. 2024), as transformers' Phi-3 has it: sqrt(1 + ln(stretch) / ln(trained context)).
    """
    stretched = tokens / rope.trained_tokens
    return math.sqrt(1 + math.log(stretched) / math.log(rope.trained_tokens)) if stretched > 1 else 1.0


def rope_tensors(rope: Rope) -> dict[str, tuple[float, ...]]:
    """The tensors that a GGUF has for a scaling: for each frequency, what it is divided by."""
    if rope.kind == "longrope":
        return {
            f"rope_factors_{which}.weight": tuple(float(value) for value in rope.numbers[f"{which}_factor"])
            for which in ("long", "short")
        }
    return {"rope_freqs.weight": _llama3_factors(rope)} if rope.kind == "llama3" else {}


def _llama3_factors(rope: Rope) -> tuple[float, ...]:
    """Short waves stay, long ones are stretched by `factor`, between them it goes smoothly.

    In float32, step by step as llama.cpp's converter computes it, so that the same bytes come out.
    """
    factor, one = rope.numbers["factor"], np.float32(1)
    low, high = rope.numbers["low_freq_factor"], rope.numbers["high_freq_factor"]
    exponents = np.arange(0, rope.dimensions, 2, dtype=np.float32) / np.float32(rope.dimensions)
    factors: list[float] = []
    for frequency in one / np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32):
        wave = np.float32(2 * math.pi) / frequency
        if wave < rope.trained_tokens / high:
            factors.append(1.0)
        elif wave > rope.trained_tokens / low:
            factors.append(float(factor))
        else:
            smooth = (np.float32(rope.trained_tokens) / wave - np.float32(low)) / np.float32(high - low)
            factors.append(float(one / ((one - smooth) / np.float32(factor) + smooth)))
    return tuple(factors)
