from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill.errors import InputError, SettingsError
from po_distill.records import Concept
from po_distill.roles.product_owner.documents import REVIEW, VISION
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.scoring import product_owner_metric

CONTRACTS = ProductOwnerRole.contracts
CONCEPT = ProductOwnerRole().generate_concepts(1, seed=3)[0]

_text = st.text(max_size=40) | st.sampled_from(
    [
        "platform's",
        'say "hi"',
        "```yaml REVIEW",
        "</VISION>",
        "<review>",
        "a: b # c",
        "\\n",
        "- x",
        "]",
        "\u2028",
        "\x85",
    ]
)
_value = _text | st.none() | st.booleans() | st.integers() | st.dates() | st.datetimes()
_items = st.lists(_value | st.dictionaries(_text, _text, max_size=2), max_size=4) | _value
_documents = st.fixed_dictionaries(
    {},
    optional={
        VISION: st.fixed_dictionaries(
            {},
            optional={
                "product_name": _value,
                "product_summary": _value,
                "target_users": _items,
                "value_proposition": _items,
                "key_capabilities": _items,
                "non_goals": _items,
                "success_metrics": _items,
                "last_updated": _value,
            },
        ),
        REVIEW: st.fixed_dictionaries(
            {},
            optional={
                "status": _value | st.sampled_from(["aligned", " Misaligned "]),
                "summary": _items,
                "requirements_alignment": _value
                | st.fixed_dictionaries({}, optional={"aligned": _items, "gaps": _items, "conflicts": _items}),
                "recommended_actions": _items,
                "narrative": _value,
            },
        ),
    },
)


@pytest.mark.parametrize("contract", CONTRACTS)
@given(documents=_documents)
@settings(max_examples=150, deadline=None)
def test_parsing_the_canonical_form_gives_the_normalised_documents(contract: str, documents: dict[str, Any]) -> None:
    role = ProductOwnerRole(contract)
    answer = role.parse(role.canonical(documents))
    assert answer.documents == role.normalised(documents)
    assert answer.contract == contract


@pytest.mark.parametrize("contract", CONTRACTS)
@given(documents=_documents)
@settings(max_examples=100, deadline=None)
def test_the_canonical_form_is_its_own_canonical_form(contract: str, documents: dict[str, Any]) -> None:
    role = ProductOwnerRole(contract)
    text = role.canonical(documents)
    assert role.canonical(role.parse(text).documents) == text
    if contract != "json":
        assert "\\" not in text
        assert all(line.count('"') in (0, 2) for line in text.splitlines())


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_any_text_is_parsed_and_scored_without_an_exception(text: str) -> None:
    for contract in CONTRACTS:
        score = ProductOwnerRole(contract).score(CONCEPT, text)
        assert 0 <= score.value <= 1
        assert score.valid is False


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_rules_answer_every_planted_status_soundly(contract: str) -> None:
    role = ProductOwnerRole(contract)
    for concept in role.generate_concepts(90, seed=11):
        score = role.score(concept, role.answer_by_rules(concept))
        assert score.valid
        assert score.label == concept.planted_label
        assert not score.violations
        assert score.value >= 0.95


def test_no_example_of_canonical_text_is_ever_folded() -> None:
    text = ProductOwnerRole().canonical({VISION: {"product_summary": "word " * 500}})
    assert max(map(len, text.splitlines())) > 2400


def sound(**changes: str) -> str:
    text = ProductOwnerRole().answer_by_rules(CONCEPT)
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def test_production_reads_the_labelled_fences_as_they_stand() -> None:
    role = ProductOwnerRole()
    text = sound()
    assert role.score(CONCEPT, text).valid
    assert role.score(CONCEPT, "Here you are:\n" + text + "\nDone.").valid
    assert not role.score(CONCEPT, text.replace("yaml VISION", "yaml")).valid
    assert not role.score(CONCEPT, text.replace("```yaml REVIEW", "```yaml OPINION")).valid
    assert not role.score(CONCEPT, text.replace('status: "aligned"', 'status: "conflicts"')).valid
    assert not role.score(CONCEPT, text.replace('  - "', "  - 'platform's ", 1)).valid
    assert not role.score(CONCEPT, text.rsplit("```", 1)[0]).valid
    assert not role.score(CONCEPT, text.replace("  gaps: []\n", "")).valid


@pytest.mark.parametrize(
    "mutilate",
    [
        lambda text: text.replace("```yaml VISION", "```yaml\nVISION:").replace("```yaml REVIEW", "``` review"),
        lambda text: "]" + text.replace("```yaml VISION\n", "```yaml VISION\n]\n"),
        lambda text: text.replace("  - ", "  -\u00a0"),
        lambda text: text.rsplit("```", 1)[0],
        lambda text: text.replace("```yaml VISION", "```yaml").replace("```yaml REVIEW", "```yaml"),
        lambda text: text.replace("```yaml VISION\n", "").replace("```yaml REVIEW\n", "").replace("```\n", ""),
        lambda text: text.replace("```yaml VISION", "<VISION>\n```yaml").replace("```yaml REVIEW", "<REVIEW>\n```"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"1970-01-01T00:00:00Z"', "1970-01-01 00:00:00"),
        lambda text: text.replace('status: "aligned"', "status: ALIGNED"),
    ],
)
def test_what_can_be_read_in_one_way_only_is_forgiven(mutilate: Any) -> None:
    role = ProductOwnerRole()
    answer = role.parse(mutilate(sound()))
    assert answer.violations == ()
    assert role.canonical(answer.documents, stamp="2026") == role.canonical(role.parse(sound()).documents, stamp="2026")


def test_list_items_that_parse_as_mappings_become_text() -> None:
    role = ProductOwnerRole()
    answer = role.parse(sound(**{'- "FR001: ': "- FR001: "}).replace('"\n    - "FR', "\n    - FR"))
    aligned = answer.documents[REVIEW]["requirements_alignment"]["aligned"]
    assert all(isinstance(item, str) for item in aligned)
    assert aligned[0].startswith("FR001: ")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "missing_vision"),
        ("no blocks at all", "missing_review"),
        (sound(**{'status: "aligned"': 'status: "conflicts"'}), "status_outside_enum"),
        (sound(non_goals="no_goals"), "missing_key"),
        (sound(non_goals="no_goals"), "unknown_key"),
        (sound(**{"product_name: ": "product_name: {"}), "unreadable_yaml"),
    ],
)
def test_the_rest_is_reported_as_violations(text: str, kind: str) -> None:
    answer = ProductOwnerRole().parse(text)
    found = [v.kind for v in answer.violations]
    missing = [f"missing_{n}" for n, d in (("vision", VISION), ("review", REVIEW)) if d not in answer.documents]
    assert kind in found + missing


def test_the_prompt_is_what_production_sends() -> None:
    role = ProductOwnerRole(prompt="You are it.")
    concept = Concept(concept_id="1", concept="A {requirements} app.", requirements_yaml="a: 1\n")
    system, user = role.render(concept)
    assert (system.speaker, system.content) == ("system", "You are it.")
    assert user.content == (
        "CONCEPT:\nA {requirements} app.\n\nEXISTING_VISION:\n(no existing vision)\n\nREQUIREMENTS:\na: 1"
    )


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_rendered_prompt_reads_back_as_its_concept(contract: str) -> None:
    role = ProductOwnerRole(contract)
    for concept in (CONCEPT, CONCEPT.model_copy(update={"existing_vision": "product_name: x"})):
        found = role.read_prompt(role.render(concept)[-1].content)
        assert found is not None
        assert found.concept == concept.concept
        assert found.existing_vision == concept.existing_vision
        assert yaml.safe_load(found.requirements_yaml) == yaml.safe_load(concept.requirements_yaml)


def test_text_behind_the_requirements_is_no_requirement() -> None:
    found = ProductOwnerRole().read_prompt(
        "CONCEPT:\nx\n\nREQUIREMENTS:\nconstraints:\n- id: C1\n\nRespond only with both."
    )
    assert found is not None
    assert found.requirements_yaml == "constraints:\n- id: C1"
    assert ProductOwnerRole().read_prompt("CONCEPT:\nx") is None


def test_the_digest_changes_with_contract_and_prompt() -> None:
    digests = {ProductOwnerRole(c, p).contract.digest for c in CONTRACTS for p in (None, "Other text")}
    assert len(digests) == 2 * len(CONTRACTS)
    assert ProductOwnerRole().contract.digest == ProductOwnerRole("fenced").contract.digest


def test_an_unknown_contract_is_refused() -> None:
    with pytest.raises(SettingsError, match="fenced, tagged, json"):
        ProductOwnerRole("xml")


@pytest.mark.parametrize(
    ("requirements", "says"),
    [
        ("key: [", "not YAML"),
        ("- a\n- b", "not a YAML mapping"),
        ("title: nothing else", "list no requirement"),
        ("a: &a [x,x]\nb: &b [*a,*a]\n" + "c: [" + "*b," * 20 + "]", "aliases"),
        ("[" * 100 + "]" * 100, "nests deeper"),
    ],
)
def test_requirements_that_cannot_be_worked_on_are_refused(requirements: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ProductOwnerRole().check(Concept(concept_id="x", concept="y", requirements_yaml=requirements))


def test_the_json_schema_describes_the_canonical_json() -> None:
    schema = ProductOwnerRole("json").json_schema()
    assert set(schema["properties"]) == {VISION, REVIEW}  # type: ignore[arg-type]
    assert "misaligned" in str(schema)


def test_the_stamp_is_the_librarys() -> None:
    role = ProductOwnerRole()
    text = role.canonical({VISION: {"last_updated": "2023-10-27"}}, stamp="2026-05-06T00:00:00Z")
    assert 'last_updated: "2026-05-06T00:00:00Z"' in text
    assert "2023" not in text


def test_the_self_test_passes() -> None:
    ProductOwnerRole().self_test()


# --- what a teacher is told, and what a metric gets ---------------------------------------------


def test_a_sound_answer_needs_little_advice_and_an_empty_one_much() -> None:
    role = ProductOwnerRole()
    sound, empty = role.advise(CONCEPT, role.answer_by_rules(CONCEPT)), role.advise(CONCEPT, "")
    assert len(sound) < len(empty)
    assert len(empty) >= 5
    assert all(isinstance(line, str) and line and "\n" not in line for line in empty)


def test_the_advice_names_what_is_short_and_which_requirements_are_missing() -> None:
    role = ProductOwnerRole()
    documents = role.parse(role.answer_by_rules(CONCEPT)).documents
    review = {
        **documents[REVIEW],
        "summary": ["fine"],
        "narrative": "short",
        "requirements_alignment": {"aligned": [], "gaps": [], "conflicts": []},
        "recommended_actions": ["go", "on"],
    }
    advice = " | ".join(role.advise(CONCEPT, role.canonical({**documents, REVIEW: review})))
    assert "narrative has 5 characters" in advice
    assert "the review does not mention every requirement; missing: FR001" in advice
    assert "requirements_alignment.aligned has 0 of" in advice


def test_following_the_advice_raises_the_metric() -> None:
    role = ProductOwnerRole()
    whole = role.parse(role.answer_by_rules(CONCEPT)).documents
    poor = {
        VISION: {**whole[VISION], "product_summary": "x", "non_goals": []},
        REVIEW: {**whole[REVIEW], "narrative": "x"},
    }
    before, after = (role.score(CONCEPT, role.canonical(one)).value for one in (poor, whole))
    assert len(role.advise(CONCEPT, role.canonical(poor))) > len(role.advise(CONCEPT, role.canonical(whole)))
    assert before < after


@given(text=st.text(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_answer_can_be_advised_on_and_given_to_a_metric(text: str) -> None:
    role = ProductOwnerRole()
    role.advise(CONCEPT, text)
    example, prediction = role.metric_fields(CONCEPT, text)
    assert 0.0 <= product_owner_metric(example, prediction) <= 1.0


def test_advice_is_given_on_documents_of_any_shape() -> None:
    role = ProductOwnerRole()
    for text in ("```yaml REVIEW\nsummary: {a: b}\nrequirements_alignment: [x]\nnarrative: 7\n```", "[]", "null"):
        assert role.advise(CONCEPT, text)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_fields_for_a_metric_hold_both_documents_as_yaml_and_give_the_roles_own_value(contract: str) -> None:
    role = ProductOwnerRole(contract)
    text = role.answer_by_rules(CONCEPT)
    example, prediction = role.metric_fields(CONCEPT, text)
    assert set(example) == {"concept", "requirements_yaml", "existing_vision"}
    assert example["existing_vision"] == ""
    assert set(prediction) == {VISION, REVIEW}
    assert yaml.safe_load(prediction[REVIEW])["status"] == CONCEPT.planted_label
    assert product_owner_metric(example, prediction) == role.score(CONCEPT, text).value >= 0.85
    assert role.metric_fields(CONCEPT, "")[1] == {VISION: "", REVIEW: ""}


def test_the_concepts_that_are_known_to_be_hard_are_watched() -> None:
    assert ProductOwnerRole.watch == ("POCON-0004", "POCON-0009", "POCON-0012", "POCON-0115", "POCON-0191")
