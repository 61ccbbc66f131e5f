"""Where each tensor of a checkpoint goes in a GGUF: its name, its storage type, the order of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.records import Quantization
from po_distill.weights.gguf_families import FAMILIES, ModelFamily, family_of
from po_distill.weights.gguf_layout import gguf_name, head_size, is_tied, key_heads, needed_names, rotary_heads
from po_distill.weights.gguf_quantization import check_quantizer, storage_type
from po_distill.weights.gguf_rope import read_rope, rope_tensors
from po_distill.weights.safetensors_file import TensorInfo


@dataclass(frozen=True)
class Placement:
    """One tensor on its way into the GGUF."""

    name: str  # in the GGUF
    source: TensorInfo
    kind: str  # its storage type
    rotary_heads: int | None  # the number of heads whose rows change their order
    added: float = 0.0  # what is added to each value, in the arithmetic of the dtype that the value comes in
    values: tuple[float, ...] | None = None  # a tensor that no checkpoint holds; `source` has only its shape then


def place_tensors(
    infos: Mapping[str, TensorInfo],
    config: dict[str, Any],
    architecture: str,
    quantization: Quantization,
    checkpoint: Path,
) -> list[Placement]:
    """Every tensor with its name and storage type in the GGUF, those that no checkpoint holds first."""
    family = family_of(config, str(checkpoint))
    embedding = infos.get("model.embed_tokens.weight")
    if embedding is not None and embedding.shape[0] != int(config["vocab_size"]):
        raise WeightsError(
            f"{checkpoint}: the embedding has {embedding.shape[0]} rows, config.json says {config['vocab_size']}.",
            "Correct vocab_size in config.json.",
        )
    named = _named(infos, config, family, checkpoint)
    check_quantizer(quantization)
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    kind_of = partial(
        storage_type,
        quantization=quantization,
        tied=is_tied(config, family),
        layers=layers,
        is_70b=architecture == "llama" and layers == 80 and heads != key_heads(config),
    )
    computed = rope_tensors(read_rope(config, family, head_size(config, family)))
    return [
        *(
            Placement(name, TensorInfo(name, "F32", (len(values),), checkpoint, 0, 0), "F32", None, values=values)
            for name, values in computed.items()
        ),
        *(
            Placement(
                target,
                info,
                kind_of(target, info.shape),
                rotary_heads(target, architecture, config),
                family.added_to_norms if target.endswith("_norm.weight") else 0.0,
            )
            for target, info in sorted(named.items(), key=lambda item: _order(item[0]))
        ),
    ]


def _named(
    infos: Mapping[str, TensorInfo], config: dict[str, Any], family: ModelFamily, checkpoint: Path
) -> dict[str, TensorInfo]:
    """The tensors by their names in the GGUF, none missing and none too many."""
    named = {}
    for key, info in infos.items():
        target = gguf_name(key, family)
        if target is None:
            raise WeightsError(
                f"{checkpoint}: the tensor {key} is none of a plain {family.architecture} model in a GGUF.",
                f"Use a base model of a known family ({', '.join(FAMILIES)}), without adapters or extra heads.",
            )
        if not (is_tied(config, family) and target == "output.weight"):
            named[target] = info
    if missing := [target for target in needed_names(config, family) if target not in named]:
        raise WeightsError(f"{checkpoint} lacks the tensor {missing[0]} (its name in a GGUF).", "Download it again.")
    layers = int(config["num_hidden_layers"])
    if beyond := [target for target in named if target.startswith("blk.") and _order(target)[0] > layers]:
        raise WeightsError(
            f"{checkpoint} holds {beyond[0]} (its name in a GGUF), but config.json counts {layers} layers.",
            "Correct num_hidden_layers in config.json.",
        )
    return named


def _order(name: str) -> tuple[int, str]:
    parts = name.split(".")
    return (int(parts[1]) + 1, name) if parts[0] == "blk" else (0 if parts[0] == "token_embd" else 1 << 30, name)
