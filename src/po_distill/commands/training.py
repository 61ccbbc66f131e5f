"""The command `train`: a dataset into a LoRA adapter, and the plan of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from po_distill.commands.options import (
    MODELS,
    SectionedCommand,
    json_option,
    named_values,
    open_role_of,
    placed,
    print_result,
    role_options,
    sectioned,
)
from po_distill.role_paths import DATASET

_PATH = click.Path(path_type=Path)
_TARGETS = ("all-linear", "attention")
_WHAT, _HOW, _ADAPTER, _FIT, _WATCH = (
    "What is trained",
    "How",
    "The adapter",
    "To fit the machine",
    "Held-out rows and reports",
)


@click.command(cls=SectionedCommand)
@sectioned(
    _WHAT, "--data", "--data-path", "data", default=DATASET, show_default=True, type=_PATH,
    help="JSONL of examples, or of {prompt, response} rows.",
)  # fmt: skip
@sectioned(
    _WHAT, "--base", "--base-model", "base", default="mistral-7b-instruct", show_default=True,
    help="Name, folder or hub id.",
)  # fmt: skip
@sectioned(_WHAT, "--output", "--output-dir", "output", type=_PATH, help="Version folder.  [default: the next]")
@sectioned(_WHAT, "--dry-run", is_flag=True, help="Show the plan, with a step measured here, and train nothing.")
@sectioned(_WHAT, "--held-out", multiple=True, type=_PATH, help="File that no row may be in.")
@sectioned(_WHAT, "--allow", multiple=True, help="A rule of `dataset check` that may be broken; may be repeated.")
@sectioned(_HOW, "--epochs", default=3.0, show_default=True, type=float)
@sectioned(
    _HOW, "--batch", default=4, show_default=True, type=click.IntRange(min=1), help="Examples per optimizer step."
)
@sectioned(_HOW, "--lr", "learning_rate", default=1e-4, show_default=True, type=float, help="Peak learning rate.")
@sectioned(
    _HOW, "--scheduler", default="cosine", show_default=True,
    type=click.Choice(["cosine", "linear", "constant", "wsd"]), help="Of the learning rate, after the warm-up.",
)  # fmt: skip
@sectioned(
    _HOW, "--beta2", default=0.999, show_default=True, type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of AdamW.",
)  # fmt: skip
@sectioned(_HOW, "--warmup", default=0.03, show_default=True, type=click.FloatRange(0, 1), help="Share of the steps.")
@sectioned(_HOW, "--weight-decay", default=0.0, show_default=True, type=click.FloatRange(min=0))
@sectioned(
    _HOW, "--max-seq-len", default=2048, show_default=True, type=click.IntRange(min=1),
    help="Tokens; longer rows are an error.",
)  # fmt: skip
@sectioned(_HOW, "--max-samples", type=click.IntRange(min=1), help="Train on only so many rows.")
@sectioned(_HOW, "--max-steps", type=click.IntRange(min=1), help="Stop after so many optimizer steps.")
@sectioned(_HOW, "--minutes", type=click.FloatRange(min=0.1), help="Plan the steps to fit this time.")
@sectioned(_HOW, "--seed", default=7, show_default=True)
@sectioned(
    _HOW, "--order", default="shuffled", show_default=True, type=click.Choice(["shuffled", "given"]),
    help="Of the rows in a pass.",
)  # fmt: skip
@sectioned(
    _HOW, "--quantization-aware", type=click.Choice(["q4_0"]), help="Train against weights rounded as they ship."
)
@sectioned(_ADAPTER, "--rank", default=32, show_default=True, type=click.IntRange(min=1))
@sectioned(_ADAPTER, "--alpha", default=64.0, show_default=True, type=float)
@sectioned(_ADAPTER, "--dropout", default=0.05, show_default=True, type=click.FloatRange(0, 1, max_open=True))
@sectioned(
    _ADAPTER, "--target", default="all-linear", show_default=True, type=click.Choice(_TARGETS),
    help="The layers that get an adapter.",
)  # fmt: skip
@sectioned(_ADAPTER, "--rslora", is_flag=True, help="Scale by alpha / sqrt(rank): for high ranks.")
@sectioned(_ADAPTER, "--dora", is_flag=True, help="DoRA. Such an adapter cannot be merged or packaged here.")
@sectioned(
    _FIT, "--precision", default="auto", show_default=True, type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Of base and arithmetic; the adapter is float32.",
)  # fmt: skip
@sectioned(_FIT, "--quantize-base", type=click.Choice(["nf4"]), help="QLoRA: the base in 4 bits, on a CUDA GPU.")
@sectioned(
    _FIT, "--save-every", type=click.IntRange(min=1), help="Steps between checkpoints.  [default: about a minute's]"
)
@sectioned(_FIT, "--launcher", default="local", show_default=True, help="Where the run runs.")
@sectioned(
    _FIT, "--launcher-option", "launcher_option", multiple=True, metavar="NAME=VALUE",
    help="An option of the launcher, such as processes=2; may be repeated.",
)  # fmt: skip
@sectioned(_WATCH, "--validation", type=_PATH, help="JSONL of held-out rows.  [default: the dataset's own]")
@sectioned(
    _WATCH, "--evaluate-every", type=click.IntRange(min=0),
    help="Steps between held-out losses; 0 is never.  [default: about ten a run]",
)  # fmt: skip
@sectioned(
    _WATCH, "--generate-cases", type=click.IntRange(min=0),
    help="Held-out cases to answer and score each time.  [default: 4 on a GPU, else 0]",
)  # fmt: skip
@sectioned(
    _WATCH, "--patience", type=click.IntRange(min=1), help="Stop after so many held-out losses without a better one."
)
@sectioned(
    _WATCH, "--report-to", multiple=True, type=click.Choice(["tensorboard", "wandb", "mlflow"]), help="May be repeated."
)
@role_options
@json_option
def train(
    data: Path, output: Path | None, dry_run: bool, held_out: tuple[Path, ...], allow: tuple[str, ...], rank: int,
    alpha: float, dropout: float, target: str, rslora: bool, dora: bool, validation: Path | None, role: str | None,
    contract: str | None, prompt_path: Path | None, launcher_option: tuple[str, ...], as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Train a LoRA adapter on a dataset.

    The dataset is checked first, as by `dataset check`: one that is not fit for training is refused, unless --allow
    names each rule that it breaks. The same command with the same --output goes on where a killed run was.
    """
    from po_distill.artifacts import next_version
    from po_distill.records import ATTENTION_MODULES, LINEAR_MODULES, LoRASettings
    from po_distill.reporting import console
    from po_distill.stages.dataset_doctor import DatasetDoctor, require_fit
    from po_distill.stages.lora_trainer import LoRATrainer
    from po_distill.weights.checkpoint import check_name

    check_name(settings["base"])
    data = placed(data, role)
    opened, judged_by = open_role_of(data, role, contract, prompt_path)
    doctor = DatasetDoctor(opened, held_out=held_out, allow=allow, **judged_by)  # the trainer counts tokens itself
    require_fit(doctor.check(data, most=settings["max_samples"]))
    folder = output or Path(MODELS) / next_version(MODELS, opened.version_stem)
    modules = ATTENTION_MODULES if target == "attention" else LINEAR_MODULES
    lora = LoRASettings(rank=rank, alpha=alpha, dropout=dropout, target_modules=modules, rslora=rslora, dora=dora)
    trainer = LoRATrainer(lora=lora, launcher_options=named_values(launcher_option), **settings)
    if dry_run and (described := trainer.describe_job(data, folder, validation=validation)):
        print_result(described, as_json)
        return
    if dry_run:
        plan = trainer.plan(data, folder, validation=validation)
        print_result(plan, as_json, lambda _: click.echo("Nothing was trained: run the command without --dry-run."))
        return
    log_path = Path("logs/distillation") / f"{folder.name}.log"
    adapter = trainer.train(data, folder, validation=validation, log_path=log_path)
    print_result(
        adapter,
        as_json,
        lambda _: console.tell_next(f"Adapter: {adapter.path}", f"po-distill merge --adapter {adapter.path}"),
    )
