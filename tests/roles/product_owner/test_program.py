"""The Product Owner as a DSPy program, and its contract of that form."""

import pytest

pytest.importorskip("dspy")
import dspy
from dspy.adapters import ChatAdapter

from po_distill.records import Message
from po_distill.roles.product_owner.documents import REVIEW, VISION
from po_distill.roles.product_owner.program import ProductOwner, ProductOwnerSignature
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole("dspy")
CONCEPTS = ROLE.generate_concepts(4, seed=2)
CONCEPT = CONCEPTS[0].model_copy(update={"existing_vision": 'product_name: "Old"'})
GOOD = ROLE.answer_by_rules(CONCEPT)


def program_prompt(program, concept):
    """What DSPy sends when the program is asked."""
    seen = []

    class Listening(ChatAdapter):
        def format(self, signature, demos, inputs):
            seen.append(super().format(signature, demos, inputs))
            return seen[-1]

    with dspy.context(lm=dspy.utils.DummyLM([{VISION: "a: b", REVIEW: "c: d"}]), adapter=Listening()):
        program(
            concept=f" {concept.concept}\n",
            requirements_yaml=concept.requirements_yaml,
            existing_vision=concept.existing_vision or "",
        )
    return tuple(Message.model_validate(turn) for turn in seen[0])


def test_a_student_is_trained_on_what_the_program_asks():
    assert ROLE.render(CONCEPT) == program_prompt(ProductOwner(), CONCEPT)
    assert ROLE.render(CONCEPTS[1]) == program_prompt(ProductOwner(), CONCEPTS[1])


def test_the_program_reads_what_the_student_is_trained_to_say():
    found = ChatAdapter().parse(ProductOwnerSignature, GOOD)
    assert set(found) == {VISION, REVIEW}
    assert ROLE.parse(found[VISION] and GOOD).documents == ROLE.normalised(ROLE.parse(GOOD).documents)


def test_the_contract_says_what_the_prompt_says():
    system, user = ROLE.render(CONCEPT)
    assert system.content == ROLE.contract.system
    filled = ROLE.contract.template.replace("{concept}", CONCEPT.concept.strip())
    filled = filled.replace("{requirements}", CONCEPT.requirements_yaml.strip())
    assert user.content == filled.replace("{existing_vision}", CONCEPT.existing_vision)


def test_other_instructions_are_kept_when_the_contract_is_opened_again():
    own = ProductOwnerRole("dspy", "Be brief.\nBe kind.")
    again = ProductOwnerRole("dspy", own.contract.system)
    assert again.contract == own.contract
    assert "Be kind." in own.contract.system
    assert own.signature().instructions == "Be brief.\nBe kind."


def test_production_reads_sections_alone_and_the_gate_forgives_fences_in_them():
    assert ROLE.score(CONCEPT, GOOD).valid
    assert ROLE.score(CONCEPT, GOOD.replace("[[ ## completed ## ]]", "")).valid
    assert not ProductOwnerRole("fenced").score(CONCEPT, GOOD).valid
    fenced = GOOD.replace("[[ ## product_vision ## ]]\n", "[[ ## product_vision ## ]]\n```yaml\n")
    fenced = fenced.replace("\n\n[[ ## product_owner_review", "\n```\n\n[[ ## product_owner_review")
    assert not ROLE.score(CONCEPT, fenced).valid
    assert ROLE.parse(fenced).documents == ROLE.parse(GOOD).documents
    assert ROLE.parse(fenced).contract == "dspy"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (GOOD.split("[[ ## product_owner_review")[0], "truncated"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (ProductOwnerRole("fenced").answer_by_rules(CONCEPT), "wrong_fences"),
        ("Hello.", "no_blocks"),
    ],
)
def test_an_answer_that_cannot_be_read_has_a_cause(text, cause):
    assert ROLE.attribute(CONCEPT, text, score=ROLE.score(CONCEPT, text))[0].cause == cause


def test_an_answer_cut_between_two_lines_is_truncated_although_what_is_there_can_be_read():
    ends = [at + 1 for at, letter in enumerate(GOOD[: GOOD.index("[[ ## completed")].rstrip()) if letter == "\n"]
    for end in ends:
        assert ROLE.attribute(CONCEPT, GOOD[:end], score=ROLE.score(CONCEPT, GOOD[:end]))[0].cause == "truncated"


def test_a_broken_section_can_be_repaired():
    broken = GOOD.replace('product_name: "', "product_name: ", 1).replace(
        '"\nproduct_summary', ": x\nproduct_summary", 1
    )
    assert not ROLE.score(CONCEPT, broken).valid
    assert ROLE.score(CONCEPT, ROLE.repair(broken)).valid


def test_a_prompt_of_the_program_gives_back_its_concept():
    found = ROLE.read_prompt(ROLE.render(CONCEPT)[-1].content)
    assert (found.concept, found.requirements_yaml) == (CONCEPT.concept.strip(), CONCEPT.requirements_yaml.strip())
    assert found.existing_vision == CONCEPT.existing_vision


def test_prompts_of_every_contract_are_known_and_no_others():
    for name in ROLE.contracts:
        assert ROLE.knows_prompt(CONCEPT, ProductOwnerRole(name).render(CONCEPT))
    shown = [(CONCEPTS[2], ROLE.answer_by_rules(CONCEPTS[2]))]
    prompt = ROLE.render_with(CONCEPT, shown)
    assert len(prompt) == 4
    assert ROLE.knows_prompt(CONCEPT, prompt)
    assert not ROLE.knows_prompt(CONCEPTS[1], prompt)
    assert not ROLE.knows_prompt(CONCEPT, prompt[:2] + prompt[3:])
    assert not ROLE.knows_prompt(CONCEPT, (prompt[0].model_copy(update={"content": "Be kind."}), prompt[-1]))


def test_an_answer_without_a_document_is_not_shown():
    assert len(ROLE.render_with(CONCEPT, [(CONCEPTS[1], "nothing")])) == 2
