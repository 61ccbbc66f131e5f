from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from haiku import HaikuRole, haiku_concept
from po_distill.errors import SettingsError
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.topping_up import TopUp, planned_classes

OWNER = ProductOwnerRole()
GIVEN = OWNER.generate_concepts(9, seed=4)
MIX = {"aligned": 0.5, "needs_adjustment": 0.3, "misaligned": 0.2}


@pytest.mark.parametrize(
    ("target", "mix", "planned"),
    [
        (600, MIX, {"aligned": 300, "needs_adjustment": 180, "misaligned": 120}),
        (7, MIX, {"aligned": 4, "needs_adjustment": 2, "misaligned": 1}),  # 3.5, 2.1, 1.4
        (1, MIX, {"aligned": 1, "needs_adjustment": 0, "misaligned": 0}),
        (8, None, {"aligned": 3, "needs_adjustment": 2, "misaligned": 3}),  # of equals the first by name
        (10, {"misaligned": 1.0}, {"misaligned": 10}),
        (6000, dict.fromkeys(MIX, 0.333), dict.fromkeys(MIX, 2000)),
    ],
)
def test_a_target_is_shared_out_by_the_largest_remainders(target, mix, planned):
    assert planned_classes(OWNER, target, mix) == planned


@given(st.integers(1, 20_000), st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.integers(-9, 9))
def test_the_classes_always_sum_to_the_target_and_are_within_one_of_their_share(target, parts, off):
    assume(sum(parts))
    shares = [part / sum(parts) for part in parts]
    shares = [share * (1 + off / 10_000) for share in shares]  # as 0.33, 0.33, 0.34 or rounded percentages come
    planned = planned_classes(OWNER, target, dict(zip(OWNER.labels, shares, strict=True)))
    assert sum(planned.values()) == target
    for label, share in zip(OWNER.labels, shares, strict=True):
        assert abs(planned[label] - target * share / sum(shares)) < 1 + 1e-6


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ({"aligned": 0.5, "odd": 0.5}, "no class 'odd'"),
        ({"aligned": 0.5}, "sum to 0.5"),
        ({"aligned": 1.5, "misaligned": -0.5}, "mix"),
        ({"aligned": float("nan"), "misaligned": 0.5}, "mix"),
    ],
)
def test_a_mix_that_cannot_be_is_refused(mix, says):
    with pytest.raises(SettingsError, match=says):
        planned_classes(OWNER, 10, mix)


def labels_of(concepts):
    return Counter(concept.planted_label for concept in concepts)


def test_the_first_round_asks_for_what_is_missing_of_each_class():
    top_up = TopUp(OWNER, GIVEN, 60, MIX, seed=7)
    more = top_up.next_round({"aligned": 3, "needs_adjustment": 3, "misaligned": 3}, 9)
    assert labels_of(more) == {"aligned": 27, "needs_adjustment": 15, "misaligned": 9}
    assert len({concept.concept_id for concept in [*GIVEN, *more]}) == 9 + 51


def test_a_round_makes_up_for_the_share_that_is_not_accepted():
    top_up = TopUp(OWNER, GIVEN, 30, MIX, seed=7)
    more = top_up.next_round({"aligned": 3, "needs_adjustment": 3}, 12)  # half are accepted
    assert labels_of(more) == {"aligned": 24, "needs_adjustment": 12, "misaligned": 12}
    top_up = TopUp(OWNER, GIVEN, 20, {"aligned": 1.0}, seed=7)
    assert len(top_up.next_round({}, 9)) == 100  # five times at most


def test_each_round_goes_on_where_the_one_before_ended():
    """So a second run, whose rounds are answered by the journal, asks for the very same variations."""

    def rounds(*accepted):
        top_up = TopUp(OWNER, GIVEN, 30, MIX, seed=7)
        return [top_up.next_round(found, 9 + 10 * n) for n, found in enumerate(accepted)]

    first = rounds({"aligned": 3}, {"aligned": 9, "misaligned": 2}, {"aligned": 12, "misaligned": 5})
    assert first == rounds({"aligned": 3}, {"aligned": 9, "misaligned": 2}, {"aligned": 12, "misaligned": 5})
    assert all(first)
    everything = [concept for made in first for concept in made]
    assert len({concept.concept_id for concept in [*GIVEN, *everything]}) == 9 + len(everything)
    assert len({(c.concept, c.requirements_yaml) for c in everything}) == len(everything)


def test_it_ends_when_nothing_is_missing_when_a_round_brings_nothing_or_after_eight():
    top_up = TopUp(HaikuRole(), [haiku_concept(1)], 4, None, seed=7)
    assert top_up.next_round({"spring": 2, "autumn": 9}, 11) == []
    assert top_up.missing({"spring": 2, "autumn": 9}) == {}
    assert top_up.next_round({"spring": 1}, 1)
    assert top_up.next_round({"spring": 1}, 5) == []
    top_up = TopUp(HaikuRole(), [haiku_concept(1)], 100, None, seed=7)
    rounds = [bool(top_up.next_round({"spring": n}, n + 1)) for n in range(12)]
    assert rounds == [True] * 8 + [False] * 4


def test_a_class_that_has_more_than_its_share_takes_nothing_from_the_others():
    top_up = TopUp(OWNER, GIVEN, 10, MIX, seed=7)
    assert top_up.missing({"aligned": 9, "none": 4}) == {"needs_adjustment": 3, "misaligned": 2}
