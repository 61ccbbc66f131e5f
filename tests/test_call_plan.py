"""What a plan counts; that it is what is then sent is shown with the teacher (tests/stages/test_teacher.py)."""

import itertools
import math
from pathlib import Path

import pytest

from haiku import CHEAP, PAID, SCRIPTED, HaikuRole, haiku_concept
from po_distill.call_plan import plan_calls
from po_distill.journal import End, Journal
from po_distill.records import CallPlan, Concept, GenerationSettings, Price, ProviderSettings, Response, Usage

ROLE = HaikuRole()
CONCEPTS = [haiku_concept(n) for n in range(10)]
# "Write a haiku." and "ABOUT:\nPond number 0\nWANTED:\nseason: spring\n", four characters a token.
PROMPT_TOKENS = (14 + 44) // 4


def plan(tmp_path: Path, concepts=CONCEPTS, *, schema=None, generation=None, regenerate=2, **settings) -> CallPlan:
    chosen = {"provider": PAID, "model": "cheap-1", "capabilities": CHEAP, **settings}
    return plan_calls(
        concepts,
        role=ROLE,
        asking=ROLE,
        schema=schema,
        settings=ProviderSettings(**chosen),
        generation=generation or GenerationSettings(max_tokens=4000),
        regenerate=regenerate,
        journal_path=tmp_path / "j.sqlite",
    )


def test_tokens_and_cost_are_those_of_the_prompts_and_of_a_guessed_answer(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert (found.concepts, found.to_ask, found.answered, found.unusable) == (10, 10, 0, 0)
    assert found.prompt_tokens == 10 * PROMPT_TOKENS
    assert found.completion_tokens == 10 * 1000
    assert found.cost_usd == pytest.approx(10 * (PROMPT_TOKENS * 1_000 + 1000 * 10_000) / 1e9)
    assert found.prices == ("cheap-1@2026-09-20",)
    assert list(tmp_path.iterdir()) == []


def test_thinking_and_a_schema_are_counted(tmp_path: Path) -> None:
    assert plan(tmp_path, generation=GenerationSettings(max_tokens=4000, thinking=512)).completion_tokens == 15_120
    assert plan(tmp_path, generation=GenerationSettings(max_tokens=4000, thinking="low")).completion_tokens == 10_000
    assert plan(tmp_path, schema={"type": "object"}).prompt_tokens == 10 * ((14 + 44 + 18) // 4)


def test_no_answer_is_taken_for_longer_than_it_may_be(tmp_path: Path) -> None:
    assert plan(tmp_path, generation=GenerationSettings(max_tokens=100)).completion_tokens == 1000
    small = CHEAP.model_copy(update={"output_cap_tokens": 50})
    assert plan(tmp_path, capabilities=small).completion_tokens == 500


def test_the_worst_case_grows_with_every_answer_that_may_be_asked_for_again(tmp_path: Path) -> None:
    worsts = [plan(tmp_path, regenerate=n).worst_cost_usd for n in range(4)]
    once = 10 * 4000 * 10_000 / 1e9
    assert worsts[0] is not None and worsts[0] >= once
    steps = [after - before for before, after in itertools.pairwise(worsts)]  # type: ignore[operator]
    assert all(math.isclose(step, steps[0]) for step in steps)
    assert steps[0] > worsts[0]  # the second prompt holds the first answer


def test_answers_of_the_journal_give_the_length_and_are_not_asked_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        send = journal.begin_send("x", concept_id="C", provider="p", model="m", attempt=0, reserved_nanousd=900)
        response = Response(text="", model="m", usage=Usage(completion_tokens=321))
        journal.record("x", send, response, End(None, 700))
    found = plan(tmp_path)
    assert found.completion_tokens == 3210
    assert found.charged_usd == 700 / 1e9


def test_concepts_that_the_role_cannot_work_on_are_counted_apart(tmp_path: Path) -> None:
    broken = [
        Concept(concept_id=f"B{n}", concept="x", requirements_yaml=text) for n, text in enumerate(("- a", "[", "x"))
    ]
    found = plan(tmp_path, [*CONCEPTS, *broken])
    assert (found.concepts, found.to_ask, found.unusable) == (13, 10, 3)
    assert found.concepts == found.to_ask + found.answered + found.unusable


def test_without_a_price_what_is_paid_for_has_no_cost_and_what_is_free_costs_nothing(tmp_path: Path) -> None:
    found = plan(tmp_path, capabilities=None)
    assert (found.cost_usd, found.worst_cost_usd, found.prices) == (None, None, ())
    found = plan(tmp_path, provider=SCRIPTED, capabilities=None)
    assert (found.cost_usd, found.worst_cost_usd) == (0.0, 0.0)


def test_a_price_that_is_over_gives_no_cost(tmp_path: Path) -> None:
    over = Price(input_usd=1.0, output_usd=1.0, until="2026-01-01", seen_on="2025-12-01", source="a test")
    found = plan(tmp_path, capabilities=CHEAP.model_copy(update={"prices": (over,)}))
    assert (found.cost_usd, found.worst_cost_usd) == (None, None)


def test_concepts_are_counted_once_each_however_often_they_stand_there(tmp_path: Path) -> None:
    """The second of an id is rejected without a call, and the second of a text is answered by the journal."""
    twin = CONCEPTS[0].model_copy(update={"concept_id": "twin"})
    found = plan(tmp_path, [*CONCEPTS, CONCEPTS[0], twin])
    assert found.concepts == 12
    assert found.to_ask == 10
