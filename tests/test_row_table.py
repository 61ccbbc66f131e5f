import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill import DatasetBuilder
from po_distill.artifacts import read_jsonl, write_jsonl
from po_distill.gate import AsItIs, Asked, Passed, Seen
from po_distill.near_text import FUNCTIONS
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.row_table import (
    CONTRADICTORY,
    DUPLICATE,
    KEPT,
    LEAKED,
    NEAR_ANSWER,
    NEAR_PROMPT,
    REASONS,
    Distinct,
    RowTable,
    Whereabouts,
)

NEAR, LEAK = 0.9, 0.8
LABELS = ("aligned", "misaligned", None)


class Row(NamedTuple):
    """What a table is told of a row."""

    asked: Asked
    row: int
    near_answer: bytes | None
    example: int
    label: str | None
    score: float
    line: str


def told(row: Row) -> tuple[Seen, Passed]:
    seen = Seen("medium", "en", row.asked, row.row, row.near_answer, None)
    return seen, Passed(row.example, row.score, row.label, "fenced", "", row.line, {}, True, None)


def table_of(rows: Sequence[Row], *, as_it_is: bool = False) -> RowTable:
    table = RowTable()
    for number, row in enumerate(rows):
        seen, passed = told(row)
        if as_it_is:
            as_is = AsItIs(row.score, None, row.label, (), None, {}, {}, (), False)
            assert table.add(seen._replace(as_is=as_is)) == number
        else:
            assert table.add(seen, passed) == number
    return table


def made_up(chance: random.Random, count: int) -> list[Row]:
    """Rows of few prompts and few families of likeness, so that all that can happen to a row does."""
    prompts = [_asked(chance, family) for family in _families(chance, 8) for _ in range(4)]
    answers = [_changed(chance, family) for family in _families(chance, 30) for _ in range(4)]
    rows = []
    for number in range(count):
        asked, answer = chance.choice(prompts), chance.choice((*answers, None))
        rows.append(
            Row(
                asked=asked,
                row=zlib.crc32(repr((asked.prompt, answer)).encode()),
                near_answer=answer,
                example=asked.prompt // 8 * 100 + chance.randrange(3),
                label=chance.choice(LABELS),
                score=chance.choice((0.9, 0.95, 1.0)),
                line=f"row {number}",
            )
        )
    rows += [row._replace(line=chance.choice((row.line, "another"))) for row in chance.choices(rows, k=count // 4)]
    return chance.sample(rows, len(rows))


def _families(chance: random.Random, count: int) -> list[bytes]:
    return [chance.randbytes(2 * FUNCTIONS) for _ in range(count)]


def _changed(chance: random.Random, signature: bytes) -> bytes:
    """A signature that differs from another in up to nine of its places: two such agree in 0.86 to 1 of them."""
    places = np.frombuffer(signature, "<u2").copy()
    for place in chance.sample(range(FUNCTIONS), chance.randrange(10)):
        places[place] = chance.randrange(2**16)
    return places.tobytes()


def _asked(chance: random.Random, family: bytes) -> Asked:
    return Asked(chance.randrange(2**60), chance.randrange(2**60), chance.randrange(2**60), _changed(chance, family))


# --- the same, row by row -----------------------------------------------------------------------


def agreement(left: bytes, right: bytes) -> float:
    return float((np.frombuffer(left, "<u2") == np.frombuffer(right, "<u2")).mean())


def best_first(rows: Sequence[Row], numbers: list[int]) -> list[int]:
    def rank(number: int) -> tuple[float, int, int, int, int]:
        row = rows[number]
        return -row.score, row.example, row.row, zlib.crc32(row.line.encode()), number

    return sorted(numbers, key=rank)


def fates_by_hand(rows: Sequence[Row], leaked: Sequence[bool], near: float) -> tuple[list[int], list[int]]:
    fate = [LEAKED if lost else KEPT for lost in leaked]
    instead = list(range(len(rows)))

    def settle(numbers: list[int], code: int) -> None:
        best, *worse = best_first(rows, numbers)
        for number in worse:
            same_class = code != DUPLICATE or rows[number].label == rows[best].label
            fate[number], instead[number] = code if same_class else CONTRADICTORY, best

    def kept() -> list[int]:
        return [number for number in range(len(rows)) if fate[number] == KEPT]

    for prompt in {row.asked.prompt for row in rows}:
        if numbers := [number for number in kept() if rows[number].asked.prompt == prompt]:
            settle(numbers, DUPLICATE)
    if near < 1:
        for code in (NEAR_PROMPT, NEAR_ANSWER):
            signatures = [row.asked.near if code == NEAR_PROMPT else row.near_answer for row in rows]
            for group in chains(rows, [n for n in kept() if signatures[n] is not None], signatures, near):
                settle(group, code)
    for number in range(len(rows)):
        while instead[number] != instead[instead[number]]:
            instead[number] = instead[instead[number]]
    return fate, instead


def chains(rows: Sequence[Row], numbers: list[int], signatures: Sequence[bytes | None], near: float) -> list[list[int]]:
    left, groups = set(numbers), []
    while left:
        group, reached = [], [left.pop()]
        while reached:
            group.append(one := reached.pop())
            like = [
                other
                for other in left
                if rows[other].label == rows[one].label
                and agreement(signatures[one] or b"", signatures[other] or b"") >= near
            ]
            left -= set(like)
            reached += like
        groups.append(group)
    return groups


# --- tests --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 60), st.sampled_from((NEAR, 1.0)))
def test_what_becomes_of_rows_is_what_comparing_each_with_each_says(seed: int, count: int, near: float) -> None:
    chance = random.Random(seed)
    rows = made_up(chance, count)
    leaked = [chance.random() < 0.1 for _ in rows]
    leaked = [any(lost for lost, other in zip(leaked, rows, strict=True) if other.asked == row.asked) for row in rows]
    fate, instead = table_of(rows).fates(np.array(leaked, bool), near)
    expected, stays = fates_by_hand(rows, leaked, near)
    assert fate.tolist() == expected
    assert [rows[number] for number in instead] == [rows[number] for number in stays]


def test_every_fate_is_met_in_the_rows_of_these_tests() -> None:
    met: set[int] = set()
    for seed in range(10):
        rows = made_up(random.Random(seed), 60)
        met |= set(table_of(rows).fates(np.arange(len(rows)) == 0, NEAR).fate.tolist())
    assert met == {KEPT, *REASONS}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60))
def test_the_order_of_rows_decides_nothing(seed: int, count: int) -> None:
    chance = random.Random(seed)
    rows = made_up(chance, count)
    held = table_of(made_up(chance, 5) + chance.sample(rows, min(2, len(rows))))

    def said(rows: list[Row]) -> tuple[object, ...]:
        table = table_of(rows)
        leaks = table.leaks(held, LEAK)
        fate, instead = table.fates(leaks > 0, NEAR)
        fates = sorted(
            (repr(row), int(leak), int(one), repr(rows[stays]))
            for row, leak, one, stays in zip(rows, leaks, fate, instead, strict=True)
        )
        counts = table.exact_duplicates(), table.repeated(), sorted(table.contradictory_prompts().tolist())
        return fates, counts, table.near_duplicates(NEAR)

    assert said(rows) == said(chance.sample(rows, len(rows)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 60))
def test_counts_are_those_of_comparing_each_with_each(seed: int, count: int) -> None:
    rows = made_up(random.Random(seed), count)
    table = table_of(rows, as_it_is=True)
    by_prompt: dict[int, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row.asked.prompt, []).append(row)
    contradictory = {prompt for prompt, several in by_prompt.items() if len({row.label for row in several}) > 1}
    assert len(table) == len(rows)
    assert table.exact_duplicates() == len(rows) - len({row.row for row in rows})
    assert table.repeated() == sum(len(several) > 1 for several in by_prompt.values())
    assert set(table.contradictory_prompts().tolist()) == contradictory
    about = table.rows_about(table.contradictory_prompts())
    assert about == [number for number, row in enumerate(rows) if row.asked.prompt in contradictory]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_leaks_are_those_of_comparing_each_with_each(seed: int) -> None:
    chance = random.Random(seed)
    rows = made_up(chance, 30)
    held = []
    for row in chance.sample(rows, 6):
        other, new = row.asked, _asked(chance, chance.randbytes(2 * FUNCTIONS))
        changed = chance.choice(
            (
                other,
                other._replace(prompt=new.prompt),
                other._replace(prompt=new.prompt, plain=new.plain, near=new.near),
                new._replace(plain=other.plain),
                new._replace(near=_changed(chance, other.near)),
                new,
            )
        )
        held.append(row._replace(asked=changed))

    def kind(asked: Asked) -> int:
        several = [row.asked for row in held]
        if any(asked.prompt == other.prompt for other in several):
            return 1
        if any(asked.plain == other.plain or asked.group == other.group for other in several):
            return 2
        return 3 if any(agreement(asked.near, other.near) >= LEAK for other in several) else 0

    assert table_of(rows).leaks(table_of(held), LEAK).tolist() == [kind(row.asked) for row in rows]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 60))
def test_a_table_within_another_says_what_one_of_its_own_would(seed: int, count: int) -> None:
    chance = random.Random(seed)
    rows = made_up(chance, count)
    held = table_of(made_up(chance, 5) + chance.sample(rows, min(2, len(rows))))
    every = RowTable()
    inner, chosen = RowTable(within=every), []
    for row in rows:
        seen, passed = told(row)
        every.add(seen._replace(as_is=AsItIs(0.5, None, None, (), None, {}, {}, (), False)))
        if chance.random() < 0.7:
            assert inner.add(seen, passed) == len(chosen)
            chosen.append(row)
    own = table_of(chosen)
    assert (len(inner), len(every)) == (len(chosen), len(rows))
    leaks = inner.leaks(held)
    assert leaks.tolist() == own.leaks(held).tolist()
    for one, other in zip(inner.fates(leaks > 0), own.fates(leaks > 0), strict=True):
        assert one.tolist() == other.tolist()
    assert inner.exact_duplicates() == own.exact_duplicates()
    assert inner.repeated() == own.repeated()
    assert inner.near_duplicates() == own.near_duplicates()
    assert inner.contradictory_prompts().tolist() == own.contradictory_prompts().tolist()


def test_nothing_leaks_into_nothing() -> None:
    rows = made_up(random.Random(1), 5)
    assert table_of(rows).leaks(RowTable()).tolist() == [0] * len(rows)
    assert table_of([]).leaks(table_of(rows)).tolist() == []
    assert table_of([]).fates(np.zeros(0, bool)).fate.tolist() == []


def test_a_row_in_whose_place_another_stays_is_told_the_one_that_stays() -> None:
    """The best answer to a prompt may itself be nearly another row's."""
    chance = random.Random(2)
    family = chance.randbytes(2 * FUNCTIONS)
    one, two = _asked(chance, chance.randbytes(2 * FUNCTIONS)), _asked(chance, chance.randbytes(2 * FUNCTIONS))
    rows = [
        Row(one, 1, None, 1, "aligned", 0.90, "worst"),
        Row(one, 2, family, 2, "aligned", 0.95, "better"),
        Row(two, 3, family, 3, "aligned", 1.00, "best"),
    ]
    fate, instead = table_of(rows).fates(np.zeros(3, bool), NEAR)
    assert fate.tolist() == [DUPLICATE, NEAR_ANSWER, KEPT]
    assert instead.tolist() == [2, 2, 2]


@pytest.mark.parametrize("turned", [False, True])
def test_of_answers_that_differ_in_spaces_alone_the_same_one_stays_in_any_order(tmp_path: Path, turned: bool) -> None:
    role = ProductOwnerRole()
    rows = []
    for concept in role.generate_concepts(12, seed=2):
        text = role.answer_by_rules(concept)
        plain = {"concept": concept.concept, "requirements_yaml": concept.requirements_yaml}
        rows += [
            {**plain, "concept_id": f"{concept.concept_id}-a", "response": text},
            {**plain, "concept_id": f"{concept.concept_id}-b", "response": text.replace(":\n", ": \n")},
        ]
    write_jsonl(tmp_path / "rows.jsonl", rows[::-1] if turned else rows)
    built = DatasetBuilder(stamp="2026-01-01T00:00:00Z").build_from(tmp_path / "rows.jsonl", tmp_path / "d.jsonl")
    write_jsonl(tmp_path / "others.jsonl", rows)
    other = DatasetBuilder(stamp="2026-01-01T00:00:00Z").build_from(tmp_path / "others.jsonl", tmp_path / "o.jsonl")
    assert built.digest == other.digest
    assert built.rejected == {"duplicate_prompt": 12}
    kept = [row["concept"]["concept_id"][-1] for path in built.paths.values() for _, row in _rows(path)]
    assert len(kept) == 12


def _rows(path: str) -> list[tuple[int, dict[str, dict[str, str]]]]:
    return list(read_jsonl(path)) if Path(path).stat().st_size else []


@given(st.lists(st.one_of(st.text(max_size=12), st.from_regex(r"\Aa/b[01]?\.jsonl, line [0-9]{0,25}\Z"))))
def test_where_a_row_lies_is_given_back_as_it_was_told(wheres: list[str]) -> None:
    places = Whereabouts()
    for where in wheres:
        places.append(where)
    assert [places[row] for row in range(len(places))] == wheres


def test_where_a_million_rows_lie_takes_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    places = Whereabouts()
    for number in range(100_000):
        places.append(f"a/rather/long/path/to/rows.jsonl, line {number}")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 16 * 100_000


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9))))
def test_different_digests_are_counted_once(told: list[list[int]]) -> None:
    distinct = Distinct()
    every: set[int] = set()
    for some in told:
        distinct.update(some)
        every.update(some)
        assert len(distinct) == len(every)


def test_a_million_digests_are_counted_while_they_come() -> None:
    distinct = Distinct()
    for start in range(0, 1_200_000, 100_000):
        distinct.update(number // 2 * 2**40 for number in range(start, start + 100_000))
    assert len(distinct) == 600_000
