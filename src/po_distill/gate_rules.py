"""The rules of the acceptance gate, as data: the library's own by name, or a YAML file."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from po_distill import safe_yaml
from po_distill.artifacts import read_text
from po_distill.errors import SettingsError
from po_distill.plugins import nearest
from po_distill.records import Fraction, Record

GATES = ("production", "basic")
"""The library's own: for a student that replaces a model, and for the first time round the road."""

_Ratio = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class GateRules(Record):
    """What a student must reach. A rule at None is off; one that a file leaves out is as in `production`."""

    valid_share: Fraction | None = 0.98
    mean_of_reference: _Ratio | None = 0.95
    difference_low: Annotated[float, Field(ge=-1.0, le=1.0)] | None = -0.03
    std: Fraction | None = 0.10
    slice_of_reference: _Ratio | None = 0.90
    slice_cases: Annotated[int, Field(ge=1)] = 5
    balanced_accuracy_of_reference: _Ratio | None = 0.90
    every_class: bool | None = True
    watch_list: bool | None = True
    p95_of_production: _Ratio | None = 0.3334
    unseen_failures: Fraction | None = None
    above_base: bool | None = None
    above_chance: bool | None = None

    @property
    def margin(self) -> float:
        """How much worse than the reference still counts as not worse."""
        return -self.difference_low if self.difference_low is not None else 0.03


def read_gate(name: Path | str) -> GateRules:
    """The rules of that name, or of a YAML file. Raises SettingsError, with the key and the nearest known one."""
    if str(name) in GATES:
        text = importlib.resources.files("po_distill").joinpath("gates", f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).suffix in (".yaml", ".yml") or Path(name).exists():
        text = read_text(name)
    else:
        raise SettingsError(
            f"There is no gate named {str(name)!r}.", f"Name one of {', '.join(GATES)}, or a YAML file of rules."
        )
    value = safe_yaml.load(text, what=str(name))
    if not isinstance(value, dict):
        raise SettingsError(f"The gate {name} is no mapping of rules.", f"Rules: {', '.join(GateRules.model_fields)}.")
    try:
        return GateRules.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        near = nearest(key, list(GateRules.model_fields)) if first["type"] == "extra_forbidden" else ""
        raise SettingsError(
            f"The gate {name}: {key}: {first['msg'].lower()} (got {first['input']!r}).",
            (f"Did you mean {near}? " if near else "") + f"Rules: {', '.join(GateRules.model_fields)}.",
        ) from error
