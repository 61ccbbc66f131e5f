"""The Product Owner as a Role: asked, read, written and scored through one PromptContract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import JsonValue

from po_distill import safe_yaml
from po_distill.dspy_form import CONTRACT as DSPY
from po_distill.dspy_form import read_instructions
from po_distill.errors import InputError, PODistillError, SettingsError
from po_distill.interfaces import Documents
from po_distill.records import Answer, Concept, Failure, Inspection, Message, PromptContract, Score, Violation
from po_distill.roles.product_owner import concepts, failures, program_prompt, rules
from po_distill.roles.product_owner.answers import (
    find_blocks,
    inspect_answer,
    parse_answer,
    parse_shared,
    production_faults,
)
from po_distill.roles.product_owner.decoding import decoding_schema
from po_distill.roles.product_owner.documents import (
    REVIEW,
    VISION,
    ProductOwnerDocuments,
    normalised,
    render_yaml,
    schema_violations,
)
from po_distill.roles.product_owner.prompt import (
    CONTRACTS,
    OTHER_INSTRUCTIONS,
    ROLE,
    product_owner_contract,
    render_prompt,
)
from po_distill.roles.product_owner.scoring import (
    STATUSES,
    gate_violations,
    list_requirements,
    metric_advice,
    metric_parts,
    product_owner_metric,
)


class ProductOwnerRole:
    """The Product Owner: a concept and requirements in, a product vision and a review out."""

    name: ClassVar[str] = ROLE
    short_name: ClassVar[str] = "PO"
    version_stem: ClassVar[str] = "po_student"
    labels: ClassVar[tuple[str, ...]] = STATUSES
    contracts: ClassVar[tuple[str, ...]] = CONTRACTS
    demonstrated: ClassVar[tuple[str, ...]] = (DSPY,)
    other_instructions: ClassVar[tuple[str, ...]] = OTHER_INSTRUCTIONS
    # Concepts of the field team's set on which every teacher and student was weak.
    watch: ClassVar[tuple[str, ...]] = ("POCON-0004", "POCON-0009", "POCON-0012", "POCON-0115", "POCON-0191")

    # What `violations` and `parse` may find, so that a count of it can be 0.
    violation_kinds: ClassVar[tuple[str, ...]] = (
        *(
            "missing_vision",
            "missing_review",
            "unreadable_yaml",
            "missing_key",
            "unknown_key",
            "wrong_type",
            "empty_text",
        ),
        *("status_outside_enum", "unknown_requirement_id", "too_few_actions", "verdict_contradicts_lists"),
    )

    def __init__(self, contract: str | None = None, prompt: str | None = None) -> None:
        """`contract` is one of `contracts`; `prompt` is a system text in place of the role's own."""
        name = contract or self.contracts[0]
        if name not in self.contracts:
            raise SettingsError(
                f"The role {self.name} has no prompt contract {name!r}.", f"Choose one of {', '.join(self.contracts)}."
            )
        self._contract = product_owner_contract(name, prompt)
        self._prompt = prompt

    @property
    def contract(self) -> PromptContract:
        """The contract that this instance asks and reads under."""
        return self._contract

    def check(self, concept: Concept) -> None:
        """Raise InputError unless the requirements are a YAML mapping that lists a requirement."""
        where = f"the requirements of {concept.concept_id}"
        document = safe_yaml.load_shared(concept.requirements_yaml.rstrip(), what=where)
        if not isinstance(document, dict):
            raise InputError(f"{where} are a {type(document).__name__}, not a YAML mapping.", _REQUIREMENTS_FIX)
        if not list_requirements(concept.requirements_yaml):
            raise InputError(f"{where} list no requirement with an id or a description.", _REQUIREMENTS_FIX)

    def render(self, concept: Concept) -> tuple[Message, ...]:
        """The prompt about a concept under this contract."""
        return render_prompt(self.contract, concept)

    def render_with(self, concept: Concept, demonstrations: Sequence[tuple[Concept, str]]) -> tuple[Message, ...]:
        """The prompt with answered concepts before it, under the contract `dspy`; under the others as `render` has it.

        The instructions are the role's own, or, for some concepts, others that say the same.
        """
        if self.contract.name != DSPY:
            return self.render(concept)
        return program_prompt.render_with(self.contract, concept, demonstrations)

    def knows_prompt(self, concept: Concept, prompt: Sequence[Message]) -> bool:
        """Whether a prompt asks about the concept as the role does, under any of its contracts."""
        if prompt and program_prompt.read_concept(prompt[-1].content) is not None:
            return program_prompt.asks(product_owner_contract(DSPY, self._prompt), concept, prompt)
        plain = (product_owner_contract(name, self._prompt) for name in self.contracts if name != DSPY)
        return any(render_prompt(contract, concept) == tuple(prompt) for contract in plain)

    def signature(self) -> Any:
        """The `dspy.Signature` of a program of this role, under the user's own instructions where there are some.

        Raises MissingExtraError.
        """
        return program_prompt.signature(self._prompt and read_instructions(self._prompt))

    def read_prompt(self, text: str) -> Concept | None:
        """The concept in a prompt of labelled sections, or in one of DSPy's; None where there is none."""
        return program_prompt.read_concept(text) or concepts.read_labelled_prompt(text)

    def join_documents(self, row: Mapping[str, Any]) -> str | None:
        """An answer out of the texts `product_vision` and `product_owner_review`, in fences or in DSPy's form.

        `vision_yaml` and `review_yaml`, and either with the prefix `teacher_`, are read too.
        """
        texts = [
            next((row[key] for key in (name, f"teacher_{name}", short) if isinstance(row.get(key), str)), None)
            for name, short in ((VISION, "vision_yaml"), (REVIEW, "review_yaml"))
        ]
        if not any(texts):
            return None
        if self.contract.name == DSPY:
            return program_prompt.write_answer(*(text or "" for text in texts))
        blocks = zip(("VISION", "REVIEW"), texts, strict=True)
        return "\n".join(f"```yaml {label}\n{text.strip()}\n```" for label, text in blocks if text)

    def parse(self, text: str) -> Answer:
        """Read an answer in any contract; see `answers.parse_answer`. The documents must not be changed."""
        return parse_shared(text)

    def normalised(self, documents: Documents, *, stamp: str | None = None) -> dict[str, dict[str, Any]]:
        """The documents as `canonical` writes them; see `documents.normalised`."""
        return normalised(documents, stamp=stamp)

    def canonical(self, documents: Documents, *, stamp: str | None = None) -> str:
        """The documents in this contract's form: `parse(canonical(d)).documents == normalised(d)`."""
        both = self.normalised(documents, stamp=stamp)
        if self.contract.name == "json":
            return json.dumps(both, ensure_ascii=False)
        vision, review = render_yaml(both[VISION]), render_yaml(both[REVIEW])
        if self.contract.name == DSPY:
            return program_prompt.write_answer(vision, review)
        if self.contract.name == "tagged":
            return f"<VISION>\n{vision}\n</VISION>\n<REVIEW>\n{review}\n</REVIEW>"
        return f"```yaml VISION\n{vision}\n```\n```yaml REVIEW\n{review}\n```"

    def score(self, concept: Concept, text: str) -> Score:
        """The metric of an answer on its blocks as they stand, and everything wrong with it.

        `valid` is production's view; `label` is the status where it is in the enum.
        """
        _, blocks = find_blocks(text)
        parts = metric_parts(concept.requirements_yaml, blocks.get(VISION), blocks.get(REVIEW))
        answer = parse_shared(text)
        status = answer.documents.get(REVIEW, {}).get("status")
        faults = production_faults(text, self.contract.name)
        found = [*answer.violations, *gate_violations(concept.requirements_yaml, answer.documents), *faults]
        return Score(
            value=sum(parts.values()) / len(parts),
            parts=parts,
            violations=tuple({violation.kind: violation for violation in reversed(found)}.values()),
            label=status if isinstance(status, str) and status in STATUSES else None,
            valid=not faults,
        )

    def advise(self, concept: Concept, text: str) -> tuple[str, ...]:
        """What would raise the metric of an answer; see `scoring.metric_advice`."""
        return metric_advice(concept.requirements_yaml, parse_answer(text).documents)

    def metric_fields(self, concept: Concept, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """(concept, requirements_yaml, existing_vision), (product_vision, product_owner_review), all YAML texts."""
        _, blocks = find_blocks(text)
        example = {
            "concept": concept.concept,
            "requirements_yaml": concept.requirements_yaml,
            "existing_vision": concept.existing_vision or "",
        }
        return example, {name: blocks.get(name, "") for name in (VISION, REVIEW)}

    def violations(self, concept: Concept, documents: Documents) -> tuple[Violation, ...]:
        """What the gate holds against documents."""
        return (*schema_violations(documents), *gate_violations(concept.requirements_yaml, documents))

    def inspect(self, concept: Concept, text: str) -> Inspection:
        """How many alignment items YAML reads as mappings, and times as no text; the day; the requirement sentences."""
        counts, values = inspect_answer(text)
        sentences = (description for _, description in list_requirements(concept.requirements_yaml))
        return Inspection(counts=counts, values=values, parts=tuple(filter(None, sentences)))

    def attribute(
        self, concept: Concept, text: str, *, score: Score, finish: str = "stop", expected: str | None = None
    ) -> tuple[Failure, ...]:
        """Why an answer with that score failed, the gravest cause first; see `failures.attribute`."""
        return failures.attribute(concept, text, self.contract.name, score=score, finish=finish, expected=expected)

    def repair(self, text: str) -> str | None:
        """The answer unfolded and quoted, for the counterfactual alone; None where that changes nothing."""
        return failures.repair(text, self.contract.name)

    def coverage(self, concept: Concept, documents: Documents) -> float | None:
        """The share of the requirements that the review deals with."""
        return failures.coverage(concept, documents)

    def json_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of both documents in one object."""
        return ProductOwnerDocuments.model_json_schema()

    def decoding_schema(self, concept: Concept, max_tokens: int) -> dict[str, JsonValue]:
        """The same for guaranteed-valid answers about one concept; see `decoding.decoding_schema`."""
        return decoding_schema(concept, max_tokens)

    def generate_concepts(self, count: int, seed: int) -> list[Concept]:
        """Concepts made offline, with planted statuses; see `concepts.generate_concepts`."""
        return concepts.generate_concepts(count, seed)

    def vary_concepts(
        self, given: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()
    ) -> list[Concept]:
        """The given concepts and variations of them, `count` in all; see `concepts.vary_concepts`."""
        return concepts.vary_concepts(given, count, seed, labels)

    def answer_by_rules(self, concept: Concept) -> str:
        """The answer of the embedded rule-based Product Owner, in this contract's form."""
        return self.canonical(rules.write_documents(concept))

    def self_test(self) -> None:
        """Raise PODistillError unless the metric tells a sound answer from an empty one."""
        concept = concepts.generate_concepts(1, seed=1)[0]
        documents = normalised(rules.write_documents(concept))
        sound = product_owner_metric(
            {"requirements_yaml": concept.requirements_yaml},
            {name: render_yaml(document) for name, document in documents.items()},
        )
        empty = product_owner_metric(
            {"requirements_yaml": concept.requirements_yaml}, {"product_vision": "", "product_owner_review": ""}
        )
        if sound < 0.85 or empty > 0.02:
            raise PODistillError(
                f"The metric's self-test failed: a sound answer scores {sound:.3f}, an empty one {empty:.3f}.",
                "The installation is broken, or the metric's fields were renamed: reinstall po-distill.",
            )


_REQUIREMENTS_FIX = (
    "Give a mapping with functional_requirements, non_functional_requirements or constraints, "
    "each a list of {id, description, priority}."
)
