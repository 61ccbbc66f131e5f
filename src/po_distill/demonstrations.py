"""Rows of a train split shown to each other: prompts with answered concepts, as an optimizer will put them together.

A student that only ever saw bare prompts does not answer one that begins with somebody else's answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from po_distill.artifacts import jsonl_line
from po_distill.interfaces import Role
from po_distill.records import Concept, Message

MOST = 2  # as settings.DatasetSettings has them
MOST_CHARACTERS = 6_000  # the 2,048 tokens that a student is trained at by default hold as much


class Shown(NamedTuple):
    """A row that may be shown to others."""

    row: int
    group: float  # equal for variations of one concept, which are never shown to each other


def can_show(role: Role) -> bool:
    """Whether prompts of the role, under its contract, may hold demonstrations."""
    return role.contract.name in getattr(role, "demonstrated", ())


def demonstrated(
    rows: Sequence[Shown], line: Callable[[int], bytes], role: Role, *, most: int, most_characters: int
) -> Iterator[bytes]:
    """The line of each row, its prompt with up to `most` of the others before it.

    How many, and which, the concept's id decides. A row gets fewer where it would pass `most_characters`.
    """
    for shown in rows:
        content = json.loads(line(shown.row))
        concept = Concept.model_validate(content["concept"])
        chance = random.Random(f"demonstrations\n{concept.concept_id}")  # noqa: S311 - a choice to be repeated
        wanted = chance.randint(0, most)
        # Some more than are wanted: a variation of the row is passed over.
        others = chance.sample(rows, min(len(rows), 2 * wanted + 2))
        fit = [_answered(line(other.row)) for other in others if other.group != shown.group][:wanted]
        prompt = _longest(role, concept, fit, most_characters - len(content["completion"][0]["content"]))
        content["prompt"] = [{"role": message.speaker, "content": message.content} for message in prompt]
        yield jsonl_line(content).encode()


def _answered(line: bytes) -> tuple[Concept, str]:
    content = json.loads(line)
    return Concept.model_validate(content["concept"]), str(content["completion"][0]["content"])


def _longest(
    role: Role, concept: Concept, answered: Sequence[tuple[Concept, str]], most_characters: int
) -> tuple[Message, ...]:
    """The prompt with as many of the answered concepts as it has room for."""
    render: Any = role.render_with  # type: ignore[attr-defined]
    for count in range(len(answered), -1, -1):
        prompt: tuple[Message, ...] = render(concept, answered[:count])
        if sum(len(message.content) for message in prompt) <= most_characters:
            break
    return prompt
