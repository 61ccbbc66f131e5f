"""What compares the meaning of two texts: an embedding model that a package ships, or the words they share.

A plugin is an entry point of the group `po_distill.embeddings`: a class that is called without arguments, with a
`name` for the report and a method `embed(texts) -> sequence of vectors`. `words` needs no package, and is named in the
report for what it is: it knows no synonyms.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from po_distill import plugins

WORDS = "words"


class Meaning:
    """How far two texts agree, 0 to 1; called as `meaning(first, second)`. Goes to other processes by its name."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self.name = (
            "shared words (no embedding model: synonyms are not known)" if plugin == WORDS else _opened(plugin).name
        )

    def __call__(self, first: str, second: str) -> float:
        """The cosine of the two texts' vectors; below 0 counts as 0."""
        if not first.strip() or not second.strip():
            return float(first.strip() == second.strip())
        if self._plugin == WORDS:
            return _cosine_of_words(first, second)
        one, two = _opened(self._plugin).embed([first, second])
        return max(0.0, _cosine(one, two))


def open_meaning(name: str) -> Meaning:
    """What compares meanings under that name. Raises PluginError where there is none."""
    return Meaning(name)


@functools.lru_cache(maxsize=4)
def _opened(plugin: str) -> Any:
    return plugins.load("embeddings", plugin)()


def _cosine(one: Sequence[float], two: Sequence[float]) -> float:
    lengths = math.sqrt(math.fsum(x * x for x in one) * math.fsum(x * x for x in two))
    return math.fsum(x * y for x, y in zip(one, two, strict=True)) / lengths if lengths else 0.0


_WORD = re.compile(r"\w+")


def _cosine_of_words(first: str, second: str) -> float:
    """Counts of words, damped, as vectors."""
    one, two = (
        {word: 1 + math.log(count) for word, count in Counter(map(str.lower, _WORD.findall(text))).items()}
        for text in (first, second)
    )
    lengths = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in two.values()))
    return sum(value * two.get(word, 0.0) for word, value in one.items()) / lengths if lengths else 0.0
