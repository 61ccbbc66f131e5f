import math
import random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill.paired_comparison import (
    _t_quantile,
    _with_failures,
    bca,
    cases_to_bound,
    cases_to_decide,
    compare,
    decide,
    holm,
    interval,
    intervals,
    sign_flip_p,
    student,
    unseen_share,
)

DIFFERENCES = st.lists(st.floats(-1, 1), min_size=2, max_size=40)


def invalid_among(rng: np.random.Generator, studies: int, cases: int) -> np.ndarray:
    """Scores near 0.9 of which a tenth counts 0, of the candidate's 3 % more."""
    reference = np.clip(rng.normal(0.9, 0.05, (studies, cases)), 0, 1)
    candidate = np.clip(reference + rng.normal(0.0, 0.04, (studies, cases)), 0, 1)
    return candidate * (rng.random((studies, cases)) >= 0.13) - reference * (rng.random((studies, cases)) >= 0.10)


SETTINGS = {
    "normal": (lambda rng, s, n: rng.normal(0.0, 0.1, (s, n)), 0.0),
    "skewed": (lambda rng, s, n: 0.1 * (1 - rng.exponential(1.0, (s, n))), 0.0),
    "tied": (lambda rng, s, n: rng.choice(np.array([0, 0, 0, 0, -2, -1, 1]) / 16, (s, n)), -2 / 112),
    "lossy": (lambda rng, s, n: -rng.beta(0.3, 6.0, (s, n)), -0.3 / 6.3),
    "invalid": (invalid_among, None),
}


@pytest.mark.parametrize("cases", [20, 50])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_interval_holds_the_truth_and_the_margin_is_rarely_passed(name, cases):
    """1,000 studies: chance alone moves a coverage by 1.4 % either way, a rate of 2.5 % by 1 %."""
    draw, mean = SETTINGS[name]
    if mean is None:
        mean = float(draw(np.random.default_rng(0), 500, 2000).mean())
    low, high = intervals(draw(np.random.default_rng(1), 1000, cases), resamples=1000)
    assert 0.93 <= ((low <= mean) & (mean <= high)).mean() <= 0.98
    assert (low >= mean).mean() <= 0.05  # a candidate that is worse by just the margin would pass


def rare_failures(rng: np.random.Generator, studies: int, cases: int) -> np.ndarray:
    """Of the reference's answers 2 % are invalid, of the candidate's 5 %."""
    score = rng.normal(0.0, 0.03, (studies, cases))
    return (0.9 + score) * (rng.random((studies, cases)) >= 0.05) - 0.9 * (rng.random((studies, cases)) >= 0.02)


@pytest.mark.parametrize("cases", [50, 200])
def test_failures_of_which_the_cases_show_one_or_two_are_allowed_for(cases):
    drawn = rare_failures(np.random.default_rng(1), 2000, cases)
    costs = np.where((np.abs(drawn) > 0.5).any(axis=1), 0.9, np.nan)
    without, allowed = intervals(drawn, resamples=1000), intervals(drawn, costs=costs, resamples=1000)
    mean = -0.03 * 0.9
    assert 0.93 <= ((allowed.low <= mean) & (mean <= allowed.high)).mean() <= 0.98
    assert (intervals(drawn, costs=costs, resamples=1000, level=0.975).low >= mean).mean() <= 0.05
    assert (allowed.low <= without.low).all() and (allowed.high >= without.high).all()
    unseen = np.isnan(costs)
    assert (allowed.low[unseen] == without.low[unseen]).all()
    if cases == 50:
        assert ((without.low <= mean) & (mean <= without.high)).mean() < 0.93


def test_the_interval_of_failures_is_agresti_and_mins():
    """b = 3 and c = 1 of n = 40 pairs: (c - b) / 42, and b and c with a half added below the root (2005, section 3)."""
    differences = [-1.0] * 3 + [1.0] + [0.0] * 36
    low, high = _with_failures(np.array([differences]), np.array([1.0]), 0.95)
    width = 1.959964 * math.sqrt((3.5 + 1.5) - (1.5 - 3.5) ** 2 / 42) / 42
    assert (low[0], high[0]) == pytest.approx((-2 / 42 - width, -2 / 42 + width), abs=1e-6)


def test_a_comparison_allows_for_failures_only_where_an_answer_failed():
    teacher = {str(n): 0.9 for n in range(60)}
    sound = {case: 0.9 + 0.01 * (-1) ** int(case) for case in teacher}
    failing = {**sound, "7": 0.0}
    found = compare({"teacher": teacher, "sound": sound, "failing": failing}, "teacher")
    assert (found["sound"].low, found["sound"].high) == interval([sound[case] - 0.9 for case in teacher])
    differences = [failing[case] - 0.9 for case in teacher]
    cost = sum(score for score in (*failing.values(), *teacher.values()) if score) / 119
    assert (found["failing"].low, found["failing"].high) == pytest.approx(interval(differences, cost=cost))
    assert found["failing"].high > interval(differences)[1]


@pytest.mark.parametrize("mean", [0.0, -0.01, -0.08])
def test_the_cases_that_would_decide_count_the_failures_that_were_seen(mean):
    """Else equal answers of which both sides' fail once would be undecided at 50 cases, with 5 told as enough."""
    wanted = cases_to_decide(mean, 0.0, 0.03, cost=0.9)
    assert wanted > 8 * cases_to_decide(mean, 0.0, 0.03)

    def decided(n: int) -> str:
        return decide(*interval([mean] * n, cost=0.9, level=0.975), 0.03, n)

    assert decided(wanted) == ("not worse" if mean > -0.03 else "worse")
    assert decided(wanted - 1) == "undecided"


def test_what_is_undecided_for_its_failures_is_not_told_fewer_cases_than_it_has():
    scores = {str(n): 0.9 * (n > 0) for n in range(50)}
    found = compare({"teacher": scores, "same": dict(scores)}, "teacher")["same"]
    assert found.decision == "undecided"
    assert found.cases_to_decide is not None
    assert found.cases_to_decide > 50


def test_bca_alone_is_too_short_on_few_cases():
    draw, _ = SETTINGS["invalid"]
    mean = float(draw(np.random.default_rng(0), 500, 2000).mean())
    low, high = bca(draw(np.random.default_rng(1), 1000, 20), resamples=1000, widened=False)
    assert ((low <= mean) & (mean <= high)).mean() < 0.90


@given(DIFFERENCES)
@settings(max_examples=40, deadline=None)
def test_an_interval_holds_its_mean_and_lies_within_what_scores_can_differ(differences):
    low, high = interval(differences)
    assert -1.0 <= low <= sum(differences) / len(differences) + 1e-9
    assert sum(differences) / len(differences) - 1e-9 <= high <= 1.0
    assert interval(differences) == (low, high)


def test_an_interval_of_one_case_says_nothing_and_of_equal_ones_is_a_point():
    assert interval([0.3]) == (-1.0, 1.0)
    assert interval([0.25] * 8) == pytest.approx((0.25, 0.25))


def test_the_quantiles_of_students_distribution_agree_with_the_tables():
    for share, degrees, value in ((0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 19, 2.093), (0.995, 9, 3.250)):
        assert _t_quantile(share, degrees) == pytest.approx(value, abs=0.002)
    assert _t_quantile(0.975, 10**6) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-4)


def test_the_t_interval_is_the_one_of_the_books():
    low, high = student(np.array([[1.0, 2.0, 3.0, 4.0, 5.0]]) / 10)
    assert (low[0], high[0]) == pytest.approx(
        (0.3 - 2.776 * math.sqrt(0.025 / 5), 0.3 + 2.776 * math.sqrt(0.025 / 5)), abs=1e-3
    )


def test_the_permutation_test_counts_all_signs_where_they_are_few():
    assert sign_flip_p([0.1, 0.2, 0.3]) == 2 / 8
    assert sign_flip_p([0.0] * 5) == 1.0
    assert sign_flip_p([0.1] * 30) == pytest.approx(1 / 10_000, abs=1e-4)


def test_without_a_difference_small_p_values_are_as_rare_as_they_say():
    rng = random.Random(5)
    found = [sign_flip_p([rng.gauss(0, 0.1) for _ in range(15)], seed=1) for _ in range(200)]
    assert sum(p <= 0.05 for p in found) / 200 <= 0.10


def test_several_p_values_are_adjusted_as_holm_does():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.01, 0.02, "better"),
        (-0.03, 0.5, "not worse"),
        (-0.2, -0.031, "worse"),
        (-0.031, 0.3, "undecided"),
        (-0.148, 0.003, "undecided"),  # n = 20, reported as a loss
    ],
)
def test_a_decision_is_where_the_interval_lies_against_the_margin(low, high, said):
    assert decide(low, high, 0.03, 20) == said


def test_few_cases_decide_nothing_however_equal_they_are():
    found = compare({"t": dict.fromkeys("abcd", 0.9), "s": dict.fromkeys("abcd", 0.9)}, "t")["s"]
    assert (found.decision, found.cases_to_decide) == ("undecided", 5)


@pytest.mark.parametrize("mean", [-0.01, -0.06])
def test_the_cases_that_would_decide_do_decide(mean):
    wanted = cases_to_decide(mean, 0.1, 0.03)
    drawn = np.random.default_rng(3).normal(0, 1, wanted)
    low, high = interval(list(mean + 0.1 * (drawn - drawn.mean()) / drawn.std(ddof=1)))
    assert (low if mean > -0.03 else high) == pytest.approx(-0.03, abs=0.006)
    assert cases_to_decide(-0.03, 0.1, 0.03) == 1_000_000
    assert cases_to_decide(0.0, 0.0, 0.03) == 5


def test_every_candidate_is_compared_on_the_cases_that_both_have():
    scores = {
        "teacher": {str(n): 0.9 for n in range(30)},
        "same": {str(n): 0.9 for n in range(30)},
        "worse": {str(n): 0.5 + 0.001 * (n % 3) for n in range(30)},
        "few": {str(n): 0.9 for n in range(3)},
    }
    found = compare(scores, "teacher")
    assert set(found) == {"same", "worse", "few"}
    assert (found["same"].decision, found["worse"].decision, found["few"].decision) == (
        "not worse",
        "worse",
        "undecided",
    )
    assert (found["few"].n, found["worse"].n) == (3, 30)
    assert found["worse"].p_adjusted >= found["worse"].p_value
    assert max(one.level for one in found.values()) > 0.95
    assert found["worse"].effect_size < -100
    assert compare(scores, "teacher") == found


def test_failures_that_were_not_seen_are_bounded_as_clopper_and_pearson_do():
    assert unseen_share(0, 50) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert unseen_share(2, 40) == pytest.approx(0.149, abs=0.001)
    assert unseen_share(7, 7) == 1.0


@pytest.mark.parametrize("failed", [0, 1, 4])
def test_as_many_cases_as_bound_the_unseen_failures_are_needed_and_no_fewer(failed):
    needed = cases_to_bound(failed, 0.05)
    assert unseen_share(failed, needed) <= 0.05 < unseen_share(failed, needed - 1)


def test_no_number_of_cases_shows_that_there_are_no_failures():
    assert cases_to_bound(0, 0.0) == 1_000_000


def test_what_only_the_95_percent_interval_would_pass_is_undecided():
    differences = {str(n): -0.0142 + 0.03 * (-1) ** n for n in range(20)}
    found = compare({"teacher": dict.fromkeys(differences, 0.0), "student": differences}, "teacher")["student"]
    assert found.low > -found.margin
    assert found.level == 0.975
    assert found.decision == "undecided"
    assert found.cases_to_decide is not None
