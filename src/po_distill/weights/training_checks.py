"""What is looked at before a run's first step, and before each checkpoint: mistakes that no loss would show."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_distill import artifacts
from po_distill.errors import ArtifactError, InputError, MissingExtraError, TrainingError
from po_distill.records import BaseModelSpec, LoRASettings, Message, TrainingJob
from po_distill.weights.memory_estimate import told_size
from po_distill.weights.tokenization import IGNORED, TokenizedRow, named, tokenize_row

if TYPE_CHECKING:
    from po_distill.weights.packed_rows import Packing

_SAMPLE = ("What is it for?", "For teams.")


def check_batch(batch: dict[str, Any], eos: int) -> None:
    """Raise TrainingError unless exactly the answers of a packed batch are under the loss, each with its end.

    The labels are compared with the ids that the model is given, so whatever made them (a collator, a padding
    token that equals the end token) has to have left them right.
    """
    packing: Packing = batch["packing"]
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    if any(label != IGNORED for label in labels[: packing.shared]):
        raise _unfit("the shared beginning of the prompts is", packing.lines)
    for part, line, prompt in zip(packing.parts(), packing.lines, packing.prompts, strict=True):
        own_ids, own = ids[part], labels[part]
        first = prompt - packing.shared - 1  # where the first token of the answer is predicted
        if any(label != IGNORED for label in own[:first]):
            raise _unfit("tokens of the prompt are", [line])
        if packing.shared + len(own_ids) == prompt:  # a row without an answer fills up a step of several processes
            continue
        if own[first:-1] != own_ids[first + 1 :] or own[-1] != IGNORED:
            raise _unfit("other tokens than those of the answer are", [line])
        if own[-2] != eos:
            raise TrainingError(
                f"The answer in line {line} does not end with the end token under the loss; "
                "the student would never learn to stop.",
                "The row was cut, or its end was masked out: train on whole rows, with the base's own tokenizer.",
            )


def _unfit(what: str, lines: Sequence[int]) -> TrainingError:
    shown = ", ".join(map(str, lines))
    return TrainingError(
        f"In the batch of the lines {shown}, {what} under the loss.", "This is a mistake in po_distill: report it."
    )


def check_context(rows: Sequence[TokenizedRow], context_tokens: int, base_name: str) -> None:
    """Raise InputError where a row is longer than the base model was made for."""
    too_long = [row for row in rows if len(row.input_ids) > context_tokens]
    if too_long:
        raise InputError(
            f"{len(too_long)} rows are longer than the {context_tokens} tokens that {base_name} was made for: "
            f"{named(too_long)}.",
            "Take those rows out, or choose a base model with a longer context.",
        )


def check_template(tokenizer: Any, spec: BaseModelSpec | None) -> str:
    """The digest of the chat template. Raises TrainingError where it is not the registered model's.

    A registered model says at which texts a runtime stops; its template has to end an answer with one of them.
    """
    if spec is not None:
        question, answer = _SAMPLE
        row = tokenize_row(0, [Message(speaker="user", content=question)], answer, tokenizer, "a sample")
        end = tokenizer.decode([row.input_ids[-1]])
        if end not in spec.stops:
            raise TrainingError(
                f"The chat template of the base ends an answer with {end!r}; {spec.name} ends it with "
                f"{' or '.join(map(repr, spec.stops))}.",
                "The folder holds another model's tokenizer or chat template: download the base again.",
            )
    return artifacts.digest_bytes(str(tokenizer.chat_template).encode())


def check_modules(lora: LoRASettings, spec: BaseModelSpec | None, base_name: str) -> None:
    """Raise TrainingError where the adapter is to be on layers that the base does not have."""
    known = spec.target_modules if spec else LoRASettings().target_modules
    unknown = [name for name in lora.target_modules if name not in known]
    if unknown:
        raise TrainingError(
            f"{base_name} has no linear layers named {', '.join(unknown)} that an adapter can be on.",
            f"Choose among {', '.join(known)}.",
        )


def check_quantized_base(job: TrainingJob, *, on_gpu: bool) -> None:
    """Raise TrainingError or MissingExtraError where the base cannot be held in 4 bits, as QLoRA does."""
    if job.quantize_base is None:
        return
    if not on_gpu:
        raise TrainingError(
            "A base in 4 bits (QLoRA) is computed by CUDA kernels, and there is no CUDA GPU here.",
            "Train without --quantize-base, or on a machine with an NVIDIA GPU.",
        )
    if job.quantization_aware:
        raise TrainingError(
            "A base in 4 bits cannot be rounded a second time before each step.",
            "Choose one of --quantize-base and --quantization-aware.",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora", "A base in 4 bits")


def require_free(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise ArtifactError where the disk of a folder, which may be yet to be made, has no room."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed_bytes:
        raise ArtifactError(
            f"{folder} has no room for {what}: {told_size(needed_bytes)} are needed, {told_size(free)} are free.",
            "Free some space, or name an --output on another disk; then run the same command again.",
        )
