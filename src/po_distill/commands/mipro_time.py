"""The command that times one prompt optimization with the old model and with the student."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from po_distill.commands.options import ROLE, SectionedCommand, json_option, placed, print_result, sectioned
from po_distill.role_paths import CONCEPTS

if TYPE_CHECKING:
    from po_distill.records import OptimizationTimes

_PATH = click.Path(path_type=Path)
_POSITIVE = click.IntRange(min=1)
_WHAT, _HOW = "What is optimized", "How the models are asked"


@click.command("mipro-time", cls=SectionedCommand)
@click.argument("old", metavar="OLD")
@click.argument("student", metavar="STUDENT")
@sectioned(
    _WHAT, "--data", default=CONCEPTS, show_default=True, type=_PATH, help="Concepts to evaluate on, and to show."
)
@sectioned(_WHAT, "--role", default=ROLE, show_default=True, help="Role whose program is optimized.")
@sectioned(_WHAT, "--metric", metavar="NAME|MODULE:FUNCTION", help="Metric in place of the role's own.")
@sectioned(
    _WHAT, "--min-score", default=0.85, show_default=True, type=click.FloatRange(0, 1, min_open=True),
    help="Score from which an answer may be a demonstration.",
)  # fmt: skip
@sectioned(_WHAT, "--trials", default=10, show_default=True, type=_POSITIVE, help="Candidates that are evaluated.")
@sectioned(
    _WHAT, "--candidates", default=4, show_default=True, type=click.IntRange(min=3),
    help="Instructions and sets of demonstrations to choose from.",
)  # fmt: skip
@sectioned(_WHAT, "--validation", default=20, show_default=True, type=_POSITIVE, help="Concepts that a trial asks.")
@sectioned(
    _WHAT, "--prompt-model", metavar="PROVIDER:MODEL",
    help="Who writes the instructions, for both; `role` takes those that the role knows, and asks nobody."
    "  [default: role]",
)  # fmt: skip
@sectioned(_HOW, "--config", type=_PATH, help="Pipeline's config.yaml, for address, project and location of providers.")
@sectioned(_HOW, "--num-ctx", type=_POSITIVE, help="Tokens of context.  [default: the model's own]")
@sectioned(_HOW, "--max-tokens", type=_POSITIVE, help="Longest answer.  [default: half of the context, at most 4096]")
@sectioned(_HOW, "--parallel", default=1, show_default=True, type=_POSITIVE, help="Calls at a time.")
@sectioned(_HOW, "--seed", default=9, show_default=True, help="Of the optimizer.")
@sectioned("Output", "--output", type=_PATH, help="File for the same as data.")
@json_option
def mipro_time(
    old: str, student: str, data: Path, role: str, prompt_model: str | None, config: Path | None, num_ctx: int | None,
    max_tokens: int | None, parallel: int, output: Path | None, as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Time one MIPROv2 optimization with the old model and with the student.

    OLD and STUDENT are PROVIDER:MODEL, a GGUF file, or the name of a model on an Ollama server. Both are optimized on
    the same concepts, with the same trials and the same instructions; nothing is read from a cache.
    """
    from po_distill.artifacts import write_json
    from po_distill.commands.options import open_role
    from po_distill.dspy_form import CONTRACT, require_dspy
    from po_distill.source_rows import read_concepts

    require_dspy("Timing an optimization")
    from po_distill.dspy import role_instructions, student_lm, time_mipro

    concepts = read_concepts(placed(data, role), open_role(role, CONTRACT, None))
    where: dict[str, Any] = {"role": role, "config": config}
    asking: dict[str, Any] = {**where, "num_ctx": num_ctx, "max_tokens": max_tokens, "parallel": parallel}
    writer = role_instructions(role) if prompt_model in (None, "role") else student_lm(prompt_model, **where)
    models = {"old": student_lm(old, **asking), "student": student_lm(student, **asking)}
    try:
        found = time_mipro(models, concepts, prompt_model=writer, role=role, num_ctx=num_ctx, **settings)
    finally:
        for lm in models.values():
            lm.close()
    if output is not None:
        write_json(output, found)
    print_result(found, as_json, _tell)


def _tell(found: OptimizationTimes) -> None:
    from po_distill.reporting.foreign_text import for_terminal

    click.echo(
        f"{found.trials} trials x {found.validation} concepts, {found.candidates} candidates; instructions by "
        f"{for_terminal(found.prompt_model)}"
    )
    click.echo(f"{'':9s}{'seconds':>9s}{'calls':>7s}{'s/call':>8s}{'unread':>8s}{'longest':>9s}{'score':>7s}  model")
    for name, time in found.times.items():
        each = time.duration_s / time.calls if time.calls else 0.0
        click.echo(
            f"{name:9s}{time.duration_s:9.1f}{time.calls:7d}{each:8.2f}{time.parse_errors:8d}"
            f"{time.longest_prompt:9d}{time.score:7.3f}  {for_terminal(time.model)}"
        )
    times = list(found.times.values())
    if len(times) == 2 and min(time.duration_s for time in times) > 0:
        click.echo(f"The student takes 1/{times[0].duration_s / times[1].duration_s:.1f} of the time.")
