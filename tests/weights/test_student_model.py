import itertools

import pytest

pytest.importorskip("torch")
from po_distill.weights import student_model
from po_distill.weights.student_model import fast_precision
from tiny_models import tiny_model


def test_a_tiny_model_trains_in_float32_whatever_the_clock_says(tmp_path, monkeypatch):
    base = tiny_model(tmp_path / "base")
    seconds = itertools.cycle([1.0, 0.1])  # bfloat16 looks ten times as fast
    monkeypatch.setattr(student_model, "_seconds", lambda work: next(seconds))
    monkeypatch.setattr(student_model.torch.cuda, "is_available", lambda: False)
    assert fast_precision(base) == "float32"
    monkeypatch.setattr(student_model, "_SMALLEST_PROBE_FLOP", 0)
    assert fast_precision(base) == "bfloat16"
