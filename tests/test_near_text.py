import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill.near_text import (
    FUNCTIONS,
    SHINGLE_WORDS,
    SIGNATURE_BYTES,
    near_groups,
    nearest,
    normalised_words,
    signature,
    signatures,
)

STANDARD_ERROR = 0.044  # the largest that the module states


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    padded = [*words, *[""] * (SHINGLE_WORDS - len(words))]
    return {tuple(padded[start : start + SHINGLE_WORDS]) for start in range(len(padded) - SHINGLE_WORDS + 1)}


def similarity(left: list[str], right: list[str]) -> float:
    one, two = shingles(left), shingles(right)
    return len(one & two) / len(one | two)


def estimated(left: list[str], right: list[str]) -> float:
    one, two = signatures(signature(left) + signature(right))
    return float((one == two).mean())


def text(chance: random.Random, length: int, vocabulary: int = 10_000) -> list[str]:
    return [f"w{chance.randrange(vocabulary)}" for _ in range(length)]


def reworded(chance: random.Random, words: list[str], changes: int) -> list[str]:
    result = list(words)
    for place in chance.sample(range(len(words)), changes):
        result[place] = f"new{chance.randrange(10**9)}"
    return result


def of(texts: list[list[str]]) -> np.ndarray:
    return signatures(b"".join(map(signature, texts)))


def groups_of(texts: list[list[str]], order: list[int], threshold: float) -> set[frozenset[int]]:
    """The groups of two or more, by the numbers in `order`, which stand for what the texts are."""
    found = near_groups(of(texts), np.array(order, np.uint64), threshold)
    members = defaultdict(set)
    for number, group in zip(order, found.tolist(), strict=True):
        members[group].add(number)
    return {frozenset(group) for group in members.values() if len(group) > 1}


def test_case_punctuation_and_spacing_change_no_word() -> None:
    assert normalised_words("The  Clinic-Scheduler,\nFOR straße!") == normalised_words(
        "the clinic scheduler for STRASSE"
    )
    assert signature(normalised_words("A b. C")) == signature(normalised_words("a B c"))


@given(st.lists(st.text(max_size=60), max_size=40))
def test_a_signature_has_one_size_and_depends_on_the_words_alone(words: list[str]) -> None:
    assert len(signature(words)) == SIGNATURE_BYTES == 2 * FUNCTIONS
    assert signature(tuple(words)) == signature(words)


def test_the_estimates_are_as_far_from_the_exact_similarity_as_is_stated() -> None:
    chance = random.Random(7)
    off = []
    for _ in range(1_500):
        words = text(chance, chance.randrange(20, 200))
        other = reworded(chance, words, chance.randrange(len(words) // 2))
        off.append(estimated(words, other) - similarity(words, other))
    errors = np.array(off)
    assert abs(errors.mean()) < 3 * STANDARD_ERROR / len(off) ** 0.5
    assert errors.std() <= STANDARD_ERROR
    assert np.abs(errors).max() < 5 * STANDARD_ERROR


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(SHINGLE_WORDS, 120))
def test_what_comes_twice_says_nothing_more(seed: int, length: int) -> None:
    words = text(random.Random(seed), length)
    assert estimated(words, words) == 1.0
    assert estimated([*words, *words, *words], [*words, *words]) == 1.0


def test_texts_of_fewer_words_than_a_shingle_are_told_apart() -> None:
    short = [[], ["a"], ["b"], ["a", "b"], ["b", "a"], ["a", "b", "c"]]
    assert len({signature(words) for words in short}) == len(short)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**9))
def test_planted_near_pairs_are_found_among_many_unlike_texts_and_nothing_else(seed: int) -> None:
    chance = random.Random(seed)
    texts = [text(chance, 150) for _ in range(800)]
    planted = set()
    for number in range(60):  # one word of 150 changed: 0.96
        planted.add(frozenset({number, len(texts)}))
        texts.append(reworded(chance, texts[number], 1))
    for number in range(100, 160):  # 20 words changed: under 0.6, as variations of a concept are
        texts.append(reworded(chance, texts[number], 20))
    order = list(range(len(texts)))
    assert groups_of(texts, order, 0.85) == planted


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**9))
def test_the_groups_do_not_depend_on_the_order_of_the_rows(seed: int) -> None:
    chance = random.Random(seed)
    # Few words and many changes: similarities lie on both sides of the threshold, and keys are full.
    stems = [text(chance, 60, vocabulary=40) for _ in range(12)]
    texts = [reworded(chance, chance.choice(stems), chance.randrange(6)) for _ in range(300)]
    order = chance.sample(range(10**9), len(texts))
    expected = groups_of(texts, order, 0.8)
    assert expected
    for _ in range(3):
        turned = chance.sample(range(len(texts)), len(texts))
        assert groups_of([texts[i] for i in turned], [order[i] for i in turned], 0.8) == expected


def test_a_chain_of_likenesses_is_one_group() -> None:
    chance = random.Random(3)
    chain = [text(chance, 100)]
    for step in range(12):  # each differs from the one before in one word, the last from the first in twelve
        chain.append([*chain[-1]])
        chain[-1][step * 8] = f"new{step}"
    assert similarity(chain[0], chain[-1]) < 0.6 < 0.9 < similarity(chain[0], chain[1])
    assert groups_of(chain, list(range(13)), 0.85) == {frozenset(range(13))}


@pytest.mark.parametrize("copies", [5, 40, 2_000])
def test_many_equal_texts_are_one_group(copies: int) -> None:
    chance = random.Random(5)
    same, other = text(chance, 80), text(chance, 80)
    found = groups_of([same] * copies + [other], list(range(copies + 1)), 0.9)
    assert found == {frozenset(range(copies))}


def test_equal_parts_of_unlike_texts_hide_no_pair() -> None:
    """Texts with one long part in common fill the same keys, as answers with the same headings do."""
    chance = random.Random(11)
    heading = text(chance, 60)
    texts = [[*heading, *text(chance, 100)] for _ in range(2_000)]  # like one another by 0.2
    planted = set()
    for number in range(200):
        planted.add(frozenset({number, len(texts)}))
        texts.append(reworded(chance, texts[number], 1))
    assert groups_of(texts, list(range(len(texts))), 0.85) == planted


def test_of_none_and_of_one_there_are_no_groups() -> None:
    assert near_groups(of([]), np.zeros(0, np.uint64), 0.9).tolist() == []
    assert near_groups(of([["a"]]), np.zeros(1, np.uint64), 0.9).tolist() == [0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from((0.8, 0.9)))
def test_the_nearest_are_those_of_brute_force(seed: int, threshold: float) -> None:
    # Exactly those: signatures that differ in fewer places than there are bands have a band in common.
    chance = random.Random(seed)
    stems = [text(chance, 90) for _ in range(30)]
    held = of([reworded(chance, chance.choice(stems), chance.randrange(8)) for _ in range(40)])
    found = of([reworded(chance, chance.choice(stems), chance.randrange(12)) for _ in range(120)] + [text(chance, 90)])
    agreement = (found[:, None] == held[None]).mean(axis=2)
    assert nearest(found, held, threshold).tolist() == (agreement >= threshold).any(axis=1).tolist()


def test_nothing_is_near_to_nothing() -> None:
    one = of([["a", "b", "c", "d"]])
    assert nearest(one, of([]), 0.8).tolist() == [False]
    assert nearest(of([]), one, 0.8).tolist() == []
    assert nearest(one, one, 1.0).tolist() == [True]
