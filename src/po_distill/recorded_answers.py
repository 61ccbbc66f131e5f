"""What a candidate answered, read from the files that people have: completions, rows of other tools, result files.

Read are JSONL files of `Completion` rows or of rows with at least `concept_id`, `concept`, `requirements_yaml` and
`response`; and JSON files whose `results` are such rows, with `raw_response`, or `vision_yaml` and `review_yaml`, in
place of `response`. A row may leave concept and requirements out where its `concept_id` is that of a known case.
Several rows of one concept are tries, in their order, or in that of their `attempt`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from po_distill.artifacts import parse_record, read_jsonl, read_text
from po_distill.errors import ContractMismatchError, InputError
from po_distill.interfaces import Role
from po_distill.records import Completion, Concept, Usage
from po_distill.source_rows import answer_of, concept_of

_LATENCY = ("latency_s", "latency_seconds", "duration_s", "elapsed_s", "seconds")
_FINISHES = {"length": "length", "max_tokens": "length", "MAX_TOKENS": "length", "blocked": "blocked"}


class Tries(NamedTuple):
    """All that a candidate answered to one concept, in order; at least one."""

    answers: tuple[Completion, ...]

    @property
    def first(self) -> Completion:
        """What is scored: production asks once."""
        return self.answers[0]


def read_completions(
    path: Path | str, role: Role, *, known: Iterable[Concept] = (), name: str | None = None
) -> list[Completion]:
    """The completions of a file. Raises InputError, with place and field, where a row holds no concept.

    `known` are cases whose concepts rows may leave out. A row without an answer is an empty answer, which nobody can
    read. `name` stands for the model where rows name none.
    """
    by_id = {concept.concept_id: concept for concept in known}
    return [_completion(row, where, role, by_id, name or Path(path).name) for where, row in _rows(Path(path))]


def read_recorded_cases(path: Path | str, role: Role) -> list[Concept]:
    """The concepts of a file of completions, each once, in their order."""
    return [tries.first.concept for tries in _tries_of(read_completions(path, role)).values()]


_Key: TypeAlias = tuple[str, str, str]


def _tries_of(completions: Iterable[Completion]) -> dict[_Key, Tries]:
    """The answers by what they were asked and under which id: all tries of one concept together."""
    found: dict[_Key, list[Completion]] = {}
    for completion in completions:
        found.setdefault((*content(completion.concept), completion.concept.concept_id), []).append(completion)
    return {key: Tries(tuple(answers)) for key, answers in found.items()}


def tries_by_case(cases: Iterable[Concept], completions: Iterable[Completion]) -> dict[str, Tries]:
    """The answers to the cases by the cases' ids, as far as there are: those under the same id, else under another."""
    found = _tries_of(completions)
    by_content: dict[tuple[str, str], Tries] = {}
    for (text, requirements, _), tries in found.items():
        by_content.setdefault((text, requirements), tries)
    given = {
        case.concept_id: found.get((*content(case), case.concept_id)) or by_content.get(content(case)) for case in cases
    }
    return {name: tries for name, tries in given.items() if tries is not None}


def answers_to(cases: Sequence[Concept], completions: Iterable[Completion], role: Role, who: str) -> list[Tries]:
    """The answers to the cases, in their order, under the cases' own concepts.

    Raises InputError where a case has none, and ContractMismatchError where one was asked under another prompt.
    """
    completions = list(completions)
    found = tries_by_case(cases, completions)
    missing = [case.concept_id for case in cases if case.concept_id not in found]
    if missing:
        ids = {one.concept.concept_id for one in completions}
        others = [name for name in missing if name in ids]
        raise InputError(
            f"The candidate {who} has no completion for {len(missing)} of {len(cases)} held-out concepts: "
            f"{_listed(missing)}"
            + (f" ({len(others)} of these ids are there, with another concept or requirements)." if others else "."),
            "Record them, or leave the concepts or the candidate out.",
        )
    chosen = [
        Tries(
            tuple(
                # The case's own record: its planted label may be missing where the answer was recorded.
                one.model_copy(update={"concept": case, "score": None})
                for one in found[case.concept_id].answers
            )
        )
        for case in cases
    ]
    other = next(
        (one for tries in chosen for one in tries.answers if one.contract_digest != role.contract.digest), None
    )
    if other:
        raise ContractMismatchError(
            f"The candidate {who} answered {other.concept.concept_id} under the prompt contract "
            f"{other.contract_digest[:19]}; this evaluation asks under {role.contract.digest[:19]}.",
            "Record it again under this contract, or evaluate with its --contract and --prompt.",
        )
    return chosen


def content(concept: Concept) -> tuple[str, str]:
    """What makes two concepts the same case: text and requirements, spaces aside."""
    return " ".join(concept.concept.split()), " ".join(concept.requirements_yaml.split())


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# --- rows ---------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row), the tries of a concept in the order of their attempts."""
    rows = list(_result_rows(path) if _is_one_document(path) else _lines(path))
    return iter(sorted(rows, key=lambda pair: _attempt(pair[1])) if any("attempt" in row for _, row in rows) else rows)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{path}, line {number}", row) for number, row in read_jsonl(path))


def _is_one_document(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _result_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "\n" in text.strip():  # lines of JSON under this name
            yield from _lines(path)
            return
        raise InputError(f"{path} is not JSON: {error}.", "Give a JSON file with `results`, or JSONL.") from error
    rows = value.get("results") if isinstance(value, dict) else value
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} holds no list of results.", "Give a JSON file with `results`, or JSONL of rows.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, result {number}: an object is expected.", "Correct or delete it.")
        yield f"{path}, result {number}", row


def _attempt(row: Mapping[str, Any]) -> float:
    value = row.get("attempt")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


def _completion(row: dict[str, Any], where: str, role: Role, known: Mapping[str, Concept], source: str) -> Completion:
    if "contract_digest" in row and "text" in row and isinstance(row.get("concept"), dict):
        return parse_record({key: value for key, value in row.items() if key != "attempt"}, Completion, where)
    usage = row.get("usage")
    counts: Mapping[str, Any] = {**row, **usage} if isinstance(usage, Mapping) else row
    digest = row.get("contract_digest")
    return parse_record(
        {
            "concept": _concept(row, where, role, known),
            "text": answer_of(row, role) or "",
            "model": str(row.get("model") or source),
            "provider": "recorded",
            # Rows of other tools name no contract: that they were asked the same is for the user to know.
            "contract_digest": digest if isinstance(digest, str) else role.contract.digest,
            "finish": _FINISHES.get(str(row.get("finish") or row.get("finish_reason")), "stop"),
            "usage": Usage(
                latency_s=next((value for name in _LATENCY if (value := _number(counts.get(name)))), 0.0),
                prompt_tokens=int(_number(counts.get("prompt_tokens"))),
                completion_tokens=int(_number(counts.get("completion_tokens"))),
                first_token_s=_number(counts.get("first_token_s")) or None,
                load_s=_number(counts.get("load_s")) or None,
            ),
            "stand_in": bool(row.get("stand_in")),
        },
        Completion,
        where,
    )


def _concept(row: dict[str, Any], where: str, role: Role, known: Mapping[str, Concept]) -> Concept:
    try:
        return concept_of(row, where, role)
    except InputError:
        named = known.get(str(row.get("concept_id") or row.get("id") or ""))
        if named is None:
            raise
        return named


def _number(value: Any) -> float:
    """A number of at least 0; 0 for anything that is none."""
    try:
        found = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return found if math.isfinite(found) and found > 0 else 0.0
