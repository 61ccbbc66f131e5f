from collections import Counter

import pytest
import yaml

from po_distill.errors import InputError
from po_distill.records import Concept
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.scoring import STATUSES
from po_distill.source_rows import vary_all

ROLE = ProductOwnerRole()


def test_concepts_are_repeatable_distinct_and_a_larger_count_begins_the_same() -> None:
    few, many = ROLE.generate_concepts(50, seed=5), ROLE.generate_concepts(400, seed=5)
    assert many[:50] == few
    assert len({c.concept for c in many}) == len({c.concept_id for c in many}) == 400
    assert ROLE.generate_concepts(50, seed=6) != few


def test_all_statuses_and_tiers_take_turns() -> None:
    found = Counter((c.tier, c.planted_label) for c in ROLE.generate_concepts(90, seed=5))
    assert set(found.values()) == {10}
    assert len(found) == 9


def test_planted_truth_is_in_the_text() -> None:
    for concept in ROLE.generate_concepts(90, seed=8):
        gaps, conflicts = concept.metadata["planted_gaps"], concept.metadata["planted_conflicts"]
        assert isinstance(gaps, list) and isinstance(conflicts, list)
        assert (bool(conflicts), bool(gaps) or bool(conflicts)) == (
            concept.planted_label == "misaligned",
            concept.planted_label != "aligned",
        )
        assert all(str(gap) in concept.concept and str(gap) not in concept.requirements_yaml for gap in gaps)
        assert all(str(name) in concept.concept and str(name) in concept.requirements_yaml for name in conflicts)
        ROLE.check(concept)


def test_given_concepts_come_first_and_their_variations_carry_planted_truth() -> None:
    given = ROLE.generate_concepts(20, seed=1)
    varied = ROLE.vary_concepts(given, 100, seed=2)
    assert varied[:20] == given
    assert len(varied) == len({c.concept_id for c in varied}) == 100
    assert ROLE.vary_concepts(given, 100, seed=2) == varied
    for concept in varied:
        score = ROLE.score(concept, ROLE.answer_by_rules(concept))
        assert score.label == concept.planted_label
        assert not score.violations
    assert min(Counter(c.planted_label for c in varied[20:]).values()) >= 10


def test_foreign_concepts_without_truth_are_varied_with_the_truth_that_is_planted() -> None:
    requirements = yaml.safe_dump({"functional_requirements": [{"id": "FR001", "description": "Do it"}]})
    given = [Concept(concept_id="x", concept="An app with emphasis on insight.", requirements_yaml=requirements)]
    labels = [c.planted_label for c in ROLE.vary_concepts(given, 13, seed=2)]
    assert set(labels) == {None, "misaligned", "needs_adjustment"}


@pytest.mark.parametrize(("given", "count"), [([], 5), (ROLE.generate_concepts(3, 1), 2)])
def test_what_cannot_be_varied_is_refused(given: list[Concept], count: int) -> None:
    with pytest.raises(InputError):
        ROLE.vary_concepts(given, count, seed=1)


def test_no_concepts_cannot_be_generated() -> None:
    with pytest.raises(InputError):
        ROLE.generate_concepts(0, seed=1)


# --- variations of wanted statuses --------------------------------------------------------------


def test_variations_are_of_the_statuses_that_are_wanted_in_turn() -> None:
    given = ROLE.generate_concepts(9, seed=1)
    wanted = ["misaligned", "aligned", "aligned", "needs_adjustment"] * 10
    made = ROLE.vary_concepts(given, 49, seed=2, labels=wanted)
    assert made[:9] == given
    assert [c.planted_label for c in made[9:]] == wanted
    for concept in made[9:]:
        ROLE.check(concept)
        score = ROLE.score(concept, ROLE.answer_by_rules(concept))
        assert (score.label, score.violations) == (concept.planted_label, ())
    assert len({c.concept_id for c in made}) == len({(c.concept, c.requirements_yaml) for c in made}) == 49


def test_more_wanted_statuses_begin_with_the_same_variations() -> None:
    given, wanted = ROLE.generate_concepts(5, seed=1), list(STATUSES) * 12
    few, many = (ROLE.vary_concepts(given, 5 + n, seed=2, labels=wanted[:n]) for n in (12, 36))
    assert many[:17] == few


def test_an_original_that_is_worse_than_what_is_wanted_is_passed_over() -> None:
    given = [c for c in ROLE.generate_concepts(9, seed=1) if c.planted_label != "needs_adjustment"]
    made = ROLE.vary_concepts(given, len(given) + 20, seed=2, labels=["aligned"])[len(given) :]
    originals = {c.concept_id: c.planted_label for c in given}
    assert {originals[str(c.metadata["varied_from"])] for c in made} == {"aligned"}
    assert len({c.metadata["varied_from"] for c in made}) == 3


def test_where_every_original_is_worse_the_label_says_what_was_reached() -> None:
    given = [c for c in ROLE.generate_concepts(9, seed=1) if c.planted_label == "misaligned"]
    made = ROLE.vary_concepts(given, len(given) + 6, seed=2, labels=["aligned", "needs_adjustment"])[len(given) :]
    assert {c.planted_label for c in made} == {"misaligned"}


def test_a_variation_takes_no_id_that_is_given_already() -> None:
    """Concepts that were varied once are varied again, to reach a target."""
    given = ROLE.vary_concepts(ROLE.generate_concepts(4, seed=1), 12, seed=2)
    for labels in ([], list(STATUSES)):
        made = ROLE.vary_concepts(given, 40, seed=3, labels=labels)
        assert len({c.concept_id for c in made}) == 40


@pytest.mark.parametrize("labels", [(), ("aligned", "misaligned")])
def test_a_foreign_label_of_a_given_concept_is_no_obstacle(labels: tuple[str, ...]) -> None:
    """A file may hold `status: conflicts`, which is outside the enum (field report)."""
    given = [ROLE.generate_concepts(1, seed=1)[0].model_copy(update={"planted_label": "conflicts"})]
    made = ROLE.vary_concepts(given, 5, seed=2, labels=labels)
    assert len(made) == 5


@pytest.mark.timeout(3)
def test_where_no_more_variations_can_be_made_there_are_fewer_and_no_endless_search() -> None:
    """One concept of one requirement has a variation per feature, and no more."""
    requirements = yaml.safe_dump({"functional_requirements": [{"id": "FR001", "description": "Do it"}]})
    given = [Concept(concept_id="x", concept="An app.", requirements_yaml=requirements)]
    made = ROLE.vary_concepts(given, 200, seed=1, labels=["needs_adjustment"])
    assert 40 < len(made) < 60
    assert len({concept.concept_id for concept in made}) == len(made)
    with pytest.raises(InputError, match="variations, not 199"):
        vary_all(ROLE, given, 200, seed=1)
