"""A student goes into the pipeline's config.yaml, and out again, with every other byte of it as it was."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from po_distill import artifacts, safe_yaml
from po_distill.config_history import ConfigHistory
from po_distill.config_text import LINE_ENDS, set_entries
from po_distill.errors import InputError, SettingsError
from po_distill.ollama_names import read_model_name
from po_distill.package_verdict import REPORT_NAME, FoundPackage, find_package, require_verdict
from po_distill.pipeline_config import configured_provider
from po_distill.records import ConfigChange, Promotion
from po_distill.yaml_spelling import Scalar

OLLAMA = "ollama"
OLLAMA_URL = "http://localhost:11434"
# Ollama, types/model/name.go: [host/][namespace/]model[:tag].
_LINE = re.compile("[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029])|[^\r\n\x85\u2028\u2029]+")


def _yes(_: ConfigChange) -> bool:
    return True


class Integration:
    """Changes which model a role uses in the config that `config` names, and knows what was changed before.

    `approve` is asked with each change before anything is written; where it says no, nothing is. A change is written
    whole or not at all, and refused where another process changed the file meanwhile.
    """

    def __init__(self, config: Path | str = "config.yaml", *, approve: Callable[[ConfigChange], bool] = _yes) -> None:
        self._config, self._approve = str(config), approve
        self._history = ConfigHistory(config)

    def promote(
        self,
        model: str,
        *,
        role: str = "product_owner",
        package: Path | str | None = None,
        report: Path | str | None = None,
        models: Path | str = "artifacts/models",
        provider: str = OLLAMA,
        base_url: str | None = None,
        temperature: float = 0.4,
        max_tokens: int = 4096,
        force: str | None = None,
    ) -> ConfigChange:
        """Let `roles.<role>` use `model` of `providers.<provider>`.

        `package` is the version folder that the model was packaged in, by default the one below `models` whose package
        has the model's name; `report` is the evaluation of it, by default the folder's evaluation.json. `base_url` is
        written where `providers.ollama` is missing. Raises InputError where the report does not hold a passed verdict
        on exactly this package, unless `force` says why that does not count, and where the file cannot be edited.
        """
        if force is not None and not force.strip():
            raise SettingsError("The reason to force the promotion is empty.", 'Say why: --force "reason".')
        data = self._history.read()
        text = _decoded(data, self._config)
        _check_model(model, is_ollama=configured_provider(self._config, provider).provider == OLLAMA)
        found = find_package(model, package, models)
        report_path = Path(report) if report else found.folder / REPORT_NAME if found else None
        if force is None:
            require_verdict(model, found, report_path, role)
        wanted: dict[str, Scalar] = {
            "provider": provider,
            "model": model,
            "temperature": float(temperature),
            "max_tokens": max_tokens,
        }
        new = _with_provider(text, provider, base_url, what=self._config)
        new = set_entries(new, ("roles", role), wanted, what=self._config)
        line = self._line(
            "promote", role, provider, model, data, new.encode(), **_changed(text, role, wanted), forced=force
        )
        return self._carry_out(line.model_copy(update=_evidence(found, report_path)), data, new.encode())

    def rollback(self, *, force: bool = False) -> ConfigChange:
        """Make the file what it was, byte for byte, before the last promotion that was not rolled back yet.

        Raises InputError where there is none, and where the file was edited by hand since, unless `force` is set; the
        edited bytes are kept then.
        """
        standing = self._history.standing()
        if not standing:
            raise InputError(
                f"There is no promotion to roll back for {self._config}.",
                "`po-distill promotions` lists what is known; another --config has a history of its own.",
            )
        last, data = standing[-1], self._history.read()
        edited = artifacts.digest_bytes(data) not in (last.digest_after, last.digest_before)
        if edited and not force:
            since = self._diff(self._history.kept(last.digest_after), data)
            raise InputError(
                f"{self._config} was edited since {last.model} was promoted on {last.at}, and a rollback would undo "
                f"that too:\n{since}",
                "Roll back with --force, which keeps the edited file, or edit the role's section by hand.",
            )
        former = self._history.kept(last.digest_before)
        line = self._line(
            "rollback",
            last.role,
            _restored(last, "provider"),
            _restored(last, "model"),
            data,
            former,
            before=last.after,
            after=last.before,
            package_path=last.package_path,
            package_digest=last.package_digest,
            forced="over edits by hand" if edited else None,
            undoes=last.number,
        )
        return self._carry_out(line, data, former)

    def history(self) -> list[Promotion]:
        """Every change that was made here, in both directions, oldest first."""
        return self._history.promotions()

    def standing(self) -> list[Promotion]:
        """The promotions that were not rolled back, oldest first: the last one is what the config was left with."""
        return self._history.standing()

    def is_as_left(self) -> bool:
        """Whether the config is still what the last change made it; true where there was none."""
        lines = self._history.promotions()
        return not lines or artifacts.digest_bytes(self._history.read()) == lines[-1].digest_after

    def _line(
        self, action: str, role: str, provider: str | None, model: str | None, data: bytes, new: bytes, **more: Any
    ) -> Promotion:
        return Promotion.model_validate(
            {
                "action": action,
                "at": artifacts.now(),
                "config": self._history.path.name,
                "role": role,
                "provider": provider,
                "model": model,
                "digest_before": artifacts.digest_bytes(data),
                "digest_after": artifacts.digest_bytes(new),
                **more,
            }
        )

    def _carry_out(self, line: Promotion, data: bytes, new: bytes) -> ConfigChange:
        change = ConfigChange(
            config_path=str(self._history.path),
            diff=self._diff(data, new),
            **{name: getattr(line, name) for name in ConfigChange.model_fields if name in Promotion.model_fields},
        )
        nothing_to_do = line.action == "promote" and new == data
        if nothing_to_do or not self._approve(change):
            return change
        self._history.change(line, data, new)
        return change.model_copy(update={"applied": True})

    def _diff(self, before: bytes, after: bytes) -> str:
        """A unified diff for people: line ends are not shown, and signs that a terminal would obey are spelled out."""
        former, new = (_LINE.findall(data.decode("utf-8", "replace")) for data in (before, after))
        shown = []
        for line in difflib.unified_diff(former, new, self._config, self._config):
            shown.append("".join(map(_visible, LINE_ENDS.sub("", line))))
            if not LINE_ENDS.search(line):
                shown.append("\\ No newline at end of file")
        return "\n".join(shown)


def _visible(sign: str) -> str:
    return sign if sign.isprintable() or sign == "\t" else ascii(sign)[1:-1]


def _check_model(model: str, *, is_ollama: bool) -> None:
    if is_ollama:
        read_model_name(model)
    if not model.isprintable() or model != model.strip() or not 0 < len(model) <= 256:
        raise InputError(f"{model!r} is no name for a model.", "Use a name of one line, without blanks around it.")


# --- the config -----------------------------------------------------------------------------------


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text (byte {error.start}).", "Convert it to UTF-8.") from error


def _with_provider(text: str, provider: str, base_url: str | None, *, what: str) -> str:
    """The text with a section for the provider; one that is there stays as it is."""
    if provider in ((safe_yaml.load(text, what=what) or {}).get("providers") or {}):
        if base_url is not None:
            raise SettingsError(
                f"{what} has providers.{provider} already, and a promotion does not change it.",
                "Leave --base-url out, or edit providers by hand.",
            )
        return text
    if provider != OLLAMA:
        raise InputError(
            f"{what} has no providers.{provider}.", "Add it by hand, with type and base_url, then promote again."
        )
    section = {"type": OLLAMA, "base_url": base_url or OLLAMA_URL}
    return set_entries(text, ("providers", provider), section, what=what)


def _changed(text: str, role: str, wanted: Mapping[str, Scalar]) -> dict[str, dict[str, JsonValue]]:
    """The keys of the role's section that change: as they are, where they are there, and as they are wanted."""
    section = ((safe_yaml.load(text) or {}).get("roles") or {}).get(role) or {}
    keys = [key for key in wanted if key not in section or repr(section[key]) != repr(wanted[key])]
    return {
        "before": {key: _json(section[key]) for key in keys if key in section},
        "after": {key: wanted[key] for key in keys},
    }


def _json(value: Any) -> JsonValue:
    """A value that YAML gave as one that JSON knows; others, such as dates, as texts."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def _evidence(found: FoundPackage | None, report_path: Path | None) -> dict[str, str]:
    """What a promotion stands on, by path and digest, as far as it is there."""
    evidence: dict[str, str] = {}
    if found is not None:
        evidence |= {"package_path": str(found.folder), "package_digest": found.package.gguf.digest}
    if report_path is not None and report_path.is_file():
        evidence |= {"report_path": str(report_path), "report_digest": artifacts.digest_file(report_path)}
    return evidence


def _restored(last: Promotion, key: str) -> str | None:
    """A key of the role's section as it was before the promotion; None where it was missing."""
    value = last.before.get(key) if key in last.after else getattr(last, key)
    return None if value is None else str(value)
