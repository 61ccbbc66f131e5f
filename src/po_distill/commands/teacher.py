"""The commands around the teacher: concepts, and the dataset made of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from po_distill.commands.dataset import check, diff
from po_distill.commands.options import (
    EXIT_NOT_PASSED,
    IN_PATHS,
    SectionedGroup,
    json_option,
    named_values,
    open_role,
    placed,
    print_result,
    sectioned,
    shares,
)
from po_distill.role_paths import CONCEPTS, DATASET

_PATH = click.Path(path_type=Path)
_POSITIVE = click.FloatRange(min=0, min_open=True)
_LOGS = "logs/distillation"


@click.command()
@click.option("--count", default=228, show_default=True, type=click.IntRange(min=1), help="How many concepts.")
@click.option("--seed", default=7, show_default=True, help="Equal seeds make equal concepts.")
@click.option(
    "--output", "--output-path", "output", default=CONCEPTS, show_default=True, type=click.Path(path_type=Path)
)
@click.option(
    "--vary", "--input-path", "vary", type=click.Path(path_type=Path), help="JSONL of concepts to vary up to --count."
)
@click.option("--role", default="product_owner", show_default=True, help=f"Role to make concepts for. {IN_PATHS}")
@json_option
def concepts(count: int, seed: int, output: Path, vary: Path | None, role: str, as_json: bool) -> None:
    """Make concepts with planted truth, or vary given ones."""
    from collections import Counter

    from po_distill.artifacts import write_jsonl
    from po_distill.reporting import console
    from po_distill.source_rows import read_concepts, vary_all

    opened, output = open_role(role, None, None), placed(output, role)
    made = vary_all(opened, read_concepts(vary, opened), count, seed) if vary else opened.generate_concepts(count, seed)
    write_jsonl(output, made)
    labels = Counter(concept.planted_label or "unknown" for concept in made)
    found = {"concepts": len(made), "labels": dict(sorted(labels.items())), "path": str(output)}
    print_result(found, as_json, lambda _: console.tell_counts(f"{len(made)} concepts in {output}", labels))


@click.group(cls=SectionedGroup, invoke_without_command=True)
@sectioned(
    "What is answered",
    "--input",
    "--input-path",
    "input_path",
    default=CONCEPTS,
    show_default=True,
    type=_PATH,
    help="JSONL of concepts, or of recorded answers in any of the accepted forms.",
)
@sectioned(
    "What is answered",
    "--max-records",
    type=click.IntRange(min=1),
    help="Read only so many rows, and the watched ones.",
)
@sectioned(
    "What is answered",
    "--target",
    type=click.IntRange(min=1),
    help="Vary the concepts until so many answers are accepted.",
)
@sectioned(
    "What is answered", "--mix", help="Shares of the verdicts in the target: aligned=0.5,needs_adjustment=0.3,..."
)
@sectioned(
    "What is answered", "--watch", help="Ids of concepts to report one by one, with commas.  [default: the role's]"
)
@sectioned("What is answered", "--role", default="product_owner", show_default=True, help=f"Role to distil. {IN_PATHS}")
@sectioned("What is answered", "--contract", help="Prompt contract of the role.  [default: the role's first]")
@sectioned("What is answered", "--prompt", "prompt_path", type=_PATH, help="File with another system prompt.")
@sectioned(
    "Who answers",
    "--provider",
    default="offline",
    show_default=True,
    help="Who answers; `po-distill plugins` lists them.",
)
@sectioned("Who answers", "--model", help="Model of the provider.")
@sectioned("Who answers", "--base-url", help="Address of the provider.")
@sectioned("Who answers", "--project", help="Google Cloud project.  [default: config, environment]")
@sectioned("Who answers", "--location", help="Google Cloud location.  [default: config, environment]")
@sectioned("Who answers", "--option", "options", multiple=True, help="NAME=VALUE of the provider; may be repeated.")
@sectioned("Who answers", "--config", type=_PATH, help="The pipeline's config.yaml: its providers.<name> is read.")
@sectioned("Who answers", "--models-file", type=_PATH, help="YAML of models and prices before the library's own.")
@sectioned(
    "Who answers", "--allow-model", "allow_models", multiple=True, help="A model that may answer in the other's place."
)
@sectioned("How it is asked", "--temperature", default=0.4, show_default=True, type=click.FloatRange(0, 2))
@sectioned(
    "How it is asked",
    "--max-tokens",
    default=8192,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of an answer, thinking included.",
)
@sectioned("How it is asked", "--thinking", help="Budget in tokens, or a level.  [default: the model's]")
@sectioned("How it is asked", "--seed", type=int, help="For providers that can repeat an answer.")
@sectioned(
    "How it is asked",
    "--structured/--free-text",
    default=None,
    help="JSON under the role's schema.  [default: where it can be had]",
)
@sectioned("What is accepted", "--min-score", default=0.85, show_default=True, type=click.FloatRange(0, 1))
@sectioned(
    "What is accepted",
    "--regenerate",
    default=2,
    show_default=True,
    type=click.IntRange(min=0),
    help="How often a weak answer is asked for again.",
)
@sectioned("What is accepted", "--metric", help="package.module:function in place of the role's metric.")
@sectioned(
    "What is accepted",
    "--held-out",
    multiple=True,
    type=_PATH,
    help="File that no row may be in, exactly or nearly; may be repeated.",
)
@sectioned(
    "What is accepted",
    "--near",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Similarity from which rows of one class are duplicates; 1 keeps all but equal ones.",
)
@sectioned("Money and pace", "--budget-usd", type=_POSITIVE, help="What all runs of the journal may cost together.")
@sectioned("Money and pace", "--dry-run", is_flag=True, help="Print calls, tokens and cost; send nothing.")
@sectioned(
    "Money and pace",
    "--batch-size",
    default=20,
    show_default=True,
    type=click.IntRange(min=1),
    help="Calls in flight at most.",
)
@sectioned("Money and pace", "--requests-per-minute", type=_POSITIVE)
@sectioned("Money and pace", "--tokens-per-minute", type=_POSITIVE)
@sectioned(
    "Money and pace",
    "--in-doubt",
    default="resend",
    show_default=True,
    type=click.Choice(["resend", "skip"]),
    help="Calls of a killed run that may have been paid for.",
)
@sectioned("Output", "--output", "--output-path", "output", default=DATASET, show_default=True, type=_PATH)
@sectioned("Output", "--contracts", help="Render rows under several contracts, by share: fenced=0.7,json=0.3.")
@sectioned(
    "Output",
    "--demonstrations",
    default=2,
    show_default=True,
    type=click.IntRange(min=0),
    help="Rows that a prompt of the contract dspy shows, at most.",
)
@sectioned(
    "Output",
    "--demonstrated-characters",
    default=6000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of such a row, prompt and target together.",
)
@sectioned("Output", "--stamp", help="Time written into each target, ISO 8601.  [default: the day of the answer]")
@sectioned(
    "Output",
    "--also",
    "shapes",
    multiple=True,
    type=click.Choice(["messages", "prompt_completion", "parquet"]),
    help="Write the rows in this form too; may be repeated.",
)
@sectioned("Output", "--workers", type=click.IntRange(min=1), help="Processes that score.  [default: one a processor]")
@sectioned("Output", "--logs", default=_LOGS, show_default=True, type=_PATH, help="Folder of journal and cost log.")
@json_option
def dataset(
    input_path: Path, output: Path, logs: Path, max_records: int | None, target: int | None, mix: str | None,
    watch: str | None, role: str, contract: str | None, prompt_path: Path | None, dry_run: bool, thinking: str | None,
    options: tuple[str, ...], project: str | None, location: str | None, allow_models: tuple[str, ...],
    held_out: tuple[Path, ...], near: float, contracts: str | None, stamp: str | None, shapes: tuple[str, ...],
    workers: int | None, demonstrations: int, demonstrated_characters: int, as_json: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Let a teacher answer concepts, and build the gated dataset.

    Where the input holds answers already, no teacher is asked: they are scored again and gated. Every answer is
    journalled: the same command goes on where it was stopped, and pays for nothing twice. `dataset check` says
    whether a file of rows is fit for training, `dataset diff` how two datasets differ.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return None
    from po_distill.artifacts import read_records
    from po_distill.pipeline import open_teacher
    from po_distill.records import Completion
    from po_distill.reporting import console
    from po_distill.settings import teacher_settings
    from po_distill.source_rows import ConceptFile, has_answers
    from po_distill.stages.dataset_builder import DatasetBuilder, beside

    opened = open_role(role, contract, prompt_path)
    input_path, output = placed(input_path, role), placed(output, role)
    if mix and not target:
        raise click.UsageError("--mix gives shares of a target: name it with --target.")
    builder = DatasetBuilder(
        opened, min_score=chosen["min_score"], metric=chosen["metric"], held_out=held_out, near=near,
        contracts=shares(contracts), demonstrations=demonstrations, demonstrated_characters=demonstrated_characters,
        target=target, mix=shares(mix), stamp=stamp, shapes=shapes, workers=workers,
    )  # fmt: skip
    if has_answers(input_path, opened):
        built = builder.build_from(input_path, output, most=max_records)
        return print_result(built, as_json, lambda _: console.tell_dataset(built))
    own = {**named_values(options), **({"project": project} if project else {})}
    values = {
        **{name: str(value) if isinstance(value, Path) else value for name, value in chosen.items()},
        "options": {**own, **({"location": location} if location else {})},
        "thinking": int(thinking) if thinking and thinking.isdigit() else thinking,
        "allow_models": list(allow_models),
        "target": target,
        "mix": shares(mix),
        "watch": watch.split(",") if watch is not None else None,
    }
    wanted = teacher_settings(values, "The options")
    teacher = open_teacher(opened, wanted, logs)
    concepts = ConceptFile(input_path, opened, most=max_records, keep=teacher.watch)
    if dry_run:
        plan = teacher.plan(concepts, target=target)
        return print_result(plan, as_json, lambda _: console.tell_plan(plan))
    completions = beside(output, "completions.jsonl")
    summary = teacher.write(concepts, completions, target=target, mix=wanted.mix)
    built = builder.build(read_records(completions, Completion), output)
    both = {**built.model_dump(mode="json"), "teacher": summary.model_dump(mode="json")}

    def tell(_: Any) -> None:
        console.tell_teacher(summary, wanted.budget_usd)
        console.tell_dataset(built)

    print_result(both, as_json, tell)
    if summary.stopped:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)
    return None


dataset.add_command(check)
dataset.add_command(diff)
