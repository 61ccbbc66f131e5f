"""The rows of a run as token ids, and what of the base model they were checked against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill.records import TrainingJob
from po_distill.weights.checkpoint import find_spec
from po_distill.weights.tokenization import TokenizedRow, load_tokenizer, tokenize_file
from po_distill.weights.training_checks import check_context, check_modules, check_template


@dataclass(frozen=True)
class RunData:
    """What a run learns from, and is measured on."""

    tokenizer: Any
    config: Any  # transformers' of the base
    template: str  # the digest of the chat template
    rows: list[TokenizedRow]
    held_out: list[TokenizedRow]


def read_run_data(job: TrainingJob) -> RunData:
    """All rows of a job. Raises InputError for the rows, TrainingError where base, template and adapter do not fit."""
    from transformers import AutoConfig

    base = Path(job.base_path)
    spec = find_spec(job.base_name)
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    check_modules(job.lora, spec, job.base_name)
    tokenizer = load_tokenizer(base)
    template = check_template(tokenizer, spec)
    rows = tokenize_file(job.data_path, tokenizer, max_seq_len=job.max_seq_len, max_samples=job.max_samples)
    held_out: list[TokenizedRow] = []
    if job.validation_path and job.evaluate_every != 0:
        held_out = tokenize_file(job.validation_path, tokenizer, max_seq_len=job.max_seq_len)
    context = spec.context_tokens if spec else getattr(config, "max_position_embeddings", None)
    if context:
        check_context([*rows, *held_out], context, job.base_name)
    return RunData(tokenizer, config, template, rows, held_out)
