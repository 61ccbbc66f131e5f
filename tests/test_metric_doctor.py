import random

import pytest

from haiku import HaikuRole
from po_distill.metric_doctor import check_metric
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.scoring import product_owner_metric

ROLE = HaikuRole()


def good(example, prediction, trace=None):
    lines = prediction.get("haiku") if isinstance(prediction, dict) else None
    lines = lines.get("lines") if isinstance(lines, dict) else None
    return min(len(lines), 3) / 3 if isinstance(lines, list) else 0.0


def breaks(example, prediction, trace=None):
    return len(prediction.haiku["lines"]) / 3


def constant(example, prediction, trace=None):
    return 0.9


def random_metric(example, prediction, trace=None):
    return good(example, prediction) * random.uniform(0.9, 1.0)


def without_trace(example, prediction):
    return good(example, prediction)


def out_of_bounds(example, prediction, trace=None):
    return 120.0 * good(example, prediction)


def failed(metric) -> set[str]:
    return {check.check for check in check_metric("m:f", metric, ROLE).checks if check.passed is False}


@pytest.mark.parametrize(
    ("metric", "named"),
    [
        (good, set()),
        (breaks, {"empty_answer", "wrong_types", "garbage", "half_an_answer"}),
        (constant, {"empty_answer", "half_an_answer", "renamed_fields"}),
        (random_metric, {"determinism"}),
        (without_trace, {"trace_argument"}),
        (out_of_bounds, {"known_good", "half_an_answer", "trace_argument", "wrong_types", "garbage"}),
    ],
)
def test_what_is_wrong_with_a_metric_is_named(metric, named):
    assert failed(metric) == named


def test_how_far_a_metric_is_gamed_by_answers_without_content_is_told():
    found = check_metric("m:f", good, ROLE)
    assert found.gameable == 1.0  # it counts lines, whatever they say
    assert found.passed
    ours = check_metric("ours", product_owner_metric, ProductOwnerRole())
    assert ours.passed
    assert 0.5 < ours.gameable < 1.0
    assert {check.check for check in ours.checks if check.passed is None} >= {"renamed_fields", "contentless_long"}


def test_a_metric_that_sees_no_content_in_fillers_cannot_be_gamed():
    def strict(example, prediction, trace=None):
        return good(example, prediction) * ("frog" in str(prediction))

    assert check_metric("m:f", strict, ROLE).gameable == 0.0
