"""The commands that judge candidates: on recorded answers or by asking, and stage by stage along the road."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from po_distill.commands.options import (
    EXIT_NOT_PASSED,
    EXIT_UNDECIDED,
    IN_PATHS,
    ROLE,
    SectionedCommand,
    SectionedGroup,
    json_option,
    open_role,
    placed,
    print_result,
    sectioned,
)
from po_distill.role_paths import DATASET, REPORT

if TYPE_CHECKING:
    from po_distill.records import EvaluationReport, ProviderSettings
    from po_distill.reporting.projections import Work

_PATH = click.Path(path_type=Path)
_WHO, _CASES, _HOW, _VERDICT = "Who is judged", "On which cases", "How they are asked and scored", "The verdict"
_TEST_SPLIT = DATASET.replace(".jsonl", ".test.jsonl")
_POSITIVE = click.IntRange(min=1)


@click.group(cls=SectionedGroup, invoke_without_command=True)
@sectioned(
    _WHO, "--candidate", "candidates", multiple=True, metavar="[NAME=]FILE",
    help="Recorded answers of a candidate; may be repeated. The name is the file's where none is given.",
)  # fmt: skip
@sectioned(
    _WHO, "--reference", "--teacher", "reference", metavar="[NAME=]FILE",
    help="Recorded answers that the candidates are held against: the teacher's.",
)  # fmt: skip
@sectioned(_WHO, "--model", "--student", "model", help="Student to ask: a GGUF, or a version folder with one.")
@sectioned(_WHO, "--base", "--base-model", "base", help="Base model's GGUF, to hold the student against.")
@sectioned(_WHO, "--production", metavar="NAME", help="The candidate that is the model now in production.")
@sectioned(
    _CASES, "--data", "--data-path", "data", type=_PATH,
    help=f"Held-out examples or concepts.  [default: what the reference was asked; with --model: {_TEST_SPLIT}]",
)  # fmt: skip
@sectioned(
    _CASES, "--train-data", "train_path", type=_PATH, help="Training rows; a held-out concept in them stops the run."
)
@sectioned(
    _CASES, "--subset", "--max-samples", "subset", type=_POSITIVE,
    help="So many cases, equally many of each verdict and in it of each tier, the watched ones among them.",
)  # fmt: skip
@sectioned(_CASES, "--watch", help="Ids of concepts known to be hard, by commas.  [default: the role's]")
@sectioned(_HOW, "--provider", default="llama_cpp", show_default=True, help="Runtime of student and base.")
@sectioned(_HOW, "--max-tokens", default=4096, show_default=True, type=_POSITIVE, help="Longest answer.")
@sectioned(_HOW, "--concurrency", default=1, show_default=True, type=_POSITIVE, help="Calls at a time.")
@sectioned(_HOW, "--one-after-the-other", is_flag=True, help="Ask one candidate after the other, in place of in turn.")
@sectioned(
    _HOW, "--tries", default=1, show_default=True, type=_POSITIVE,
    help="Ask again where production cannot read an answer; the first is judged, the last is shown apart.",
)  # fmt: skip
@sectioned(
    _HOW, "--guaranteed-valid", is_flag=True,
    help="Decode under a JSON schema, so that production can read every answer that is not cut.",
)  # fmt: skip
@sectioned(
    _HOW, "--metric", metavar="NAME|MODULE:FUNCTION", help="Metric in place of the role's own: a plugin or a function."
)
@sectioned(
    _HOW, "--meaning", default="words", show_default=True, metavar="NAME",
    help="What compares the meaning of answers: words, wordllama or another plugin of po_distill.embeddings.",
)  # fmt: skip
@sectioned(
    _HOW, "--judge", metavar="PROVIDER:MODEL",
    help="Let a model compare the answers with the reference's, in both orders; no rule reads it.  [default: nobody]",
)  # fmt: skip
@sectioned(_HOW, "--role", help=f"Role of the answers. {IN_PATHS}  [default: the student's, else {ROLE}]")
@sectioned(_HOW, "--contract", help="Prompt contract of the role.  [default: the role's first]")
@sectioned(_HOW, "--prompt", "prompt_path", type=_PATH, help="File with another system prompt.")
@sectioned(_HOW, "--workers", type=_POSITIVE, help="Processes that score.  [default: one per core]")
@sectioned(_HOW, "--seed", default=0, show_default=True, help="Of the resampling.")
@sectioned(
    _VERDICT, "--gate", is_flag=False, flag_value="", metavar="[RULES]",
    help=f"Exit with {EXIT_NOT_PASSED} where the verdict is no, with {EXIT_UNDECIDED} where it is undecided. "
    "RULES: production, basic, or a YAML file.  [default: production where there is a reference, else basic]",
)  # fmt: skip
@sectioned(_VERDICT, "--pipeline-calls", type=_POSITIVE, help="Project the time of a pipeline's run of so many calls.")
@sectioned(_VERDICT, "--trials", type=_POSITIVE, help="Project the time of a MIPROv2 run of so many trials.")
@sectioned(_VERDICT, "--validation", type=_POSITIVE, help="Validation cases of that run.")
@sectioned(
    "Output", "--report", default=REPORT, show_default=True, type=_PATH,
    help="The Markdown report; the same as a page and as data lie beside it.",
)  # fmt: skip
@sectioned("Output", "--folder", type=_PATH, help="Where answers are kept.  [default: evaluation, beside the student]")
@json_option
@click.pass_context
def evaluate(context: click.Context, /, **given: Any) -> None:
    """Hold candidates against a reference on held-out concepts: recorded answers, or models that are asked."""
    if context.invoked_subcommand is None:
        _evaluate(**given)


def _evaluate(
    candidates: tuple[str, ...], reference: str | None, model: str | None, base: str | None, production: str | None,
    data: Path | None, watch: str | None, gate: str | None, one_after_the_other: bool, role: str | None,
    contract: str | None, prompt_path: Path | None, pipeline_calls: int | None, trials: int | None,
    validation: int | None, judge: str | None, report: Path, as_json: bool,
    **settings: Any,
) -> None:  # fmt: skip
    from po_distill.artifacts import MANIFEST_NAME, write_json
    from po_distill.pipeline import evaluate_models
    from po_distill.reporting.summary import show_summary, summary_object

    if not candidates and not model and not reference:
        raise click.UsageError("Name whom to judge: --candidate FILE, or --model.")
    recorded = dict(_named_file(text) for text in candidates)
    if len(recorded) < len(candidates):
        raise click.UsageError("Two candidates have one name; give names: --candidate v1=FILE --candidate v2=FILE.")
    measure = _named_file(reference, "teacher") if reference else None
    if measure and measure[0] in recorded:
        raise click.UsageError(f"The candidate and the reference are both named {measure[0]}; give names: NAME=FILE.")
    role = role or _role_of(model) or ROLE
    found = evaluate_models(
        open_role(role, contract, prompt_path),
        placed(data or _TEST_SPLIT, role) if data or model else None,
        student=model,
        base=base,
        recorded={**recorded, **dict([measure] if measure else [])},
        reference=measure[0] if measure else None,
        production=production,
        gate=gate or None,
        watch=[name.strip() for name in watch.split(",") if name.strip()] if watch is not None else None,
        interleaved=not one_after_the_other,
        works=_works(pipeline_calls, trials, validation),
        judged_by=_judge(judge),
        report_path=placed(report, role),
        **settings,
    )
    if model is not None and (_version(model) / MANIFEST_NAME).is_file():  # what a promotion of this version asks for
        write_json(_version(model) / "evaluation.json", found)
    print_result(summary_object(found, found.artifacts), as_json, lambda _: show_summary(found, found.artifacts))
    if gate is not None:
        _exit_by(found)


def _version(model: str) -> Path:
    """The version folder of a student that is named by its folder or its GGUF."""
    return Path(model) if Path(model).is_dir() else Path(model).parent


def _role_of(model: str | None) -> str | None:
    """The role that a student was trained in; None where its folder does not say."""
    from po_distill.artifacts import read_manifest

    manifest = read_manifest(_version(model)) if model is not None else None
    return manifest.contract.role if manifest is not None and manifest.contract is not None else None


def _exit_by(report: EvaluationReport) -> None:
    code = {"passed": 0, "failed": EXIT_NOT_PASSED, "undecided": EXIT_UNDECIDED}[report.verdict.decided]
    if code:
        raise click.exceptions.Exit(code)


def _named_file(text: str, name: str | None = None) -> tuple[str, Path]:
    """(name, file) of `[NAME=]FILE`; without a name that of the file."""
    before, equals, after = text.partition("=")
    if equals and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", before):
        return before, Path(after)
    stem = Path(text).name.removesuffix(".jsonl").removesuffix(".json").removesuffix(".completions")
    return name or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "candidate", Path(text)


def _judge(text: str | None) -> ProviderSettings | None:
    from po_distill.records import ProviderSettings

    if text is None:
        return None
    provider, colon, model = text.partition(":")
    if not colon or not provider or not model:
        raise click.BadParameter(f"{text!r} is no PROVIDER:MODEL.", param_hint="--judge")
    return ProviderSettings(provider=provider, model=model)


def _works(pipeline_calls: int | None, trials: int | None, validation: int | None) -> list[Work]:
    from po_distill.reporting.plan import miprov2_run
    from po_distill.reporting.projections import Work

    if (trials is None) != (validation is None):
        raise click.UsageError("--trials and --validation go together.")
    works = []
    if pipeline_calls is not None:
        works.append(Work("pipeline", pipeline_calls, f"given: {pipeline_calls} calls"))
    if trials is not None and validation is not None:
        run = miprov2_run(trials, validation, minibatch=min(35, validation))
        works.append(Work("miprov2", run.calls, run.told))
    return works


@evaluate.command(cls=SectionedCommand)
@sectioned(
    "Which stages", "--stage", "given", multiple=True, required=True, metavar="NAME=FILE",
    help="Recorded answers of a stage, in the order of the road: adapter, merged, gguf, ollama, or any other name.",
)  # fmt: skip
@sectioned(
    "Which stages", "--base", "base", type=_PATH,
    help="Recorded answers of the base model: a merge that answers as it does has merged nothing.",
)  # fmt: skip
@sectioned("How they are scored", "--role", default="product_owner", show_default=True, help="Role of the answers.")
@sectioned("How they are scored", "--contract", help="Prompt contract of the role.  [default: the role's first]")
@sectioned("How they are scored", "--prompt", "prompt_path", type=_PATH, help="File with another system prompt.")
@sectioned(
    "How they are scored", "--max-tokens", type=_POSITIVE,
    help="The limit that answers were given: one as long as this did not stop by itself.",
)  # fmt: skip
@sectioned("Output", "--output", type=_PATH, help="File for the same as data.")
@json_option
def stages(
    given: tuple[str, ...], base: Path | None, role: str, contract: str | None, prompt_path: Path | None,
    max_tokens: int | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Find where on the road quality went: adapter, merged, GGUF, Ollama on the same prompts."""
    from po_distill.artifacts import write_json
    from po_distill.reporting.stage_table import show_parity
    from po_distill.stage_parity import compare_stages

    named = dict(_named_file(text) for text in given)
    if len(named) < len(given):
        raise click.UsageError("Two stages have one name.")
    found = compare_stages(named, open_role(role, contract, prompt_path), base=base, max_tokens=max_tokens)
    if output is not None:
        write_json(output, found)
    print_result(found, as_json, show_parity)
    if not found.passed:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)
