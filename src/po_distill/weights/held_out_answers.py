"""Answers of a student in the middle of its training, scored by the role's own metric.

The runtime that will serve the student is faster and is what the evaluator asks; here transformers generates, greedily,
with what is in memory anyway: enough to see whether the answers are readable, and become better.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from po_distill import plugins
from po_distill.artifacts import read_jsonl
from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.records import Concept, Example, PromptContract
from po_distill.weights.answer_loss import predict_loss
from po_distill.weights.packed_rows import ATTENTION
from po_distill.weights.tokenization import TokenizedRow

_TIMED_TOKENS = 8
_ROOM = 1.25  # an answer may be so much longer than the longest of the held-out rows


@dataclass(frozen=True)
class AnswerJudge:
    """Has a student answer held-out cases, all at once, and scores the answers."""

    role: Role
    tokenizer: Any
    prompts: Sequence[tuple[int, ...]]
    concepts: Sequence[Concept]
    max_new_tokens: int

    def judge(self, student: Any) -> dict[str, float]:
        """`valid_share`, and `score`: the metric's mean, an answer that production cannot read counting 0."""
        texts = generate(student, self.tokenizer, self.prompts, self.max_new_tokens)
        scores = [self.role.score(concept, text) for concept, text in zip(self.concepts, texts, strict=True)]
        return {
            "valid_share": sum(score.valid for score in scores) / len(scores),
            "score": sum(score.value for score in scores if score.valid) / len(scores),
        }

    def seconds(self, student: Any) -> float:
        """What answering takes where every answer is as long as may be, by the time of its first tokens."""
        student.eval()
        generate(student, self.tokenizer, self.prompts, 1)
        started_s = time.perf_counter()
        generate(student, self.tokenizer, self.prompts, 1)
        prompts_s = time.perf_counter() - started_s
        generate(student, self.tokenizer, self.prompts, 1 + _TIMED_TOKENS)
        took_s = time.perf_counter() - started_s - 2 * prompts_s
        student.train()
        return prompts_s + max(0.0, took_s) * self.max_new_tokens / _TIMED_TOKENS


def make_judge(
    path: Path | str, rows: Sequence[TokenizedRow], cases: int, contract: PromptContract | None, tokenizer: Any
) -> AnswerJudge | None:
    """The judge for some rows of a held-out file, spread over it; None where `cases` is 0.

    Raises InputError where the rows name no concepts or no contract says whose answers they are.
    """
    if not cases:
        return None
    if contract is None:
        raise InputError(
            f"{path}: without a prompt contract nothing says which role scores the answers.",
            "Train on a dataset of `po-distill dataset build`, or without --generate-cases.",
        )
    chosen = list(islice(rows[:: max(1, len(rows) // cases)], cases))
    concepts = {line: Example.model_validate(row).concept for line, row in read_jsonl(path) if "response" not in row}
    asked = [concepts.get(row.line) for row in chosen]
    found = [concept for concept in asked if concept is not None]
    if len(found) < len(asked):
        raise InputError(
            f"{path}: rows without a concept cannot be scored.", "Train without --generate-cases, or build the dataset."
        )
    longest = max(row.answer_tokens for row in rows)
    prompts = [row.input_ids[: row.prompt_tokens] for row in chosen]
    return AnswerJudge(_role_of(contract), tokenizer, prompts, found, round(longest * _ROOM))


def _role_of(contract: PromptContract) -> Role:
    kind = plugins.load("roles", contract.role)
    role: Role = kind(contract=contract.name)
    if role.contract.system != contract.system:
        role = kind(contract=contract.name, prompt=contract.system)
    return role


def generate(student: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """A greedy answer to each prompt, without its end token."""
    from transformers import GenerationConfig

    longest = max(len(prompt) for prompt in prompts)
    pad = tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=student.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=ids.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        use_cache=True,
    )
    with torch.no_grad(), _as_language_model(student):
        answers = student.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return [tokenizer.decode(answer[longest:], skip_special_tokens=True) for answer in answers]


@contextlib.contextmanager
def _as_language_model(student: Any) -> Iterator[None]:
    """Within the block the student returns logits, and attends as transformers has it, with a cache."""
    model = student.get_base_model()
    del model.forward
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(ATTENTION)
        predict_loss(model)
