"""The errors that po_distill raises on purpose.

PODistillError
├── InputError             a file, a line or a value that was given cannot be used
│   └── UnreadableYAMLError   YAML text that does not parse, or passes the bounds of safe_yaml
├── SettingsError          a setting is unknown, of the wrong type or contradicts another
├── PluginError            a plugin is unknown, clashes with another or does not load
├── MissingExtraError      a package of an optional extra is not installed
├── ContractMismatchError  a stage met another prompt contract than its own
├── ProviderError          a model provider refused, failed or answered nonsense
├── NotAskedError          a call was not made: the budget is spent, or an earlier send of it is in doubt
├── WeightsError           a checkpoint, an adapter or a GGUF cannot be read, merged or written
├── TrainingError          a training run cannot start or did not end well
└── ArtifactError          an output cannot be written, or a finished one would be overwritten

Each says what is wrong, with the value and the place (`problem`), and what to do next (`fix`).
"""

from __future__ import annotations

from typing import Literal


class PODistillError(Exception):
    """A problem that the user can act on.

    `problem` says what is wrong, with the value and the path; `fix` is the next command or edit.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}" if self.fix else self.problem


class InputError(PODistillError):
    """A file, a line or a value that was given cannot be used."""


class UnreadableYAMLError(InputError):
    """YAML text that does not parse, or that passes the bounds of `safe_yaml`."""


class SettingsError(PODistillError):
    """A setting is unknown, of the wrong type or contradicts another."""


class PluginError(PODistillError):
    """A plugin is unknown, clashes with another or does not load."""


class MissingExtraError(PODistillError):
    """A package of an optional extra is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.",
            f'Run: pip install "po-distill[{extra}]"',
        )
        self.package = package
        self.extra = extra


class ContractMismatchError(PODistillError):
    """A stage met another prompt contract than its own."""


ProviderFault = Literal["refused", "rate_limited", "unavailable", "timeout", "bad_answer", "blocked"]


class ProviderError(PODistillError):
    """A model provider refused, failed or answered nonsense.

    `fault` tells the caller what may help: `rate_limited`, `unavailable` and `timeout` may pass by
    themselves; `bad_answer` and `blocked` concern this request alone; `refused` (credentials, an
    unknown model) concerns every request, so the run stops.

    `retry_after_s` is how long the provider asked to wait. `doubtful` says that the request had left and its end was
    never seen (a timeout, a connection that broke in the middle of the answer): it may be billed.
    """

    def __init__(
        self,
        problem: str,
        fix: str,
        *,
        fault: ProviderFault,
        retry_after_s: float | None = None,
        doubtful: bool = False,
    ) -> None:
        super().__init__(problem, fix)
        self.fault: ProviderFault = fault
        self.retry_after_s = retry_after_s
        self.doubtful = doubtful or fault == "timeout"


class NotAskedError(PODistillError):
    """A call was not made. `reason` is `budget_reached` or `in_doubt`: an earlier send may have been paid for."""

    def __init__(self, problem: str, fix: str, *, reason: Literal["budget_reached", "in_doubt"]) -> None:
        super().__init__(problem, fix)
        self.reason = reason


class WeightsError(PODistillError):
    """A checkpoint, an adapter or a GGUF cannot be read, merged or written."""


class TrainingError(PODistillError):
    """A training run cannot start or did not end well."""


class ArtifactError(PODistillError):
    """An output cannot be written, or a finished one would be overwritten."""
