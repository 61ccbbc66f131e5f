"""The checklist of what is left to do with a student, ticked where a file shows that it is done."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from po_distill.records import EvaluationReport, OllamaPackage, Promotion, RunManifest
from po_distill.role_model import model_variables


class StudentVersion(NamedTuple):
    """A student's version folder, as its manifest describes it."""

    folder: Path
    manifest: RunManifest
    package: OllamaPackage | None  # None where it is not packaged yet


class Promotions(NamedTuple):
    """The promotions of a config that were not rolled back, oldest first."""

    config: Path
    path: Path  # the promotions.jsonl that says so
    standing: Sequence[Promotion]
    edited: bool = False  # the config was edited by hand since its last change


class Step(NamedTuple):
    """Something to do, with the command for it."""

    what: str
    command: str
    evidence: str | None  # which file shows that it is done; None where it is open
    note: str = ""  # why it is open, where that is known


def next_steps(
    report: EvaluationReport,
    report_path: Path,
    *,
    version: StudentVersion | None,
    promotions: Promotions | None,
) -> list[Step]:
    """The steps from training to production, in order."""
    folder = str(version.folder) if version else "VERSION_FOLDER"
    package = version.package if version else None
    model = package.name if package else "MODEL"
    config = str(promotions.config) if promotions else "config.yaml"
    variable = model_variables(report.role)[0]
    return [
        *_making(version, folder),
        _evaluating(report, report_path, package, folder),
        Step("Create the model on the Ollama server", _created_by(package), None, "no file says which models it has"),
        _promoting(report.role, model, config, promotions, package),
        Step(
            "Ask it one concept as production does",
            _line("po-distill smoke", "--config", config, "--role", report.role),
            None,
            "a smoke test leaves no record: it is run after every change",
        ),
        Step(
            "Run the pipeline with it",
            _line(f"make {variable.removesuffix('_MODEL').lower()}", f"{variable}={model}"),
            None,
            "with DSPy, give MIPROv2 a prompt_model of its own: a distilled student cannot propose instructions",
        ),
    ]


def _making(version: StudentVersion | None, folder: str) -> Iterator[Step]:
    commands = {
        "train": ("Train the student", _line("po-distill train", "--output", folder)),
        "merge": ("Merge adapter and base", _line("po-distill merge", "--adapter", f"{folder}/adapter")),
        "package": ("Package it", _line("po-distill package", "--model", folder)),
    }
    for stage, (what, command) in commands.items():
        done = version is not None and stage in version.manifest.stages
        evidence = f"{version.folder / 'manifest.json'}, stage {stage}" if version and done else None
        yield Step(
            what, command, evidence, "" if version else "the version folder is not known: name it with --package"
        )


def _evaluating(report: EvaluationReport, path: Path, package: OllamaPackage | None, folder: str) -> Step:
    note, digest = "", report.student_digest
    if not report.verdict.passed:
        note = f"{path} does not accept the student"
    elif digest is None:
        note = f"{path} does not say which file it judged"
    elif package is None:
        note = f"{path} accepts the GGUF {digest[7:19]}, of which no package is known here"
    elif package.gguf.digest != digest:
        note = f"{path} judges the GGUF {digest[7:19]}, the package is {package.gguf.digest[7:19]}"
    evidence = None if note else f"{path}, verdict"
    command = _line("po-distill evaluate", "--model", folder, "--gate")
    return Step("Evaluate the package, and accept it", command, evidence, note)


def _promoting(
    role: str, model: str, config: str, promotions: Promotions | None, package: OllamaPackage | None
) -> Step:
    command = _line("po-distill promote", "--config", config, "--role", role, "--model", model)
    what = f"Let {config} use it"
    of_role = [line for line in (promotions.standing if promotions else ()) if line.role == role]
    if promotions is None or not of_role:
        return Step(what, command, None, "" if promotions else f"{config} does not exist here")
    last = of_role[-1]
    if package is None or last.package_digest != package.gguf.digest:
        known = f"the GGUF {last.package_digest[7:19]}" if last.package_digest else "an unknown GGUF"
        return Step(what, command, None, f"{promotions.path} has {last.model} promoted, {known}")
    forced = f", forced: {last.forced}" if last.forced else ""
    edited = f"; {config} was edited by hand since" if promotions.edited else ""
    return Step(what, command, f"{promotions.path}, promotion {last.number} of {last.at}{forced}{edited}")


def _created_by(package: OllamaPackage | None) -> str:
    return package.create_command if package else "ollama create MODEL -f VERSION_FOLDER/Modelfile"


def _line(command: str, *arguments: str) -> str:
    return f"{command} {shlex.join(arguments)}"
