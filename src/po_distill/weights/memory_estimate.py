"""How much memory a training run takes, by parts, told before a weight is read.

The formula counts what the layers of `lean_layers` and `packed_rows` keep, in bytes, with n the tokens of a pack, h the
hidden size, i the MLP's inner size, q and kv the widths of all query and key heads, l the layers, V the vocabulary,
R the adapter's parameters, and b the bytes of a value (2 in bfloat16, 4 in float32):

- base: b per parameter. 4-bit (NF4, double quantization; Dettmers et al. 2023, section 3): 0.516 bytes per parameter of
  the layers' matrices.
- LoRA: 4 R; its gradients 4 R; AdamW's two moments 8 R; the copies that the products compute with, b R (bfloat16 only).
- activations, per layer and token: b (4h + 3q + 2kv + 3i + r per adapted module), where each input of a module that has
  no adapter is not kept, and q is kept twice where a pack has one row; dropout keeps a byte per input of each adapted
  module. Once: the rotary angles, 2b per token and head width, and the gradient of the answers' last states, b h each.
- with activation checkpointing: b h per layer and token, and the above for one layer alone.
- logits: 512 answer positions at a time, V (4 + b) bytes each, never more.
- workspace: what the backward pass of one layer holds at once, b (4i + 4h) per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from po_distill.records import LoRASettings, Record

Precision = Literal["float32", "bfloat16"]

LOSS_CHUNK = 512  # answer positions whose logits exist at a time
_NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, an 8-bit scale per 64 values, a float per 256 scales
_CUDA_BYTES = 800_000_000  # the context, cuBLAS's workspace, what the allocator's blocks leave unused
_MOST_TOKENS = 8192  # of a pack; beyond that nothing gets faster


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model of the Llama, Mistral or Qwen2 family."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    tied: bool  # the output layer is the embedding
    biases: int  # values of the biases of one layer

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of a decoder layer."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def matrices(self) -> int:
        """Parameters of the layers' matrices."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.modules.values())

    @property
    def parameters(self) -> int:
        """All parameters."""
        embeddings = (1 if self.tied else 2) * self.vocabulary * self.hidden
        return self.matrices + self.layers * (2 * self.hidden + self.biases) + self.hidden + embeddings

    def adapter_parameters(self, lora: LoRASettings) -> int:
        """Parameters of an adapter: r (inputs + outputs) per adapted module, and DoRA's magnitudes."""
        sizes = [size for name, size in self.modules.items() if name in lora.target_modules]
        magnitudes = sum(outputs for _, outputs in sizes) if lora.dora else 0
        return self.layers * (lora.rank * sum(map(sum, sizes)) + magnitudes)


def shape_of(config: Any) -> ModelShape:
    """The sizes in a transformers configuration."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = config.num_key_value_heads
    qkv, rest = (heads + 2 * kv_heads) * width, config.hidden_size
    biased = config.model_type == "qwen2"
    attention = qkv + (0 if biased else rest) if biased or getattr(config, "attention_bias", False) else 0
    mlp = 2 * config.intermediate_size + rest if getattr(config, "mlp_bias", False) else 0
    return ModelShape(
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        biases=attention + mlp,
    )


@dataclass(frozen=True)
class Packs:
    """The rows of a run, as far as memory depends on them."""

    longest: int  # tokens of the longest row
    longest_answer: int
    shared: int  # tokens that all rows begin with

    def tokens(self, rows: int) -> int:
        """Tokens of the largest pack of so many rows."""
        return rows * self.longest - (rows - 1) * self.shared


class MemoryEstimate(Record):
    """What a run's process will hold at its peak, beside its code."""

    parts: dict[str, int]  # bytes by what they are for
    micro_batch: int  # rows computed at a time
    checkpoint_activations: bool  # layers are computed again in the backward pass, and not kept

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryNeeds:
    """What decides the memory of a run, but for the size of its pieces."""

    shape: ModelShape
    lora: LoRASettings
    precision: Precision
    packs: Packs
    on_gpu: bool
    nf4: bool = False  # the base's matrices in 4 bits
    rounded: bool = False  # the base is rounded before each step, and kept beside
    shards: int = 1  # processes that base, adapter and optimizer are spread over (FSDP)

    def with_pieces(self, micro_batch: int, *, checkpoint_activations: bool) -> MemoryEstimate:
        """The estimate for so many rows at a time."""
        shape, lora = self.shape, self.lora
        b = 2 if self.precision == "bfloat16" else 4
        adapter = shape.adapter_parameters(lora)
        adapted = shape.layers * sum(
            inputs * outputs for name, (inputs, outputs) in shape.modules.items() if name in lora.target_modules
        )
        tokens = self.packs.tokens(micro_batch)
        layer = tokens * _kept_per_token(self, b, alone=micro_batch == 1)
        layer += self._attention_padding(micro_batch, tokens) * b
        kept = layer + (shape.layers * tokens * shape.hidden * b) if checkpoint_activations else layer * shape.layers
        answered = micro_batch * self.packs.longest_answer
        workspace = tokens * b * 4 * (shape.inner + shape.hidden)
        logits = min(LOSS_CHUNK, answered) * shape.vocabulary * (4 + (b if b < 4 else 0))
        parts = {
            "base": (self._base_bytes(b) + (adapted * b if self.rounded else 0)) // self.shards + self._gathered(b),
            "adapter": adapter * 4 // self.shards + adapter * (b if b < 4 else 0),
            "gradients": adapter * 4 // self.shards,
            "optimizer": adapter * 8 // self.shards,
            "activations": kept + (2 * tokens * shape.head_width + answered * shape.hidden) * b,
            "logits_or_workspace": max(logits, workspace + (self._dequantized(b) if self.nf4 else 0)),
        }
        if self.on_gpu:
            parts["cuda"] = _CUDA_BYTES
        return MemoryEstimate(parts=parts, micro_batch=micro_batch, checkpoint_activations=checkpoint_activations)

    def _base_bytes(self, b: int) -> int:
        if not self.nf4:
            return self.shape.parameters * b
        return round(self.shape.matrices * _NF4_BYTES) + (self.shape.parameters - self.shape.matrices) * b

    def _gathered(self, b: int) -> int:
        """Two layers whole, this and the next, where the weights are spread over processes."""
        return 2 * b * self.shape.matrices // self.shape.layers if self.shards > 1 else 0

    def _dequantized(self, b: int) -> int:
        """The largest matrix, as the products see it."""
        return max(inputs * outputs for inputs, outputs in self.shape.modules.values()) * b

    def _attention_padding(self, rows: int, tokens: int) -> int:
        """Values that attention keeps more than a token each: rows of a pack stand alone there, the shared ones too."""
        if rows == 1:
            return 0
        widths = (2 * self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_width
        return (rows * self.packs.longest - tokens) * widths


def _kept_per_token(needs: MemoryNeeds, b: int, *, alone: bool) -> int:
    """Bytes that a decoder layer keeps per token for its backward pass; a row `alone` in its pack is not laid out."""
    shape, targets = needs.shape, set(needs.lora.target_modules)
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    values = 2 * shape.hidden  # what the two norms are of
    values += shape.hidden if targets & {"q_proj", "k_proj", "v_proj"} else 0
    values += 2 * queries + 2 * keys  # attention's three inputs and its output
    values += queries if "o_proj" in targets and not alone else 0
    values += shape.hidden if targets & {"gate_proj", "up_proj"} else 0
    values += 2 * shape.inner + (shape.inner if "down_proj" in targets else 0)
    values += needs.lora.rank * len(targets)
    masks = sum(inputs for name, (inputs, _) in shape.modules.items() if name in targets) if needs.lora.dropout else 0
    return values * b + masks + 4 * (2 + shape.heads)  # norms' inverses, attention's sums


# --- what fits ------------------------------------------------------------------------------------


def fit(needs: MemoryNeeds, *, batch: int, budget_bytes: int) -> MemoryEstimate:
    """The estimate for the largest pieces of a batch that fit; the smallest possible ones where nothing does.

    Rows in fewer pieces come first, activation checkpointing, which computes a third more, last.
    """
    sizes = [size for size in range(batch, 0, -1) if batch % size == 0]
    sizes = [size for size in sizes if size == 1 or needs.packs.tokens(size) <= _MOST_TOKENS]
    for checkpointing in (False, True):
        for size in sizes:
            estimate = needs.with_pieces(size, checkpoint_activations=checkpointing)
            if estimate.total <= budget_bytes:
                return estimate
    return needs.with_pieces(1, checkpoint_activations=True)


def remedies(needs: MemoryNeeds, budget_bytes: int) -> dict[str, int]:
    """Settings with which the run would fit, each with the bytes that it would take then."""
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    changes: dict[str, Mapping[str, Any]] = {
        "--precision bfloat16": {"precision": "bfloat16"},
        "--quantize-base nf4": {"nf4": True, "precision": "bfloat16"},
        "--target attention": {"lora": needs.lora.model_copy(update={"target_modules": attention})},
        "--rank 8": {"lora": needs.lora.model_copy(update={"rank": min(8, needs.lora.rank)})},
        "no --quantization-aware": {"rounded": False},
    }
    if not needs.on_gpu:
        del changes["--quantize-base nf4"]
    found = {}
    for name, change in changes.items():
        changed = MemoryNeeds(**{**needs.__dict__, **change})
        total = changed.with_pieces(1, checkpoint_activations=True).total
        if changed != needs and total <= budget_bytes:
            found[name] = total
    return found


def told_parts(estimate: MemoryEstimate) -> str:
    """An estimate and its parts for people."""
    parts = ", ".join(f"{name.replace('_', ' ')} {told_size(size)}" for name, size in estimate.parts.items())
    return f"{told_size(estimate.total)} ({parts})"


def told_size(size_bytes: int) -> str:
    """Bytes for people."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


def longest_rows(lengths: Sequence[int], answers: Sequence[int], shared: int) -> Packs:
    """What of rows decides the memory."""
    return Packs(longest=max(lengths), longest_answer=max(answers), shared=shared)
