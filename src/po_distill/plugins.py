"""Plugins by entry point: ours are registered the same way as anybody's.

Groups: `providers`, `roles`, `base_models`, `launchers`, `metrics`, `embeddings` (entry points `po_distill.<group>`).
Listing imports nothing; two packages that register one name are an error. A plugin that is broken concerns only who
names it.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from pydantic import ValidationError

from po_distill.errors import PluginError, PODistillError, SettingsError
from po_distill.interfaces import JobLauncher, Launcher, Provider, Role
from po_distill.records import BaseModelSpec, PluginInfo

GROUPS = ("providers", "roles", "base_models", "launchers", "metrics", "embeddings")

_PROTOCOLS: dict[str, tuple[type[Any], ...]] = {  # one of which a plugin has to fit
    "providers": (Provider,),
    "roles": (Role,),
    "launchers": (Launcher, JobLauncher),
}
_OF_INSTANCES = ("contract",)  # a role may set it when it is opened


class CheckedPlugin(NamedTuple):
    """A registered plugin, and why it cannot be used; None where it can."""

    info: PluginInfo
    problem: str | None


def list_plugins() -> list[PluginInfo]:
    """Every registered plugin, by group and name, without importing any."""
    return [_info(group, entry) for group in GROUPS for entry in sorted(_entries(group), key=lambda e: e.name)]


def check_plugins() -> list[CheckedPlugin]:
    """Every registered plugin, imported and looked at."""
    checked = []
    for info in list_plugins():
        try:
            load(info.group, info.name)
        except PODistillError as error:
            checked.append(CheckedPlugin(info, f"{error.problem} {error.fix}"))
        else:
            checked.append(CheckedPlugin(info, None))
    return checked


def names(group: str) -> list[str]:
    """The names registered in a group, sorted."""
    return sorted({entry.name for entry in _entries(group)})


def load(group: str, name: str) -> Any:
    """The object that a plugin registered.

    Raises PluginError where the name is unknown (with the nearest ones), registered twice, does not load (with its
    package and the reason), or is not what a plugin of the group has to be.
    """
    found = [entry for entry in _entries(group) if entry.name == name]
    kind = group.rstrip("s").replace("_", " ")
    if not found:
        known = names(group)
        near = nearest(name, known)
        hint = f"Did you mean {near}? " if near else ""
        raise PluginError(
            f"There is no {kind} named {name!r}.",
            f"{hint}Known: {', '.join(known) or 'none'}. `po-distill plugins` lists them.",
        )
    if len(found) > 1:
        packages = ", ".join(sorted(_package(entry)[0] for entry in found))
        raise PluginError(
            f"The {kind} {name!r} is registered by several packages: {packages}.",
            "Uninstall one of them, or rename its entry point.",
        )
    entry = found[0]
    who = f"The {kind} {name!r} of {' '.join(_package(entry))}"
    fix = f"Repair or uninstall that package; its entry point is {entry.value}."
    try:
        with redirect_stdout(sys.stderr):  # what a module says on being imported is no part of a command's result
            plugin = entry.load()
    except PODistillError as error:
        raise PluginError(f"{who} does not load: {error.problem}", error.fix or fix) from error
    except (Exception, SystemExit) as error:  # a module may do anything while it is imported
        raise PluginError(f"{who} does not load: {type(error).__name__}: {error}.", fix) from error
    if (misfit := _misfit(group, plugin)) is not None:
        raise PluginError(f"{who} is no {kind}: {misfit}.", fix)
    return plugin


def open_launcher(name: str, options: Mapping[str, Any]) -> Launcher | JobLauncher:
    """A launcher with the user's options. Raises SettingsError for an option it does not have, or a wrong value."""
    kind = load("launchers", name)
    parameters = inspect.signature(kind).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    takes_any = len(known) < len(parameters)
    for option in options:
        if option not in known and not takes_any:
            near = nearest(option, known)
            hint = f"Did you mean {near}? " if near else ""
            raise SettingsError(
                f"The launcher {name} has no option {option!r}.", f"{hint}Its options: {', '.join(known) or 'none'}."
            )
    try:
        launcher: Launcher | JobLauncher = kind(**options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(
            f"The option {where} of the launcher {name} is {first['input']!r}: {first['msg']}.", "Correct it."
        ) from error
    return launcher


def nearest(name: str, known: Sequence[str]) -> str:
    """The known names most like `name`, joined by "or"; empty where none is near."""
    return " or ".join(repr(match) for match in difflib.get_close_matches(name, known, n=2, cutoff=0.5))


def _misfit(group: str, plugin: Any) -> str | None:
    """Why an object cannot be a plugin of the group; None where it can, as far as is seen without calling it."""
    if group == "base_models":
        return None if isinstance(plugin, BaseModelSpec) else f"it is a {type(plugin).__name__}, no BaseModelSpec"
    if not callable(plugin):
        return f"it is a {type(plugin).__name__}, which cannot be called"
    if group not in _PROTOCOLS or not isinstance(plugin, type):  # of a function nothing more is known
        return None
    missing = min((_missing(protocol, plugin) for protocol in _PROTOCOLS[group]), key=len)
    return f"it lacks {', '.join(missing)}" if missing else None


def _missing(protocol: type[Any], plugin: type[Any]) -> list[str]:
    members = {name for name in {*vars(protocol), *protocol.__annotations__} if not name.startswith("_")}
    return sorted(name for name in members - {*_OF_INSTANCES} if not hasattr(plugin, name))


# --- entry points ---------------------------------------------------------------------------------


def _info(group: str, entry: EntryPoint) -> PluginInfo:
    package, version = _package(entry)
    return PluginInfo(group=group, name=entry.name, target=entry.value, package=package, version=version)


def _package(entry: EntryPoint) -> tuple[str, str]:
    """(name, version) of the package that registered it, as far as its metadata can be read."""
    metadata: Any = entry.dist.metadata if entry.dist else {}
    return str(metadata.get("Name") or "a package without a name"), str(metadata.get("Version") or "?")


def _entries(group: str) -> list[EntryPoint]:
    # A checkout that is both installed and on sys.path shows each entry point twice.
    found = {(e.name, e.value, _package(e)[0] if e.dist else ""): e for e in entry_points(group=f"po_distill.{group}")}
    return list(found.values())
