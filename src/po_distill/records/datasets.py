"""Datasets: their rows, and what is known of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, field_validator

from po_distill.records.answers import Concept, Message, PromptContract
from po_distill.records.record import Digest, Fraction, Record, none_for_no_text

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

    _no_text = field_validator("label", "raw", mode="before")(none_for_no_text)


class InputFile(Record):
    """A file that something was made of."""

    path: str
    digest: Digest
    rows: int


class Dataset(Record):
    """Training rows on disk, split by concept, with every input accounted for."""

    paths: dict[Split, str]  # JSONL of Example, by split
    rejected_path: str  # JSONL of Rejection
    contract: PromptContract | None  # None for rows that came as {prompt, response}; of several, that of most rows
    counts: dict[Split, int]  # rows by split
    labels: dict[str, int]  # rows by class of the answer
    inputs: int  # = sum(counts) + sum(rejected)
    rejected: dict[str, int]  # inputs that were not accepted, by reason
    digest: Digest  # over the bytes of the three splits
    contracts: dict[str, int] = Field(default_factory=dict)  # rows by the contract that they are rendered in
    tiers: dict[str, int] = Field(default_factory=dict)  # rows by how involved the case is
    languages: dict[str, int] = Field(default_factory=dict)  # rows by the language of the concept
    sources: tuple[InputFile, ...] = ()  # the files of the answers
    held_out: tuple[InputFile, ...] = ()  # the files that no row may be in
    settings: dict[str, JsonValue] = Field(default_factory=dict)  # what the rows were gated and split by
    missing: dict[str, int] = Field(default_factory=dict)  # rows that the target lacks, by class
    also: dict[str, str] = Field(default_factory=dict)  # the same rows in other shapes: path by shape and split
    po_distill: str = "unknown"  # the version that built it


class RuleFinding(Record):
    """One rule that a dataset keeps to be fit for training, and what breaks it here."""

    rule: str  # a stable name, such as rare_class
    rows: int  # rows (or classes, or prompts) that break it; 0 where it is kept
    detail: str  # what was found, for a person
    fix: str  # what to do about it
    where: tuple[str, ...] = ()  # the first rows that break it
    allowed: bool = False  # the user said that it may be broken

    @property
    def kept(self) -> bool:
        """Whether nothing breaks it."""
        return self.rows == 0


class RowFact(Record):
    """What a role counts in answers, over all rows."""

    name: str
    count: int  # in the answers as they are
    rendered: int | None = None  # in the same answers, rendered canonically; None where none was accepted


class NotedScore(Record):
    """A row with its score."""

    where: str
    score: Fraction
    reason: str | None = None  # what it was rejected for


class Lengths(Record):
    """Tokens of whole rows, prompt and target, as a base model's tokenizer and chat template count them."""

    base: str
    rows: int
    shortest: int
    median: int
    p95: int
    longest: int  # the smallest --max-seq-len that cuts no row
    cut: dict[int, int]  # max_seq_len -> rows that are longer
    histogram: dict[int, int]  # tokens, rounded down to a multiple of 64 -> rows


class Checkup(Record):
    """What the doctor found in a dataset. rows = accepted + sum(rejected)."""

    path: str
    digest: Digest
    role: str
    contract: PromptContract
    rows: int  # lines that hold anything
    accepted: int  # rows that pass the gate
    left: int  # of them, what a dataset built now would hold: one answer a prompt, none leaked, none near another
    rejected: dict[str, int]  # rows that the gate refuses, by reason
    violations: dict[str, int]  # rows by what is wrong with them; a row may have several
    distinct_prompts: int  # of the rows that hold a concept
    repeated_prompts: int  # prompts with more than one row
    exact_duplicate_rows: int  # rows that repeat prompt and answer of an earlier one
    contradictory_prompts: int  # prompts whose answers are of different classes
    near_duplicate_rows: int  # rows that are nearly another row, by prompt or by answer
    leaked_rows: int  # rows that are in a held-out file
    leaked_exact: int  # of them, those whose concept or prompt is the same to the letter, spaces aside
    leaked_normalised: int  # of them, those whose concept or prompt is the same but for case and punctuation
    leaked_near: int  # of them, those that are nearly the same
    foreign_prompts: int  # rows whose prompt is not the one that the role renders
    not_canonical: int  # accepted rows whose answer is not in the role's canonical form
    labels: dict[str, int]  # rows by class of the answer as it stands
    accepted_labels: dict[str, int]  # accepted rows by class
    tiers: dict[str, int]  # rows by how involved the case is
    languages: dict[str, int]  # rows by the language of the concept
    contracts: dict[str, int]  # rows by the contract whose form the answer has
    parts: int  # what the role takes a concept apart into (requirement sentences), over distinct prompts
    distinct_parts: int
    facts: tuple[RowFact, ...]
    values: dict[str, dict[str, int]]  # what the role reads in answers (a date) -> the most frequent values
    score_mean: float | None  # of the answers as they stand; None without any
    scores: tuple[int, ...]  # rows by score, in 20 bins of 0.05
    lowest: tuple[NotedScore, ...]  # the ten lowest
    stored_scores: int  # rows that bring a score of their own
    stored_wrong: int  # of them, those that are off by more than 0.001
    stored_worst: float  # the largest difference
    lengths: Lengths | None = None
    lengths_missing: str | None = None  # why there are none
    target: int | None = None
    missing: dict[str, int] = Field(default_factory=dict)  # accepted rows that the target lacks, by class
    missing_command: str | None = None  # what would get them from a teacher
    held_out: tuple[InputFile, ...] = ()
    rules: tuple[RuleFinding, ...]
    fit: bool  # every rule is kept or allowed
    duration_s: float


class DatasetChange(Record):
    """How one dataset differs from another."""

    before: str  # path of the train split
    after: str
    rows_before: int
    rows_after: int
    kept: int  # rows that are in both, to the letter
    added: int  # rows about prompts that are new
    removed: int  # rows about prompts that are gone
    changed: int  # prompts that are in both with another answer
    moved: int  # prompts that are in both, in another split
    labels: dict[str, tuple[int, int]]  # class -> rows before, after
    splits: dict[str, tuple[int, int]]  # split -> rows before, after
    settings: dict[str, tuple[JsonValue, JsonValue]]  # settings that differ: before, after
    contract_changed: bool
    examples: dict[str, tuple[str, ...]]  # added, removed, changed, moved -> the first concept ids
