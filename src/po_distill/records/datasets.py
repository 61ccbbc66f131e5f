"""Datasets: their rows, and what is known of them."""

from __future__ import annotations

from typing import Literal

from po_distill.records.answers import Concept, Message, PromptContract
from po_distill.records.record import Digest, Record

Split = Literal["train", "validation", "test"]


class Example(Record):
    """One row to train on, in TRL's conversational prompt-completion form."""

    example_id: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]  # one assistant message: the target
    concept: Concept | None = None  # None for rows that came as {prompt, response}
    label: str | None = None  # the class of the target, for balance and per-class figures
    score: float | None = None  # the metric of the target
    raw: str | None = None  # the teacher's own text, before canonical rendering


class Dataset(Record):
    """Training rows on disk, split by concept, with every input accounted for."""

    paths: dict[Split, str]  # JSONL of Example, by split
    rejected_path: str  # JSONL of Rejection
    contract: PromptContract | None  # None for rows that came as {prompt, response}
    counts: dict[Split, int]  # rows by split
    labels: dict[str, int]  # rows by class of the answer
    inputs: int  # = sum(counts) + sum(rejected)
    rejected: dict[str, int]  # inputs that were not accepted, by reason
    digest: Digest  # over the bytes of the three splits
