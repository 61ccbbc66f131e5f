"""What a student makes of rows that it is not trained on, in the middle of a run: their loss, and answers to some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from po_distill.weights.held_out_answers import AnswerJudge
from po_distill.weights.packed_rows import pack
from po_distill.weights.tokenization import TokenizedRow


class HeldOut:
    """Measures a student on held-out rows, `micro_batch` of them at a time.

    `prepare` is called before (quantization-aware training rounds the base there); `judge` has answers generated and
    scored. Nothing of a run's random numbers is used.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedRow],
        micro_batch: int,
        *,
        judge: AnswerJudge | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        ordered = sorted(rows, key=lambda row: len(row.input_ids))  # rows of like length pad each other least
        self._packs = [ordered[start : start + micro_batch] for start in range(0, len(ordered), micro_batch)]
        self._answer_tokens = sum(row.answer_tokens for row in rows)
        self._judge, self._prepare = judge, prepare

    def measure(self, student: Any) -> dict[str, float]:
        """`loss`, the mean over all answer tokens; with a judge, `valid_share` and `score` of its answers too."""
        was_training = student.training
        student.eval()
        try:
            if self._prepare:
                self._prepare()
            found = {"loss": self._loss(student)}
            if self._judge:
                found |= self._judge.judge(student)
            return found
        finally:
            student.train(was_training)

    def _loss(self, student: Any) -> float:
        total = 0.0
        with torch.no_grad():
            for rows in self._packs:
                batch = pack(rows)
                inputs = {k: v.to(student.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                total += float(student(**inputs))
        return total / self._answer_tokens
