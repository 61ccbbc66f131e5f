"""The model families that are written as GGUF, as a table: a row for each class of transformers.

A row says what a family's tensors are called in a GGUF, what llama.cpp has built in for it, and which numbers it
reads from the header. Sources: llama.cpp's src/models (one file for each architecture), its converter, and
transformers' modeling files. A family is added by adding its row, and a model of it to tests/tiny_models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from po_distill.errors import WeightsError


@dataclass(frozen=True)
class HeaderNumber:
    """A number of config.json that goes into the header as `<architecture>.<key>`."""

    key: str
    setting: str  # its name in config.json
    kind: type[int] | type[float]
    default: float | None = None  # what is written where config.json has none; None where it must have one

    def of(self, config: Mapping[str, Any]) -> int | float:
        said = config.get(self.setting)
        return self.kind((self.default or 0) if said is None else said)


@dataclass(frozen=True)
class ModelFamily:
    """How the checkpoints of a family lie in a GGUF, and what llama.cpp takes for granted of them."""

    architecture: str  # general.architecture
    parts: Mapping[str, str]  # a module of a layer -> its name in a GGUF; each has a weight
    biases: frozenset[str] = frozenset()  # the modules that may have a bias too
    needs_biases: bool = False  # each of them has to have one
    swaps_rows: bool = False  # the rows of q and k change their order (see gguf_layout)
    added_to_norms: float = 0.0
    tied: bool = False  # whether the output layer is the embedding where config.json does not say
    must_tie: bool = False
    head_size: int | None = None  # where config.json names none; None for hidden_size / heads
    built_in: Mapping[str, object] = field(default_factory=dict)  # settings with the one value that llama.cpp knows
    numbers: tuple[HeaderNumber, ...] = ()  # beside those of every family
    # What a sliding window does: no setting of this family, or the context ends with it, or it slides as it should.
    window: Literal["none", "ends", "slides"] = "none"
    window_switch: str | None = None  # the setting without which the window counts for nothing
    full_every: int = 1  # each so many-th layer sees the whole context, the others a sliding window
    wide_layers: int = 0  # at this number of layers queries are scaled by hidden_size / heads, else by the head's size
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")  # rotary scalings that llama.cpp computes alike
    rope_theta: float = 10_000.0  # where config.json has none
    local_rope_theta: float | None = None  # the same, of the layers with a sliding window; None where it is one theta
    turns_part: bool = False  # the rotary embedding may turn a part of each head only


_PARTS = {
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
_NORMS_OF_HEADS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_NORMS_BEHIND = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_FUSED_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ATTENTION = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"})
_MLP = frozenset({"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
_WINDOW = HeaderNumber("attention.sliding_window", "sliding_window", int)
_PLAIN_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": False}

LLAMA = ModelFamily(
    architecture="llama",
    parts=_PARTS,
    biases=_ATTENTION | _MLP,
    swaps_rows=True,
    built_in={"hidden_act": "silu"},
    rope_kinds=("default", "linear", "yarn", "llama3"),
)
QWEN2 = ModelFamily(
    architecture="qwen2",
    parts=_PARTS,
    biases=_ATTENTION - {"self_attn.o_proj"},
    needs_biases=True,
    built_in={"hidden_act": "silu"},
    window="ends",
    window_switch="use_sliding_window",
)
GEMMA2 = ModelFamily(
    architecture="gemma2",
    parts=_PARTS | _NORMS_BEHIND,
    added_to_norms=1.0,
    tied=True,
    must_tie=True,
    head_size=256,
    built_in=_PLAIN_GEMMA,
    numbers=(
        HeaderNumber("attn_logit_softcapping", "attn_logit_softcapping", float),
        HeaderNumber("final_logit_softcapping", "final_logit_softcapping", float),
        _WINDOW,
    ),
    window="slides",
    full_every=2,
    wide_layers=46,
    rope_kinds=("default",),
)

FAMILIES: dict[str, ModelFamily] = {  # by the class's name, as config.json has it
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": replace(LLAMA, biases=frozenset(), window="ends", rope_kinds=("default", "linear", "yarn")),
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": replace(
        QWEN2,
        architecture="qwen3",
        parts=_PARTS | _NORMS_OF_HEADS,
        biases=frozenset(),
        head_size=128,
        built_in={"hidden_act": "silu", "attention_bias": False},
    ),
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": replace(
        GEMMA2,
        architecture="gemma3",
        parts=_PARTS | _NORMS_OF_HEADS | _NORMS_BEHIND,
        built_in={**_PLAIN_GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None},
        numbers=(_WINDOW,),
        full_every=6,
        wide_layers=62,
        rope_kinds=("default", "linear"),
        rope_theta=1_000_000.0,
        local_rope_theta=10_000.0,
    ),
    "Phi3ForCausalLM": ModelFamily(
        architecture="phi3",
        parts=_FUSED_PARTS,
        built_in={"hidden_act": "silu", "attention_bias": False},
        numbers=(replace(_WINDOW, default=0),),
        window="ends",
        rope_kinds=("default", "longrope"),
        turns_part=True,
    ),
}


def family_of(config: dict[str, Any], where: str = "config.json") -> ModelFamily:
    """The row of a config. Raises WeightsError, with the known families, where it has none."""
    names = [str(name) for name in config.get("architectures") or []]
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise WeightsError(
        f"{where} has the architecture {', '.join(names) or 'unknown'}; supported: {', '.join(FAMILIES)}.",
        "Use a base model of one of these families.",
    )
