"""Training against the weights as the package will store them (quantization-aware training).

A small student loses much of what it learned when its merged weights are rounded to four bits: half
of SmolLM2-135M's answers became unreadable. So before each step the frozen base W is replaced by
Q(W + s B A) - s B A, where Q rounds as Q4_0 does: the layers then compute with exactly the weights
that the package would hold, while the gradients of A and B stay those of the unrounded sum (the
straight-through estimator, Bengio et al. 2013). The adapter stays an ordinary one, on the unrounded
base. It costs a second copy of the adapted weights, and one pass over them a step.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoRALinear
from torch import Tensor, nn
from transformers import TrainerCallback

from po_distill.errors import TrainingError

BLOCK = 32  # values that share a scale in Q4_0


def rounded_to_q4_0(weight: Tensor) -> Tensor:
    """`weight` (rows, columns) as it reads back from Q4_0, after rounding to fp16 as the merger does.

    ggml's rule, blockwise along the columns: d = (the value of largest magnitude) / -8, kept in fp16;
    each value becomes an integer 0..15 and reads back as (integer - 8) * d.
    """
    blocks = weight.to(torch.float16).to(torch.float32).view(-1, BLOCK)
    high, low = blocks.amax(1), blocks.amin(1)  # six times as fast as the argmax of magnitudes
    largest = torch.where(high >= -low, high, low)
    tied = ((high == -low) & (high != 0)).nonzero().squeeze(1)  # here the one that stands first decides
    firsts = blocks[tied]
    largest[tied] = firsts.gather(1, firsts.abs().argmax(1, keepdim=True)).squeeze(1)
    scale = largest.div_(-8)[:, None]
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    blocks.mul_(inverse).add_(8.5).clamp_(0, 15).trunc_().sub_(8)
    return blocks.mul_(scale.to(torch.float16).to(torch.float32)).view_as(weight).to(weight.dtype)


class QuantizationAware(TrainerCallback):  # type: ignore[misc]
    """Keeps the base of every LoRA layer at what Q4_0 makes of the merged weight.

    Raises TrainingError where a layer's rows cannot be stored as Q4_0.
    """

    def __init__(self, student: nn.Module) -> None:
        self._layers: list[tuple[Any, Tensor]] = []
        for name, module in student.named_modules():
            if not isinstance(module, LoRALinear):
                continue
            weight = module.get_base_layer().weight
            if weight.shape[1] % BLOCK:
                raise TrainingError(
                    f"{name} has rows of {weight.shape[1]} values, which Q4_0 cannot hold (no multiple of {BLOCK}).",
                    "Train without --quantization-aware.",
                )
            self._layers.append((module, weight.detach().clone()))

    def apply(self) -> float:
        """Round all layers for the adapter as it stands now; the seconds it took."""
        started_s = time.perf_counter()
        with torch.no_grad():
            for module, original in self._layers:
                (adapter,) = module.active_adapters
                update = module.get_delta_weight(adapter).to(original.dtype)
                module.get_base_layer().weight.copy_(rounded_to_q4_0(original + update).sub_(update))
        return time.perf_counter() - started_s

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Round before the step's forward pass."""
        self.apply()
