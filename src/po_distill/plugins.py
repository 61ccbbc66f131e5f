"""Plugins by entry point: ours are registered the same way as anybody's.

Groups: `providers`, `roles`, `base_models`, `launchers`, `metrics`, `embeddings` (entry points `po_distill.<group>`).
Listing imports nothing; two packages that register one name are an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from po_distill.errors import PluginError, PODistillError
from po_distill.records import PluginInfo

GROUPS = ("providers", "roles", "base_models", "launchers", "metrics", "embeddings")


def list_plugins() -> list[PluginInfo]:
    """Every registered plugin, by group and name, without importing any."""
    return [
        PluginInfo(
            group=group,
            name=entry.name,
            target=entry.value,
            package=entry.dist.name if entry.dist else "?",
            version=entry.dist.version if entry.dist else "?",
        )
        for group in GROUPS
        for entry in sorted(_entries(group), key=lambda e: e.name)
    ]


def names(group: str) -> list[str]:
    """The names registered in a group, sorted."""
    return sorted({entry.name for entry in _entries(group)})


def load(group: str, name: str) -> Any:
    """The object that a plugin registered.

    Raises PluginError where the name is unknown (with the nearest ones), registered twice, or does
    not load (with its package and the reason).
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
        packages = ", ".join(sorted(entry.dist.name if entry.dist else "?" for entry in found))
        raise PluginError(
            f"The {kind} {name!r} is registered by several packages: {packages}.",
            "Uninstall one of them, or rename its entry point.",
        )
    entry = found[0]
    try:
        return entry.load()
    except PODistillError:
        raise
    except Exception as error:
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
        raise PluginError(
            f"The {kind} {name!r} of {package} does not load: {type(error).__name__}: {error}.",
            f"Repair or uninstall that package; its entry point is {entry.value}.",
        ) from error


def nearest(name: str, known: Sequence[str]) -> str:
    """The known names most like `name`, joined by "or"; empty where none is near."""
    return " or ".join(repr(match) for match in difflib.get_close_matches(name, known, n=2, cutoff=0.5))


def _entries(group: str) -> list[EntryPoint]:
    # A checkout that is both installed and on sys.path shows each entry point twice.
    found = {(e.name, e.value, e.dist.name if e.dist else ""): e for e in entry_points(group=f"po_distill.{group}")}
    return list(found.values())
