"""The command that judges a student."""

from __future__ import annotations

from pathlib import Path

import click

from po_distill.commands.options import EXIT_NOT_PASSED, json_option, open_role, print_result, role_options


@click.command()
@click.option("--model", "--student", "model", required=True, help="Student: a GGUF, or a version folder with one.")
@click.option("--base", "--base-model", "base", help="Base model's GGUF, to hold the student against.")
@click.option(
    "--data", "--data-path", "data", default="artifacts/distillation/po_teacher_dataset.test.jsonl", show_default=True,
    type=click.Path(path_type=Path), help="JSONL of held-out examples or concepts.",
)  # fmt: skip
@click.option(
    "--teacher", "teacher_path", type=click.Path(path_type=Path), help="JSONL of the teacher's recorded answers."
)
@click.option(
    "--train-data",
    "train_path",
    type=click.Path(path_type=Path),
    help="Training rows; a held-out concept in them stops the run.",
)
@click.option(
    "--subset",
    "--max-samples",
    "subset",
    type=click.IntRange(min=1),
    help="So many cases, equally many of each planted label.",
)
@click.option("--provider", default="llama_cpp", show_default=True, help="Runtime of student and base.")
@click.option("--max-tokens", default=4096, show_default=True, type=click.IntRange(min=1), help="Longest answer.")
@click.option("--concurrency", default=1, show_default=True, type=click.IntRange(min=1), help="Calls at a time.")
@click.option("--report", default="docs/po_distillation_report.md", show_default=True, type=click.Path(path_type=Path))
@click.option("--gate", is_flag=True, help=f"Exit with {EXIT_NOT_PASSED} where the verdict is no.")
@role_options
@json_option
def evaluate(
    model: str, base: str | None, data: Path, teacher_path: Path | None, train_path: Path | None, subset: int | None,
    provider: str, max_tokens: int, concurrency: int, report: Path, gate: bool, role: str, contract: str | None,
    prompt_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Hold a student against its base and its teacher on held-out concepts."""
    from po_distill.artifacts import MANIFEST_NAME, write_json
    from po_distill.pipeline import evaluate_models
    from po_distill.reporting.summary import show_summary, summary_object

    found = evaluate_models(
        open_role(role, contract, prompt_path), data, student=model, base=base, teacher_path=teacher_path,
        train_path=train_path, subset=subset, provider=provider, max_tokens=max_tokens, concurrency=concurrency,
        report_path=report,
    )  # fmt: skip
    version = Path(model) if Path(model).is_dir() else Path(model).parent
    if (version / MANIFEST_NAME).is_file():  # what a promotion of this version asks for
        write_json(version / "evaluation.json", found)
    print_result(summary_object(found, found.artifacts), as_json, lambda _: show_summary(found, found.artifacts))
    if gate and not found.verdict.passed:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)
