"""What all contracts ask first: is the plugin registered, and is it one."""

from __future__ import annotations

from typing import Any

from po_distill import plugins


def load_once(group: str, name: str) -> Any:
    """The plugin of that name, which exactly one package registers. Fails with the problem and its fix elsewise."""
    packages = {info.package for info in plugins.list_plugins() if (info.group, info.name) == (group, name)}
    assert packages, (
        f"No installed package registers {name!r} under po_distill.{group}: install the package (pip install .) after "
        "every change of its entry points."
    )
    assert len(packages) == 1, f"{name!r} is registered by {', '.join(sorted(packages))}."
    return plugins.load(group, name)
