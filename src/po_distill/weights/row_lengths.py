"""How long rows are under a base model's tokenizer and chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from po_distill.errors import TrainingError
from po_distill.records import Lengths, Message
from po_distill.weights.checkpoint import locate_tokenizer
from po_distill.weights.tokenization import load_tokenizer, tokenize_row

USUAL = (512, 768, 1024, 1536, 2048, 4096, 8192)
_BIN = 64


class RowRuler:
    """Counts the tokens of rows; nothing of a row is kept but its length. Raises what `locate_tokenizer` raises."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._tokenizer = load_tokenizer(locate_tokenizer(base))
        self._counts: Counter[int] = Counter()

    def measure(self, prompt: Sequence[Message], target: str) -> int:
        """The tokens of a row, prompt and target, as training would see them."""
        length = len(tokenize_row(0, prompt, target, self._tokenizer, "a row").input_ids)
        self._counts[length] += 1
        return length

    def lengths(self, limit: int) -> Lengths | None:
        """What was measured, with the rows that `limit` and the usual limits would cut; None without a row."""
        rows = self._counts.total()
        if not rows:
            return None
        ordered = sorted(self._counts.items())
        histogram: Counter[int] = Counter()
        for length, count in ordered:
            histogram[length // _BIN * _BIN] += count
        return Lengths(
            base=self._base,
            rows=rows,
            shortest=ordered[0][0],
            median=_quantile(ordered, rows, 0.5),
            p95=_quantile(ordered, rows, 0.95),
            longest=ordered[-1][0],
            cut={most: sum(n for length, n in ordered if length > most) for most in sorted({*USUAL, limit})},
            histogram=dict(histogram),
        )


def _quantile(ordered: Sequence[tuple[int, int]], rows: int, share: float) -> int:
    """The least length that so large a share of the rows does not pass."""
    reached = 0
    for length, count in ordered:
        reached += count
        if reached >= share * rows:
            return length
    raise TrainingError("No row was measured.", "Measure one first.")
