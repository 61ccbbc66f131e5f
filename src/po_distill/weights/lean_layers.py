"""The layers of a Llama-like model for LoRA training, with gradients written out by hand.

They compute what peft's and transformers' own modules compute, in fewer passes over memory, and keep
less for the backward pass: the base is frozen, so no gradient of its weights is ever wanted.
Memory traffic, not arithmetic, is what ordinary autograd spends its time on beside the matrix
products. Shapes: n tokens, i inputs, o outputs, r rank, v entries of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from po_distill.weights.memory_estimate import LOSS_CHUNK


class _LoRAProduct(torch.autograd.Function):
    """x W' + bias + scale * (x * keep) A' B' (Hu et al. 2021, section 4.1), W and bias frozen.

    x (n, i), W (o, i), A (r, i), B (o, r); `keep` is None or the (n, i) mask of dropout, whose
    factor 1 / (1 - p) is part of `scale`.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
    ) -> Tensor:
        a, b = a.to(x.dtype), b.to(x.dtype)
        low = linear(x if keep is None else x * keep, a)
        ctx.save_for_backward(x, w, a, b, low, keep)
        ctx.scale = scale
        return linear(x, w, bias).addmm_(low, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        x, w, a, b, low, keep = ctx.saved_tensors
        g_low = (g @ b).mul_(ctx.scale)
        g_a = g_low.t() @ (x if keep is None else x * keep)
        g_b = (g.t() @ low).mul_(ctx.scale)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = g @ w
            g_x = g_x.addmm_(g_low, a) if keep is None else g_x.addcmul_(g_low @ a, keep.to(g.dtype))
        return g_x, None, None, g_a, g_b, None, None


def _kept(x: Tensor, p: float) -> Tensor:
    """Dropout's mask for x, of its shape: each value false with probability p, to 16 bits of it.

    On a processor `bernoulli_` draws value by value, an eighth of a step. Here its generator gives the seed of a
    faster one, of which each draw of 64 bits is good for four values.
    """
    if x.device.type != "cpu":
        return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - p)
    seed = int(torch.randint(2**62, ()))
    draws = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
    return torch.from_numpy(draws >= min(round(p * 2**16), 2**16 - 1)).view(x.shape)


class LeanLoRALinear(PeftLinear):  # type: ignore[misc]
    """peft's LoRA layer over nn.Linear, its one active adapter computed by `_LoRAProduct`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """x (..., i) -> (..., o)."""
        plain = not (args or kwargs or self.disable_adapters or self.merged)
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        if not plain or name not in self.lora_A or name in self.lora_variant:  # a variant is DoRA, say
            return super().forward(x, *args, **kwargs)
        base = self.get_base_layer()
        flat = x.reshape(-1, x.shape[-1]).to(base.weight.dtype)
        scale, keep = float(self.scaling[name]), None
        drop = self.lora_dropout[name]
        if isinstance(drop, nn.Dropout) and drop.p > 0 and self.training:
            keep = _kept(flat, drop.p)
            scale /= 1 - drop.p
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        product: Tensor = _LoRAProduct.apply(flat, base.weight, base.bias, a, b, scale, keep)  # type: ignore[no-untyped-call]
        return product.view(*x.shape[:-1], -1)


class _RMSNorm(torch.autograd.Function):
    """w * x / sqrt(mean(x^2) + eps) over the last axis (Zhang & Sennrich 2019), w frozen; in fp32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, w, inverse)
        normed: Tensor = (wide * inverse).to(x.dtype).mul_(w)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        x, w, inverse = ctx.saved_tensors
        wide = x.to(inverse.dtype)
        gw = (g * w).to(inverse.dtype)
        pull = (gw * wide).sum(-1, keepdim=True).mul_(inverse**3).div_(-x.shape[-1])
        return gw.mul_(inverse).addcmul_(wide, pull).to(x.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020), keeping its two inputs alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g,) = gradients
        gate, up = ctx.saved_tensors
        g_up = silu(gate).mul_(g)
        return torch.ops.aten.silu_backward(g * up, gate), g_up


class _AnswerLoss(torch.autograd.Function):
    """Sum of the cross-entropies of softmax(h V') against targets, V frozen.

    h (n, i), V (v, i), targets (n). The logits live chunk by chunk, and the gradient of h is taken
    while they do: the (n, v) matrix, by far the largest of the step, never exists as a whole.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, vocabulary: Tensor, targets: Tensor) -> Tensor:
        g_h = torch.empty_like(h)
        total = h.new_zeros((), dtype=torch.promote_types(h.dtype, torch.float32))
        for start in range(0, len(h), LOSS_CHUNK):
            part = slice(start, start + LOSS_CHUNK)
            wanted = targets[part, None]
            logits = linear(h[part], vocabulary).to(total.dtype)
            logits.sub_(logits.amax(-1, keepdim=True))
            chosen = logits.gather(1, wanted)
            partition = logits.exp_().sum(-1, keepdim=True)
            total += (partition.log() - chosen).sum()
            slope = logits.div_(partition)  # softmax, and less one at the target: d loss / d logits
            slope.scatter_add_(1, wanted, slope.new_full((len(wanted), 1), -1.0))
            torch.mm(slope.to(h.dtype), vocabulary, out=g_h[part])
        ctx.save_for_backward(g_h)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (g_h,) = ctx.saved_tensors
        return g_h * gradients[0].to(g_h.dtype), None, None


def answer_loss(hidden: Tensor, vocabulary: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy of hidden states (n, i) against their next tokens (n), in fp32."""
    loss: Tensor = _AnswerLoss.apply(hidden, vocabulary, targets)  # type: ignore[no-untyped-call]
    return loss


class LeanRMSNorm(nn.Module):
    """The RMSNorm of the Llama, Mistral and Qwen2 families, over a module's own frozen weight."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self.variance_epsilon = norm.variance_epsilon

    def forward(self, x: Tensor) -> Any:
        """x (..., i) -> (..., i)."""
        return _RMSNorm.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]


class LeanGatedMLP(nn.Module):
    """The gated MLP of the Llama, Mistral and Qwen2 families, over a module's own projections."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Any:
        """x (..., i) -> (..., i)."""
        return self.down_proj(_SwiGLU.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[operator, no-untyped-call]


FAMILIES = ("llama", "mistral", "qwen2")  # config.model_type of the models whose layers these are


def make_lean(model: nn.Module) -> None:
    """Put lean norms and MLPs in the place of a model's own; parameters keep their names."""
    for decoder_layer in model.layers:  # type: ignore[union-attr]
        decoder_layer.input_layernorm = LeanRMSNorm(decoder_layer.input_layernorm)
        decoder_layer.post_attention_layernorm = LeanRMSNorm(decoder_layer.post_attention_layernorm)
        decoder_layer.mlp = LeanGatedMLP(decoder_layer.mlp)
    model.norm = LeanRMSNorm(model.norm)  # type: ignore[arg-type]
