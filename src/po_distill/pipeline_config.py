"""The pipeline's own config.yaml, read: where a provider is, in which project.

`providers.<name>.{type, base_url, project_id, location}`; every key may be missing. Nothing is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from po_distill import plugins, safe_yaml
from po_distill.artifacts import read_text
from po_distill.errors import SettingsError

_OPTIONS = {"project_id": "project", "location": "location"}


class ConfiguredProvider(NamedTuple):
    """What a config says of a provider."""

    provider: str  # the plugin
    base_url: str | None
    options: dict[str, Any]


def configured_provider(path: Path | str, name: str) -> ConfiguredProvider:
    """The section `providers.<name>` of a config; nothing but the name where there is none.

    `type` names the plugin where it is one of ours or of another package; else the section's name does. Raises
    SettingsError where the sections are no mappings or hold no texts.
    """
    config = safe_yaml.load(read_text(path), what=str(path)) or {}
    providers = (config.get("providers") or {}) if isinstance(config, dict) else None
    if not isinstance(providers, dict):
        raise SettingsError(
            f"{path} is not as expected: it and its section `providers` have to be mappings.",
            "Write providers.<name> with type, base_url, project_id and location, each a text.",
        )
    section = providers.get(name)
    if section is None:
        return ConfiguredProvider(name, None, {})
    wrong = [key for key in ("type", "base_url", *_OPTIONS) if not _is_text(section, key)]
    if not isinstance(section, dict) or wrong:
        raise SettingsError(
            f"{path}: providers.{name} is not as expected: {', '.join(wrong) or 'it is no mapping'}.",
            "It is a mapping with type, base_url, project_id and location, each a text.",
        )
    kind = section.get("type")
    known = plugins.names("providers")
    return ConfiguredProvider(
        provider=kind if kind in known and name not in known else name,
        base_url=section.get("base_url"),
        options={option: section[key] for key, option in _OPTIONS.items() if section.get(key)},
    )


def _is_text(section: Any, key: str) -> bool:
    return not isinstance(section, dict) or section.get(key) is None or isinstance(section[key], str)
