"""Texts that say nearly the same: MinHash over shingles of three words (Broder, 1997), in a quarter kilobyte a text.

A signature holds, for each of 128 hash functions, 16 bits of the least hash over the text's shingles; the share of
places in which two signatures agree estimates the Jaccard similarity of their shingle sets, with a standard error of
at most 0.044. Four places side by side are one key of a band (Leskovec et al., Mining of Massive Datasets, 3.4): texts
are compared where a key is the same. 128 functions and a word index of bands, because a million signatures then fit
in 256 MB and sort in seconds; a library's index of Python objects would take some gigabytes.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Signatures: TypeAlias = NDArray[np.uint16]  # (texts, FUNCTIONS)
    Indices: TypeAlias = NDArray[np.int64]

FUNCTIONS = 128
SIGNATURE_BYTES = 2 * FUNCTIONS
SHINGLE_WORDS = 3

_WORD = re.compile(r"\w+")
_BLOCK = 96  # shingles hashed at a time: what the processor's cache holds
_NEIGHBOURS = 4  # texts of one key that each is compared with, in the order of the next key
_ROWS = 65_536  # pairs compared at a time
_FIRST, _SECOND = 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F  # odd, and of no pattern


def normalised_words(text: str) -> list[str]:
    """The words of a text without case, punctuation and spacing."""
    return _WORD.findall(text.casefold())


def signature(words: Sequence[str]) -> bytes:
    """The signature of a text, given as `normalised_words`: SIGNATURE_BYTES long, little-endian 16 bits a place."""
    import numpy as np

    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    while len(hashes) < SHINGLE_WORDS:  # a text of one or two words is a shingle of its own
        hashes = np.append(hashes, np.uint64(len(hashes)))
    shingles = hashes[:-2] * np.uint64(_FIRST) + hashes[1:-1] * np.uint64(_SECOND) + hashes[2:]
    shingles ^= shingles >> np.uint64(31)
    shingles *= np.uint64(_FIRST)
    shingles ^= shingles >> np.uint64(29)
    factors, addends = _functions()
    least = np.full(FUNCTIONS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles), _BLOCK):
        hashed = shingles[start : start + _BLOCK, None] * factors
        hashed += addends
        np.minimum(least, hashed.min(axis=0), out=least)
    # The high bits of a least hash are nearly always zero: the middle ones tell hashes apart.
    return ((least >> np.uint64(16)) & np.uint64(0xFFFF)).astype("<u2").tobytes()


def signatures(data: bytes | bytearray) -> Signatures:
    """Signatures that were put one behind the other, as rows."""
    import numpy as np

    return np.frombuffer(data, "<u2").reshape(-1, FUNCTIONS)


def near_groups(found: Signatures, order: NDArray[np.uint64], threshold: float, rows: Indices | None = None) -> Indices:
    """For each text, the number of its group: the texts that a chain of similarities of `threshold` or more joins.

    `order` is a number of each text that its content decides, so that the order of the rows changes nothing. `rows`
    are the texts of `found` that are looked at; groups are numbers among these. By default it is all of them.
    """
    import numpy as np

    rows = np.arange(len(found), dtype=np.int64) if rows is None else rows
    groups = np.arange(len(rows), dtype=np.int64)
    keys = _band_keys(found)
    for band in range(keys.shape[1]):
        own, next_keys = keys[rows, band], keys[rows, (band + 1) % keys.shape[1]]
        place = np.lexsort((order, next_keys, own))
        for distance in range(1, min(_NEIGHBOURS, len(place) - 1) + 1):
            first, second = place[:-distance], place[distance:]
            together = (own[first] == own[second]) & (groups[first] != groups[second])
            first, second = first[together], second[together]
            near = _agreement(found, rows[first], found, rows[second]) >= threshold
            groups = _joined(groups, first[near], second[near])
    return groups


def nearest(found: Signatures, held: Signatures, threshold: float) -> NDArray[np.bool_]:
    """For each text of `found`, whether one of `held` is as similar as `threshold` or more."""
    import numpy as np

    result = np.zeros(len(found), bool)
    if not len(held) or not len(found):
        return result
    keys, held_keys = _band_keys(found), _band_keys(held)
    for band in range(keys.shape[1]):
        place = np.argsort(held_keys[:, band], kind="stable")
        ordered = held_keys[place, band]
        begin = np.searchsorted(ordered, keys[:, band], "left")
        end = np.searchsorted(ordered, keys[:, band], "right")
        step = 0
        while len(rows := np.flatnonzero((begin + step < end) & ~result)):
            near = _agreement(found, rows, held, place[begin[rows] + step]) >= threshold
            result[rows[near]] = True
            step += 1
    return result


def _band_keys(found: Signatures) -> NDArray[np.uint64]:
    import numpy as np

    return np.ascontiguousarray(found).view(np.uint64)  # four places of 16 bits each


def _agreement(left: Signatures, rows: Indices, right: Signatures, others: Indices) -> NDArray[np.float64]:
    """The share of places in which left[rows] and right[others] agree, pair by pair."""
    import numpy as np

    result = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        result[part] = (left[rows[part]] == right[others[part]]).mean(axis=1)
    return result


def _joined(groups: Indices, first: Indices, second: Indices) -> Indices:
    """The groups after each pair was put into one: each is named by its least member."""
    import numpy as np

    while True:
        low = np.minimum(groups[first], groups[second])
        if (low == groups[first]).all() and (low == groups[second]).all():
            return groups
        target = groups.copy()
        np.minimum.at(target, groups[first], low)
        np.minimum.at(target, groups[second], low)
        while not np.array_equal(target, jumped := target[target]):
            target = jumped
        groups = target[groups]


def _word_hash(word: str) -> int:
    return _short_hash(word) if len(word) <= _SHORT else _hash(word)


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


_short_hash = functools.lru_cache(maxsize=65_536)(_hash)
_SHORT = 40  # characters; longer words hardly come again, and would fill the memory


@functools.cache
def _functions() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Factors (odd) and addends of the hash functions, always the same."""
    import numpy as np

    chance = np.random.Generator(np.random.PCG64(20_261_125))
    factors, addends = chance.integers(0, 2**64, (2, FUNCTIONS), np.uint64, endpoint=False)
    return factors | np.uint64(1), addends
