"""Whether a packaged student may go to production: the passed verdict of a report on exactly its GGUF."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from po_distill import artifacts
from po_distill.errors import InputError
from po_distill.ollama_names import split_model_name
from po_distill.records import EvaluationReport, OllamaPackage

PACKAGE_STAGE = "package"
REPORT_NAME = "evaluation.json"


class FoundPackage(NamedTuple):
    """A package and the version folder that it lies in."""

    folder: Path
    package: OllamaPackage


def find_package(model: str, folder: Path | str | None, models: Path | str) -> FoundPackage | None:
    """The package that `model` was made of: the one in `folder`, else the one below `models` that has its name.

    None where no folder is given and none has the name. Raises InputError where the folder holds no package or that
    of another model, and where several have the name.
    """
    name = split_model_name(model).stem
    if folder is not None:
        package = _package_in(Path(folder))
        if package is None:
            raise InputError(f"{folder} holds no package.", f"Run: po-distill package --model {folder}")
        if split_model_name(package.name).stem != name:
            raise InputError(
                f"{folder} holds the package {package.name}, not {model}.",
                "Name the folder of the model's own package.",
            )
        return FoundPackage(Path(folder), package)
    folders = sorted(path.parent for path in Path(models).glob(f"*/{artifacts.MANIFEST_NAME}"))
    found = [FoundPackage(path, package) for path in folders if (package := _package_in(path))]
    named = [one for one in found if split_model_name(one.package.name).stem == name]
    if len(named) > 1:
        raise InputError(
            f"{len(named)} packages below {models} are named {name}.",
            f"Choose one with --package: {', '.join(str(one.folder) for one in named)}.",
        )
    return named[0] if named else None


def require_verdict(model: str, found: FoundPackage | None, report_path: Path | None, role: str) -> None:
    """Raise InputError unless the report holds a passed verdict on exactly this package, in this role."""
    if found is None or report_path is None:
        raise _refused(model, "no package of that name is known here", "Name its folder with --package.")
    digest, tag = found.package.gguf.digest, split_model_name(model).tag
    again = f"Run: po-distill evaluate --model {found.folder} --gate; then name its report with --report."
    if re.fullmatch(r"[0-9a-f]{12}", tag) and tag not in (_short(digest), found.package.tag):
        raise _refused(model, f"the package in {found.folder} is {_short(digest)}", "Name the tag's own package.")
    gguf = found.folder / Path(found.package.gguf.path).name
    if gguf.is_file() and artifacts.digest_file(gguf) != digest:
        raise _refused(model, f"{gguf} is not the file that was packaged", "Package it anew, then evaluate it.")
    if not report_path.is_file():
        raise _refused(model, f"it was not evaluated: {report_path} does not exist", again)
    report = artifacts.read_record(report_path, EvaluationReport)
    if why := _other_subject(report, report_path, found.package, role):
        raise _refused(model, why, again)
    if report.verdict.decided == "undecided":
        open_rules = "; ".join(reason for reason in report.verdict.reasons if reason.startswith("undecided"))
        raise _refused(model, f"{report_path} does not decide it ({open_rules})", "Evaluate it on more cases.")
    if not report.verdict.passed:
        failed = "; ".join(reason for reason in report.verdict.reasons if not reason.startswith("passed"))
        raise _refused(model, f"the verdict of {report_path} is no ({failed})", "Train a better one.")


def _other_subject(report: EvaluationReport, path: Path, package: OllamaPackage, role: str) -> str | None:
    """In what a report is about something else than the package; None where it is about it."""
    digest, contract = package.gguf.digest, package.contract
    if report.role != role:
        return f"{path} judges the role {report.role}, not {role}"
    if report.student_digest is None:
        return f"{path} does not say which file it judged"
    if report.student_digest != digest:
        return f"{path} judges the GGUF {_short(report.student_digest)}, the package is {_short(digest)}"
    if contract is not None and report.contract.digest != contract.digest:
        return f"{path} judges it under another prompt contract than it was trained on"
    return None


def _package_in(folder: Path) -> OllamaPackage | None:
    manifest = artifacts.read_manifest(folder)
    if manifest is None or PACKAGE_STAGE not in manifest.stages:
        return None
    where = f"{folder / artifacts.MANIFEST_NAME}, stage {PACKAGE_STAGE}"
    return artifacts.parse_record(manifest.stages[PACKAGE_STAGE], OllamaPackage, where)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _refused(model: str, why: str, fix: str) -> InputError:
    return InputError(f"{model} is not promoted: {why}.", f'{fix} --force "reason" promotes it nevertheless.')
