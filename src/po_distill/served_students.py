"""The students on an Ollama server: which are there, which a pipeline's config uses, and away with one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from po_distill import safe_yaml
from po_distill.artifacts import read_text
from po_distill.config_history import ConfigHistory
from po_distill.errors import InputError
from po_distill.installing import KEPT, UNPROVEN
from po_distill.ollama_names import ModelName, read_model_name, split_model_name
from po_distill.ollama_server import MissingModelError, OllamaServer, ServerModel
from po_distill.records import ServedStudent

_OURS = "po_distill."  # what begins the keys that the packager writes into a GGUF
_TAG = re.compile(r"[0-9a-f]{12}")


def served_students(server: OllamaServer, config: Path | str | None = None) -> list[ServedStudent]:
    """Every name on the server that stands for a student of ours, by name.

    A student is told by what its GGUF says of itself. `config` is the pipeline's, whose roles' models are promoted.
    """
    models = server.models()
    ours = {digest for digest in {model.digest for model in models} if _is_ours(server, models, digest)}
    found = [model for model in models if model.digest in ours]
    promoted, needed = _uses(found, config)
    return [
        ServedStudent(
            name=model.name,
            digest=f"sha256:{model.digest}",
            size_bytes=model.size_bytes,
            quantization=model.quantization,
            modified_at=model.modified_at.isoformat(timespec="seconds") if model.modified_at else None,
            state=_state(split_model_name(model.name).tag),
            promoted=tuple(sorted(promoted[model.digest])),
            needed=tuple(sorted(needed[model.digest] - promoted[model.digest])),
        )
        for model in sorted(found, key=lambda model: model.name)
    ]


def remove_student(
    server: OllamaServer, name: str, config: Path | str | None = None, *, force: bool = False
) -> list[ServedStudent]:
    """Remove a student: with a tag, that one under all its names; without, all that the name has. What was removed.

    Raises InputError where there is none, and, unless `force` is set, where a role of the config uses it or a rollback
    would give it back.
    """
    wanted = read_model_name(name)
    known = served_students(server, config)
    siblings = [one for one in known if split_model_name(one.name).stem.lower() == wanted.stem.lower()]
    if _has_tag(name, wanted):
        digests = {one.digest for one in siblings if one.name.lower() == str(wanted).lower()}
        siblings = [one for one in siblings if one.digest in digests]
    if not siblings:
        raise InputError(f"There is no student {name} on {server.url}.", "`po-distill package list` shows what is.")
    if not force:
        _refuse_used(siblings, config)
    for one in sorted(siblings, key=lambda one: one.state != "alias"):  # a kill in between leaves what is listed
        server.delete(one.name)
    return siblings


def _has_tag(name: str, read: ModelName) -> bool:
    return name.lower().endswith(f":{read.tag.lower()}")


def _is_ours(server: OllamaServer, models: Iterable[ServerModel], digest: str) -> bool:
    name = next(model.name for model in models if model.digest == digest)
    try:
        info: dict[str, Any] = server.show(name).get("model_info") or {}
    except MissingModelError:  # removed since it was listed
        return False
    return any(key.startswith(_OURS) for key in info)


def _state(tag: str) -> Literal["alias", "proven", "unproven", "kept"]:
    if _TAG.fullmatch(tag):
        return "proven"
    if tag.endswith(UNPROVEN):
        return "unproven"
    return "kept" if tag.startswith(KEPT) else "alias"


# --- what the config uses -------------------------------------------------------------------------


def _refuse_used(students: Iterable[ServedStudent], config: Path | str | None) -> None:
    for one in students:
        if one.promoted:
            raise InputError(
                f"{one.name} is promoted: {config} has {_listed(one.promoted)} use it.",
                f"Take it back first: po-distill rollback --config {config}; or remove it with --force.",
            )
    for one in students:
        if one.needed:
            raise InputError(
                f"{one.name} is what a rollback of {config} would give back to {_listed(one.needed)}.",
                "Remove it with --force if no rollback shall go there.",
            )


def _listed(roles: Iterable[str]) -> str:
    return ", ".join(roles)


def _uses(
    models: Iterable[ServerModel], config: Path | str | None
) -> tuple[defaultdict[str, set[str]], defaultdict[str, set[str]]]:
    """(digest -> the roles that use the model, digest -> those that a rollback would give it back to)."""
    promoted: defaultdict[str, set[str]] = defaultdict(set)
    needed: defaultdict[str, set[str]] = defaultdict(set)
    if config is None:
        return promoted, needed
    standing = {line.role: line for line in ConfigHistory(config).standing()}  # the last of each role
    used = [*_configured(config), *((role, line.model) for role, line in standing.items())]
    former = [(role, line.before.get("model")) for role, line in standing.items()]
    digests = {model.name.lower(): model.digest for model in models}
    for place, pairs in ((promoted, used), (needed, former)):
        for role, name in pairs:
            digest = digests.get(str(split_model_name(name)).lower()) if isinstance(name, str) else None
            if digest is not None:
                place[digest].add(role)
    return promoted, needed


def _configured(config: Path | str) -> list[tuple[str, Any]]:
    """(role, model) of each role that the config names a model for, whatever it looks like otherwise."""
    content = safe_yaml.load(read_text(config), what=str(config))
    roles = content.get("roles") if isinstance(content, dict) else None
    sections = roles.items() if isinstance(roles, dict) else ()
    return [(str(role), section.get("model")) for role, section in sections if isinstance(section, dict)]
