"""Where each tensor of a checkpoint goes in a GGUF: its name, its storage type, the order of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.records import Quantization
from po_distill.weights.gguf_layout import gguf_name, rotary_heads
from po_distill.weights.gguf_quantization import has_libgguf, storage_type
from po_distill.weights.safetensors_file import TensorInfo


@dataclass(frozen=True)
class Placement:
    """One tensor on its way into the GGUF."""

    name: str  # in the GGUF
    source: TensorInfo
    kind: str  # its storage type
    rotary_heads: int | None  # the number of heads whose rows change their order


def place_tensors(
    infos: Mapping[str, TensorInfo],
    config: dict[str, Any],
    architecture: str,
    quantization: Quantization,
    checkpoint: Path,
) -> list[Placement]:
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
        Placement(
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
