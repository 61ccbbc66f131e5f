"""What every role does: its prompt, its reading and its writing belong together, and its metric can be trusted."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from po_distill.answer_bounds import tokens_for
from po_distill.errors import SettingsError
from po_distill.guaranteed import decoding_schema
from po_distill.interfaces import Role
from po_distill.records import Concept, Score
from po_distill.testing.registered import load_once

_NO_ANSWERS = (
    "",
    " \n",
    "I would rather not say.",
    "{",
    "```",
    "```yaml",
    "- ",
    "null",
    "[[[[",
    "\x00",
    "a: b: c",
    "```\n" * 50,
)
_SOUND, _EMPTY = 0.85, 0.1  # of the metric


class RoleContract:
    """The contract of a role: subclass it, and name the role.

    class TestTriage(RoleContract):
        role_name = "triage"
    """

    role_name: str  # under which it is registered

    @pytest.fixture
    def kind(self) -> type[Role]:
        """The role's class."""
        found: type[Role] = load_once("roles", self.role_name)
        return found

    @pytest.fixture
    def roles(self, kind: type[Role]) -> list[Role]:
        """The role under each of its contracts."""
        return [kind(contract=name) for name in kind.contracts]

    @pytest.fixture
    def concepts(self, roles: list[Role]) -> list[Concept]:
        """Concepts of the role's own making."""
        return roles[0].generate_concepts(12, seed=1)

    # --- names and contracts ----------------------------------------------------------------------

    def test_its_names_are_said_once(self, kind: type[Role]) -> None:
        assert kind.name == self.role_name and kind.version_stem
        assert len(set(kind.contracts)) == len(kind.contracts) > 0
        assert len(set(kind.labels)) == len(kind.labels)

    def test_each_contract_has_a_digest_of_its_own_and_the_first_is_the_default(
        self, kind: type[Role], roles: list[Role]
    ) -> None:
        assert [(role.contract.role, role.contract.name) for role in roles] == [(kind.name, n) for n in kind.contracts]
        assert len({role.contract.digest for role in roles}) == len(roles)
        assert kind().contract == roles[0].contract

    def test_a_contract_that_it_does_not_have_is_refused_by_name(self, kind: type[Role]) -> None:
        with pytest.raises(SettingsError, match="no_such_contract"):
            kind(contract="no_such_contract")

    def test_another_system_text_is_asked_with_and_changes_the_digest(
        self, kind: type[Role], roles: list[Role], concepts: list[Concept]
    ) -> None:
        for role in roles:
            other = kind(contract=role.contract.name, prompt="Another text.")
            assert other.contract.digest != role.contract.digest
            assert "Another text." in "".join(message.content for message in other.render(concepts[0]))

    # --- concepts -----------------------------------------------------------------------------------

    def test_concepts_are_the_same_for_the_same_seed_and_have_ids_of_their_own(
        self, roles: list[Role], concepts: list[Concept]
    ) -> None:
        assert len({concept.concept_id for concept in concepts}) == len(concepts) == 12
        assert roles[0].generate_concepts(12, seed=1) == concepts

    def test_planted_labels_are_classes_of_the_role(self, roles: list[Role], concepts: list[Concept]) -> None:
        assert {concept.planted_label for concept in concepts} <= {*roles[0].labels, None}

    def test_variations_come_after_the_concepts_that_they_vary(
        self, roles: list[Role], concepts: list[Concept]
    ) -> None:
        varied = roles[0].vary_concepts(concepts[:3], 8, seed=2)
        assert list(varied[:3]) == concepts[:3]
        assert len({concept.concept_id for concept in varied}) == len(varied) == 8

    def test_it_can_work_on_its_own_concepts(self, roles: list[Role], concepts: list[Concept]) -> None:
        for role in roles:
            for concept in concepts:
                role.check(concept)

    # --- prompts --------------------------------------------------------------------------------------

    def test_a_prompt_is_a_system_text_and_a_question_and_always_the_same(
        self, roles: list[Role], concepts: list[Concept]
    ) -> None:
        for role in roles:
            messages = role.render(concepts[0])
            assert messages == role.render(concepts[0])
            assert messages[-1].speaker == "user" and all(message.content.strip() for message in messages)
            assert Counter(message.speaker for message in messages)["system"] <= 1

    def test_prompts_about_two_concepts_are_two(self, roles: list[Role], concepts: list[Concept]) -> None:
        for role in roles:
            assert len({role.render(concept)[-1].content for concept in concepts}) == len(concepts)

    def test_the_concept_is_found_in_its_default_prompt(self, roles: list[Role], concepts: list[Concept]) -> None:
        for concept in concepts:
            found = roles[0].read_prompt(roles[0].render(concept)[-1].content)
            assert found is not None and found.concept.strip() == concept.concept.strip()

    # --- answers --------------------------------------------------------------------------------------

    def test_the_answer_of_its_rules_is_sound_in_every_contract(
        self, roles: list[Role], concepts: list[Concept]
    ) -> None:
        for role in roles:
            score = role.score(concepts[0], role.answer_by_rules(concepts[0]))
            assert score.valid and score.value >= _SOUND and score.violations == ()
            assert score.label in {*role.labels, None}

    def test_what_is_read_is_what_was_written(self, roles: list[Role], concepts: list[Concept]) -> None:
        for role in roles:
            for concept in concepts:
                answer = role.parse(role.answer_by_rules(concept))
                assert answer.documents and answer.violations == ()
                written = role.canonical(answer.documents)
                again = role.parse(written)
                assert again.documents == answer.documents and role.canonical(again.documents) == written
                assert role.score(concept, written).valid and role.violations(concept, again.documents) == ()

    def test_what_is_no_answer_is_read_and_scored_without_an_error_and_is_invalid(
        self, roles: list[Role], concepts: list[Concept]
    ) -> None:
        for role in roles:
            for text in _NO_ANSWERS:
                role.parse(text)
                score = role.score(concepts[0], text)
                assert isinstance(score, Score) and not score.valid and score.value <= _EMPTY, text

    def test_an_answer_that_was_cut_is_invalid(self, roles: list[Role], concepts: list[Concept]) -> None:
        for role in roles:
            text = role.answer_by_rules(concepts[0])
            for share in (0.25, 0.5, 0.75):
                assert not role.score(concepts[0], text[: int(len(text) * share)]).valid

    def test_advice_and_fields_of_the_metric_are_given_for_any_answer(
        self, roles: list[Role], concepts: list[Concept]
    ) -> None:
        for role in roles:
            for text in ("", role.answer_by_rules(concepts[0])):
                assert all(isinstance(line, str) for line in role.advise(concepts[0], text))
                example, prediction = role.metric_fields(concepts[0], text)
                assert dict(example) and isinstance(dict(prediction), dict)
            assert role.join_documents({}) is None

    def test_its_metric_passes_its_own_test(self, roles: list[Role]) -> None:
        for role in roles:
            role.self_test()

    # --- structured output ----------------------------------------------------------------------------

    def test_its_json_schema_is_that_of_an_object(self, roles: list[Role]) -> None:
        schema = roles[0].json_schema()
        assert schema.get("type") == "object" and json.loads(json.dumps(schema)) == schema

    def test_a_schema_of_its_own_for_decoding_comes_to_an_end(self, roles: list[Role], concepts: list[Concept]) -> None:
        if not hasattr(roles[0], "decoding_schema"):
            pytest.skip("limits are put into its JSON schema")
        for concept in concepts:
            needed = tokens_for(decoding_schema(roles[0], concept, 8192))
            assert needed is not None and needed <= 8192
