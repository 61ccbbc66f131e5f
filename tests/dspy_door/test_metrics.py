"""A metric with a threshold, as DSPy's optimizers take it."""

import pickle

import pytest

from answers_of_dspy import CONCEPTS, example
from po_distill.dspy import dspy_metric
from po_distill.errors import SettingsError
from po_distill.roles.product_owner.scoring import product_owner_metric


def test_a_score_is_true_only_from_the_threshold_on():
    for least in (0.9, 0.99):
        asked = example(CONCEPTS[0])
        score = dspy_metric("product_owner", min_score=least)(asked, asked)
        assert score == product_owner_metric(asked, asked)
        assert bool(score) == (score >= least)


def test_with_a_trace_it_says_yes_or_no():
    asked = example(CONCEPTS[0])
    assert dspy_metric()(asked, asked, trace=[]) is True
    assert dspy_metric()(asked, {"product_vision": ""}, trace=[]) is False


def test_a_score_below_the_threshold_still_counts_as_what_it_is():
    low = dspy_metric(lambda *_: 0.3)(None, None)
    assert not low
    assert sum([low, low]) == pytest.approx(0.6)
    assert not pickle.loads(pickle.dumps(low))


@pytest.mark.parametrize("least", [0.0, 1.1, float("nan")])
def test_a_threshold_that_is_none_is_refused(least):
    with pytest.raises(SettingsError, match="min_score"):
        dspy_metric(min_score=least)
