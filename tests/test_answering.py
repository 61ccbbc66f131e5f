"""What becomes of one concept, case by case of the table in `answering`."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from haiku import CHEAP, PAID, SCRIPTED, HaikuRole, JsonHaikuRole, PaidProvider, ScriptedProvider, haiku, haiku_concept
from po_distill.answering import ACCEPTED, Answering, verdict_of
from po_distill.calls import Caller, Limits, Retries
from po_distill.errors import ProviderError, SettingsError
from po_distill.guaranteed import structured_role
from po_distill.journal import Journal
from po_distill.records import Completion, Concept, GenerationSettings, ProviderSettings, Rejection, Score, Violation

ROLE = HaikuRole()
CONCEPT = haiku_concept(1)
ID = CONCEPT.concept_id
WEAK, BETTER, GOOD = (haiku("spring", lines=n) for n in (1, 2, 3))


@pytest.fixture
def answer(tmp_path):
    """(what became of the concept, the requests that were sent)"""

    def ask(
        options: Mapping[str, Any], *, role: Any = ROLE, concept: Concept = CONCEPT, provider: str = SCRIPTED,
        generation: GenerationSettings | None = None, limits: Limits | None = None, capabilities: Any = None,
        min_score: float = 0.85, regenerate: int = 2, structured: bool = False, metric: Any = None,
    ):  # fmt: skip
        ScriptedProvider.requests.clear()
        PaidProvider.requests = ScriptedProvider.requests
        chosen = ProviderSettings(provider=provider, model="cheap-1", options=dict(options), capabilities=capabilities)
        with Journal(tmp_path / "j.sqlite") as journal:
            caller = Caller(
                chosen, role, journal, retries=Retries(sends=1, first_wait_s=0.0), limits=limits or Limits()
            )
            answering = Answering(
                role,
                caller,
                journal,
                provider=provider,
                generation=generation or GenerationSettings(max_tokens=100),
                min_score=min_score,
                regenerate=regenerate,
                structured=structured,
                metric=metric,
            )
            return next(caller.stream([concept], answering.answer, 1)), list(ScriptedProvider.requests)

    return ask


def verdicts(tmp_path) -> list[str]:
    with Journal(tmp_path / "j.sqlite") as journal:
        return [row["verdict"] for row in journal.judged()]


def test_a_good_answer_is_accepted_at_once(answer, tmp_path):
    judged, requests = answer({})
    assert judged.verdict == ACCEPTED
    assert len(requests) == 1
    assert judged.concept_id == ID
    assert verdicts(tmp_path) == [ACCEPTED]


def test_a_cut_answer_is_asked_again_with_twice_the_limit_up_to_the_models_cap(answer):
    judged, requests = answer(
        {"finishes": {ID: ["length"] * 3}, "answers": {ID: [WEAK, WEAK, WEAK, GOOD]}},
        provider=PAID,
        capabilities=CHEAP.model_copy(update={"output_cap_tokens": 700}),
    )
    assert [r.generation.max_tokens for r in requests] == [100, 200, 400, 700]
    assert {len(r.messages) for r in requests} == {2}
    assert judged.verdict == ACCEPTED


def test_an_answer_that_is_cut_at_the_cap_is_asked_for_again_shorter(answer):
    judged, requests = answer(
        {"finishes": {ID: ["length"] * 9}, "answers": {ID: [WEAK, BETTER, haiku("spring", "z", 1)]}},
        provider=PAID,
        capabilities=CHEAP.model_copy(update={"output_cap_tokens": 100}),
    )
    assert [r.generation.max_tokens for r in requests] == [100] * 3
    assert "the answer was cut: be shorter" in requests[1].messages[-1].content
    assert judged.result.text == BETTER


def test_a_cut_answer_that_is_good_enough_is_kept(answer):
    judged, requests = answer({"finishes": {ID: ["length"]}})
    assert (judged.verdict, judged.result.finish, len(requests)) == (ACCEPTED, "length", 1)


@pytest.mark.parametrize("seed", [None, 5])
def test_an_answer_that_ended_otherwise_is_asked_for_with_three_other_seeds(answer, seed):
    options = {"finishes": {ID: ["other/RECITATION"] * 3}, "answers": {ID: ["", "", "", GOOD]}}
    judged, requests = answer(options, generation=GenerationSettings(max_tokens=100, seed=seed), regenerate=0)
    seeds = [r.generation.seed for r in requests]
    assert seeds[0] == seed
    assert len(set(seeds)) == 4
    assert {r.messages for r in requests} == {requests[0].messages}
    assert judged.verdict == ACCEPTED
    _, again = answer(options | {"latency_s": 0.1}, generation=GenerationSettings(max_tokens=100, seed=seed))
    assert [r.generation.seed for r in again] == seeds


def test_other_seeds_come_to_an_end(answer):
    judged, requests = answer({"finishes": {ID: ["other/RECITATION"] * 99}, "answers": {ID: [""]}}, regenerate=0)
    assert len(requests) == 4
    assert judged.verdict not in (ACCEPTED, "score_below_minimum")
    assert isinstance(judged.result, Completion)
    assert judged.result.finish_reason == "RECITATION"


def test_a_blocked_answer_is_a_rejection_with_the_reason(answer, tmp_path):
    judged, requests = answer({"finishes": {ID: ["blocked/SAFETY"]}})
    assert isinstance(judged.result, Rejection)
    assert (judged.verdict, judged.result.reason, judged.result.where) == ("blocked", "blocked", ID)
    assert "SAFETY" in judged.result.detail
    assert len(requests) == 1


def test_a_block_after_an_answer_leaves_the_answer(answer):
    judged, requests = answer({"finishes": {ID: ["stop", "blocked/SAFETY"]}, "answers": {ID: [BETTER]}})
    assert len(requests) == 2
    assert judged.result.text == BETTER
    assert judged.verdict == "score_below_minimum"


@pytest.mark.parametrize(
    ("fault", "reason"), [("blocked", "blocked"), ("bad_answer", "bad_answer"), ("timeout", "timeout")]
)
def test_a_failure_is_a_rejection_and_a_failure_after_an_answer_leaves_it(answer, fault, reason):
    judged, _ = answer({"faults": {ID: [fault]}})
    assert isinstance(judged.result, Rejection)
    assert judged.verdict == judged.result.reason == reason
    judged, _ = answer({"faults": {ID: [None, fault]}, "answers": {ID: [WEAK]}})
    assert judged.result.text == WEAK


def test_a_refusal_is_passed_on(answer):
    with pytest.raises(ProviderError):
        answer({"faults": {ID: ["refused"]}})
    with pytest.raises(ProviderError):
        answer({"faults": {ID: [None, "refused"]}, "answers": {ID: [WEAK]}})


def test_a_weak_answer_is_asked_for_again_with_the_answer_and_what_is_wrong_with_it(answer, tmp_path):
    judged, requests = answer({"answers": {ID: [WEAK, GOOD]}})
    first, second = requests
    assert second.messages[:2] == first.messages
    assert [m.speaker for m in second.messages[2:]] == ["assistant", "user"]
    assert second.messages[2].content == WEAK
    said = second.messages[3].content
    assert "- A haiku has three lines." in said
    assert "- its score is 0.33, at least 0.85 is wanted" in said
    assert judged.result.text == GOOD
    assert verdicts(tmp_path) == ["score_below_minimum", ACCEPTED]


def test_violations_are_among_the_findings(answer):
    _, requests = answer({"answers": {ID: [haiku("winter"), GOOD]}})
    assert "- season outside enum: season is 'winter'" in requests[1].messages[-1].content


def test_an_empty_answer_is_not_shown_to_the_one_who_gave_it(answer):
    _, requests = answer({"answers": {ID: ["", GOOD]}})
    assert [m.speaker for m in requests[1].messages] == ["system", "user", "user"]
    assert "A check of your answer found" in requests[1].messages[-1].content


def test_the_best_answer_so_far_is_what_is_mended(answer):
    judged, requests = answer({"answers": {ID: [BETTER, WEAK, haiku("spring", "other", 1)]}})
    assert len(requests) == 3
    assert requests[2].messages[2].content == BETTER
    assert judged.result.text == BETTER
    assert judged.verdict == "score_below_minimum"


def test_every_regeneration_has_another_seed_and_a_second_run_the_same(answer):
    options = {"answers": {ID: [WEAK, BETTER, haiku("spring", "x", 1)]}}
    _, requests = answer(options, generation=GenerationSettings(max_tokens=100, seed=40))
    assert [r.generation.seed for r in requests] == [40, 41, 42]
    _, requests = answer(options | {"latency_s": 0.1})
    seeds = [r.generation.seed for r in requests]
    assert seeds[0] is None
    assert seeds[2] == seeds[1] + 1 < 2**31
    _, requests = answer(options | {"latency_s": 0.2})
    assert [r.generation.seed for r in requests] == seeds


def test_a_larger_limit_is_kept_for_the_asks_after_it(answer):
    options = {"finishes": {ID: ["length"]}, "answers": {ID: [WEAK, BETTER, GOOD]}}
    _, requests = answer(options, provider=PAID, capabilities=CHEAP)
    assert [r.generation.max_tokens for r in requests] == [100, 200, 200]


def test_a_teacher_that_repeats_itself_is_not_asked_a_third_time(answer):
    assert len(answer({"answers": {ID: [WEAK]}}, regenerate=9)[1]) == 2


def test_every_ask_about_a_concept_is_a_call_of_its_own_and_found_in_the_journal_again(answer, tmp_path):
    options = {
        "finishes": {ID: ["length", "other"]},
        "answers": {ID: [WEAK, "", BETTER, haiku("spring", "x", 1), WEAK]},
    }
    first, requests = answer(options, provider=PAID, capabilities=CHEAP)
    assert len(requests) == 5
    again, requests = answer(options, provider=PAID, capabilities=CHEAP)
    assert requests == []
    assert again == first
    with Journal(tmp_path / "j.sqlite") as journal:
        assert len({send["key"] for send in journal.sends()}) == 5
        assert [send["attempt"] for send in journal.sends()] == [0, 1, 2, 3, 4]


def test_the_second_concept_of_an_id_is_a_rejection(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal)
        answering = Answering(
            ROLE, caller, journal, provider=SCRIPTED, generation=GenerationSettings(), min_score=0.5, regenerate=0,
            structured=False,
        )  # fmt: skip
        found = list(caller.stream([CONCEPT, CONCEPT, haiku_concept(2)], answering.answer, 1, in_order=True))
    assert [judged.verdict for judged in found] == [ACCEPTED, "duplicate_concept_id", ACCEPTED]


def test_a_concept_that_the_role_cannot_work_on_is_a_rejection_without_a_call(answer):
    judged, requests = answer({}, concept=Concept(concept_id="B", concept="x", requirements_yaml="- list"))
    assert (judged.verdict, judged.concept_id, requests) == ("unusable_concept", "B", [])
    judged, _ = answer({}, concept=Concept(concept_id="C", concept="x", requirements_yaml="a: [1"))
    assert judged.verdict == "unusable_concept"


def test_the_budget_ends_the_asks_and_leaves_what_there_is(answer):
    dear = {"answers": {ID: [WEAK, GOOD]}}
    judged, requests = answer(dear, provider=PAID, capabilities=CHEAP, limits=Limits(budget_usd=1_150_000 / 1e9))
    assert len(requests) == 1
    assert (judged.verdict, judged.result.text) == ("score_below_minimum", WEAK)
    judged, requests = answer(
        {}, concept=haiku_concept(2), provider=PAID, capabilities=CHEAP, limits=Limits(budget_usd=0.0001)
    )
    assert isinstance(judged.result, Rejection)
    assert (judged.verdict, requests) == ("budget_reached", [])


# --- structured output --------------------------------------------------------------------------


RAW = json.dumps({"season": "spring", "lines": ["a", "b", "c"]}, indent=1)


def test_a_structured_answer_is_asked_for_under_the_json_contract_and_written_in_the_roles_own_form(answer):
    role = JsonHaikuRole()
    judged, requests = answer({"answers": {ID: [RAW]}}, role=role, provider=PAID, capabilities=CHEAP, structured=True)
    assert requests[0].json_schema == role.json_schema()
    assert requests[0].messages[0].content == "Answer in JSON."
    completion = judged.result
    assert completion.text == role.canonical({"haiku": json.loads(RAW)})
    assert completion.raw == RAW
    assert completion.contract_digest == role.contract.digest
    assert completion.score.valid
    assert judged.verdict == ACCEPTED


def test_a_structured_answer_is_shown_raw_to_the_one_who_gave_it(answer):
    weak = json.dumps({"season": "spring", "lines": ["a"]})
    _, requests = answer(
        {"answers": {ID: [weak, RAW]}}, role=JsonHaikuRole(), provider=PAID, capabilities=CHEAP, structured=True
    )
    assert requests[1].messages[2].content == weak
    assert requests[1].json_schema == {"type": "object"}


def test_a_structured_answer_that_cannot_be_read_stays_as_it_came(answer):
    judged, _ = answer(
        {"answers": {ID: ["no: [json"]}}, role=JsonHaikuRole(), provider=PAID, capabilities=CHEAP, structured=True,
        regenerate=0,
    )  # fmt: skip
    assert (judged.result.text, judged.result.raw) == ("no: [json", None)
    assert judged.verdict == "unreadable"


def test_a_free_answer_stays_as_it_came_and_is_scored_as_it_is_understood(answer):
    sloppy = "Sure!\n```haiku\nseason: spring\nlines: [a, b, c]\n```\nBye."
    judged, _ = answer({"answers": {ID: [sloppy]}})
    assert (judged.result.text, judged.result.raw, judged.verdict) == (sloppy, None, ACCEPTED)


def test_a_prompt_of_the_users_own_is_kept_under_the_json_contract():
    own = structured_role(JsonHaikuRole(prompt="Mine."))
    assert own is not None and own.contract.system == "Mine." and own.contract.name == "json"
    default = structured_role(JsonHaikuRole())
    assert default is not None and default.contract.system == "Answer in JSON."
    assert structured_role(HaikuRole()) is None


# --- metrics and verdicts -----------------------------------------------------------------------


def test_a_metric_of_ones_own_decides_and_its_number_is_among_the_findings(answer):
    judged, requests = answer(
        {"answers": {ID: [GOOD, WEAK]}},
        metric=lambda example, prediction: 1.0 if len(prediction.haiku["lines"]) == 1 else 0.4,
    )
    assert (judged.verdict, judged.result.text, judged.result.score.value) == (ACCEPTED, WEAK, 1.0)
    said = requests[1].messages[-1].content
    assert "its score is 0.40" in said
    assert "three lines" not in said  # the role's advice is about the role's metric


def test_a_metric_that_breaks_in_the_middle_of_a_run_stops_it_with_the_concept(answer):
    with pytest.raises(SettingsError, match=f"broke on the answer to {ID}: KeyError"):
        answer({}, metric=lambda example, prediction: prediction["nothing"])


@pytest.mark.parametrize(
    ("score", "verdict"),
    [
        (None, "not_scored"),
        (Score(value=0.9, valid=True), ACCEPTED),
        (Score(value=0.85, valid=True), ACCEPTED),
        (Score(value=0.8499, valid=True), "score_below_minimum"),
        (Score(value=0.9, valid=False), "unreadable"),
        (Score(value=0.9, valid=True, violations=(Violation(kind="missing_review", detail=""),)), "missing_review"),
    ],
)
def test_the_verdict_names_what_says_most(score, verdict):
    assert verdict_of(score, 0.85) == verdict


def test_the_gravest_violation_gives_the_reason(answer):
    class Strict(HaikuRole):
        def violations(self, concept, documents):
            kinds = ("too_few_actions", "unknown_key", "status_outside_enum", "missing_review")
            return tuple(Violation(kind=kind, detail="x") for kind in kinds)

    judged, requests = answer({}, role=Strict(), regenerate=1)
    assert judged.verdict == "missing_review"
    assert requests[1].messages[-1].content.index("missing review") < requests[1].messages[-1].content.index("too few")


def test_answering_one_concept_twice_at_a_time_is_asked_once(tmp_path):
    """Two concepts of the same text are one call, and each has its completion."""
    twin = CONCEPT.model_copy(update={"concept_id": "twin"})
    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(ProviderSettings(provider=SCRIPTED, options={"delay_s": 0.01}), ROLE, journal)
        answering = Answering(
            ROLE, caller, journal, provider=SCRIPTED, generation=GenerationSettings(), min_score=0.5, regenerate=0,
            structured=False,
        )  # fmt: skip

        async def both():
            try:
                return await asyncio.gather(answering.answer(CONCEPT), answering.answer(twin))
            finally:
                await caller.aclose()

        found = asyncio.run(both())
        assert [judged.concept_id for judged in found] == [ID, "twin"]
        assert caller.tally.sends == 1
