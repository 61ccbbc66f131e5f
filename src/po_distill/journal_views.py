"""What can be made again from a journal: completions and the table of costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from po_distill.artifacts import write_jsonl
from po_distill.journal import Journal
from po_distill.model_table import NANOUSD
from po_distill.records import Completion, Concept, Response, Score


def export_completions(journal: Journal, output: Path | str) -> dict[str, int]:
    """Write the best judged answer to each concept, under each contract, as a Completion; what was read and written.

    The best is what the teacher itself keeps: valid, without violations, by score, the earlier of equals. Concepts
    stand in the order in which they were answered first.
    """
    best: dict[tuple[str, ...], tuple[tuple[bool, bool, float], tuple[str, str]]] = {}
    answers = 0
    for row in journal.judged():
        answers += 1
        if json.loads(row["response"])["finish"] == "blocked":
            continue  # a rejection, for the teacher too
        score, concept = json.loads(row["score"]), json.loads(row["concept_json"])
        rank = (score["valid"], not score["violations"], score["value"])
        place = (concept["concept_id"], concept["concept"], concept["requirements_yaml"], row["contract"])
        if place not in best or rank > best[place][0]:
            best[place] = (rank, (row["key"], row["concept_id"]))
    chosen = {answer: number for number, (_, answer) in enumerate(best.values())}
    completions: dict[int, Completion] = {}
    for row in journal.judged():
        if (answer := (row["key"], row["concept_id"])) in chosen:
            completions[chosen[answer]] = completion_of(row)
    written = write_jsonl(output, (completions[number] for number in sorted(completions)))
    return {"answers": answers, "completions": written}


def completion_of(row: Mapping[str, Any]) -> Completion:
    """The Completion in one row of `Journal.judged`."""
    response = Response.model_validate_json(row["response"])
    return Completion(
        concept=Concept.model_validate_json(row["concept_json"]),
        text=row["text"],
        raw=response.text if response.text != row["text"] else None,
        model=response.model,
        provider=row["provider"],
        contract_digest=row["contract"],
        finish=response.finish,
        finish_reason=response.finish_reason,
        usage=response.usage,
        score=Score.model_validate_json(row["score"]),
        stand_in=response.stand_in,
        created_at=row["recorded_at"],
    )


def cost_table(journal: Journal) -> dict[str, Any]:
    """What was spent, as one mapping: `by_model`, `by_day`, `by_status`, and the sums.

    `usd` is what is known to have been billed; `doubtful_usd` is what is reserved for calls whose end was never seen.
    """
    tables: dict[str, dict[str, dict[str, Any]]] = {"by_model": {}, "by_day": {}, "by_status": {}}
    total = _empty()
    for row in journal.sends():
        status = row["fault"] or ("answered" if row["ended_at"] else "in_flight_or_doubt")
        places = (
            tables["by_model"].setdefault(f"{row['provider']} {row['model']}".strip(), _empty()),
            tables["by_day"].setdefault(row["sent_at"][:10], _empty()),
            tables["by_status"].setdefault(status, _empty()),
            total,
        )
        for place in places:
            _add(place, row)
    return {**{name: _in_dollars(table) for name, table in tables.items()}, **_dollars(total)}


def _empty() -> dict[str, int]:
    return {"sends": 0, "nanousd": 0, "doubtful": 0, "doubtful_nanousd": 0}


def _add(place: dict[str, int], row: Mapping[str, Any]) -> None:
    place["sends"] += 1
    if row["cost_nanousd"] is None:
        place["doubtful"] += 1
        place["doubtful_nanousd"] += row["reserved_nanousd"]
    else:
        place["nanousd"] += row["cost_nanousd"]


def _in_dollars(table: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, Any]]:
    return {name: _dollars(place) for name, place in sorted(table.items())}


def _dollars(place: Mapping[str, int]) -> dict[str, Any]:
    return {
        "sends": place["sends"],
        "usd": place["nanousd"] / NANOUSD,
        "doubtful": place["doubtful"],
        "doubtful_usd": place["doubtful_nanousd"] / NANOUSD,
    }
