import json
import math
from pathlib import Path
from typing import Any

import pytest

from hostile_weights import ADAPTER_CONFIG
from po_distill.errors import WeightsError
from po_distill.weights.adapter_config import rank_and_alpha, read_adapter_config, scale_of

PATH = Path("adapter") / "adapter_config.json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", "2"),
        ("r", True),
        ("r", [2]),
        ("lora_alpha", {}),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": "2"}),
        ("alpha_pattern", {"q_proj": None}),
        ("use_rslora", "yes"),
        ("fan_in_fan_out", 1),
        ("peft_type", 5),
        ("target_modules", [1]),
        ("modules_to_save", "lm_head"),
        ("base_model_name_or_path", ["a\x1b"]),
    ],
)
def test_a_field_of_another_type_is_refused_by_file_and_field(field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**ADAPTER_CONFIG, field: value}))
    with pytest.raises(WeightsError) as caught:
        read_adapter_config(tmp_path)
    assert caught.value.problem.startswith(f"{path}: {field} is ") and caught.value.problem.isprintable()


def test_fields_may_be_missing_or_null_and_there_may_be_others(tmp_path: Path) -> None:
    config = {**dict.fromkeys(ADAPTER_CONFIG), "new": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read_adapter_config(tmp_path) == config


def test_the_first_pattern_that_matches_the_end_of_a_name_gives_its_rank_and_alpha() -> None:
    config = {"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2, "0.q_proj": 4}, "alpha_pattern": {"^x.v": 1}}
    assert rank_and_alpha(config, "x.0.q_proj", PATH) == (2, 16)
    assert rank_and_alpha(config, "x.0.aq_proj", PATH) == (8, 16)
    assert rank_and_alpha(config, "x.v", PATH) == (8, 1)


@pytest.mark.parametrize("value", [0, -1, None, math.nan])
def test_a_rank_that_is_no_positive_number_is_refused_by_file_field_and_module(value: Any) -> None:
    with pytest.raises(WeightsError, match=r"adapter_config.json: r is .* for x.q"):
        rank_and_alpha({"r": value, "lora_alpha": 1}, "x.q", PATH)


@pytest.mark.parametrize("pattern", ["(", "a{99999999999999}", "*"])
def test_a_pattern_that_is_no_regular_expression_is_refused_by_file_and_field(pattern: str) -> None:
    with pytest.raises(WeightsError, match=r"adapter_config.json: rank_pattern holds .*regular expression"):
        rank_and_alpha({"r": 1, "lora_alpha": 1, "rank_pattern": {pattern: 2}}, "x.q", PATH)


def test_scales_are_alpha_by_r_or_by_its_root() -> None:
    assert scale_of({}, 16, 32) == 2.0
    assert scale_of({"use_rslora": True}, 16, 32) == 8.0
