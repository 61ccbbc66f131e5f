"""The rows of a dataset as they lie in its files: shapes that `datasets` and TRL read as they are.

Every row has the same columns of the same types, and none is null: a reader that takes its types from the first rows
would refuse a later one that differs. So an empty text stands for nothing, and what is free in form is JSON text; the
records read both back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from po_distill.records import Example


def example_row(example: Example) -> dict[str, Any]:
    """An Example as a row: TRL's conversational prompt and completion, and what is known of them."""
    concept = example.concept
    about: dict[str, Any] = {}
    if concept is not None:
        about = {
            "concept_id": concept.concept_id,
            "concept": concept.concept,
            "requirements_yaml": concept.requirements_yaml,
            "existing_vision": concept.existing_vision or "",
            "tier": concept.tier,
            "planted_label": concept.planted_label or "",
            "metadata": json.dumps(concept.metadata, ensure_ascii=False, sort_keys=True),
        }
    return {
        "example_id": example.example_id,
        "prompt": _turns(example.prompt),
        "completion": _turns(example.completion),
        **({"concept": about} if about else {}),
        "label": example.label or "",
        "score": float(example.score or 0.0),
        "raw": example.raw or "",
    }


def _turns(messages: Any) -> list[dict[str, str]]:
    return [{"role": message.speaker, "content": message.content} for message in messages]


# --- other shapes -------------------------------------------------------------------------------


def _messages(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [*row["prompt"], *row["completion"]]}


def _prompt_completion(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "completion": row["completion"]}


SHAPES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "messages": _messages,  # one chat a row: TRL's language modelling form
    "prompt_completion": _prompt_completion,  # prompt and completion, and nothing else
    "parquet": dict,  # all columns, in Parquet
}
