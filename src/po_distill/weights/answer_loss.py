"""A causal language model that returns the loss of a pack of rows in place of logits."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from po_distill.weights.lean_layers import answer_loss
from po_distill.weights.packed_rows import Packing
from po_distill.weights.tokenization import IGNORED


def predict_loss(model: Any) -> None:
    """Make a model return the summed loss of a pack (a scalar); `del model.forward` undoes it."""
    model.forward = functools.partial(_pack_loss, model)
    model.lm_head.forward = functools.partial(_head, model.lm_head)


def _pack_loss(
    model: Any, *, input_ids: Tensor, position_ids: Tensor, labels: Tensor, packing: Packing, **_: Any
) -> Tensor:
    states = model.base_model(input_ids=input_ids, position_ids=position_ids, packing=packing, use_cache=False)
    answered = labels != IGNORED
    # Through the head's own call: where weights are spread over processes (FSDP), that is what brings its own together.
    loss: Tensor = model.lm_head(states.last_hidden_state[answered], labels[answered])
    return loss


def _head(head: Any, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
    return linear(hidden, head.weight) if targets is None else answer_loss(hidden, head.weight, targets)
