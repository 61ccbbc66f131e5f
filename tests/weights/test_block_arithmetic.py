import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")
from po_distill.weights import block_arithmetic  # noqa: E402
from po_distill.weights.block_arithmetic import add_product, is_finite, narrow, widen  # noqa: E402

FLOATS = arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["torch", "numpy"])
def way(request, monkeypatch):
    monkeypatch.setattr(block_arithmetic, "_HAS_TORCH", request.param == "torch")


@QUICK
@given(FLOATS, st.sampled_from(["float16", "bfloat16"]))
def test_values_are_rounded_as_torch_rounds_them_and_infinite_ones_are_seen(way, values, dtype):
    words, back = np.empty(values.shape, np.uint16), np.empty_like(values)
    narrow(values, dtype, words)
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    widen(words if dtype == "bfloat16" else words.view(np.float16), "BF16" if dtype == "bfloat16" else "F16", back)
    assert np.array_equal(back, expected, equal_nan=True)
    assert np.array_equal(np.signbit(back[expected == 0]), np.signbit(expected[expected == 0]))
    assert is_finite(words, dtype) == np.isfinite(expected).all()


@pytest.mark.parametrize("dtype", ["F64", "F32"])
def test_wider_values_become_float32(way, dtype):
    values = np.array([1.0, -2.5, 1e-3], {"F64": np.float64, "F32": np.float32}[dtype])
    out = np.empty(3, np.float32)
    widen(values, dtype, out)
    assert np.array_equal(out, values.astype(np.float32))


def test_a_product_is_scaled_and_added(way):
    chance = np.random.default_rng(0)
    left, right, base = (chance.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3, 7), (5, 7)))
    out = base.copy()
    add_product(left, right, 0.3, np.empty_like(out), out)
    assert np.allclose(out, base + 0.3 * (left.astype(np.float64) @ right), atol=1e-5)
