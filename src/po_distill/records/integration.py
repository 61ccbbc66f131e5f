"""Changes of a pipeline's configuration, and plugins."""

from __future__ import annotations

from pydantic import JsonValue

from po_distill.records.record import Digest, Record


class ConfigChange(Record):
    """One edit of a pipeline's config.yaml: which model a role uses."""

    config_path: str
    role: str
    before: dict[str, JsonValue]  # the role's section before
    after: dict[str, JsonValue]  # and after
    package_digest: Digest | None = None
    report_path: str | None = None


class PluginInfo(Record):
    """One registered plugin. Listing imports nothing, so this says nothing about whether it loads."""

    group: str  # providers, roles, base_models, launchers
    name: str
    target: str  # module:attribute
    package: str  # the distribution that registered it
    version: str
