import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import completions, example_completions, report_of

from haiku import haiku
from po_distill.records import ClassAccuracy
from po_distill.reporting.figures import INVALID, answered_label, balanced_accuracy, candidate_result, quantile


@given(st.lists(st.floats(min_value=0, max_value=1e6), min_size=2, max_size=60))
def test_the_quantiles_agree_with_the_standard_library(values):
    inner = statistics.quantiles(values, n=20, method="inclusive")
    assert quantile(values, 0.95) == pytest.approx(inner[-1])
    assert quantile(values, 0.5) == pytest.approx(statistics.median(values))


def test_the_quantile_of_one_value_is_that_value():
    assert quantile([3.0], 0.95) == 3.0


def test_balanced_accuracy_weighs_every_class_alike_however_many_cases_it_has():
    verdicts = {"rare": ClassAccuracy(cases=1, right=0), "common": ClassAccuracy(cases=99, right=99)}
    assert balanced_accuracy(verdicts) == 0.5
    assert balanced_accuracy({}) is None


def test_an_invalid_answer_counts_as_invalid_even_where_its_class_is_right():
    result = candidate_result("student", completions("m", {0: '{"season": "spring", "lines": [1, 2, 3]}'}, seconds=1))
    assert result.results[0].score.label == "spring"
    assert answered_label(result.results[0].score) == INVALID
    assert result.confusion["spring"] == {"autumn": 0, "spring": 3, INVALID: 1}
    assert result.score_mean == pytest.approx(6 / 7)
    assert result.raw_score_mean == 1.0


def test_every_planted_case_is_in_the_confusion_matrix_once():
    report = report_of(example_completions())
    for candidate in report.candidates:
        assert sum(sum(row.values()) for row in candidate.confusion.values()) == report.cases


def test_a_class_that_is_answered_but_never_planted_has_a_column():
    spring = [c for c in completions("m", {0: haiku("autumn")}, seconds=1) if c.concept.planted_label == "spring"]
    assert candidate_result("student", spring).confusion == {"spring": {"autumn": 1, "spring": 3, INVALID: 0}}


def test_completions_without_a_score_are_our_own_mistake():
    unscored = [c.model_copy(update={"score": None}) for c in completions("m", {}, seconds=1)]
    with pytest.raises(ValueError, match="has no score"):
        candidate_result("student", unscored)
