"""The commands at the end of the road: does the promoted model answer, and what was gained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from po_distill.commands.options import (
    EXIT_NOT_PASSED,
    MODELS,
    json_option,
    open_role,
    print_result,
)

if TYPE_CHECKING:
    from po_distill.interfaces import Role
    from po_distill.records import Concept, SmokeResult
    from po_distill.reporting.next_steps import Promotions, StudentVersion
    from po_distill.reporting.plan import MIPROv2Run
    from po_distill.role_model import RoleModel

_PATH = click.Path(path_type=Path)
_config_option = click.option(
    "--config", default="config.yaml", show_default=True, type=_PATH, help="The pipeline's own configuration."
)


@click.command()
@_config_option
@click.option("--role", default="product_owner", show_default=True, help="Role whose model is asked.")
@click.option("--contract", help="Prompt contract.  [default: the package's, else the role's first]")
@click.option("--prompt", "prompt_path", type=_PATH, help="File with another system prompt.")
@click.option(
    "--concept", "concept_path", type=_PATH, help="JSON or JSONL; its first concept is asked.  [default: one we make]"
)
@click.option("--package", type=_PATH, help=f"Version folder of the model.  [default: by its name, in {MODELS}]")
@click.option(
    "--timeout-s",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How long the answer may take, loading included.",
)
@click.option(
    "--guaranteed-valid", is_flag=True, help="Decode under a JSON schema, as the library's valid_answer does."
)
@click.option("--show", is_flag=True, help="Print the answer, and what is wrong with it in words that may quote it.")
@json_option
def smoke(
    config: Path, role: str, contract: str | None, prompt_path: Path | None, concept_path: Path | None,
    package: Path | None, timeout_s: float, guaranteed_valid: bool, show: bool, as_json: bool,
) -> None:  # fmt: skip
    """Ask the role's model one concept, exactly as production does.

    The model is the one that the config, or PO_MODEL, gives the role. Exit status 0 where production can read the
    answer, 3 where it cannot, or where the model did not stop by itself. Nothing is logged.
    """
    from po_distill.progress import say
    from po_distill.role_model import resolve_role_model
    from po_distill.smoke import ask_as_production

    model = resolve_role_model(config, role)
    opened = _role_of(model, role, contract, prompt_path, package)
    concept = _concept(concept_path, opened)
    say(f"Asking {model.model} of {model.provider} about {concept.concept_id}, for {timeout_s:g} s at most.")
    result = ask_as_production(
        opened, model, concept, timeout_s=timeout_s, keep_answer=show, guaranteed_valid=guaranteed_valid
    )
    print_result(result, as_json, _tell)
    if not result.passed:
        raise click.exceptions.Exit(EXIT_NOT_PASSED)


def _role_of(model: RoleModel, role: str, contract: str | None, prompt_path: Path | None, package: Path | None) -> Role:
    """The role under the contract that the model was trained on, where its package is known.

    Raises ContractMismatchError where it would be asked under another.
    """
    from po_distill.errors import ContractMismatchError
    from po_distill.package_verdict import find_package
    from po_distill.plugins import load

    found = find_package(model.model, package, MODELS)
    trained = found.package.contract if found else None
    if trained is not None and contract is None and prompt_path is None:
        kind = load("roles", role)
        own = kind(contract=trained.name).contract.system
        opened: Role = kind(contract=trained.name, prompt=None if own == trained.system else trained.system)
    else:
        opened = open_role(role, contract, prompt_path)
    if trained is not None and opened.contract.digest != trained.digest:
        assert found is not None
        raise ContractMismatchError(
            f"{model.model} was trained under the prompt contract {trained.name} ({trained.digest[:19]}, says "
            f"{found.folder}), and would be asked under {opened.contract.name} ({opened.contract.digest[:19]}).",
            "Leave --contract and --prompt out, or promote a student that was trained on what production asks.",
        )
    return opened


def _concept(path: Path | None, role: Role) -> Concept:
    """The first concept of a file, or one of the role's own."""
    if path is None:
        return role.generate_concepts(1, seed=1)[0]
    from po_distill.artifacts import read_text
    from po_distill.errors import InputError
    from po_distill.source_rows import concept_of

    try:
        row, _ = json.JSONDecoder().raw_decode(read_text(path).lstrip())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} does not begin with a JSON object.", "Give a row of concepts.jsonl.") from error
    if not isinstance(row, dict):
        raise InputError(f"{path} begins with no JSON object.", "Give a row of concepts.jsonl.")
    return concept_of(row, str(path), role)


def _tell(result: SmokeResult) -> None:
    from po_distill.reporting.foreign_text import for_terminal as safe

    usage, generation = result.usage, result.generation
    parts = [("loading", usage.load_s), ("to the first token", usage.first_token_s)]
    times = ", ".join(f"{seconds:.2f} {name}" for name, seconds in parts if seconds is not None)
    rate = f", {result.tokens_per_s:.1f} a second" if result.tokens_per_s is not None else ""
    planted = f" (planted: {safe(result.expected_label)})" if result.expected_label else ""
    reason = f" ({safe(result.finish_reason)})" if result.finish_reason not in (None, result.finish) else ""
    served = "" if result.served_model == result.model else f", served as {safe(result.served_model)}"
    rows = [
        ("model", f"{safe(result.model)} of {safe(result.provider)}, by {safe(result.source)}{served}"),
        ("asked", f"{safe(result.concept_id)}, temperature {generation.temperature:g}, {generation.max_tokens} tokens "
                  f"at most, contract {result.contract_digest[7:19]}"),
        *((safe(name), "read" if read else "not found") for name, read in result.documents.items()),
        ("production", "can read it" if result.readable else "cannot read it"),
        ("verdict", f"{safe(result.label or 'none')}{planted}"),
        ("score", f"{result.score:.3f}"),
        ("violations", ", ".join(map(safe, result.violations)) or "none"),
        ("finish", f"{safe(result.finish)}{reason}"),
        ("seconds", f"{usage.latency_s:.2f}" + (f" ({times})" if times else "")),
        ("tokens", f"{usage.prompt_tokens} in, {usage.completion_tokens} out{rate}"),
    ]  # fmt: skip
    for name, told in rows:
        click.echo(f"{name:<22}{told}")
    if usage.cost_usd:
        click.echo(f"{'cost':<22}${usage.cost_usd:.6f}")
    if result.stand_in:
        click.secho("A stand-in: rules answered in place of a model.", fg="yellow")
    if result.answer is not None:
        for finding in result.findings:
            click.echo(f"- {safe(finding, longest=None)}")
        click.echo("".join(c if c.isprintable() or c in "\n\t" else "?" for c in result.answer))
    for problem in result.problems:
        click.secho(f"Not passed: {safe(problem)}.", fg="red")
    if result.passed:
        click.secho("Passed.", fg="green")


@click.group()
def export() -> None:
    """Write what was found for people who were not there."""


@export.command()
@click.option("--report", "report_path", required=True, type=_PATH, help="Evaluation as JSON: evaluation.json.")
@click.option("--calls", type=click.IntRange(min=1), help="Calls of the task model in a MIPROv2 run.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials of a MIPROv2 run, to compute its calls from.")
@click.option("--validation", type=click.IntRange(min=1), help="Its validation cases.")
@click.option(
    "--minibatch", default=35, show_default=True, type=click.IntRange(min=0), help="Cases of a trial; 0 is all."
)
@click.option(
    "--full-eval-steps",
    default=5,
    show_default=True,
    type=click.IntRange(min=1),
    help="Trials between full evaluations.",
)
@click.option("--package", "folder", type=_PATH, help="Version folder of the student.  [default: by the report]")
@_config_option
@click.option("--output", default="docs/plan.md", show_default=True, type=_PATH)
@json_option
def plan(
    report_path: Path, calls: int | None, trials: int | None, validation: int | None, minibatch: int,
    full_eval_steps: int, folder: Path | None, config: Path, output: Path, as_json: bool,
) -> None:  # fmt: skip
    """Write a distillation plan's closing parts: benefits with their figures, and the next steps.

    Figures are those of the report; the time of a MIPROv2 run is computed from its calls, and called a projection. A
    step is ticked where the version folder's manifest or promotions.jsonl shows that it is done.
    """
    from po_distill.artifacts import read_record, write_text
    from po_distill.records import EvaluationReport
    from po_distill.reporting.next_steps import next_steps
    from po_distill.reporting.plan import render_plan

    run = _miprov2_run(calls, trials, validation, minibatch, full_eval_steps)
    report = read_record(report_path, EvaluationReport)
    version = _version(folder, report_path, report.student_digest)
    steps = next_steps(
        report,
        report_path,
        version=version,
        promotions=_promotions(config),
    )
    write_text(output, render_plan(report, report_path, steps, run))
    found = {
        "path": str(output),
        "accepted": report.verdict.passed,
        "miprov2_calls": run.calls if run else None,
        "steps": [{"what": step.what, "command": step.command, "done": step.evidence is not None} for step in steps],
    }
    print_result(found, as_json, lambda _: _tell_plan(output, [step.what for step in steps if not step.evidence]))


def _tell_plan(path: Path, still_open: list[str]) -> None:
    click.echo(f"Plan: {path}")
    for what in still_open:
        click.echo(f"  open: {what}")


def _miprov2_run(
    calls: int | None, trials: int | None, validation: int | None, minibatch: int, full_eval_steps: int
) -> MIPROv2Run | None:
    from po_distill.reporting.plan import MIPROv2Run, miprov2_run

    if calls is not None and (trials is not None or validation is not None):
        raise click.UsageError("Give --calls, or --trials and --validation to compute them from, not both.")
    if calls is not None:
        return MIPROv2Run(calls, f"given: --calls {calls}")
    if (trials is None) != (validation is None):
        raise click.UsageError("--trials and --validation go together.")
    if trials is None or validation is None:
        return None
    return miprov2_run(trials, validation, minibatch=minibatch, full_eval_steps=full_eval_steps)


def _version(folder: Path | None, report_path: Path, digest: str | None) -> StudentVersion | None:
    """The version folder that was named, that the report lies in, or whose package has the digest."""
    from po_distill.artifacts import MANIFEST_NAME
    from po_distill.errors import InputError

    if folder is not None:
        if (version := _version_in(folder)) is None:
            raise InputError(f"{folder} has no {MANIFEST_NAME}.", "Name the student's own version folder.")
        return version
    if (version := _version_in(report_path.parent)) is not None or digest is None:
        return version
    found = map(_version_in, sorted(path.parent for path in Path(MODELS).glob(f"*/{MANIFEST_NAME}")))
    return next((one for one in found if one and one.package and one.package.gguf.digest == digest), None)


def _version_in(folder: Path) -> StudentVersion | None:
    from po_distill.artifacts import MANIFEST_NAME, parse_record, read_manifest
    from po_distill.records import OllamaPackage
    from po_distill.reporting.next_steps import StudentVersion

    manifest = read_manifest(folder)
    if manifest is None:
        return None
    where = f"{folder / MANIFEST_NAME}, stage package"
    stage = manifest.stages.get("package")
    return StudentVersion(folder, manifest, parse_record(stage, OllamaPackage, where) if stage else None)


def _promotions(config: Path) -> Promotions | None:
    """The standing promotions of a config; None where there is no such file."""
    from po_distill.artifacts import digest_bytes
    from po_distill.config_history import LINES_NAME, ConfigHistory
    from po_distill.reporting.next_steps import Promotions

    if not config.is_file():
        return None
    history = ConfigHistory(config)
    lines = history.promotions()
    edited = bool(lines) and digest_bytes(history.read()) != lines[-1].digest_after
    beside = history.path if config.is_symlink() else config
    return Promotions(config, beside.with_name(LINES_NAME), history.standing(), edited)
