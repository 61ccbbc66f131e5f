"""The language of a short text, told by its smallest words.

A few words of each language that stand in nearly every sentence of it. It tells the languages below apart in texts of
a sentence or more, and says "unknown" of anything else: enough to see that a dataset lacks a language, or mixes them.
"""

from __future__ import annotations

import re

UNKNOWN = "unknown"

_SMALL_WORDS = {
    "en": "the and of to in for with that is are on by from their it as which this an or be at has",
    "es": "el la los las de del y en para con que una un por se su es como más sus al lo desde o",
    "pt": "o a os as do da dos das e em para com que uma um por se sua são não mais ao pela ou",
    "fr": "le la les des du et en pour avec que une un par sur est dans qui ses aux plus leur ce ou",
    "de": "der die das und in für mit den dem von zu ist eine ein auf im nicht sich des auch oder wird",
    "it": "il la gli le di del della e in per con che una un da si sono non più alla dei nel o",
    "nl": "de het een en van in voor met dat is op zijn door te aan niet ook bij om die of",
}
_BY_WORD: dict[str, tuple[str, ...]] = {}
for _language, _words in _SMALL_WORDS.items():
    for _word in _words.split():
        _BY_WORD[_word] = (*_BY_WORD.get(_word, ()), _language)
_WORD = re.compile(r"[^\W\d_]+")
_MOST_CHARACTERS = 4_000


def language_of(text: str) -> str:
    """The ISO 639-1 code of a text's language; "unknown" where its small words do not tell."""
    points: dict[str, float] = {}
    for match in _WORD.finditer(text[:_MOST_CHARACTERS].lower()):
        for language in (languages := _BY_WORD.get(match[0], ())):
            points[language] = points.get(language, 0.0) + 1.0 / len(languages)
    ranked = sorted(points.items(), key=lambda item: -item[1])
    if not ranked or ranked[0][1] < 2.0:
        return UNKNOWN
    if len(ranked) > 1 and ranked[1][1] > 0.8 * ranked[0][1]:
        return UNKNOWN
    return ranked[0][0]
