"""A made-up evaluation of many cases: three candidates' answers to the Product Owner's concepts, faults planted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from po_distill import Evaluator
from po_distill.records import Completion, Concept, EvaluationReport, Usage
from po_distill.reporting.projections import Work
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole()
_OTHER_WORDS = {"the": "every", "users": "customers", "clear": "plain", "must": "has to", "and": "as well as"}
_DETAIL = "the first release has to show it to the people who pay for it, and nobody may need a manual to find it"
_ADDED = "Interviews with five pilot customers are planned before anything is built — “really”, <b>all</b> of them."

Given = dict[str, list[Completion]]


def many_cases(folder: Path, count: int, seed: int = 7) -> tuple[EvaluationReport, Given]:
    """The report on so many concepts and three candidates, and their completions; the same for the same arguments."""
    chance = random.Random(seed)
    concepts = [_wordier(concept) for concept in ROLE.generate_concepts(count, seed)]
    watch = [concept.concept_id for concept in concepts[: max(1, count // 60)]]
    given = {
        "teacher": [_completion(c, ROLE.canonical(_full(c)), "gemini-2.5-flash", chance, 9.0) for c in concepts],
        "base": [_completion(c, _weak(c, chance), "qwen2.5-7b-instruct.Q4_K_M.gguf", chance, 2.4) for c in concepts],
        "student": [_completion(c, _good(c, chance), "po-student-v2.Q4_K_M.gguf", chance, 1.1) for c in concepts],
    }
    evaluator = Evaluator(
        ROLE,
        folder=folder,
        report_path=None,
        watch=watch,
        works=(Work("pipeline", 12, "12 calls of the role a run"), Work("miprov2", 900, "30 trials of 30 cases")),
        workers=1,
        seed=seed,
    )
    return evaluator.evaluate(concepts, given, reference="teacher", production="teacher"), given


def _wordier(concept: Concept) -> Concept:
    return concept.model_copy(update={"concept": f"{concept.concept} It is wanted “soon” by people in a hurry."})


def _completion(concept: Concept, text: str, model: str, chance: random.Random, seconds: float) -> Completion:
    tokens = len(text) // 4
    usage = Usage(
        prompt_tokens=700,
        completion_tokens=tokens,
        latency_s=seconds * chance.lognormvariate(0, 0.3),
        first_token_s=seconds * 0.1,
    )
    return Completion(
        concept=concept,
        text=text,
        model=model,
        provider="recorded",
        contract_digest=ROLE.contract.digest,
        usage=usage,
        finish="length" if not text.rstrip().endswith("```") else "stop",
    )


def _good(concept: Concept, chance: random.Random) -> str:
    """Mostly the rules' answer in other words; here and there a fault."""
    return _faulty(_reworded(concept, chance, share=0.25), chance, share=0.08)


def _weak(concept: Concept, chance: random.Random) -> str:
    return _faulty(_reworded(concept, chance, share=0.7), chance, share=0.5)


def _full(concept: Concept) -> dict[str, dict[str, Any]]:
    """The rules' answer with as many words as a teacher has."""
    documents = ROLE.parse(ROLE.answer_by_rules(concept)).documents
    return {name: {key: _longer(value) for key, value in document.items()} for name, document in documents.items()}


def _longer(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [*value, f"{value[0]}: {_DETAIL}"]
    return f"{value} {_DETAIL}" if isinstance(value, str) and len(value) > 60 else value


def _reworded(concept: Concept, chance: random.Random, share: float) -> str:
    return ROLE.canonical({name: _changed(document, chance, share) for name, document in _full(concept).items()})


def _changed(document: dict[str, Any], chance: random.Random, share: float) -> dict[str, Any]:
    return {key: _changed_value(value, chance, share) for key, value in document.items()}


def _changed_value(value: Any, chance: random.Random, share: float) -> Any:
    if isinstance(value, str):
        return _other_words(value) if " " in value and chance.random() < share else value
    if isinstance(value, list):
        kept = [_changed_value(item, chance, share) for item in value if chance.random() > share / 4]
        return [*kept, _ADDED] if value and isinstance(value[0], str) and chance.random() < share / 2 else kept
    return value


def _other_words(text: str) -> str:
    words = [_OTHER_WORDS.get(word, word) for word in text.split()]
    return " ".join([*words[:3], "really", *words[3:]])


def _faulty(text: str, chance: random.Random, share: float) -> str:
    return chance.choice(_FAULTS)(text) if chance.random() < share else text


_FAULTS: tuple[Callable[[str], str], ...] = (
    lambda text: text[: len(text) * 2 // 3],
    lambda text: text.replace("```yaml REVIEW", "```yaml"),
    lambda text: text.replace('status: "', 'status: "mostly '),
    lambda text: text.replace('status: "aligned"', 'status: "needs_adjustment"'),
    lambda text: text.replace('status: "misaligned"', 'status: "aligned"'),
    lambda text: text.replace('product_summary: "', "product_summary: In short: ").replace('."\n', ".\n", 1),
    lambda text: f"I cannot </script><script>alert(1)</script> & \u2028 say.\n{text[:40]}",
    lambda text: text.split("```yaml REVIEW")[0],
    lambda text: "",
)
