"""adapter_config.json of a LoRA adapter, each field of the type that peft writes, and what it says of a module.

scale = alpha / r (Hu et al. 2021, section 4.1), or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.weights.checkpoint import read_json
from po_distill.weights.foreign_files import escaped

CONFIG_NAME = "adapter_config.json"
_LARGEST_MAGNITUDE = 8  # 10^8 steps of a regular expression at one module's name take about a second
_LONGEST_PATTERN = 2_000  # characters


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_numbers_by_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(number) for number in value.values())


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("r", "lora_alpha", "lora_dropout"), (_is_number, "a number")),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (_is_numbers_by_pattern, "an object of numbers")),
    **dict.fromkeys(
        ("use_rslora", "fan_in_fan_out", "use_dora", "lora_bias", "inference_mode"),
        (lambda value: isinstance(value, bool), "true or false"),
    ),
    **dict.fromkeys(
        ("peft_type", "task_type", "bias", "base_model_name_or_path", "revision"),
        (lambda value: isinstance(value, str), "a text"),
    ),
    **dict.fromkeys(
        ("target_modules", "exclude_modules"), (lambda value: isinstance(value, str) or _is_names(value), "names")
    ),
    "modules_to_save": (_is_names, "a list of names"),
}


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter folder.

    Raises WeightsError where it is none, and, with the field's name, where a field that says how the adapter is merged
    has another type than peft gives it. Fields may be missing or null, and there may be others.
    """
    path = adapter / CONFIG_NAME
    config = read_json(path)
    for field, (fits, expected) in _KINDS.items():
        value = config.get(field)
        if value is not None and not fits(value):
            raise WeightsError(
                f"{path}: {field} is {escaped(repr(value))}, {expected} is expected.", f"Correct {CONFIG_NAME}."
            )
    return config


def rank_and_alpha(config: dict[str, Any], module: str, path: Path) -> tuple[float, float]:
    """r and alpha of a module. Raises WeightsError that names `path`, the config's file, where there are none."""
    return _setting(config, "r", "rank_pattern", module, path), _setting(
        config, "lora_alpha", "alpha_pattern", module, path
    )


def scale_of(config: dict[str, Any], rank: float, alpha: float) -> float:
    """By what B A is multiplied."""
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _setting(config: dict[str, Any], field: str, patterns: str, module: str, path: Path) -> float:
    """r or alpha of a module: the first pattern that matches the end of its name, as peft looks it up."""
    value: Any = config.get(field)
    for pattern, special in (config.get(patterns) or {}).items():
        if _matches(pattern, module, f"{path}: {patterns}"):
            value = special
            break
    if not _is_number(value) or not 0 < value < math.inf:
        raise WeightsError(
            f"{path}: {field} is {escaped(repr(value))} for {escaped(module)}.", f"Correct {CONFIG_NAME}."
        )
    return float(value)


def _matches(pattern: str, module: str, where: str) -> bool:
    if len(pattern) > _LONGEST_PATTERN or _magnitude(pattern, len(module)) > _LARGEST_MAGNITUDE:
        raise WeightsError(
            f"{where} holds {escaped(repr(pattern))}, which could take for ever to match with a name.",
            f"Write the modules' names into {CONFIG_NAME}.",
        )
    try:
        return bool(re.match(rf"(.*\.)?({pattern})$", module))
    except (re.error, RecursionError, OverflowError) as error:
        raise WeightsError(
            f"{where} holds {escaped(repr(pattern))}, no regular expression: {escaped(str(error))}.",
            f"Correct {CONFIG_NAME}.",
        ) from error


def _magnitude(pattern: str, length: int) -> float:
    """The logarithm (base 10) of the most steps that a backtracking matcher takes at a text of that length, roughly.

    k repeated characters share a text of n in C(n + k, k) ways; of alternatives, spread evenly over g groups, every
    combination may be tried. There is no bound (inf) where a group is repeated, or where there is more than that.
    """
    if re.search(r"\)[*+?{]|\(\?(?!:)", pattern):
        return math.inf
    repeats = len(re.findall(r"[*+{]|(?<!\()\?", pattern)) + 1
    groups = pattern.count("(") + 1
    ways = math.lgamma(length + repeats + 1) - math.lgamma(repeats + 1) - math.lgamma(length + 1)
    return (ways + groups * math.log(pattern.count("|") / groups + 1)) / math.log(10)
