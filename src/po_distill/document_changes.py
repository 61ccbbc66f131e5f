"""Two answers' documents held against each other, item by item: what is the same, reworded, missing or added.

Documents are plain mappings, as a role parses them; nothing here knows what is in them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from po_distill.interfaces import Documents
from po_distill.records import ItemChange

_LEAST_ALIKE = 0.4
"""From this share of common words on, an item is the other one in other words."""

_WORD = re.compile(r"\w+")
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ][\d:.]+(?:Z|[+-]\d{2}:?\d{2})?)?$")
_MOST_ITEMS = 200  # of one field: an answer that repeats itself has thousands, and each is held against each


def item_changes(reference: Documents, candidate: Documents) -> tuple[ItemChange, ...]:
    """Every item of either answer once, in the reference's order, what is added last in its field.

    Items of a list are paired by what they say, wherever they stand: equal ones first, then the most alike. Times are
    left out: a stamp says nothing about an answer.
    """
    ours, theirs = _flat(reference), _flat(candidate)
    found: list[ItemChange] = []
    for path in dict.fromkeys([*ours, *theirs]):
        found += _field_changes(path, ours.get(path, []), theirs.get(path, []))
    return tuple(found)


def likeness(first: str, second: str) -> float:
    """How many of their words two texts share, 0 to 1 (Dice's coefficient of the multisets)."""
    one, two = _words(first), _words(second)
    whole = one.total() + two.total()
    if not whole:
        return 1.0 if first == second else 0.0
    return 2.0 * (one & two).total() / whole


def all_text(documents: Documents) -> str:
    """What documents say, one item a line."""
    return "\n".join(text for items in _flat(documents).values() for text in items)


def _words(text: str) -> Counter[str]:
    return Counter(word.lower() for word in _WORD.findall(text))


def _flat(documents: Documents) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for path, text in _leaves(documents, ""):
        fields.setdefault(path, []).append(text)
    return {path: items[:_MOST_ITEMS] for path, items in fields.items()}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield from _leaves(held, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            text = item if isinstance(item, str) else "; ".join(text for _, text in _leaves(item, ""))
            if text.strip():
                yield path, text.strip()
    elif value is not None and (text := str(value).strip()) and not _TIME.match(text):
        yield path, text


def _field_changes(path: str, ours: list[str], theirs: list[str]) -> Iterator[ItemChange]:
    left = Counter(theirs)
    same = set()
    for number, text in enumerate(ours):
        if left[text] > 0:
            left[text] -= 1
            same.add(number)
    rest = [text for text in theirs if left[text] > 0 and _taken(left, text)]
    pairs = _paired([(number, text) for number, text in enumerate(ours) if number not in same], rest)
    for number, text in enumerate(ours):
        if number in same:
            yield ItemChange(path=path, change="same", reference=text)
        elif number in pairs:
            place, alike = pairs[number]
            yield ItemChange(path=path, change="reworded", reference=text, candidate=rest[place], similarity=alike)
        else:
            yield ItemChange(path=path, change="missing", reference=text)
    used = {place for place, _ in pairs.values()}
    for place, text in enumerate(rest):
        if place not in used:
            yield ItemChange(path=path, change="added", candidate=text)


def _taken(left: Counter[str], text: str) -> bool:
    left[text] -= 1
    return True


def _paired(ours: list[tuple[int, str]], theirs: list[str]) -> dict[int, tuple[int, float]]:
    """reference item -> (candidate item, likeness), the most alike first, each at most once."""
    sizes = [_words(text) for text in theirs]
    found = []
    for number, text in ours:
        words = _words(text)
        for place, other in enumerate(sizes):
            whole = words.total() + other.total()
            alike = 2.0 * (words & other).total() / whole if whole else 0.0
            if alike >= _LEAST_ALIKE or len(ours) == len(theirs) == 1:
                found.append((-alike, number, place))
    pairs: dict[int, tuple[int, float]] = {}
    used: set[int] = set()
    for negative, number, place in sorted(found):
        if number not in pairs and place not in used:
            pairs[number] = (place, -negative)
            used.add(place)
    return pairs
