"""Optimizations of a program's prompts, as they were timed."""

from __future__ import annotations

from pydantic import Field

from po_distill.records.record import Fraction, Record


class OptimizationTime(Record):
    """One optimization with one model."""

    model: str
    duration_s: float
    calls: int  # of this model; those that wrote instructions are not among them
    failed: int  # calls without an answer
    parse_errors: int  # answers that the program could not read
    prompt_tokens: int
    completion_tokens: int
    longest_prompt: int  # tokens of the longest prompt
    score: Fraction  # of the best program, on the examples it was evaluated on
    left_out: int  # demonstrations and instructions that did not fit into the context


class OptimizationTimes(Record):
    """The same optimization with several models."""

    role: str
    trials: int
    candidates: int  # sets of demonstrations, and instructions
    validation: int  # examples that each trial evaluates
    prompt_model: str  # who wrote the instructions
    times: dict[str, OptimizationTime] = Field(default_factory=dict)  # by the name of the model's part: old, student
