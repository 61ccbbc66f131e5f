"""The calls of any DSPy program as a role, so that they go the road that a role's answers go.

A concept is what one call was given; its prompt is kept word for word, since the program will ask in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import JsonValue

from po_distill.artifacts import digest_value
from po_distill.dspy_form import CONTRACT, asked_outputs, read_fields, read_question, write_fields
from po_distill.errors import InputError
from po_distill.interfaces import Documents
from po_distill.records import Answer, Concept, Message, PromptContract, Score, Violation

_DOCUMENT = "outputs"


def row_of_call(messages: Sequence[Mapping[str, str]], where: str) -> dict[str, Any]:
    """A call of DSPy's training data as a row for the dataset builder. Raises InputError where nothing is answered."""
    spoken = [turn.get("role") for turn in messages]
    if len(messages) < 2 or spoken[-2:] != ["user", "assistant"]:
        raise InputError(f"{where} does not end with a question and its answer.", "Give calls as ChatAdapter has them.")
    *prompt, answer = messages
    question = prompt[-1]["content"]
    inputs = read_question(question) or {"question": question}
    program = digest_value([turn["content"] for turn in prompt if turn.get("role") == "system"])[7:19]
    concept = {
        "concept_id": f"call-{digest_value([prompt, answer])[7:23]}",
        "concept": "\n\n".join(inputs.values()).strip() or question,
        "requirements_yaml": f"outputs: [{', '.join(asked_outputs(question))}]\nprogram: {program}",
        "metadata": {"prompt": [dict(turn) for turn in prompt], "outputs": list(asked_outputs(question))},
    }
    return {"concept": concept, "prompt": prompt, "response": answer["content"]}


class ProgramRole:
    """The role of a program's calls. The optimizer's metric has judged them; what is left to see is their form."""

    name: ClassVar[str] = "dspy_program"
    version_stem: ClassVar[str] = "dspy_student"
    labels: ClassVar[tuple[str, ...]] = ()
    contracts: ClassVar[tuple[str, ...]] = (CONTRACT,)

    def __init__(self, contract: str | None = None, prompt: str | None = None) -> None:
        self.contract = PromptContract(
            role=self.name, name=CONTRACT, system=prompt or "", template="{prompt}", output_format="chat-adapter/1"
        )

    def check(self, concept: Concept) -> None:
        """Any call can be learned from."""

    def render(self, concept: Concept) -> tuple[Message, ...]:
        """The prompt of the call, as it was."""
        turns: Any = concept.metadata["prompt"]
        return tuple(Message.model_validate(turn) for turn in turns)

    def read_prompt(self, prompt: str) -> Concept | None:
        """A user message alone does not say what was before it."""
        return None

    def join_documents(self, row: Mapping[str, Any]) -> str | None:
        """Calls come with their answer whole."""
        return None

    def parse(self, text: str) -> Answer:
        """The fields of an answer."""
        fields = {name: value for name, value in read_fields(text).items() if name != "completed"}
        return Answer(documents={_DOCUMENT: fields} if fields else {}, contract=CONTRACT if fields else None)

    def canonical(self, documents: Documents, *, stamp: str | None = None) -> str:
        """The answer as ChatAdapter writes it."""
        return write_fields(documents[_DOCUMENT])

    def score(self, concept: Concept, text: str) -> Score:
        """The share of the asked fields that are there."""
        documents = self.parse(text).documents
        missing = self.violations(concept, documents)
        asked: Any = concept.metadata["outputs"]
        return Score(value=1 - len(missing) / max(len(asked), len(missing), 1), violations=missing, valid=not missing)

    def advise(self, concept: Concept, text: str) -> tuple[str, ...]:
        """What is missing."""
        return tuple(violation.detail for violation in self.score(concept, text).violations)

    def metric_fields(self, concept: Concept, text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """(inputs, outputs) of the call."""
        return read_question(self.render(concept)[-1].content), self.parse(text).documents.get(_DOCUMENT, {})

    def violations(self, concept: Concept, documents: Documents) -> tuple[Violation, ...]:
        """Fields that were asked for and are not there."""
        fields, asked = documents.get(_DOCUMENT, {}), concept.metadata["outputs"]
        assert isinstance(asked, list)
        missing = [str(name) for name in asked if name not in fields] or ([] if fields else ["any field"])
        return tuple(Violation(kind="missing_field", detail=f"{name} is not there") for name in missing)

    def json_schema(self) -> dict[str, JsonValue]:
        """Programs differ: any texts by name."""
        return {"type": "object", "additionalProperties": {"type": "string"}}

    def generate_concepts(self, count: int, seed: int) -> list[Concept]:
        """None: calls are what a program asked."""
        return []

    def vary_concepts(
        self, concepts: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()
    ) -> list[Concept]:
        """The given ones alone."""
        return list(concepts)[:count]

    def answer_by_rules(self, concept: Concept) -> str:
        """Raises InputError: nobody but the program's teacher knows the answer."""
        raise InputError("There are no rules for the calls of a DSPy program.", "Ask its teacher.")

    def self_test(self) -> None:
        """Nothing is scored by a metric of the role's own."""
