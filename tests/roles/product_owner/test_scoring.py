"""The figures are worked out by hand from the metric's definition (docs/role.md), part by part."""

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from po_distill import product_owner_metric
from po_distill.roles.product_owner.scoring import (
    covered_share,
    gate_violations,
    list_requirements,
    metric_parts,
)

REQUIREMENTS = """
title: Tracker
functional_requirements:
- {id: FR001, description: Track fleet positions on a map, priority: High}
- {id: FR002, description: Export monthly billing reports, priority: Low}
non_functional_requirements:
- {id: NFR001, description: Answer within half a second, priority: Low}
constraints:
- {id: C001, description: Data stays inside Norway, priority: High}
"""


def vision(**changes: Any) -> dict[str, Any]:
    return {
        "product_name": "Tracker",
        "product_summary": "s" * 120,
        "target_users": ["a", "b"],
        "value_proposition": ["a", "b"],
        "key_capabilities": ["a", "b"],
        "non_goals": [],
        "success_metrics": ["a", "b"],
        "last_updated": "2026-01-02T03:04:05Z",
    } | changes


def review(alignment: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    lists = {"aligned": ["FR001", "FR002", "NFR001", "C001"], "gaps": ["g"], "conflicts": ["c"]}
    return {
        "status": "misaligned",
        "summary": ["a", "b"],
        "requirements_alignment": lists | (alignment or {}),
        "recommended_actions": ["a", "b"],
        "narrative": "n" * 160,
    } | changes


def metric(v: Any, r: Any, requirements: Any = REQUIREMENTS) -> float:
    def text(d: Any) -> Any:
        return d if isinstance(d, str) or d is None else yaml.safe_dump(d)

    return product_owner_metric(
        {"requirements_yaml": requirements}, {"product_vision": text(v), "product_owner_review": text(r)}
    )


def test_a_full_answer_scores_one() -> None:
    assert metric(vision(), review()) == pytest.approx(1.0, abs=1e-12)


def test_an_empty_answer_scores_one_sixty_fourth() -> None:
    assert metric("", "") == pytest.approx(0.015625, abs=1e-12)
    assert metric(None, None, None) == pytest.approx(0.015625, abs=1e-12)


@pytest.mark.parametrize(
    ("v", "r", "points"),
    [
        ({"product_name": "  "}, {}, 30 / 16),
        ({"product_summary": "s" * 60}, {}, 3),
        ({"product_summary": " " * 200 + "s" * 39}, {}, 6 + 30 / 16),
        ({"target_users": ["one"]}, {}, 3),
        ({"target_users": "text"}, {}, 6 + 30 / 16),
        ({"non_goals": None}, {}, 30 / 16),
        ({"last_updated": "yesterday"}, {}, 30 / 16),
        ({"last_updated": "2026-01-02"}, {}, 0),
        ({}, {"status": "conflicts"}, 30 / 16),
        ({}, {"status": ["aligned"]}, 30 / 16),
        ({}, {"summary": ["one"]}, 3),
        ({}, {"summary": []}, 6 + 30 / 16),
        ({}, {"recommended_actions": ["one"]}, 6),
        ({}, {"narrative": "n" * 159}, 3),
        ({}, {"narrative": "n" * 39}, 6 + 30 / 16),
        # nothing is covered any more: all of that part
        ({}, {"requirements_alignment": {"aligned": [], "gaps": [], "conflicts": []}}, 30),
        # null counts as an empty mapping, whose lists are missing: three checks, and 2 points twice
        ({}, {"requirements_alignment": None}, 30 + 4 + 3 * 30 / 16),
        # a list is no mapping: one check more
        ({}, {"requirements_alignment": ["x"]}, 30 + 4 + 4 * 30 / 16),
    ],
)
def test_each_defect_costs_its_points(v: dict[str, Any], r: dict[str, Any], points: float) -> None:
    # Without gaps and conflicts no part is at its cap: 118 points.
    whole = review({"gaps": [], "conflicts": []})
    assert metric(vision(**v), whole | r) == pytest.approx((118 - points) / 120, abs=1e-12)


def test_an_unquoted_timestamp_fails_the_text_check() -> None:
    text = yaml.safe_dump(vision()).replace("'2026-01-02T03:04:05Z'", "2026-01-02T03:04:05Z")
    assert "last_updated: 2026" in text
    assert metric(text, review()) == pytest.approx(1 - 30 / 16 / 120, abs=1e-12)


@pytest.mark.parametrize(
    ("covered", "points"),
    [(20, 22), (17, 22), (16, 16 + 0.1 / 0.15 * 6), (14, 16), (12, 8 + 0.1 / 0.2 * 8), (10, 8), (9, 8 * 0.45), (0, 0)],
)
def test_coverage_is_worth_its_step(covered: int, points: float) -> None:
    requirements = yaml.safe_dump(
        {"constraints": [{"id": f"REQ{n:02d}", "description": f"word{n}"} for n in range(20)]}
    )
    text = " ".join(f"req{n:02d}" for n in range(covered))
    parts = metric_parts(requirements, "", yaml.safe_dump({"narrative": text}))
    assert parts["requirements_alignment"] * 30 == pytest.approx(points, abs=1e-9)


def test_a_requirement_is_covered_by_three_tenths_of_its_words_in_one_segment() -> None:
    ten_words = [("", "alpha beta gamma delta epsilon zeta eta theta iota kappa the users api")]
    assert covered_share(ten_words, {"summary": ["alpha beta gamma"]}) == 1.0
    assert covered_share(ten_words, {"summary": ["alpha beta", "gamma"]}) == 0.0
    assert covered_share([("", "the users")], {"narrative": "the users"}) == 0.0
    assert covered_share([("", "añadir página")], {"narrative": "PÁGINA"}) == 1.0


def test_items_that_parse_as_mappings_are_read_as_their_text() -> None:
    assert covered_share([("FR001", "")], {"requirements_alignment": {"aligned": [{"FR001": "x"}]}}) == 1.0


def test_either_spelling_is_read_from_attributes_or_keys() -> None:
    v, r = yaml.safe_dump(vision()), yaml.safe_dump(review())
    new = (
        SimpleNamespace(requirements_yaml=REQUIREMENTS),
        SimpleNamespace(product_vision=v, product_owner_review=r),
    )
    old = ({"requirements": REQUIREMENTS}, {"vision_yaml": v, "review_yaml": r})
    assert product_owner_metric(*new) == product_owner_metric(*old) == pytest.approx(1.0)


def test_fences_and_leading_brackets_are_removed_before_parsing() -> None:
    fenced = f"```yaml\n{yaml.safe_dump(vision())}```"
    assert metric(fenced, "] ]\n".replace(" ", "") + yaml.safe_dump(review())) == pytest.approx(1.0)
    assert metric(f"```YML\n{yaml.safe_dump(vision())}\n```  ", review()) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["- a list", "42", "key: [unclosed", "date: 2023-13-45", "a: &a [*a]", 7, [], {}])
def test_what_is_no_mapping_counts_as_an_empty_one(text: Any) -> None:
    assert product_owner_metric(
        {"requirements_yaml": text}, {"product_vision": text, "product_owner_review": text}
    ) == pytest.approx(1 / 64)


_yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(vision(), _yaml_values)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(review(), _yaml_values)),
    st.text(max_size=80),
)
def test_the_metric_of_anything_is_between_zero_and_one(v: Any, r: Any, requirements: str) -> None:
    assert 0.0 <= metric(v, r, requirements) <= 1.0
    assert 0.0 <= metric(v, r) <= 1.0


def test_requirements_without_id_and_description_are_no_requirements() -> None:
    text = "functional_requirements: [{priority: High}, text, {id: FR1}]\nconstraints: {id: C1}"
    assert list_requirements(text) == [("FR1", "")]


def kinds(documents: dict[str, Any]) -> list[str]:
    return [v.kind for v in gate_violations(REQUIREMENTS, {"product_owner_review": documents})]


def test_the_gate_names_what_the_metric_cannot_see() -> None:
    assert kinds(review()) == []
    assert kinds(review({"gaps": ["FR999 is missing"]})) == ["unknown_requirement_id"]
    assert kinds(review({"gaps": ["AES-256, OAuth2 and FR-001 are fine"]})) == []
    assert kinds(review(recommended_actions=["one"])) == ["too_few_actions"]
    assert kinds(review(status="aligned")) == ["verdict_contradicts_lists"]
    assert kinds(review({"conflicts": []})) == ["verdict_contradicts_lists"]
    assert kinds(review({"conflicts": [], "gaps": []}, status="needs_adjustment")) == ["verdict_contradicts_lists"]
    assert kinds(review({"conflicts": [], "gaps": []}, status="aligned")) == []
