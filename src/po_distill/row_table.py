"""What has to be remembered of every row to tell duplicates and leaks: half a kilobyte a row, in arrays.

Rows are known by digests of their content and by signatures of their words; nothing depends on their order.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from po_distill.dataset_rules import NEAR_DUPLICATE, NEAR_LEAK
from po_distill.gate import AsItIs, Asked, Passed, Seen
from po_distill.near_text import SIGNATURE_BYTES, near_groups, nearest, signatures

Indices: TypeAlias = NDArray[np.int64]

KEPT, LEAKED, CONTRADICTORY, DUPLICATE, NEAR_PROMPT, NEAR_ANSWER = range(6)
REASONS = {
    LEAKED: "held_out_leak",
    CONTRADICTORY: "contradictory_prompt",
    DUPLICATE: "duplicate_prompt",
    NEAR_PROMPT: "near_duplicate_prompt",
    NEAR_ANSWER: "near_duplicate_answer",
}


class Fates(NamedTuple):
    """What becomes of each row: one of the numbers above, and the row that stays in its place (itself where kept)."""

    fate: NDArray[np.int8]
    instead: Indices


class RowTable:
    """The rows of a file or a set, and what they are to each other.

    `within` is a table that is told each of these rows first, as `DatasetDoctor` tells one of all rows and one of those
    that pass: what a row asks and answers, which is most of what is to be remembered, is then held there alone.
    """

    def __init__(self, within: RowTable | None = None) -> None:
        self._prompt, self._plain, self._group, self._row = (array("Q") for _ in range(4))
        self._near_prompt, self._near_answer, self._has_answer = bytearray(), bytearray(), array("b")
        self._example, self._label, self._score = array("Q"), array("i"), array("d")
        self._line = array("I")  # checksums
        self._labels: dict[str | None, int] = {}
        self._texts = self if within is None else within  # the table that holds what the rows say
        self._number = array("q")  # of each row there

    def __len__(self) -> int:
        return len(self._number)

    def add(self, seen: Seen, passed: Passed | None = None) -> int:
        """Remember a row; its number. Class and score are those of the target, where the row passed."""
        of: Passed | AsItIs | None = passed or seen.as_is
        assert of is not None
        if self._texts is self:
            self._row.append(seen.row)
            self._near_answer += seen.near_answer or bytes(SIGNATURE_BYTES)
            self._has_answer.append(seen.near_answer is not None)
            self.add_asked(seen.asked)
        else:
            self._number.append(len(self._texts) - 1)
        self._example.append(passed.example_id if passed else seen.row)
        self._label.append(self._labels.setdefault(of.label, len(self._labels)))
        self._score.append(of.score)
        self._line.append(zlib.crc32(passed.line.encode("utf-8", "replace")) if passed else 0)
        return len(self) - 1

    def add_asked(self, asked: Asked) -> None:
        """Remember only what a row asks, as is enough of one that is held out."""
        self._number.append(len(self._prompt))
        self._prompt.append(asked.prompt)
        self._plain.append(asked.plain)
        self._group.append(asked.group)
        self._near_prompt += asked.near

    # --- as columns -----------------------------------------------------------------------------

    @property
    def prompts(self) -> NDArray[np.uint64]:
        """Digests of the prompts."""
        return self._of_texts(self._texts._prompt)

    @property
    def examples(self) -> NDArray[np.uint64]:
        """Ids of the examples, by which a dataset is ordered."""
        return np.frombuffer(self._example, np.uint64)

    @property
    def labels(self) -> NDArray[np.int32]:
        """Numbers of the classes."""
        return np.frombuffer(self._label, np.int32)

    @property
    def _numbers(self) -> Indices:
        return np.frombuffer(self._number, np.int64)

    def _of_texts(self, column: array[int]) -> NDArray[np.uint64]:
        whole = np.frombuffer(column, np.uint64)
        return whole if self._texts is self else whole[self._numbers]

    # --- counts ---------------------------------------------------------------------------------

    def exact_duplicates(self) -> int:
        """Rows that repeat prompt and answer of another row."""
        return len(self) - len(np.unique(self._of_texts(self._texts._row)))

    def repeated(self) -> int:
        """Prompts with more than one row."""
        return int((np.unique(self.prompts, return_counts=True)[1] > 1).sum())

    def contradictory_prompts(self) -> NDArray[np.uint64]:
        """The digests of the prompts whose rows are of more than one class."""
        pairs = np.unique(np.stack([self.prompts, self.labels.astype(np.uint64)], axis=1), axis=0)
        prompts, classes = np.unique(pairs[:, 0], return_counts=True)
        return prompts[classes > 1]

    def rows_about(self, prompts: NDArray[np.uint64]) -> list[int]:
        """The numbers of the rows with one of these prompts."""
        return [int(row) for row in np.flatnonzero(np.isin(self.prompts, prompts))]

    # --- leaks ----------------------------------------------------------------------------------

    def leaks(self, held: RowTable, threshold: float = NEAR_LEAK) -> NDArray[np.int8]:
        """For each row: 0 where it is none of `held`'s, 1 exact, 2 but for case and punctuation, 3 nearly the same.

        A concept with other requirements is the same concept: it leaks as well.
        """
        if self._texts is not self:
            return self._texts.leaks(held, threshold)[self._numbers]
        near = nearest(signatures(self._near_prompt), signatures(held._near_prompt), threshold)
        plain = np.isin(np.frombuffer(self._plain, np.uint64), np.frombuffer(held._plain, np.uint64))
        plain |= np.isin(np.frombuffer(self._group, np.uint64), np.frombuffer(held._group, np.uint64))
        exact = np.isin(self.prompts, held.prompts)
        return np.select([exact, plain, near], [1, 2, 3], 0).astype(np.int8)

    # --- duplicates -----------------------------------------------------------------------------

    def fates(self, leaked: NDArray[np.bool_], threshold: float = NEAR_DUPLICATE) -> Fates:
        """Which rows stay: of the rows about one prompt the best, and of rows of one class that are nearly the same.

        Best is the highest score, then the least example id, then whatever else of their content differs, so that the
        order of the rows changes nothing. Rows of different classes that are nearly the same are
        no duplicates: what differs between them is what makes the class.
        """
        fate, instead = np.zeros(len(self), np.int8), np.arange(len(self), dtype=np.int64)
        fate[leaked] = LEAKED
        lines, rows = np.frombuffer(self._line, np.uint32), self._of_texts(self._texts._row)
        rank = np.lexsort((lines, rows, self.examples, -np.frombuffer(self._score, np.float64)))
        place = np.empty(len(self), np.int64)  # of each row among all, the best first
        place[rank] = np.arange(len(self))
        _settle(fate, instead, place, self.prompts, DUPLICATE)
        fate[(fate == DUPLICATE) & (self.labels != self.labels[instead])] = CONTRADICTORY
        if threshold < 1:
            self._settle_near(fate, instead, place, self._texts._near_prompt, NEAR_PROMPT, threshold)
            self._settle_near(fate, instead, place, self._texts._near_answer, NEAR_ANSWER, threshold)
        while not np.array_equal(instead, last := instead[instead]):  # what stood in a row's place may not stay either
            instead = last
        return Fates(fate, instead)

    def _settle_near(
        self, fate: NDArray[np.int8], instead: Indices, place: Indices, near: bytearray, code: int, threshold: float
    ) -> None:
        may = fate == KEPT
        if code == NEAR_ANSWER:
            may &= np.frombuffer(self._texts._has_answer, np.int8)[self._numbers].astype(bool)
        rows = np.flatnonzero(may)
        if len(rows) < 2:
            return
        groups = rows.copy()
        for label in np.unique(self.labels[rows]):
            inside = np.flatnonzero(self.labels[rows] == label)
            members = rows[inside]
            found = near_groups(signatures(near), self.examples[members], threshold, self._numbers[members])
            groups[inside] = members[found]
        keys = np.arange(len(self), dtype=np.int64) + len(self)  # none of them a group's
        keys[rows] = groups
        _settle(fate, instead, place, keys, code)

    def near_duplicates(self, threshold: float = NEAR_DUPLICATE) -> int:
        """Rows that are nearly another row of their class, by prompt or by answer, and repeat no prompt."""
        fate = self.fates(np.zeros(len(self), bool), threshold).fate
        return int(((fate == NEAR_PROMPT) | (fate == NEAR_ANSWER)).sum())


class Whereabouts:
    """Where each row lies, as a text, in twelve bytes a row: those of one file differ in the number at their end."""

    def __init__(self) -> None:
        self._stems: list[str] = []
        self._places: dict[str, int] = {}  # of each stem among them
        self._stem, self._number = array("I"), array("q")  # -1: no number at the end

    def append(self, where: str) -> None:
        """Remember the next row's."""
        digits = where[len(where.rstrip("0123456789")) :][-_MOST_DIGITS:].lstrip("0")
        stem = where[: len(where) - len(digits)]
        place = self._places.setdefault(stem, len(self._stems))
        if place == len(self._stems):
            self._stems.append(stem)
        self._stem.append(place)
        self._number.append(int(digits) if digits else -1)

    def __len__(self) -> int:
        return len(self._stem)

    def __getitem__(self, row: int) -> str:
        stem, number = self._stems[self._stem[row]], self._number[row]
        return stem if number < 0 else f"{stem}{number}"


class Distinct:
    """How many different digests of 64 bits were told, in eight bytes each."""

    def __init__(self) -> None:
        self._known, self._new = np.zeros(0, np.uint64), array("Q")

    def update(self, digests: Iterable[int]) -> None:
        """Tell some more."""
        self._new.extend(digests)
        if len(self._new) >= _MOST_NEW:
            self._sort_in()

    def __len__(self) -> int:
        self._sort_in()
        return len(self._known)

    def _sort_in(self) -> None:
        new = np.setdiff1d(np.frombuffer(self._new, np.uint64), self._known)
        self._known = np.insert(self._known, np.searchsorted(self._known, new), new)
        self._new = array("Q")


_MOST_DIGITS = 18  # what 64 bits hold
_MOST_NEW = 500_000


def _settle(
    fate: NDArray[np.int8], instead: Indices, place: Indices, keys: NDArray[np.uint64] | Indices, code: int
) -> None:
    """Of the kept rows with one key only the best stays."""
    rows = np.flatnonzero(fate == KEPT)
    rows = rows[np.lexsort((place[rows], keys[rows]))]
    if not len(rows):
        return
    begins = np.flatnonzero(np.r_[True, keys[rows][1:] != keys[rows][:-1]])
    best = np.repeat(rows[begins], np.diff(np.r_[begins, len(rows)]))
    worse = rows != best
    fate[rows[worse]] = code
    instead[rows[worse]] = best[worse]
