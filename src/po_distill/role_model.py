"""Which model a role of the pipeline uses: for the role's own code, so importing this costs next to nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import JsonValue

    from po_distill.errors import SettingsError

_OLLAMA = "ollama"


class RoleModel(NamedTuple):
    """The model that a role shall ask, and how."""

    provider: str  # the plugin, or the name in providers where its type is none of ours
    model: str
    base_url: str | None
    temperature: float | None  # None where the config does not say
    max_tokens: int | None
    source: str  # who named the model: a variable of the environment, or the place in the config
    options: Mapping[str, JsonValue] = {}  # what the config says of the provider beside its address: project, location


def resolve_role_model(config: Path | str, role: str, environ: Mapping[str, str] = os.environ) -> RoleModel:
    """The model of `role`: by the environment, else by `roles.<role>` of the config.

    The variables are the role's short name and its whole name with _MODEL, such as PO_MODEL and PRODUCT_OWNER_MODEL;
    an empty one counts as missing. They name a model, or `provider:model` where a provider that the config or a plugin
    knows stands before the first colon; any other colon is that of a tag. A model alone is asked of the provider that
    the config gives the role. A student of the role, which its name tells, is asked of Ollama, unless the config has
    the role use a student already. Raises SettingsError where no model is named, or something is not as expected, and
    InputError where the config cannot be read.
    """
    from po_distill import plugins, safe_yaml
    from po_distill.artifacts import read_text
    from po_distill.pipeline_config import configured_provider

    content = _mapping(safe_yaml.load(read_text(config), what=str(config)), str(config))
    providers = _mapping(content.get("providers"), f"{config}: providers")
    roles = _mapping(content.get("roles"), f"{config}: roles")
    where = f"{config}: roles.{role}"
    section = _mapping(roles.get(role), where)
    provider, model, source = _text(section, "provider", where), _text(section, "model", where), where
    known = {str(name) for name in providers} | set(plugins.names("providers"))
    kind = plugins.load("roles", role) if role in plugins.names("roles") else None
    variables = _variables(role, kind)
    if override := _override(variables, environ):
        source, named = override
        head, colon, tail = named.partition(":")
        if colon and head in known:
            provider, model = head, tail
        else:
            if _is_student(named, kind) and not _is_student(model, kind):
                provider = _ollama_of(providers)
            model = named
    if not provider or not model:
        raise _unnamed(where, source, [key for key, value in (("provider", provider), ("model", model)) if not value],
                       variables, list(map(str, roles)))  # fmt: skip
    if provider not in known:
        near = plugins.nearest(provider, sorted(known))
        raise _wrong(
            f"{source} names the provider {provider!r}, which neither {config} nor a plugin knows.",
            f"{f'Did you mean {near}? ' if near else ''}Or add providers.{provider} with type and base_url.",
        )
    found = configured_provider(config, provider)
    return RoleModel(
        provider=found.provider,
        model=model,
        base_url=found.base_url,
        temperature=_temperature(section, where),
        max_tokens=_max_tokens(section, where),
        source=source,
        options=found.options,
    )


def model_variables(role: str) -> tuple[str, ...]:
    """The variables of the environment that name a role's model, such as PO_MODEL and PRODUCT_OWNER_MODEL."""
    from po_distill import plugins

    return _variables(role, plugins.load("roles", role) if role in plugins.names("roles") else None)


# --- the environment ------------------------------------------------------------------------------


def _variables(role: str, kind: Any) -> tuple[str, ...]:
    """The variables that name a role's model: by its short name, where it has one, and by its name."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", role) if word]
    initials = "".join(word[0] for word in words) if len(words) > 1 else None
    names = (getattr(kind, "short_name", None) or initials, "_".join(words))
    return tuple(dict.fromkeys(f"{name.upper()}_MODEL" for name in names if name))


def _override(variables: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that is set, and what it says. Raises SettingsError where two say different things."""
    said = {name: environ[name].strip() for name in variables if environ.get(name, "").strip()}
    if len(set(said.values())) > 1:
        told = " and ".join(f"{name}={value}" for name, value in said.items())
        raise _wrong(f"The environment names two models for one role: {told}.", "Unset one of them.")
    return next(iter(said.items()), None)


def _is_student(model: str | None, kind: Any) -> bool:
    """Whether a model's name is that of a student version of the role: po-student-v1 where versions are po_student."""
    stem = getattr(kind, "version_stem", "").replace("_", "-")
    name = (model or "").rpartition("/")[2].replace("_", "-")
    return bool(stem) and re.match(rf"{re.escape(stem)}(?![A-Za-z0-9])", name) is not None


def _ollama_of(providers: Mapping[Any, Any]) -> str:
    """The config's name for Ollama."""
    sections = {str(name): section for name, section in providers.items() if isinstance(section, Mapping)}
    typed = [name for name, section in sections.items() if section.get("type") == _OLLAMA]
    return _OLLAMA if _OLLAMA in providers or not typed else typed[0]


# --- the config -----------------------------------------------------------------------------------


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(f"{where} is no mapping, but of the type {type(value).__name__}.", "Write it as key: value.")
    return value


def _text(section: Mapping[Any, Any], key: str, where: str) -> str | None:
    value = section.get(key)
    if value is not None and not isinstance(value, str):
        raise _wrong(f"{where}.{key} is {value!r}, which is no text.", "Put it in quotes.")
    return value


def _temperature(section: Mapping[Any, Any], where: str) -> float | None:
    value = section.get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise _wrong(f"{where}.temperature is {value!r}; it is a number from 0 on.", "Write one such as 0.4.")
    return float(value)


def _max_tokens(section: Mapping[Any, Any], where: str) -> int | None:
    value = section.get("max_tokens")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(f"{where}.max_tokens is {value!r}; it is a whole number from 1 on.", "Write one such as 4096.")
    return value


def _unnamed(where: str, source: str, missing: list[str], variables: tuple[str, ...], roles: list[str]) -> Exception:
    if source != where:
        return _wrong(
            f"{source} names no {' and no '.join(missing)}, and {where} neither.",
            f"Write {source}=provider:model, such as {_OLLAMA}:MODEL.",
        )
    others = f" Its roles: {', '.join(roles)}." if roles else ""
    return _wrong(
        f"{where} names no {' and no '.join(missing)}.{others}",
        f"Write provider and model there, run `po-distill promote`, or set {' or '.join(variables)}.",
    )


def _wrong(problem: str, fix: str) -> SettingsError:
    from po_distill.errors import SettingsError

    return SettingsError(problem, fix)
