"""The Product Owner metric, and what the gate looks at beyond it.

The metric is the one of the DSPy roles project, weaknesses included, because the 0.85 of the
distillation plan is a threshold on that number. What it cannot see (a wrong status, invented
requirement ids, empty content) is reported as violations by `gate_violations`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from po_distill import safe_yaml
from po_distill.errors import UnreadableYAMLError
from po_distill.interfaces import Documents
from po_distill.records import Violation

STATUSES = ("aligned", "needs_adjustment", "misaligned")
REQUIREMENT_SECTIONS = ("functional_requirements", "non_functional_requirements", "constraints")

_PART_POINTS = 30.0
_PARTS = 4
_FENCES = (
    re.compile(r"^```ya?ml?\s*\n?", re.MULTILINE | re.IGNORECASE),
    re.compile(r"\n?```\s*$", re.MULTILINE),
    re.compile(r"^```\s*\n?", re.MULTILINE),
)
_TOKEN = re.compile(r"[A-Za-z0-9áéíóúñÁÉÍÓÚÑ]+")
_STOP_WORDS = frozenset(
    (
        *("the", "and", "with", "para", "con", "los", "las", "una", "unos", "unas"),
        *("user", "users", "system", "systems", "api", "apis", "rest", "crud"),
    )
)


def product_owner_metric(example: Any, prediction: Any, trace: Any = None) -> float:
    """The metric of a Product Owner's answer, 0..1; a DSPy metric as it is.

    `example` has `requirements_yaml` (or `requirements`), `prediction` has `product_vision` and
    `product_owner_review` (or `vision_yaml` and `review_yaml`), each YAML text, as attributes or as
    mapping keys. Text that is no YAML mapping counts as an empty one; nothing is raised. `trace` is
    DSPy's and changes nothing.
    """
    parts = metric_parts(
        _field(example, "requirements_yaml", "requirements"),
        _field(prediction, "product_vision", "vision_yaml"),
        _field(prediction, "product_owner_review", "review_yaml"),
    )
    return sum(parts.values()) / _PARTS


def metric_parts(requirements_yaml: Any, vision_yaml: Any, review_yaml: Any) -> dict[str, float]:
    """The four parts of the metric, each as a share of its 30 points; their mean is the metric."""
    vision, review = read_mapping(vision_yaml), read_mapping(review_yaml)
    points = {
        "schema": _schema_points(vision, review),
        "vision_completeness": _vision_points(vision),
        "requirements_alignment": _alignment_points(list_requirements(requirements_yaml), review),
        "review_specificity": _specificity_points(review),
    }
    return {name: value / _PART_POINTS for name, value in points.items()}


def _field(source: Any, *spellings: str) -> Any:
    for name in spellings:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if value is not None:
            return value
    return None


def read_mapping(text: Any) -> dict[Any, Any]:
    """The mapping in a YAML text with stray fences; empty where it holds none."""
    if not isinstance(text, str) or not text:
        return {}
    if "```" in text:  # three searches through each text take longer than all else but the loader
        for fence in _FENCES:
            text = fence.sub("", text)
    try:
        value = safe_yaml.load_shared(text.lstrip("]").strip())
    except UnreadableYAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def list_requirements(requirements_yaml: Any) -> list[tuple[str, str]]:
    """(id, description) of each requirement that has either, in the order of the document."""
    return list(_requirements_in(requirements_yaml)) if isinstance(requirements_yaml, str) else []


@functools.lru_cache(maxsize=512)  # one answer's scoring asks three times, and answers in flight take turns
def _requirements_in(requirements_yaml: str) -> tuple[tuple[str, str], ...]:
    document = read_mapping(requirements_yaml)
    found = []
    for section in REQUIREMENT_SECTIONS:
        items = document.get(section)
        for item in items if isinstance(items, list) else []:
            if isinstance(item, dict):
                pair = (str(item.get("id", "")).strip(), str(item.get("description", "")).strip())
                if any(pair):
                    found.append(pair)
    return tuple(found)


# --- the four parts, in points of 30 ------------------------------------------------------------


def _schema_points(vision: Mapping[Any, Any], review: Mapping[Any, Any]) -> float:
    alignment = review.get("requirements_alignment") or {}
    status = review.get("status")
    lists = _alignment(review)
    checks = [
        _text_length(vision.get("product_name")) >= 1,
        _text_length(vision.get("product_summary")) >= 40,
        _count(vision.get("target_users")) >= 1,
        _count(vision.get("value_proposition")) >= 1,
        _count(vision.get("key_capabilities")) >= 1,
        isinstance(vision.get("non_goals"), list),
        _count(vision.get("success_metrics")) >= 1,
        is_timestamp(vision.get("last_updated")),
        isinstance(status, str) and status in STATUSES,
        _count(review.get("summary")) >= 1,
        isinstance(alignment, dict),
        isinstance(lists.get("aligned"), list),
        isinstance(lists.get("gaps"), list),
        isinstance(lists.get("conflicts"), list),
        _count(review.get("recommended_actions")) >= 1,
        _text_length(review.get("narrative")) >= 40,
    ]
    return _PART_POINTS * sum(checks) / len(checks)


def _vision_points(vision: Mapping[Any, Any]) -> float:
    lists = ("target_users", "value_proposition", "key_capabilities", "success_metrics")
    points = sum(_steps(_count(vision.get(name)), (2, 6), (1, 3)) for name in lists)
    return points + _steps(_text_length(vision.get("product_summary")), (120, 6), (60, 3))


def _alignment_points(requirements: list[tuple[str, str]], review: Mapping[Any, Any]) -> float:
    if not requirements:
        return 0.0
    lists = _alignment(review)
    share = covered_share(requirements, review)
    if share >= 0.85:
        points = 22.0
    elif share >= 0.7:
        points = 16.0 + (share - 0.7) / 0.15 * 6.0
    elif share >= 0.5:
        points = 8.0 + (share - 0.5) / 0.2 * 8.0
    else:
        points = 8.0 * share
    points += 8.0 * min(max(_count(lists.get("aligned")), 0) / len(requirements), 1.0)
    points += 3.0 * sum(_count(lists.get(name)) > 0 for name in ("gaps", "conflicts"))
    return min(points, _PART_POINTS)


def _specificity_points(review: Mapping[Any, Any]) -> float:
    lists = _alignment(review)
    points = _steps(_count(review.get("summary")), (2, 6), (1, 3))
    points += _steps(_count(review.get("recommended_actions")), (2, 12), (1, 6))
    points += sum(_steps(_count(lists.get(name)), (1, 6), (0, 2)) for name in ("gaps", "conflicts"))
    points += _steps(_text_length(review.get("narrative")), (160, 6), (80, 3))
    return min(points, _PART_POINTS)


# field of the vision or the review -> (smallest size of full points, unit); sizes as in the parts above
_FULL_TEXT = {"product_summary": 120, "narrative": 160}
_FULL_LISTS = (
    *("target_users", "value_proposition", "key_capabilities", "success_metrics"),
    *("summary", "recommended_actions"),
)


def metric_advice(requirements_yaml: str, documents: Documents) -> tuple[str, ...]:
    """What would raise the metric of these documents, a sentence each. Says nothing that invites an invented item.

    Empty gaps and conflicts cost points too; they are not asked for, since what is not there should not be found.
    """
    fields = {**documents.get("product_vision", {}), **documents.get("product_owner_review", {})}
    found = []
    for name, least in _FULL_TEXT.items():
        length = max(_text_length(fields.get(name)), 0)
        if length < least:
            found.append(f"{name} has {length} characters; write at least {least}")
    for name in _FULL_LISTS:
        count = max(_count(fields.get(name)), 0)
        if count < 2:
            found.append(f"{name} has {count} items; give at least 2")
    requirements, review = list_requirements(requirements_yaml), documents.get("product_owner_review", {})
    if requirements and covered_share(requirements, review) < 0.85:
        text = " ".join(_review_segments(review)).lower()
        missing = [identifier for identifier, _ in requirements if identifier and identifier.lower() not in text]
        found.append(f"the review does not mention every requirement; missing: {', '.join(missing[:20]) or 'some'}")
    aligned = max(_count(_alignment(review).get("aligned")), 0)
    if aligned < len(requirements):
        found.append(
            f"requirements_alignment.aligned has {aligned} of {len(requirements)} requirements; give each that fits "
            "an item of its own"
        )
    return tuple(found)


def covered_share(requirements: list[tuple[str, str]], review: Mapping[Any, Any]) -> float:
    """The share of the requirements that a review mentions, by id or by 30 % of its words in one place."""
    segments = list(_review_segments(review))
    text = " ".join(segments).lower()
    places: dict[str, int] = {}  # word -> the segments that hold it, a bit for each; most reviews name every id

    def is_covered(identifier: str, description: str) -> bool:
        if identifier and identifier.lower() in text:
            return True
        wanted = _tokens(description)
        if wanted and not places:
            places.update(_places(segments))
        least = next((count for count in range(len(wanted) * 3 // 10, len(wanted)) if count / len(wanted) >= 0.3), 1)
        return bool(wanted) and _is_in(least, [places[word] for word in wanted if word in places])

    return sum(is_covered(*requirement) for requirement in requirements) / len(requirements)


def _places(segments: Iterable[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for number, segment in enumerate(segments):
        for word in _tokens(segment):
            places[word] = places.get(word, 0) | 1 << number
    return places


def _is_in(least: int, sets: Iterable[int]) -> bool:
    """Whether something is in `least` of the sets, each a bit for each member.

    The sets are added up, all members at once: `sums` has a bit of every member's count in each integer. So thousands
    of requirements are held against thousands of segments in no time.
    """
    sums: list[int] = []
    for carry in sets:
        for place, bits in enumerate(sums):
            sums[place], carry = bits ^ carry, bits & carry
        if carry:
            sums.append(carry)
    more, equal = 0, -1
    for place in reversed(range(max(len(sums), least.bit_length()))):
        bits = sums[place] if place < len(sums) else 0
        if least >> place & 1:
            equal &= bits
        else:
            more, equal = more | equal & bits, equal & ~bits
    return bool(more | equal)


def _review_segments(review: Mapping[Any, Any]) -> Iterable[str]:
    for name in ("summary", "recommended_actions"):
        value = review.get(name)
        if isinstance(value, list):
            yield from map(str, value)
        elif isinstance(value, str):
            yield value
    for name in ("aligned", "gaps", "conflicts"):
        value = _alignment(review).get(name)
        yield from map(str, value) if isinstance(value, list) else ()
    if isinstance(review.get("narrative"), str):
        yield review["narrative"]


def _alignment(review: Mapping[Any, Any]) -> Mapping[Any, Any]:
    value = review.get("requirements_alignment")
    return value if isinstance(value, dict) else {}


def _tokens(text: str) -> set[str]:
    return {token for match in _TOKEN.findall(text) if (token := match.lower()) not in _STOP_WORDS}


def _count(value: Any) -> int:
    """The number of items of a list; -1 for anything that is no list."""
    return len(value) if isinstance(value, list) else -1


def _text_length(value: Any) -> int:
    return len(value.strip()) if isinstance(value, str) else -1


def _steps(value: int, *steps: tuple[int, float]) -> float:
    """The points of the first step that `value` reaches; steps go downwards."""
    return next((points for least, points in steps if value >= least), 0.0)


def is_timestamp(value: Any) -> bool:
    """Whether a value is text that reads as an ISO 8601 time, by the metric's own rule."""
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
    except ValueError:
        return False
    return True


# --- the gate -----------------------------------------------------------------------------------

_COMMON_PREFIXES = frozenset({"FR", "NFR", "CON"})
_IDENTIFIER = re.compile(r"(?<![A-Za-z0-9])([A-Z]{1,6})-?(\d{2,4})(?![A-Za-z0-9])")


def gate_violations(requirements_yaml: str, documents: Documents) -> list[Violation]:
    """What a review claims that cannot be: unknown ids, too few actions, a status against its lists."""
    review = documents.get("product_owner_review", {})
    return [
        *_unknown_identifiers(requirements_yaml, review),
        *_too_few_actions(review),
        *_contradictions(review),
    ]


def _unknown_identifiers(requirements_yaml: str, review: Mapping[str, Any]) -> Iterable[Violation]:
    known = {identifier.upper() for identifier, _ in list_requirements(requirements_yaml) if identifier}
    prefixes = _COMMON_PREFIXES | {m[1] for identifier in known if (m := _IDENTIFIER.fullmatch(identifier))}
    text = " ".join(_review_segments(review))
    # The hyphen is spelling: FR-001 and FR001 name one requirement.
    bare = {identifier.replace("-", "") for identifier in known}
    for match in dict.fromkeys(m[0] for m in _IDENTIFIER.finditer(text) if m[1] in prefixes):
        if match.replace("-", "") not in bare:
            yield Violation(kind="unknown_requirement_id", detail=f"{match} is not among the requirements")


def _too_few_actions(review: Mapping[str, Any]) -> Iterable[Violation]:
    count = max(_count(review.get("recommended_actions")), 0)
    if count < 2:
        yield Violation(kind="too_few_actions", detail=f"{count} recommended actions, at least 2 are asked for")


def _contradictions(review: Mapping[str, Any]) -> Iterable[Violation]:
    status, lists = review.get("status"), _alignment(review)
    gaps, conflicts = (max(_count(lists.get(name)), 0) for name in ("gaps", "conflicts"))
    wrong = {
        "aligned": gaps + conflicts > 0,
        "needs_adjustment": gaps + conflicts == 0,
        "misaligned": conflicts == 0,
    }
    if isinstance(status, str) and wrong.get(status):
        yield Violation(
            kind="verdict_contradicts_lists", detail=f"status {status} with {gaps} gaps and {conflicts} conflicts"
        )
