"""What po_distill expects of any role, and what is the architect's own. The package has to be installed."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from po_distill_architect.documents import FEASIBILITY, Architecture, Story, normalised
from po_distill_architect.role import ArchitectRole
from po_distill_architect.scoring import architect_metric

from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.metric_doctor import check_metric
from po_distill.records import Concept
from po_distill.testing import RoleContract

ROLE, JSON_ROLE = ArchitectRole(), ArchitectRole("json")
CONCEPTS = ROLE.generate_concepts(45, seed=3)
BLOCKED = CONCEPTS[8]  # complex, infeasible
SOUND = ROLE.answer_by_rules(BLOCKED)


class TestArchitect(RoleContract):
    """What po_distill expects of any role."""

    role_name = "architect"


def kinds(text: str, role: ArchitectRole = ROLE, concept: Concept = BLOCKED) -> set[str]:
    return {violation.kind for violation in role.score(concept, text).violations}


def causes(text: str, expected: str | None = None, finish: str = "stop") -> list[str]:
    found = ROLE.attribute(BLOCKED, text, score=ROLE.score(BLOCKED, text), finish=finish, expected=expected)
    return [failure.cause for failure in found]


# --- concepts ------------------------------------------------------------------------------------


def test_concepts_are_distinct_and_balanced_and_fewer_are_the_same_first_ones() -> None:
    assert ROLE.generate_concepts(20, seed=3) == CONCEPTS[:20]
    assert len({(concept.concept, concept.requirements_yaml) for concept in CONCEPTS}) == 45
    assert {label: sum(c.planted_label == label for c in CONCEPTS) for label in FEASIBILITY} == dict.fromkeys(
        FEASIBILITY, 15
    )


def test_variations_come_after_the_given_ones_and_are_what_they_say() -> None:
    varied = ROLE.vary_concepts(CONCEPTS[:6], 30, seed=1)
    assert varied[:6] == CONCEPTS[:6]
    assert len({concept.concept_id for concept in varied}) == 30
    assert all(ROLE.score(c, ROLE.answer_by_rules(c)).label == c.planted_label for c in varied)
    wanted = ROLE.vary_concepts(CONCEPTS[:3], 9, seed=1, labels=("feasible",))
    assert {concept.planted_label for concept in wanted[3:]} == {"feasible"}
    assert {concept.metadata["group"] for concept in wanted[3:]} == {CONCEPTS[0].concept}


def test_a_concept_without_a_vision_or_a_functional_requirement_is_refused() -> None:
    with pytest.raises(InputError, match="has no product vision"):
        ROLE.check(BLOCKED.model_copy(update={"existing_vision": None}))
    with pytest.raises(InputError, match="list no functional requirement"):
        ROLE.check(BLOCKED.model_copy(update={"requirements_yaml": "constraints:\n- {id: C001, description: x}"}))


def test_a_prompt_gives_its_vision_and_requirements_back() -> None:
    found = ROLE.read_prompt(ROLE.render(BLOCKED)[-1].content)
    assert found is not None
    assert ROLE.render(found) == ROLE.render(BLOCKED)
    assert ROLE.read_prompt("Hello.") is None


# --- the canonical form --------------------------------------------------------------------------


@pytest.mark.parametrize("role", [ROLE, JSON_ROLE], ids=lambda role: role.contract.name)
def test_the_rules_say_what_is_planted_and_leave_nothing_out(role: ArchitectRole) -> None:
    protocol: Role = role  # mypy holds the class against it
    for concept in CONCEPTS:
        text = protocol.answer_by_rules(concept)
        score = protocol.score(concept, text)
        assert (score.value, score.violations, score.label) == (1.0, (), concept.planted_label)
        assert role.coverage(concept, role.parse(text).documents) == 1.0
        assert role.advise(concept, text) == ()


# What YAML and JSON mind: quotes, escapes, indicators, white space of all kinds, what neither can hold.
TEXTS = st.text(st.sampled_from("aB7é~:'\"\\`#-[]{},*&!|>%@ \n\t\u00a0\u2028\ufeff\x00\ud800"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
STORIES = st.lists(st.dictionaries(st.sampled_from([*Story.model_fields, "other"]), VALUES), max_size=3)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "stories": st.fixed_dictionaries({"stories": STORIES | VALUES}),
        "architecture": st.dictionaries(st.sampled_from([*Architecture.model_fields, "other"]), VALUES),
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANSWERS)
def test_whatever_documents_hold_the_canonical_form_is_read_back(documents: dict[str, Any]) -> None:
    for role in (ROLE, JSON_ROLE):
        text = role.canonical(documents)
        assert role.parse(text).documents == normalised(documents)
        assert role.canonical(role.parse(text).documents) == text
    ROLE.violations(BLOCKED, documents)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
def test_a_mangled_answer_is_scored_and_nothing_is_raised(rng: random.Random) -> None:
    lines = SOUND.splitlines()
    for _ in range(rng.randint(1, 4)):
        number = rng.randrange(len(lines))
        lines[number] = rng.choice(["", "```", lines[number] * 2, lines[number][: rng.randrange(9)], "- *a", "}{: ["])
    text = "\n".join(lines)
    score = ROLE.score(BLOCKED, text)
    assert 0.0 <= score.value <= 1.0
    assert score.valid or score.violations
    ROLE.attribute(BLOCKED, text, score=score, finish="stop", expected="feasible")
    ROLE.repair(text)


# --- reading -------------------------------------------------------------------------------------


def test_what_can_be_read_in_one_way_only_is_forgiven_by_the_gate_and_not_by_production() -> None:
    sloppy = SOUND.replace("```yaml", "```").replace('estimate: "2"', "estimate: 2").replace('"SQL"', "SQL: any")
    assert ROLE.parse(sloppy).violations == ()
    assert ROLE.parse(sloppy).documents["architecture"]["components"][-1]["interfaces"] == ["SQL: any"]
    assert not ROLE.score(BLOCKED, sloppy).valid
    assert not ROLE.score(BLOCKED, SOUND.replace('estimate: "2"', "estimate: 2")).valid


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: text.split("```yaml ARCHITECTURE")[0], "missing_architecture"),
        (lambda text: text.replace('title: "', "title: x: "), "unreadable_yaml"),
        (lambda text: text.replace('feasibility: "infeasible"', 'feasibility: "maybe"'), "feasibility_outside_enum"),
        (lambda text: text.replace('estimate: "2"', 'estimate: "4"'), "estimate_outside_scale"),
        (lambda text: text.replace('      - "FR001"', '      - "FR009"'), "unknown_requirement_id"),
        (lambda text: text.replace('      - "FR001"', '      - "FR002"'), "requirement_without_story"),
        (lambda text: text.replace('id: "S2"', 'id: "S1"'), "repeated_story_id"),
        (lambda text: text.replace('"infeasible"', '"feasible"'), "verdict_contradicts_lists"),
        (lambda text: text.replace("so_that:", "because:"), "unknown_key"),
    ],
)
def test_what_is_wrong_is_named(change: Any, kind: str) -> None:
    assert change(SOUND) != SOUND
    assert kind in kinds(change(SOUND))
    assert kind in ROLE.violation_kinds
    assert kinds(SOUND) == set()


def test_json_that_is_none_or_nests_without_end_is_unreadable() -> None:
    for text in ("", "{", "[]", '{"stories": 1}', '{"stories": ' * 500 + "{}" + "}" * 500):
        assert "unreadable_json" in kinds(text, JSON_ROLE)


# --- the metric and the evaluation ----------------------------------------------------------------


def test_the_metric_holds_and_says_little_of_answers_without_content() -> None:
    found = check_metric("architect", architect_metric, ROLE, concepts=9)
    assert found.passed
    assert found.gameable is not None and found.gameable < 0.5


def test_advice_is_given_where_the_metric_is_not_full_and_follows_it_up() -> None:
    weak = SOUND.replace('  - "NFR001', '  - "the rest').replace('estimate: "2"', 'estimate: "4"')
    told = " ".join(ROLE.advise(BLOCKED, weak))
    assert ROLE.score(BLOCKED, weak).value < 1.0
    assert "fill every field" in told
    assert "deal with NFR001" in told


def test_why_an_answer_failed_is_said_by_its_gravest_cause() -> None:
    assert causes(SOUND, expected="infeasible") == []
    assert causes("") == ["no_answer"]
    assert causes("I cannot.") == ["no_blocks"]
    assert causes(SOUND[: len(SOUND) // 2]) == ["truncated"]
    assert causes(SOUND.replace('title: "', "title: x: ").replace('"\n', "\n")) == ["unquoted_colon"]
    swapped = SOUND.replace('"infeasible"', '"feasible"')
    assert causes(swapped, expected="infeasible") == ["swapped_verdict", "contradiction"]
    assert causes(SOUND.replace('      - "FR001"', '      - "FR009"'))[0] == "invented_ids"


def test_an_answer_that_lacks_its_quotes_is_repaired_to_the_sound_one() -> None:
    assert ROLE.repair(SOUND.replace('"', "")) == SOUND
    assert ROLE.repair(SOUND) is None


def test_rows_with_one_text_per_document_are_joined() -> None:
    _, prediction = ROLE.metric_fields(BLOCKED, SOUND)
    assert ROLE.join_documents(prediction) == SOUND
    assert ROLE.join_documents({"teacher_stories": "a: 1"}) == "```yaml STORIES\na: 1\n```"
    assert ROLE.join_documents({"stories": ["a"]}) is None
