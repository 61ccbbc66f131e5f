from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from po_distill.errors import TrainingError
from po_distill.weights.quantization_aware import QuantizationAware, rounded_to_q4_0
from tiny_models import tiny_model


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        (3, 64),
        elements=st.floats(-100, 100, width=32) | st.sampled_from([0.0, 1e-3, 0.5, -0.5, 60000.0]),
    )
)
def test_rounding_gives_what_ggufs_own_quantizer_reads_back(values: np.ndarray) -> None:
    halved = values.astype(np.float16).astype(np.float32)
    expected = dequantize(quantize(halved + np.float32(0), GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(rounded_to_q4_0(torch.from_numpy(values)).numpy(), expected)


@pytest.mark.parametrize("first", [1.0, -1.0])
def test_of_two_values_of_like_magnitude_the_first_sets_the_scale(first: float) -> None:
    values = np.full((1, 32), 0.3, dtype=np.float32)
    values[0, 4], values[0, 20] = first, -first
    halved = values.astype(np.float16).astype(np.float32)
    expected = dequantize(quantize(halved, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
    rounded = rounded_to_q4_0(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(rounded, expected)
    assert rounded[0, 4] == first != -rounded[0, 20]  # only the side that sets the scale is held exactly


def student(tmp_path: Path, **changes: object) -> torch.nn.Module:
    base = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "base", **changes), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def test_the_layers_compute_with_the_merged_weight_rounded(tmp_path: Path) -> None:
    model = student(tmp_path)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    original = layer.get_base_layer().weight.detach().clone()
    callback = QuantizationAware(model)
    for _ in range(2):  # rounding again rounds the same sum, not the rounded one
        assert callback.apply() > 0
        merged = rounded_to_q4_0(original + layer.get_delta_weight("default"))
        x = torch.randn(5, 64)
        torch.testing.assert_close(layer(x), x @ merged.T, atol=1e-4, rtol=1e-4)
    assert not torch.equal(layer.get_base_layer().weight, original)


def test_rows_that_q4_0_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = student(tmp_path, intermediate_size=88)
    with pytest.raises(TrainingError, match=r"down_proj has rows of 88 values"):
        QuantizationAware(model)
