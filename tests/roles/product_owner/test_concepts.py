from collections import Counter

import pytest
import yaml

from po_distill.errors import InputError
from po_distill.records import Concept
from po_distill.roles.product_owner.role import ProductOwnerRole

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
