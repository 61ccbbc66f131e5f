"""The Product Owner's contract `dspy`: asked as `dspy.Predict` asks, answered as it reads. Most of it needs DSPy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from po_distill import dspy_form
from po_distill.records import Concept, Message, PromptContract
from po_distill.roles.product_owner.documents import REVIEW, VISION
from po_distill.roles.product_owner.prompt import INSTRUCTIONS, OTHER_INSTRUCTIONS, OUTPUT_FORMAT, ROLE

_OUTPUTS = (VISION, REVIEW)
_OWN_SHARE = 0.5  # of the rows, under the role's own instructions: what a program asks until an optimizer changes it


def signature(instructions: str | None = None) -> Any:
    """The role's `dspy.Signature`, under other instructions where some are given. Raises MissingExtraError."""
    dspy_form.require_dspy("The prompt contract dspy")
    from po_distill.roles.product_owner.program import ProductOwnerSignature

    return ProductOwnerSignature.with_instructions(instructions) if instructions else ProductOwnerSignature


@lru_cache(maxsize=64)
def contract(system: str | None = None) -> PromptContract:
    """The contract; `system` are other instructions, or the system message that was made of them."""
    asked = signature(dspy_form.read_instructions(system) if system else None)
    places = {"concept": "{concept}", "requirements_yaml": "{requirements}", "existing_vision": "{existing_vision}"}
    return PromptContract(
        role=ROLE,
        name=dspy_form.CONTRACT,
        system=dspy_form.system_text(asked),
        template=dspy_form.user_text(asked, places),
        output_format=OUTPUT_FORMAT,
    )


def render(contract: PromptContract, concept: Concept) -> tuple[Message, ...]:
    """The prompt about a concept, as a program without demonstrations asks it."""
    return dspy_form.chat(_signature_of(contract), inputs_of(concept))


def render_with(
    contract: PromptContract, concept: Concept, demonstrations: Sequence[tuple[Concept, str]]
) -> tuple[Message, ...]:
    """The prompt as an optimized program asks it: with answered concepts, under instructions that the concept decides.

    An answer that does not hold both documents is left out.
    """
    shown = [
        (inputs_of(other), answer)
        for other, text in demonstrations
        if set(_OUTPUTS) <= set(answer := dspy_form.read_fields(text))
    ]
    demos = [(inputs, {name: answer[name] for name in _OUTPUTS}) for inputs, answer in shown]
    return dspy_form.chat(_signature_of(contract, _chosen(contract, concept)), inputs_of(concept), demos)


def asks(contract: PromptContract, concept: Concept, prompt: Sequence[Message]) -> bool:
    """Whether a prompt asks about a concept in this form: under any instructions, with any demonstrations."""
    if len(prompt) < 2 or prompt[0].speaker != "system" or read_concept(prompt[-1].content) is None:
        return False
    asked = _signature_of(contract, dspy_form.read_instructions(prompt[0].content))
    if prompt[0].content != dspy_form.system_text(asked):
        return False
    turns = prompt[1:-1]
    pairs = list(zip(turns[::2], turns[1::2], strict=False))
    shown = all(
        question.speaker == "user"
        and answer.speaker == "assistant"
        and set(inputs_of(concept)) <= set(dspy_form.read_fields(question.content))
        and set(_OUTPUTS) <= set(dspy_form.read_fields(answer.content))
        for question, answer in pairs
    )
    return shown and len(turns) % 2 == 0 and prompt[-1].content == dspy_form.user_text(asked, inputs_of(concept))


def write_answer(vision: str, review: str) -> str:
    """The answer with both documents, as YAML texts."""
    return dspy_form.answer_text(signature(), {VISION: vision, REVIEW: review})


def read_concept(text: str) -> Concept | None:
    """The concept that a user message in this form asks about; None where it is in another. Needs no DSPy."""
    fields = dspy_form.read_question(text)
    if not fields.get("concept") or not fields.get("requirements_yaml"):
        return None
    return Concept(
        concept_id="prompt",
        concept=fields["concept"],
        requirements_yaml=fields["requirements_yaml"],
        existing_vision=fields.get("existing_vision"),
    )


def inputs_of(concept: Concept) -> dict[str, str]:
    """The fields that a concept is asked with."""
    return {
        "concept": concept.concept.strip(),
        "requirements_yaml": concept.requirements_yaml.strip(),
        "existing_vision": (concept.existing_vision or "").strip(),
    }


@lru_cache(maxsize=64)  # a signature is a class, which takes milliseconds to make
def _under(instructions: str) -> Any:
    return signature() if instructions == INSTRUCTIONS else signature(instructions)


def _signature_of(contract: PromptContract, instructions: str | None = None) -> Any:
    return _under(instructions or dspy_form.read_instructions(contract.system))


def _chosen(contract: PromptContract, concept: Concept) -> str:
    """The instructions for a row: the contract's own in half of them, else one of the role's others."""
    chance = random.Random(f"instructions\n{concept.concept_id}")  # noqa: S311 - a choice that a second build repeats
    own = dspy_form.read_instructions(contract.system)
    if own != INSTRUCTIONS:  # those of the user's own choice are not to be varied
        return own
    return own if chance.random() < _OWN_SHARE else chance.choice(OTHER_INSTRUCTIONS)
