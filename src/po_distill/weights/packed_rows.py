"""Several rows as one line of tokens: no padding, and what all prompts begin with only once.

The rows of a role share their system text: a third of each row or more. The states of a position depend
on the tokens before it alone, so the shared beginning is computed once for all rows of a pack, in the
forward and in the backward pass, and the loss and its gradient stay what they are. Only attention
looks at rows: it lays them out as a batch, padded at the end with positions that nothing looks at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from po_distill.weights.tokenization import IGNORED, TokenizedRow

ATTENTION = "po_distill_packed"  # the name that the attention below is registered under in transformers


@dataclass(frozen=True)
class Packing:
    """How rows lie in a pack: first the `shared` tokens, then each row's own ones, row after row."""

    shared: int
    own: tuple[int, ...]  # tokens of each row after the shared ones
    lines: tuple[int, ...] = ()  # where each row stands in the data file
    prompts: tuple[int, ...] = ()  # tokens of each row's whole prompt

    @property
    def tokens(self) -> int:
        """Tokens of the pack."""
        return self.shared + sum(self.own)

    @property
    def row_tokens(self) -> int:
        """Tokens of its rows, each one counted with the shared beginning."""
        return self.shared * len(self.own) + sum(self.own)

    def parts(self) -> list[slice]:
        """Where each row's own tokens lie in the pack."""
        ends = [self.shared]
        for length in self.own:
            ends.append(ends[-1] + length)
        return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def pack(rows: Sequence[TokenizedRow]) -> dict[str, Any]:
    """One batch for the model: `input_ids`, `position_ids` and `labels`, each (1, tokens), and `packing`.

    `labels` hold, at each position, the token to be predicted there (already shifted by one), IGNORED
    within prompts. The shared beginning ends before the last token of the shortest prompt, so that
    each row has the position that its first answer token is predicted from to itself.
    """
    shared = common_prefix([row.input_ids[: row.prompt_tokens - 1] for row in rows]) if len(rows) > 1 else 0
    packing = Packing(
        shared,
        tuple(len(row.input_ids) - shared for row in rows),
        lines=tuple(row.line for row in rows),
        prompts=tuple(row.prompt_tokens for row in rows),
    )
    ids, positions, labels = list(rows[0].input_ids[:shared]), list(range(shared)), [IGNORED] * shared
    for row in rows:
        ids += row.input_ids[shared:]
        positions += range(shared, len(row.input_ids))
        labels += [*row.labels[shared + 1 :], IGNORED]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor([labels]),
        "packing": packing,
    }


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with."""
    first, last = min(sequences), max(sequences)  # the two that differ earliest
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


class _Unpack(torch.autograd.Function):
    """(tokens, ...) -> (rows, longest, ...): each row whole, zeros behind its end."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return _spread(packed, packing, shared_rows=len(packing.own))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _gather(gradients[0], ctx.packing, sum_shared=True), None


class _Repack(torch.autograd.Function):
    """(rows, longest, ...) -> (tokens, ...): the shared beginning from the first row, as all hold the same."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return _gather(rows, packing, sum_shared=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _spread(gradients[0], ctx.packing, shared_rows=1), None


def _spread(packed: Tensor, packing: Packing, *, shared_rows: int) -> Tensor:
    shared = packing.shared
    rows = packed.new_zeros(len(packing.own), shared + max(packing.own), *packed.shape[1:])
    rows[:shared_rows, :shared] = packed[:shared]
    for row, part, length in zip(rows, packing.parts(), packing.own, strict=True):
        row[shared : shared + length] = packed[part]
    return rows


def _gather(rows: Tensor, packing: Packing, *, sum_shared: bool) -> Tensor:
    shared = packing.shared
    packed = rows.new_empty(packing.tokens, *rows.shape[2:])
    packed[:shared] = rows[:, :shared].sum(0) if sum_shared else rows[0, :shared]
    for row, part, length in zip(rows, packing.parts(), packing.own, strict=True):
        packed[part] = row[shared : shared + length]
    return packed


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row of a pack to itself, as transformers calls an attention function.

    query (1, heads, tokens, width), key and value with their own number of heads; the result is
    (1, tokens, heads, width). Positions behind a row's end are seen by none before them, so no mask
    is needed, and the fast causal kernels apply. `sliding_window` limits how far back a position looks.
    """
    alone = len(packing.own) == 1
    q, k, v = (
        states if alone else _Unpack.apply(states[0].transpose(0, 1), packing).transpose(1, 2)  # type: ignore[no-untyped-call]
        for states in (query, key, value)
    )
    window = _window_mask(q.shape[2], sliding_window, q.device)
    rows = scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=window,
        dropout_p=dropout,
        is_causal=window is None,
        scale=scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    ).transpose(1, 2)
    return (rows if alone else _Repack.apply(rows, packing)[None]), None  # type: ignore[no-untyped-call]


def _window_mask(tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """(tokens, tokens), true where a position looks; None where the window is wider than the row."""
    if window is None or tokens <= window:
        return None
    every = torch.ones(tokens, tokens, dtype=torch.bool, device=device)
    return every.tril() & every.triu(1 - window)
