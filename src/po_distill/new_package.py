"""A plugin package to begin with: complete, installable, and green by its own tests at once."""

from __future__ import annotations

import importlib.metadata
import re
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

from po_distill import plugins
from po_distill.artifacts import atomic_folder, refuse_existing
from po_distill.errors import InputError
from po_distill.records import Record

_TEMPLATES = files("po_distill") / "plugin_templates"
_LONGEST_NAME = 40


class _Kind(NamedTuple):
    """What differs between the kinds of plugins, beside their templates."""

    group: str
    class_suffix: str  # empty where the plugin is a constant
    separators: str  # what may stand between the parts of a name


_KINDS = {
    "provider": _Kind("providers", "Provider", "_-"),
    "role": _Kind("roles", "Role", "_"),  # a role's name begins variables of the environment
    "base-model": _Kind("base_models", "", "_.-"),
    "launcher": _Kind("launchers", "Launcher", "_-"),
}
KINDS = tuple(_KINDS)


class NewPackage(Record):
    """A package that was written."""

    kind: str
    name: str  # the plugin's, as commands name it
    package: str  # the distribution's
    path: str
    files: tuple[str, ...]  # below the path


def write_package(kind: str, name: str, path: Path | str | None = None) -> NewPackage:
    """Write a package with one plugin into the new folder `path`, by default the plugin's name in the current one.

    Raises InputError where the name cannot be a plugin's or is taken, ArtifactError where the folder exists.
    """
    folder = Path(path if path is not None else name)
    _check_name(kind, name)
    refuse_existing(folder)
    values = _values(kind, name)
    usage = _filled(f"{kind}/usage", values)
    texts = {
        "pyproject.toml": _filled("pyproject.toml", values),
        "README.md": _filled("README", {**values, "usage": usage.strip()}),
        f"src/{values['module']}/__init__.py": _filled(f"{kind}/module", values),
        f"tests/test_{values['module']}.py": _filled(f"{kind}/test", values),
    }
    with atomic_folder(folder) as partial:
        for place, text in texts.items():
            (partial / place).parent.mkdir(parents=True, exist_ok=True)
            (partial / place).write_text(text, encoding="utf-8")
        (partial / "src" / values["module"] / "py.typed").touch()
    written = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return NewPackage(kind=kind, name=name, package=values["package"], path=str(folder), files=tuple(written))


def _filled(template: str, values: dict[str, str]) -> str:
    return Template((_TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(values)


def _values(kind: str, name: str) -> dict[str, str]:
    """What the templates name."""
    parts = re.split(r"[_.-]", name)
    stem = "_".join(parts)
    suffix = _KINDS[kind].class_suffix
    camel = "".join(part.capitalize() for part in parts)
    return {
        "kind": kind.replace("-", " "),
        "name": name,
        "stem": stem,
        "group": _KINDS[kind].group,
        "package": _package(name),
        "module": f"po_distill_{stem}",
        "target": f"{camel.removesuffix(suffix)}{suffix}" if suffix else stem.upper(),
        "test_class": f"Test{camel}",
        "variable": f"{stem.upper()}_COMMAND",
        "concept_prefix": "".join(part[0] for part in parts).upper(),
        "version": importlib.metadata.version("po-distill"),
    }


def _package(name: str) -> str:
    return f"po-distill-{re.sub(r'[_.]', '-', name)}"


def _check_name(kind: str, name: str) -> None:
    """Raise InputError, with the reason, unless a plugin of the kind can have the name."""
    group, _, separators = _KINDS[kind]
    what = kind.replace("-", " ")
    if (wrong := _wrong_with(name, separators)) is not None:
        better = _suggestion(name, separators)
        raise InputError(
            f"{name!r} cannot be the name of a {what}: {wrong}.",
            f"Take {better}." if better else "Take lower-case letters and digits, such as my_own.",
        )
    if name in plugins.names(group):
        raise InputError(f"There is a {what} {name!r} already.", "Take another name: two of one name are an error.")
    try:
        importlib.metadata.distribution(_package(name))
    except importlib.metadata.PackageNotFoundError:
        return
    raise InputError(
        f"The package {_package(name)} is installed already, with another plugin.",
        "Take another name, or uninstall it.",
    )


def _wrong_with(name: str, separators: str) -> str | None:
    allowed = " ".join(separators)
    if not name:
        return "it is empty"
    if len(name) > _LONGEST_NAME:
        return f"it has more than {_LONGEST_NAME} characters"
    if name != name.lower():
        return "it has upper-case letters"
    if not re.match("[a-z]", name):
        return "it does not begin with a letter of a to z"
    if foreign := re.search(rf"[^a-z0-9{re.escape(separators)}]", name):
        return f"it holds {foreign[0]!r}, and only letters, digits and {allowed} may be in it"
    if not re.fullmatch(rf"[a-z0-9]+([{re.escape(separators)}][a-z0-9]+)*", name):
        return f"{allowed} may stand only between letters and digits, one at a time"
    return None


def _suggestion(name: str, separators: str) -> str | None:
    """The nearest name that would do; None where nothing is left."""
    kept = re.sub(rf"[^a-z0-9{re.escape(separators)}]+", separators[0], name.lower())
    kept = re.sub(rf"([{re.escape(separators)}])[{re.escape(separators)}]*", r"\1", kept)[:_LONGEST_NAME]
    kept = re.sub(r"^[^a-z]+|[^a-z0-9]+$", "", kept)
    return kept or None
