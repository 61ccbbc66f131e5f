"""A model as a judge: what it says is counted only where it says the same in both orders."""

import re
from typing import ClassVar

import pytest

from haiku import HaikuRole, haiku, haiku_concept
from po_distill.judging import RUBRIC, judge_answers
from po_distill.records import Completion, ProviderSettings, Request, Response

ROLE = HaikuRole()
CASES = [haiku_concept(number) for number in range(6)]


class JudgeProvider:
    """Prefers the answer with the word its option names, else what its option `else` says."""

    asked: ClassVar[list[Request]] = []

    def __init__(self, settings: ProviderSettings, role: HaikuRole) -> None:
        self._word, self._else = settings.options["word"], settings.options["else"]

    async def generate(self, request: Request) -> Response:
        type(self).asked.append(request)
        first, second = re.search(
            r"ANSWER A:\n(.*)\n\nANSWER B:\n(.*)\n\nWhich", request.messages[1].content, re.S
        ).groups()
        preferred = [name for name, text in (("A", first), ("B", second)) if self._word in text]
        return Response(text=f"Both are answers. {preferred[0]}" if len(preferred) == 1 else self._else, model="judge")

    async def aclose(self) -> None: ...


def answers(*firsts: str) -> list[Completion]:
    return [
        Completion(
            concept=case, text=haiku("spring", first), model="m", provider="p", contract_digest=ROLE.contract.digest
        )
        for case, first in zip(CASES, firsts, strict=True)
    ]


def judged(tmp_path, word, otherwise, student):
    settings = ProviderSettings(
        provider="test_judging:JudgeProvider", model="j", options={"word": word, "else": otherwise}
    )
    given = {"teacher": answers(*["pond"] * 6), "student": student}
    return judge_answers(given, "teacher", settings, ROLE, journal=tmp_path / "judge.sqlite", concurrency=2)["student"]


def test_an_answer_that_is_preferred_in_both_orders_is_better(tmp_path):
    found = judged(tmp_path, "frog jumps", "TIE", answers(*["frog jumps"] * 2, *["pond"] * 4))
    assert (found.better, found.worse, found.tied, found.n) == (2, 0, 4, 6)
    assert found.judge == "j"


@pytest.mark.parametrize(
    ("otherwise", "field"), [("A", "inconsistent"), ("I cannot say", "unreadable"), ("tie.", "tied")]
)
def test_a_judge_that_prefers_a_place_or_says_nothing_is_counted_apart(tmp_path, otherwise, field):
    found = judged(tmp_path, "nowhere", otherwise, answers(*["pond"] * 6))
    assert getattr(found, field) == found.n == 6


def test_the_same_answers_are_not_judged_twice_and_the_rubric_is_fixed(tmp_path):
    JudgeProvider.asked.clear()
    judged(tmp_path, "frog", "TIE", answers(*["frog"] * 6))
    assert len(JudgeProvider.asked) == 12
    assert {request.messages[0].content for request in JudgeProvider.asked} == {RUBRIC}
    judged(tmp_path, "frog", "TIE", answers(*["frog"] * 6))
    assert len(JudgeProvider.asked) == 12
