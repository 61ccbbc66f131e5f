"""What one send costs and leaves behind, and what the caller makes of many; time is a clock of our own."""

import asyncio
import json
import random
import time
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest

from haiku import CHEAP, PAID, SCRIPTED, HaikuRole, PaidProvider, haiku_concept
from po_distill import sending
from po_distill.artifacts import digest_value
from po_distill.calls import Caller, Limits, Retries
from po_distill.errors import NotAskedError, ProviderError, SettingsError
from po_distill.journal import Journal
from po_distill.providers.vertex_cli import VertexCliProvider
from po_distill.providers.vertex_sdk import VertexSdkProvider
from po_distill.records import GenerationSettings, Price, ProviderSettings, ProviderTraits, Request
from po_distill.sending import Sender, call_key, traits_of

ROLE = HaikuRole()
GENERATION = GenerationSettings(max_tokens=100)
WORST = 1_000 * 106 + 10_000 * 100  # of a request: 58 bytes and 48 for marks, 100 tokens of an answer
COST = 1_000 * 10 + 10_000 * 5  # of an answer of PaidProvider


def request(number: int = 1, **fields) -> Request:
    concept = haiku_concept(number)
    return Request(messages=ROLE.render(concept), concept=concept, generation=GENERATION, **fields)


def settings(**fields) -> ProviderSettings:
    return ProviderSettings(**{"provider": PAID, "model": "cheap-1", "capabilities": CHEAP, **fields})


class Clock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def run(folder: Path, requests, *, most=4, options=None, fields=None, clock=None, **more):
    """(caller, answers): answers, or the errors that came in their place."""
    clock = clock or Clock()
    with Journal(folder / "j.sqlite") as journal:
        caller = Caller(
            settings(options=options or {}, **(fields or {})),
            ROLE,
            journal,
            most=most,
            log_path=folder / "calls.log",
            chance=random.Random(1),
            clock=clock,
            sleep=clock.sleep,
            **more,
        )

        async def ask(one):
            try:
                return await caller.ask(one)
            except (ProviderError, NotAskedError) as error:
                if isinstance(error, ProviderError) and error.fault == "refused":
                    raise
                return error

        try:
            with closing(caller.stream(requests, ask, caller.width, in_order=True)) as answers:
                return caller, list(answers)
        finally:
            assert journal.integrity() == []
            assert caller.charged_nanousd == journal.charged_nanousd()


def ledger(folder: Path) -> list[str]:
    path = folder / "ledger"
    return path.read_text().split() if path.exists() else []


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("calls_*")) for line in path.read_text().splitlines()]


# --- what a call is known by --------------------------------------------------------------------


def test_the_ways_to_vertex_give_each_others_answers():
    def key(provider, traits, **options):
        chosen = ProviderSettings(provider=provider, model="gemini-3.8-flash", options=options)
        return call_key(request(), 0, chosen, traits)

    cli, sdk = traits_of(VertexCliProvider), traits_of(VertexSdkProvider)
    assert cli.family == sdk.family
    assert key("vertex_cli", cli, project="a", location="global") == key("vertex_sdk", sdk, project="b", timeout_s=9)
    assert key("vertex_sdk", sdk, credentials_path="/x") == key("vertex_sdk", sdk)
    assert key("vertex_sdk", sdk, top_k=1) != key("vertex_sdk", sdk)
    assert key("other", ProviderTraits()) != key("vertex_sdk", sdk)


def test_the_address_is_part_of_a_call_only_where_no_family_answers():
    alone, family = ProviderTraits(), ProviderTraits(family="f")
    here, there = settings(base_url="http://here"), settings(base_url="http://there")
    assert call_key(request(), 0, here, family) == call_key(request(), 0, there, family)
    assert call_key(request(), 0, here, alone) != call_key(request(), 0, there, alone)


def test_the_row_of_the_model_table_is_no_part_of_a_call():
    assert call_key(request(), 0, settings(), ProviderTraits()) == call_key(
        request(), 0, settings(capabilities=None), ProviderTraits()
    )


def test_a_call_is_known_by_what_the_first_version_knew_it_by():
    """Answers that a journal of the first version holds are found."""
    plain = ProviderSettings(provider="offline")
    content = request().model_dump(mode="json", exclude={"concept"})
    del content["generation"]["thinking"]
    identity = {"provider": "offline", "model": None, "base_url": None, "options": {}}
    before = digest_value({"request": content, "provider": identity, "attempt": 0})
    assert call_key(request(), 0, plain, ProviderTraits()) == before
    thinking = request().model_copy(update={"generation": GenerationSettings(max_tokens=100, thinking=0)})
    assert call_key(thinking, 0, plain, ProviderTraits()) != before


# --- money --------------------------------------------------------------------------------------


def test_an_answer_is_priced_by_the_table_and_costs_in_tally_journal_and_log(tmp_path):
    caller, answers = run(tmp_path, [request(1), request(2)])
    assert caller.tally.cost_nanousd == 2 * COST == caller.charged_nanousd
    assert [a.response.usage.cost_usd for a in answers] == [COST / 1e9] * 2
    assert [(line["usd"], line["price"]) for line in log(tmp_path)] == [(COST / 1e9, "cheap-1@2026-09-20")] * 2
    assert log(tmp_path)[-1]["cumulative_usd"] == 2 * COST / 1e9
    with Journal(tmp_path / "j.sqlite") as journal:
        assert all(send["reserved_nanousd"] >= send["cost_nanousd"] > 0 for send in journal.sends())


def test_what_the_provider_says_that_it_cost_counts_before_the_table(tmp_path):
    caller, _ = run(tmp_path, [request()], options={"cost_usd": 0.0002})
    assert caller.tally.cost_nanousd == 200_000
    assert log(tmp_path)[0]["price"] == "the provider's own"


def test_a_second_run_adds_to_what_the_first_was_charged(tmp_path):
    run(tmp_path, [request(1)])
    caller, _ = run(tmp_path, [request(1), request(2)])
    assert caller.tally.cost_nanousd == COST
    assert caller.charged_nanousd == 2 * COST


def test_a_budget_without_a_price_is_refused_for_what_is_paid_for(tmp_path):
    with pytest.raises(SettingsError, match="No price"):
        run(tmp_path, [], fields={"capabilities": None}, limits=Limits(budget_usd=1.0))
    expired = Price(input_usd=1.0, output_usd=1.0, until="2026-01-01", seen_on="2025-12-01", source="a test")
    with pytest.raises(SettingsError, match="price"):
        run(
            tmp_path,
            [],
            fields={"capabilities": CHEAP.model_copy(update={"prices": (expired,)})},
            limits=Limits(budget_usd=1.0),
        )


def test_a_budget_stops_a_provider_that_bills_without_a_known_price(tmp_path):
    """ScriptedProvider says of itself nothing, and of every answer that it cost a tenth of a cent."""
    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(ProviderSettings(provider=SCRIPTED), ROLE, journal, most=8, limits=Limits(budget_usd=0.002))

        async def ask(one):
            try:
                return await caller.ask(one)
            except NotAskedError:
                return None

        with pytest.raises(ProviderError, match="a budget cannot be kept"):
            list(caller.stream([request(n) for n in range(20)], ask, 8))
        assert journal.charged_nanousd() <= 8_000_000  # what was in flight when the first answer came


@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("calls", [0.5, 1.0, 3.3, 12.0])
def test_the_budget_stops_the_run_before_the_call_that_would_pass_it(tmp_path, most, calls):
    budget_usd = calls * WORST / 1e9
    caller, answers = run(
        tmp_path,
        [request(n) for n in range(1, 60)],
        most=most,
        options={"delay_s": 0.001, "ledger": str(tmp_path / "ledger"), "tokens": [100, 90]},
        limits=Limits(budget_usd=budget_usd),
    )
    refused = [a for a in answers if isinstance(a, NotAskedError)]
    paid = len(answers) - len(refused)
    cost = 100 * 1_000 + 90 * 10_000
    assert caller.charged_nanousd == paid * cost <= budget_usd * 1e9
    assert len(ledger(tmp_path)) == paid == caller.tally.sends
    assert {a.reason for a in refused} == {"budget_reached"}
    assert caller.budget_is_spent
    # It stops no earlier than it has to: one more call at its worst would not have fitted.
    assert caller.charged_nanousd + WORST > budget_usd * 1e9


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped(tmp_path):
    run(tmp_path, [request(n) for n in range(5)], limits=Limits(budget_usd=2 * WORST / 1e9))
    caller, answers = run(tmp_path, [request(n) for n in range(5)], limits=Limits(budget_usd=1.0))
    assert not any(isinstance(a, Exception) for a in answers)
    assert not caller.budget_is_spent
    assert caller.charged_nanousd == 5 * COST


def test_a_doubtful_failure_is_charged_what_was_reserved_and_another_nothing(tmp_path):
    options = {"faults": {"H-00001": ["timeout"], "H-00002": ["rate_limited", "unavailable"]}}
    caller, _ = run(tmp_path, [request(1), request(2)], options=options)
    assert caller.charged_nanousd == 2 * COST + caller_worst()
    assert caller.tally.cost_nanousd == 2 * COST
    assert sorted(line["usd"] or -1.0 for line in log(tmp_path)) == [-1.0, -1.0, -1.0, COST / 1e9, COST / 1e9]
    with Journal(tmp_path / "j.sqlite") as journal:
        assert sorted((s["fault"] or "", s["cost_nanousd"]) for s in journal.sends() if s["fault"] != "timeout") == [
            ("", COST),
            ("", COST),
            ("rate_limited", 0),
            ("unavailable", 0),
        ]


def caller_worst() -> int:
    """What a send of request(1) reserves."""
    return sending.worst_price(CHEAP.prices, sending.worst_usage(request(1), CHEAP), date(2026, 11, 25))


def test_the_worst_case_is_what_these_tests_take_it_for():
    assert caller_worst() == WORST


def test_a_cancelled_send_counts_at_its_reservation_and_is_in_doubt_in_the_next_run(tmp_path):
    async def main(journal):
        sender = Sender(settings(options={"delay_s": 30.0}), ROLE, journal)
        task = asyncio.ensure_future(sender.send("k", request(), 0))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sender.aclose()
        return sender.budget

    with Journal(tmp_path / "j.sqlite") as journal:
        budget = asyncio.run(main(journal))
        assert (budget.charged_nanousd, budget.reserved_nanousd) == (WORST, 0)
        assert journal.charged_nanousd() == WORST
        sender = Sender(settings(), ROLE, journal)
        assert sender.tally.in_doubt == 1
        assert sender.budget.charged_nanousd == WORST
        assert sender.doubtful_keys == {"k"}


def test_a_send_that_a_stop_prevents_costs_nothing(tmp_path):
    async def main(sender):
        with pytest.raises(asyncio.CancelledError):
            await sender.send("k", request(), 0)

    with Journal(tmp_path / "j.sqlite") as journal:
        sender = Sender(settings(), ROLE, journal)
        sender.stopping = True
        asyncio.run(main(sender))
        assert sender.budget.charged_nanousd == sender.budget.reserved_nanousd == 0
        assert list(journal.sends()) == []


def doubt(folder: Path, number: int = 1) -> None:
    """Leave a send of a request without an end, as kill -9 does."""
    with Journal(folder / "j.sqlite") as journal:
        sender = Sender(settings(), ROLE, journal)
        journal.begin_send(
            sender.key(request(number)),
            concept_id=f"H-{number:05d}",
            provider=PAID,
            model="cheap-1",
            attempt=0,
            reserved_nanousd=WORST,
        )


def test_calls_in_doubt_are_counted_at_full_price_and_sent_again(tmp_path):
    doubt(tmp_path)
    caller, answers = run(tmp_path, [request(1), request(2)])
    assert caller.tally.in_doubt == 1
    assert len(answers) == caller.tally.sends == 2
    assert caller.charged_nanousd == WORST + 2 * COST


def test_calls_in_doubt_are_left_out_where_that_is_wanted_and_others_are_not(tmp_path):
    doubt(tmp_path)
    for _ in range(2):  # the run after it leaves them out too
        caller, answers = run(tmp_path, [request(1), request(2)], limits=Limits(in_doubt="skip"))
        assert isinstance(answers[0], NotAskedError) and answers[0].reason == "in_doubt"
        assert not isinstance(answers[1], Exception)
    assert caller.tally.in_doubt == 0
    _, answers = run(tmp_path, [request(1)])
    assert not isinstance(answers[0], Exception)


def test_a_call_that_the_provider_finds_again_is_paid_for_once(tmp_path):
    doubt(tmp_path)
    caller, _ = run(tmp_path, [request(1)], options={"bought_before": ["H-00001"]})
    assert caller.charged_nanousd == COST
    assert [line["status"] for line in log(tmp_path)] == ["found_again", "answered"]
    assert sum(line["usd"] for line in log(tmp_path)) == COST / 1e9


# --- who answered -------------------------------------------------------------------------------


def test_another_model_than_the_one_asked_for_stops_the_run_and_is_not_paid_for_again(tmp_path):
    options = {"served": "dear-9", "ledger": str(tmp_path / "ledger")}
    with pytest.raises(ProviderError, match=r"'cheap-1' was asked for, and 'dear-9' answered") as caught:
        run(tmp_path, [request(1)], options=options)
    assert "--allow-model dear-9" in caught.value.fix
    with pytest.raises(ProviderError, match="answered"):
        run(tmp_path, [request(1)], options=options)
    caller, answers = run(tmp_path, [request(1)], options=options, limits=Limits(served_models=("dear-9",)))
    assert answers[0].response.model == "dear-9"
    assert (caller.tally.sends, caller.charged_nanousd) == (0, COST)
    assert len(ledger(tmp_path)) == 1


def test_a_version_of_the_model_is_the_model(tmp_path):
    _, answers = run(tmp_path, [request(1)], options={"served": "cheap-1-002"})
    assert answers[0].response.model == "cheap-1-002"


def test_a_provider_that_names_no_model_is_not_asked_for_its_name(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(ProviderSettings(provider=SCRIPTED, model="m", options={"served": "n"}), ROLE, journal)
        assert len(list(caller.stream([request()], caller.ask, 1))) == 1


# --- what fails ---------------------------------------------------------------------------------


def test_rate_limits_never_give_a_call_up_while_others_get_through(tmp_path):
    """One call is pushed back forty times, the others a few times each, and all are answered."""
    faults = {f"H-{n:05d}": ["rate_limited"] * (3 if n else 40) for n in range(60)}
    clock = Clock()
    caller, answers = run(
        tmp_path,
        [request(n) for n in range(60)],
        options={"faults": faults},
        clock=clock,
        retries=Retries(sends=2, longest_wait_s=3.0, breaker_s=30.0),
    )
    assert not any(isinstance(a, Exception) for a in answers)
    assert (caller.tally.sends, caller.tally.failures) == (60 + 59 * 3 + 40, 59 * 3 + 40)
    assert clock.now > 30.0


def test_a_wait_after_very_many_rate_limits_is_still_the_longest():
    for slowed in (True, False):
        for count in (1, 100, 5_000):
            assert 0 < Retries().wait_s(count, random.Random(1), slowed=slowed) <= 60


def test_one_failure_after_many_rate_limits_waits_as_after_one_failure(tmp_path):
    clock = Clock()
    options = {"faults": {"H-00001": ["rate_limited"] * 15 + ["unavailable"]}}
    run(tmp_path, [request(1)], options=options, clock=clock, retries=Retries(longest_wait_s=1000.0))
    assert min(clock.slept[-2:]) <= 1.0  # the other is the pause of the window


def test_a_server_that_asks_for_a_wait_is_given_it(tmp_path):
    clock = Clock()
    options = {"faults": {"H-00001": ["rate_limited"]}, "retry_after_s": 9.0}
    run(tmp_path, [request(1)], options=options, clock=clock)
    assert 9.0 <= clock.now < 10.5


def test_a_run_in_which_nothing_succeeds_for_minutes_is_stopped(tmp_path):
    clock = Clock()
    options = {"faults": {f"H-{n:05d}": ["rate_limited"] * 10_000 for n in range(3)}}
    with pytest.raises(ProviderError, match=r"Nothing has succeeded for 3\d\d s; the last error: H-0000\d failed"):
        run(tmp_path, [request(n) for n in range(3)], options=options, clock=clock)
    assert 300 < clock.now < 500


def test_a_success_keeps_the_circuit_closed(tmp_path):
    clock = Clock()
    faults = {f"H-{n:05d}": ["rate_limited"] * 14 for n in range(20)}
    _, answers = run(tmp_path, [request(n) for n in range(20)], most=1, options={"faults": faults}, clock=clock)
    assert clock.now > 400  # of pauses, and never three hundred seconds without an answer
    assert not any(isinstance(a, Exception) for a in answers)


def test_the_first_failure_of_a_long_call_is_tried_again(tmp_path, monkeypatch):
    """A timeout after the ten minutes that Vertex is given is one failure, no silence of minutes."""
    clock = Clock()

    async def slow(self, request):
        clock.now += 600.0 if not PaidProvider.requests else 1.0
        return await ask(self, request)

    ask = PaidProvider.generate
    PaidProvider.requests.clear()
    monkeypatch.setattr(PaidProvider, "generate", slow)
    _, answers = run(tmp_path, [request(1)], options={"faults": {"H-00001": ["timeout"]}}, clock=clock)
    assert not isinstance(answers[0], Exception)


@pytest.mark.parametrize(("fault", "doubtful"), [("timeout", False), ("unavailable", True)])
def test_sends_that_may_have_been_billed_are_few(tmp_path, fault, doubtful):
    options = {"faults": {"H-00001": [fault] * 20}, "doubtful": doubtful}
    caller, answers = run(tmp_path, [request(1)], options=options)
    assert answers[0].fault == fault
    assert caller.tally.sends == Retries().doubtful_sends == 3
    assert caller.charged_nanousd == 3 * WORST


def test_a_drain_does_not_wait_for_a_place_under_a_rate(tmp_path):
    """What is in flight is awaited; what would be asked next is not, however slow the pace."""
    with Journal(tmp_path / "j.sqlite") as journal:
        caller = Caller(settings(options={"delay_s": 0.1}), ROLE, journal, most=3, limits=Limits(requests_per_minute=6))

        async def twice(number):
            await caller.ask(request(number))
            return await caller.ask(request(100 + number))

        async def main():
            results = caller.each(range(3), twice, 3)
            first = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await results.aclose()
            await caller.aclose()

        started = time.monotonic()
        asyncio.run(asyncio.wait_for(main(), 2))
        assert time.monotonic() - started < 2
        assert journal.in_doubt() == []
