"""Changes of a pipeline's configuration, and plugins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from po_distill.records.record import Digest, Record

Change = Literal["promote", "rollback"]


class ConfigChange(Record):
    """One edit of a pipeline's config.yaml: which model a role uses. As planned, and as done where `applied`."""

    action: Change
    config_path: str  # the file itself, where a link was given
    role: str
    before: dict[str, JsonValue]  # keys of the role's section that change, as they were; absent ones are missing
    after: dict[str, JsonValue]  # the same keys as they are then
    digest_before: Digest  # over the file's bytes
    digest_after: Digest
    diff: str  # unified, of the whole file; empty where nothing changes
    package_digest: Digest | None = None  # over the GGUF of the package that is promoted, or was
    report_path: str | None = None  # the evaluation report whose verdict allowed it
    forced: str | None = None  # why it was done without a passed verdict, or over edits by hand
    applied: bool = False


class Promotion(Record):
    """One line of promotions.jsonl: a change of a config that took place, in either direction."""

    number: Annotated[int, Field(ge=0)] = 0  # of the line, from 1 over all configs of the folder; 0 until it is written
    action: Change
    at: str  # when; it holds until the next line of the same config
    config: str  # the file's name; it lies beside promotions.jsonl
    role: str
    provider: str | None = None  # that the role uses from then on; None where the config names none
    model: str | None = None
    before: dict[str, JsonValue]  # as in ConfigChange
    after: dict[str, JsonValue]
    digest_before: Digest  # over the config's bytes, which are kept under this digest
    digest_after: Digest
    package_path: str | None = None
    package_digest: Digest | None = None
    report_path: str | None = None
    report_digest: Digest | None = None  # over the report's bytes
    forced: str | None = None
    undoes: int | None = None  # a rollback's: the number of the promotion that it takes back


class PluginInfo(Record):
    """One registered plugin. Listing imports nothing, so this says nothing about whether it loads."""

    group: str  # providers, roles, base_models, launchers
    name: str
    target: str  # module:attribute
    package: str  # the distribution that registered it
    version: str
