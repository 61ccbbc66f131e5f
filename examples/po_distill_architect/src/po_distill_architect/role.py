"""The architect as a Role: asked, read, written and scored through one PromptContract."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import JsonValue

from po_distill import safe_yaml
from po_distill.errors import InputError, PODistillError, SettingsError
from po_distill.interfaces import Documents
from po_distill.records import Answer, Concept, Failure, Inspection, Message, PromptContract, Score, Violation
from po_distill_architect import answers, concepts, decoding, rules, scoring
from po_distill_architect.documents import (
    ARCHITECTURE,
    FEASIBILITY,
    MODELS,
    STORIES,
    ArchitectDocuments,
    normalised,
    render_yaml,
    schema_violations,
)
from po_distill_architect.prompt import CONTRACTS, ROLE, architect_contract, read_prompt, render_prompt


class ArchitectRole:
    """The architect: requirements and a product vision in, stories and an architecture out.

    A concept's `existing_vision` is the vision to build; the role needs one.
    """

    name: ClassVar[str] = ROLE
    version_stem: ClassVar[str] = "architect_student"
    labels: ClassVar[tuple[str, ...]] = FEASIBILITY
    contracts: ClassVar[tuple[str, ...]] = CONTRACTS
    violation_kinds: ClassVar[tuple[str, ...]] = (
        *("missing_stories", "missing_architecture", "unreadable_yaml", "missing_key", "unknown_key", "wrong_type"),
        *("empty_text", "feasibility_outside_enum", "estimate_outside_scale", "unknown_requirement_id"),
        *("requirement_without_story", "repeated_story_id", "verdict_contradicts_lists"),
    )

    def __init__(self, contract: str | None = None, prompt: str | None = None) -> None:
        """`contract` is one of `contracts`; `prompt` is a system text in place of the role's own."""
        name = contract or self.contracts[0]
        if name not in self.contracts:
            raise SettingsError(
                f"The role {self.name} has no prompt contract {name!r}.", f"Choose one of {', '.join(self.contracts)}."
            )
        self._contract = architect_contract(name, prompt)

    @property
    def contract(self) -> PromptContract:
        """The contract that this instance asks and reads under."""
        return self._contract

    def check(self, concept: Concept) -> None:
        """Raise InputError unless there are a functional requirement with an id and a product vision."""
        where = f"the requirements of {concept.concept_id}"
        safe_yaml.load_shared(concept.requirements_yaml, what=where)  # says where they are no YAML
        if not any(one.section == scoring.FUNCTIONAL for one in scoring.list_requirements(concept.requirements_yaml)):
            raise InputError(
                f"{where} list no functional requirement with an id.",
                f"Give a mapping with {scoring.FUNCTIONAL}: a list of {{id, description, priority}}.",
            )
        if not scoring.read_mapping(concept.existing_vision):
            raise InputError(
                f"{concept.concept_id} has no product vision.",
                "Give one in existing_vision, as a YAML mapping: what the Product Owner of the same concept wrote.",
            )

    # --- asking and reading ---------------------------------------------------------------------

    def render(self, concept: Concept) -> tuple[Message, ...]:
        """The prompt about a concept under this contract."""
        return render_prompt(self.contract, concept)

    def read_prompt(self, text: str) -> Concept | None:
        """The concept in a prompt; None where a section is missing."""
        return read_prompt(text)

    def join_documents(self, row: Mapping[str, Any]) -> str | None:
        """An answer with labelled fences out of the texts `stories` and `architecture`, or either with `teacher_`."""
        texts = {name: row.get(name, row.get(f"teacher_{name}")) for name in MODELS}
        blocks = [
            f"```yaml {answers.LABELS[name]}\n{text.strip()}\n```"
            for name, text in texts.items()
            if isinstance(text, str) and text.strip()
        ]
        return "\n".join(blocks) or None

    def parse(self, text: str) -> Answer:
        """Read an answer in either contract, forgiving what can be read in one way only."""
        return answers.parse_answer(text)

    def canonical(self, documents: Documents, *, stamp: str | None = None) -> str:
        """The documents in this contract's form; no time stands in them, so `stamp` changes nothing."""
        both = normalised(documents)
        if self.contract.name == "json":
            return json.dumps(both, ensure_ascii=False)
        return "\n".join(f"```yaml {answers.LABELS[name]}\n{render_yaml(both[name])}\n```" for name in MODELS)

    def json_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of both documents in one object."""
        return ArchitectDocuments.model_json_schema()

    def decoding_schema(self, concept: Concept, max_tokens: int) -> dict[str, JsonValue]:
        """The schema of a guaranteed-valid answer; see `decoding.decoding_schema`."""
        return decoding.decoding_schema(concept, max_tokens)

    # --- scoring --------------------------------------------------------------------------------

    def score(self, concept: Concept, text: str) -> Score:
        """The metric of an answer, and all that is wrong with it. `valid` is production's view."""
        answer = self.parse(text)
        parts = scoring.metric_parts(concept.requirements_yaml, *self._yaml_texts(text))
        label = answer.documents.get(ARCHITECTURE, {}).get("feasibility")
        faults = answers.production_faults(text, self.contract.name)
        found = [*answer.violations, *scoring.gate_violations(concept.requirements_yaml, answer.documents), *faults]
        return Score(
            value=sum(parts.values()) / len(parts),
            parts=parts,
            violations=tuple({violation.kind: violation for violation in reversed(found)}.values()),
            label=label if label in FEASIBILITY else None,
            valid=not faults,
        )

    def _yaml_texts(self, text: str) -> tuple[str, str]:
        """(stories, architecture) of an answer as YAML text; JSON is YAML."""
        _, blocks = answers.find_blocks(text)
        stories, architecture = (blocks.get(name, "") for name in (STORIES, ARCHITECTURE))
        return tuple(  # type: ignore[return-value]
            block if isinstance(block, str) else json.dumps(block) for block in (stories, architecture)
        )

    def advise(self, concept: Concept, text: str) -> tuple[str, ...]:
        """What would raise the metric of an answer, a sentence each."""
        return tuple(scoring.metric_advice(concept.requirements_yaml, self.parse(text).documents))

    def metric_fields(self, concept: Concept, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """(concept, requirements_yaml, product_vision), (stories, architecture), all YAML texts but the concept."""
        example = {
            "concept": concept.concept,
            "requirements_yaml": concept.requirements_yaml,
            "product_vision": concept.existing_vision or "",
        }
        return example, dict(zip((STORIES, ARCHITECTURE), self._yaml_texts(text), strict=True))

    def violations(self, concept: Concept, documents: Documents) -> tuple[Violation, ...]:
        """What the gate holds against documents."""
        return (*schema_violations(documents), *scoring.gate_violations(concept.requirements_yaml, documents))

    def inspect(self, concept: Concept, text: str) -> Inspection:
        """How many stories and components there are; the requirement sentences."""
        documents = self.parse(text).documents
        held = {STORIES: documents.get(STORIES, {}).get(STORIES)}
        held["components"] = documents.get(ARCHITECTURE, {}).get("components")
        requirements = scoring.list_requirements(concept.requirements_yaml)
        return Inspection(
            counts={name: len(items) if isinstance(items, list) else 0 for name, items in held.items()},
            parts=tuple(one.description for one in requirements if one.description),
        )

    def coverage(self, concept: Concept, documents: Documents) -> float | None:
        """The share of the requirements that stories and architecture deal with."""
        stories = documents.get(STORIES, {}).get(STORIES)
        held = [story for story in stories if isinstance(story, dict)] if isinstance(stories, list) else []
        requirements = scoring.list_requirements(concept.requirements_yaml)
        return scoring.covered_share(requirements, held, documents.get(ARCHITECTURE, {}))

    def attribute(
        self, concept: Concept, text: str, *, score: Score, finish: str = "stop", expected: str | None = None
    ) -> tuple[Failure, ...]:
        """Why an answer with that score failed, the gravest cause first."""
        return answers.attribute(text, self.contract.name, score=score, finish=finish, expected=expected)

    def repair(self, text: str) -> str | None:
        """The answer with its texts quoted anew; None where that changes nothing."""
        return answers.repair(text, self.contract.name)

    # --- concepts and the stand-in --------------------------------------------------------------

    def generate_concepts(self, count: int, seed: int) -> list[Concept]:
        """Concepts made offline, with planted feasibility."""
        return concepts.generate_concepts(count, seed)

    def vary_concepts(
        self, given: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()
    ) -> list[Concept]:
        """The given concepts and variations of them, `count` in all."""
        return concepts.vary_concepts(given, count, seed, labels)

    def answer_by_rules(self, concept: Concept) -> str:
        """The answer of the embedded rules, in this contract's form."""
        return self.canonical(rules.write_documents(concept))

    def self_test(self) -> None:
        """Raise PODistillError unless the metric tells a sound answer from an empty one."""
        concept = concepts.generate_concepts(1, seed=1)[0]
        sound, empty = (self.score(concept, text).value for text in (self.answer_by_rules(concept), ""))
        if sound < 0.85 or empty > 0.02:
            raise PODistillError(
                f"The metric's self-test failed: a sound answer scores {sound:.3f}, an empty one {empty:.3f}.",
                "The installation is broken: reinstall po-distill-architect.",
            )
