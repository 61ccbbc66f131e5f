"""The card of an adapter: its base, data, settings, losses and hardware, as Markdown that the Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from po_distill.records import Adapter, TrainingJob, TrainingSummary
from po_distill.reporting.foreign_text import for_markdown, one_line

_MOST_ROWS = 20  # of the table of held-out losses
_SETTINGS = (  # in the order of the card
    "epochs", "batch", "learning_rate", "scheduler", "warmup", "beta2", "weight_decay", "max_seq_len",
    "max_samples", "max_steps", "minutes", "seed", "order", "quantization_aware", "quantize_base", "patience",
)  # fmt: skip


def render_model_card(
    adapter: Adapter,
    job: TrainingJob,
    *,
    base_id: str,
    base_license: str | None,
    data: Mapping[str, str],
    history: Sequence[Mapping[str, Any]],
    has_curve: bool,
) -> str:
    """README.md of an adapter's folder.

    `base_id` is the base's hub id, or its name; `data` the digest of each file of rows by the file's name; `history`
    the Trainer's.
    """
    assert adapter.training is not None
    sections = (
        f"# LoRA adapter of {for_markdown(base_id)}\n\n{_summary(adapter, adapter.training)}",
        "![The loss over the steps](loss_curve.png)" if has_curve else "",
        "## Results\n\n" + _results(adapter.training),
        _held_out(history),
        "## Data\n\n" + _table(("file", "digest"), [(for_markdown(name), f"`{d}`") for name, d in data.items()]),
        _contract(adapter),
        "## Settings\n\n" + _settings(job),
        "## Hardware\n\n" + _hardware(adapter.training),
        "## Licence\n\n" + _licence(base_id, base_license),
    )
    return _head(base_id, base_license) + "\n\n".join(section for section in sections if section) + "\n"


def _head(base_id: str, license_id: str | None) -> str:
    """The front matter. The YAML writer quotes whatever could be read as something else."""
    head: dict[str, Any] = {
        "library_name": "peft",
        "base_model": one_line(base_id),
        "license": license_id.lower() if license_id else "unknown",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "distillation", "po-distill"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=float('inf'))}---\n\n"


def _summary(adapter: Adapter, run: TrainingSummary) -> str:
    role = f"the role {for_markdown(adapter.contract.role)}" if adapter.contract else "the rows below"
    kept = f"step {run.step} of {run.steps}" if run.step else f"{run.steps} steps"
    return (
        f"Trained by po-distill for {role}: {run.rows:,} rows, {run.epochs:.2f} passes; the weights are those of "
        f"{kept}. It holds LoRA matrices alone and needs its base model: peft's `PeftModel.from_pretrained` puts it on "
        "that, `po-distill merge --adapter FOLDER` makes one model of both."
    )


def _results(run: TrainingSummary) -> str:
    rows = [
        ("loss of the first steps", f"{run.first_loss:.4f}"),
        ("loss of the last steps", f"{run.last_loss:.4f}"),
    ]
    if run.heldout_loss is not None:
        rows.append(("held-out loss of these weights", f"{run.heldout_loss:.4f}"))
    if run.heldout_loss_last is not None and run.heldout_loss_last != run.heldout_loss:
        rows.append(("held-out loss of the last step (`last/`)", f"{run.heldout_loss_last:.4f}"))
    if run.stopped_early:
        rows.append(("ended", "early: the held-out loss got no better"))
    rows.append(("tokens of a pass", f"{run.tokens:,}, {run.answer_tokens:,} of them under the loss"))
    note = "Losses are in nats per token of the answers, their end tokens included; prompts are not under the loss."
    return f"{_table(('what', 'figure'), rows)}\n\n{note}"


def _held_out(history: Sequence[Mapping[str, Any]]) -> str:
    measured = [entry for entry in history if "eval_loss" in entry]
    if not measured:
        return ""
    scored = any("eval_score" in entry for entry in measured)
    heading = ("step", "loss", "valid answers", "score") if scored else ("step", "loss")
    rows = []
    for entry in measured[-_MOST_ROWS:]:
        row = [str(entry["step"]), f"{entry['eval_loss']:.4f}"]
        if scored:
            row += [f"{entry.get('eval_valid_share', 0):.0%}", f"{entry.get('eval_score', 0):.3f}"]
        rows.append(tuple(row))
    return "## Held-out rows\n\n" + _table(heading, rows)


def _contract(adapter: Adapter) -> str:
    if adapter.contract is None:
        return ""
    template = f" The chat template's digest is `{adapter.chat_template}`." if adapter.chat_template else ""
    return (
        f"## Prompt contract\n\n`{for_markdown(adapter.contract.name)}`, digest `{adapter.contract.digest}`: the "
        f"system text, the user message's form and the answer's form that the adapter was trained under.{template}"
    )


def _settings(job: TrainingJob) -> str:
    lora = job.lora
    scale = "alpha / sqrt(rank)" if lora.rslora else "alpha / rank"
    rows = [
        ("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, scaled by {scale}"),
        ("layers", ", ".join(lora.target_modules) + (", with DoRA's magnitudes" if lora.dora else "")),
    ]
    values = job.model_dump(mode="json")
    rows += [(name.replace("_", " "), f"{values[name]}") for name in _SETTINGS if values[name] is not None]
    return _table(("setting", "value"), rows)


def _hardware(run: TrainingSummary) -> str:
    rows = [
        ("device", for_markdown(run.device or "unknown")),
        ("precision of the base", run.precision or "unknown"),
        ("time", f"{run.duration_s:,.0f} s, {run.step_s:.3g} s a step"),
        ("speed", f"{run.tokens_per_s:,.0f} tokens per second, padding not counted"),
    ]
    if run.peak_memory_bytes is not None:
        estimate = (
            f", {run.estimated_memory_bytes / 1e9:.2f} GB estimated beside code and libraries"
            if run.estimated_memory_bytes
            else ""
        )
        rows.append(("peak memory", f"{run.peak_memory_bytes / 1e9:.2f} GB{estimate}"))
    return _table(("what", "figure"), rows)


def _licence(base_id: str, license_id: str | None) -> str:
    base = for_markdown(base_id)
    of_base = (
        f"{base} is under {for_markdown(license_id)}." if license_id else f"The licence of {base} is not known here."
    )
    return f"{of_base} The adapter is a derived work of it, and of the data, whose terms nothing that was read says."


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
