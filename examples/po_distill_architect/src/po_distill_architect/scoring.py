"""The architect's metric, and what the gate holds against documents beyond their schema."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError
from po_distill.interfaces import Documents
from po_distill.records import Violation
from po_distill_architect.documents import ARCHITECTURE, ESTIMATES, FEASIBILITY, STORIES

FUNCTIONAL = "functional_requirements"
SECTIONS = (FUNCTIONAL, "non_functional_requirements", "constraints")
_IDENTIFIER = re.compile(r"(?<![A-Za-z0-9])[A-Z]{1,6}-?\d{2,4}(?![A-Za-z0-9])")
_WORD = re.compile(r"[^\W\d_]{3,}")
_FILLERS = frozenset(("let", "the", "and", "for", "with", "that", "are", "can"))


class Requirement(NamedTuple):
    """A requirement with an id."""

    id: str
    description: str
    section: str


def list_requirements(requirements_yaml: Any) -> tuple[Requirement, ...]:
    """The requirements of a document that have an id, in its order; none where it cannot be read."""
    return _requirements_in(requirements_yaml) if isinstance(requirements_yaml, str) else ()


@functools.lru_cache(maxsize=256)  # an answer's scoring asks several times
def _requirements_in(requirements_yaml: str) -> tuple[Requirement, ...]:
    document = read_mapping(requirements_yaml)
    return tuple(
        Requirement(str(item["id"]).strip(), str(item.get("description", "")).strip(), section)
        for section in SECTIONS
        for item in _items(document.get(section))
        if str(item.get("id") or "").strip()
    )


def read_mapping(text: Any) -> dict[Any, Any]:
    """The mapping in a YAML text; empty where it holds none."""
    try:
        value = safe_yaml.load_shared(text.strip()) if isinstance(text, str) else None
    except UnreadableYAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Mapping[Any, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


# --- the metric ----------------------------------------------------------------------------------


def architect_metric(example: Any, prediction: Any, trace: Any = None) -> float:
    """The metric of an architect's answer, 0 to 1; a DSPy metric as it is.

    `example` has `requirements_yaml`; `prediction` has `stories` and `architecture`, each YAML text, as attributes or
    as mapping keys. Text that is no YAML mapping counts as an empty one; nothing is raised.
    """
    parts = metric_parts(
        _field(example, "requirements_yaml"), _field(prediction, STORIES), _field(prediction, ARCHITECTURE)
    )
    return sum(parts.values()) / len(parts)


def _field(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)


def metric_parts(requirements_yaml: Any, stories_yaml: Any, architecture_yaml: Any) -> dict[str, float]:
    """The four parts of the metric, each 0 to 1; their mean is the metric."""
    stories = _items(read_mapping(stories_yaml).get(STORIES))
    architecture = read_mapping(architecture_yaml)
    requirements = list_requirements(requirements_yaml)
    known = {requirement.id: requirement for requirement in requirements}
    return {
        "stories": _mean([_mean(_story_checks(story, known)) for story in stories]),
        "grounding": _mean([_is_grounded(story, known) for story in stories]),
        "coverage": covered_share(requirements, stories, architecture) or 0.0,
        "architecture": _mean(_architecture_checks(architecture, known)),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _story_checks(story: Mapping[Any, Any], known: Mapping[str, Requirement]) -> list[bool]:
    ids, acceptance = _texts(story.get("requirement_ids")), _texts(story.get("acceptance"))
    return [
        bool(_text(story.get("id"))),
        *(_word_count(story.get(name)) >= 2 for name in ("title", "i_want", "so_that")),
        bool(_text(story.get("as_a"))),
        len(acceptance) >= 2 and all(_word_count(item) >= 3 for item in acceptance),
        bool(ids) and all(name in known for name in ids),
        story.get("estimate") in ESTIMATES,
    ]


def _is_grounded(story: Mapping[Any, Any], known: Mapping[str, Requirement]) -> bool:
    """Whether a story speaks of a requirement that it names: half of the requirement's words are in it."""
    said = _stems(f"{_text(story.get('title'))} {_text(story.get('as_a'))} {_text(story.get('i_want'))}")
    wanted = [_stems(known[name].description) for name in _texts(story.get("requirement_ids")) if name in known]
    return any(words and len(words & said) >= 0.5 * len(words) for words in wanted)


def _architecture_checks(architecture: Mapping[Any, Any], known: Mapping[str, Requirement]) -> list[bool]:
    components = _items(architecture.get("components"))
    described = set().union(*(_stems(one.description) for one in known.values()))
    lists = {name: architecture.get(name) for name in ("decisions", "risks", "blockers", "questions")}
    return [
        len(components) >= 2,
        bool(components) and all(_is_described(component) for component in components),
        any(_stems(_text(component.get("responsibility"))) & described for component in components),
        any(_word_count(item) >= 3 for item in _texts(lists["decisions"])),
        any(_word_count(item) >= 3 for item in _texts(lists["risks"])),
        all(isinstance(value, list) for value in lists.values()),
        architecture.get("feasibility") in FEASIBILITY,
        bool(architecture) and _contradiction(architecture) is None,
    ]


def _is_described(component: Mapping[Any, Any]) -> bool:
    said = _text(component.get("name")) and _word_count(component.get("responsibility")) >= 3
    return bool(said and _texts(component.get("interfaces")))


def covered_share(
    requirements: Sequence[Requirement], stories: Sequence[Mapping[Any, Any]], architecture: Mapping[Any, Any]
) -> float | None:
    """The share of the requirements that are dealt with: a functional one by a story, any other by a decision, a
    blocker or a question that names it. None where there are no requirements.
    """
    in_stories = {name for story in stories for name in _texts(story.get("requirement_ids"))}
    text = "\n".join(_decided(architecture))
    found = [
        one.id in in_stories if one.section == FUNCTIONAL else _names(text, one.id)
        for one in requirements
    ]  # fmt: skip
    return sum(found) / len(found) if found else None


def _names(text: str, identifier: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(identifier)}(?![A-Za-z0-9])", text) is not None


def _decided(architecture: Mapping[Any, Any]) -> list[str]:
    return [text for name in ("decisions", "blockers", "questions") for text in _texts(architecture.get(name))]


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str) and item.strip()] if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _word_count(value: Any) -> int:
    return len(_text(value).split())


def _stems(text: str) -> set[str]:
    words = {word.lower() for word in _WORD.findall(text)} - _FILLERS
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words}


# --- the gate ------------------------------------------------------------------------------------


def gate_violations(requirements_yaml: str, documents: Documents) -> Iterator[Violation]:
    """What documents claim that cannot be: unknown ids, requirements without a story, a verdict against its lists."""
    stories = _items(documents.get(STORIES, {}).get(STORIES))
    architecture = documents.get(ARCHITECTURE, {})
    requirements = list_requirements(requirements_yaml)
    known = {one.id for one in requirements}
    in_stories = [name for story in stories for name in _texts(story.get("requirement_ids"))]
    named = dict.fromkeys([*in_stories, *(m[0] for m in _IDENTIFIER.finditer("\n".join(_decided(architecture))))])
    for name in named:
        if name not in known:
            yield Violation(kind="unknown_requirement_id", detail=f"{name[:40]} is not among the requirements")
    for one in requirements:
        if one.section == FUNCTIONAL and one.id not in in_stories:
            yield Violation(kind="requirement_without_story", detail=f"no story is for {one.id}")
    for identifier, count in Counter(_text(story.get("id")) for story in stories).items():
        if count > 1:
            yield Violation(kind="repeated_story_id", detail=f"{count} stories have the id {identifier[:40]!r}")
    if architecture and (said := _contradiction(architecture)) is not None:
        yield Violation(kind="verdict_contradicts_lists", detail=said)


def _contradiction(architecture: Mapping[Any, Any]) -> str | None:
    blockers, questions = (len(_texts(architecture.get(name))) for name in ("blockers", "questions"))
    right = "infeasible" if blockers else "needs_clarification" if questions else "feasible"
    said = architecture.get("feasibility")
    if said == right or said not in FEASIBILITY:
        return None
    return f"feasibility {said} with {blockers} blockers and {questions} questions"


def metric_advice(requirements_yaml: str, documents: Documents) -> Iterator[str]:
    """What would raise the metric of these documents, a sentence each."""
    stories = _items(documents.get(STORIES, {}).get(STORIES))
    architecture = documents.get(ARCHITECTURE, {})
    requirements = list_requirements(requirements_yaml)
    known = {one.id: one for one in requirements}
    for number, story in enumerate(stories[:20], start=1):
        name = _text(story.get("id"))[:40] or f"number {number}"
        if not all(_story_checks(story, known)):
            yield (
                f"story {name}: fill every field, with two acceptance criteria of three words or more, the ids of "
                f"requirements that exist, and an estimate of {', '.join(ESTIMATES)}"
            )
        elif not _is_grounded(story, known):
            yield f"story {name}: say it in the words of the requirement that it names"
    open_ids = [one.id for one in requirements if not covered_share([one], stories, architecture)]
    if open_ids:
        yield (
            f"deal with {', '.join(open_ids[:20])}: a functional requirement in a story, any other in a decision, a "
            "blocker or a question"
        )
    if not all(_architecture_checks(architecture, known)):
        yield (
            "give two or more components with responsibility and interfaces, a decision and a risk of three words or "
            "more, and the feasibility that blockers and questions leave"
        )
