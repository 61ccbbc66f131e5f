"""Planted faults are attributed right: 20 of each, in the canonical answers of the role and in unquoted ones."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill.records import Concept
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.yaml_repair import repaired, unfolded

ROLE = ProductOwnerRole()
CONCEPTS = ROLE.generate_concepts(20, seed=11)
WRONG = {"aligned": "misaligned", "misaligned": "aligned", "needs_adjustment": "aligned"}


def unquoted(text: str) -> str:
    return re.sub(r'^(\s*(?:- |[a-z_]+: ))"(.*)"$', r"\1\2", text, flags=re.MULTILINE)


def folded(text: str, rng: random.Random) -> str:
    """One item goes on in the next line, no deeper than its dash: as a student that mixed two depths wrote it."""
    lines = unquoted(text).split("\n")
    number = rng.choice([n for n, line in enumerate(lines) if line.strip().startswith("- ") and len(line.split()) > 4])
    words, depth = lines[number].split(" "), len(lines[number]) - len(lines[number].lstrip())
    lines[number : number + 1] = [" ".join(words[:-2]), " " * depth + " ".join(words[-2:])]
    return "\n".join(lines)


def contentless(text: str, rng: random.Random) -> str:
    filler = rng.choice(["TBD", "item", "x", "To be defined later", "Lorem ipsum dolor sit amet"])
    text = re.sub(r'^(\s*- )".*"$', rf'\1"{filler}"', text, flags=re.MULTILINE)
    return re.sub(r'^(product_summary|narrative): ".*"$', rf'\1: "{(filler + " ") * 40}"', text, flags=re.MULTILINE)


FAULTS = {
    "folded_list_item": folded,
    "unquoted_colon": lambda text, rng: re.sub(r'^narrative: "(.*)"$', r"narrative: In short: \1", text, flags=re.M),
    "missing_review": lambda text, rng: text.split("```yaml REVIEW")[0].rstrip(),
    "wrong_enum": lambda text, rng: re.sub('status: ".*"', f'status: "{rng.choice(["conflicts", "partial"])}"', text),
    "invented_ids": lambda text, rng: text.replace(
        "recommended_actions:\n", f'recommended_actions:\n  - "Rework FR{rng.randint(40, 99):03d}"\n'
    ),
    "contentless": contentless,
    "truncated": lambda text, rng: text[: rng.randint(len(text) // 5, len(text) - 5)],
    "swapped_verdict": lambda text, rng: re.sub('status: "(.*)"', lambda m: f'status: "{WRONG[m[1]]}"', text),
}


def causes(concept: Concept, text: str) -> list[str]:
    found = ROLE.attribute(concept, text, score=ROLE.score(concept, text), expected=concept.planted_label)
    return [failure.cause for failure in found]


@pytest.mark.parametrize("form", ["canonical", "unquoted"])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_attributed_right(fault, form):
    rng = random.Random(7)
    found = Counter()
    for concept in CONCEPTS:
        text = FAULTS[fault](ROLE.answer_by_rules(concept), rng)
        found[next(iter(causes(concept, unquoted(text) if form == "unquoted" else text)), None)] += 1
    assert found[fault] >= 19, found


def test_sound_answers_have_nothing_that_failed():
    for concept in CONCEPTS:
        assert causes(concept, ROLE.answer_by_rules(concept)) == []
        assert causes(concept, unquoted(ROLE.answer_by_rules(concept))) == []


def test_every_fault_lowers_an_answer_to_the_level_that_it_is_of():
    levels = {
        "format": ("folded_list_item", "unquoted_colon", "missing_review", "truncated"),
        "schema": ("wrong_enum",),
    }
    concept = CONCEPTS[2]
    for fault, plant in FAULTS.items():
        text = plant(ROLE.answer_by_rules(concept), random.Random(3))
        (first, *_) = ROLE.attribute(concept, text, score=ROLE.score(concept, text), expected=concept.planted_label)
        assert first.level == next((level for level, names in levels.items() if fault in names), "content")


@pytest.mark.parametrize("fault", ["folded_list_item", "unquoted_colon"])
def test_what_only_lacks_unfolding_and_quoting_has_its_whole_score_when_repaired(fault):
    for concept in CONCEPTS:
        sound = ROLE.answer_by_rules(concept)
        broken = FAULTS[fault](sound, random.Random(1))
        mended = ROLE.repair(broken)
        assert not ROLE.score(concept, broken).valid
        assert ROLE.score(concept, mended).valid
        assert ROLE.score(concept, mended).value == pytest.approx(ROLE.score(concept, unquoted(sound)).value, abs=0.03)


@pytest.mark.parametrize("fault", ["missing_review", "truncated"])
def test_what_is_not_there_is_not_repaired(fault):
    for concept in CONCEPTS:
        mended = ROLE.repair(FAULTS[fault](ROLE.answer_by_rules(concept), random.Random(1)))
        assert mended is None or not ROLE.score(concept, mended).valid


def test_other_things_that_go_wrong_have_names_of_their_own():
    concept, sound = CONCEPTS[0], ROLE.answer_by_rules(CONCEPTS[0])
    assert causes(concept, "") == ["no_answer"]
    assert causes(concept, "I would rather not say.") == ["no_blocks"]
    assert causes(concept, sound.replace("```yaml REVIEW", "```yaml")) == ["missing_review"]
    assert causes(concept, sound.replace("```yaml REVIEW", "```REVIEW")) == ["wrong_fences"]
    assert causes(concept, sound.replace('narrative: "', 'narrative: "so "called" ')) == ["unescaped_quote"]
    assert causes(concept, sound.replace("narrative:", "reason:"))[0] == "missing_key"
    score = ROLE.score(concept, sound)
    assert ROLE.attribute(concept, sound, score=score, finish="length", expected=concept.planted_label) == ()


def test_the_verdict_is_not_judged_where_nobody_knows_the_right_one():
    text = FAULTS["swapped_verdict"](ROLE.answer_by_rules(CONCEPTS[0]), random.Random(1))
    found = ROLE.attribute(CONCEPTS[0], text, score=ROLE.score(CONCEPTS[0], text))
    assert [failure.cause for failure in found] == ["contradiction"]


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_attributed_and_repaired_without_an_error(text):
    concept = CONCEPTS[0]
    ROLE.attribute(concept, text, score=ROLE.score(concept, text))
    ROLE.repair(text)
    mended = repaired(text)
    assert mended is None or repaired(mended.block) is None
    assert unfolded(unfolded(text)) == unfolded(text)
