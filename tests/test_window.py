"""The window against a clock of its own: no test waits."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_distill.window import Window


class Clock:
    """A clock that a sleep moves on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def window(most: int, clock: Clock | None = None, **limits: float) -> Window:
    clock = clock or Clock()
    return Window(most, clock=clock, sleep=clock.sleep, chance=random.Random(1), **limits)


def play(most: int, outcomes, **limits):
    """(window, its size after each outcome); one call at a time."""

    async def run():
        made = window(most, **limits)
        sizes = []
        for outcome in outcomes:
            await made.enter(1)
            made.leave(outcome)
            sizes.append(made.size)
        return made, sizes

    return asyncio.run(run())


def settled(most: int, size: float, clock: Clock) -> Window:
    """A window past its slow start, of that size, at the beginning of a round; an answer takes a second."""
    made = window(most, clock)
    made._slow_start, made._answer_s, made.size, made._round_began = False, 1.0, size, clock.now
    return made


def play_round(made: Window, clock: Clock, slowed: int, of: int) -> float:
    """The size after a round of so many ends, of which the first were slowed."""

    async def run():
        began = clock.now
        for _ in range(of):
            await made.enter(1)
        for number in range(of):
            clock.now = max(clock.now, began + 1.0) if number == of - 1 else clock.now
            made.leave("slowed" if number < slowed else "answered", took_s=1.0)

    asyncio.run(run())
    assert made.in_flight == 0
    return made.size


def test_it_begins_with_half_and_widens_by_one_with_every_answer() -> None:
    _, sizes = play(20, ["answered"] * 14)
    assert sizes == [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 20, 20, 20, 20]
    assert window(1).size == 1
    assert window(7).size == 4


def test_slow_start_passes_over_a_lone_refusal_and_ends_at_many_on_end() -> None:
    _, sizes = play(16, ["answered", "slowed", "answered", "answered"])
    assert sizes == [9, 9, 10, 11]
    made, sizes = play(40, [*["slowed"] * 10, "answered", "answered"])
    assert sizes == [20.0] * 12
    assert not made._slow_start


@pytest.mark.parametrize(("slowed", "size"), [(0, 21), (1, 21), (2, 21), (10, 17.342), (14, 15.342)])
def test_a_round_narrows_by_half_the_share_of_refusals_that_is_no_noise(slowed: int, size: float) -> None:
    """Of 20 sends, a tenth and two standard deviations (0.134) are taken for noise."""
    clock = Clock()
    assert play_round(settled(40, 20.0, clock), clock, slowed, 20) == pytest.approx(size, abs=0.001)


def test_up_to_a_tenth_of_refusals_even_widens() -> None:
    for size in (1, 5, 20, 60, 100):
        clock = Clock()
        made = settled(200, float(size), clock)
        for _ in range(5):
            before = made.size
            assert play_round(made, clock, int(before) // 10, int(before)) > before


def test_rounds_without_refusals_widen_more_each_time_up_to_a_quarter() -> None:
    clock = Clock()
    made = settled(64, 20.0, clock)
    assert [play_round(made, clock, 0, int(made.size)) for _ in range(5)] == [21, 23, 27, 33.75, 42.1875]
    assert [play_round(made, clock, 0, int(made.size)) for _ in range(3)][-1] == 64


def test_after_the_slow_start_sends_are_spread_over_the_time_that_an_answer_takes() -> None:
    async def run():
        clock = Clock()
        made = settled(10, 10.0, clock)
        times = []
        for _ in range(10):
            await made.enter(1)
            times.append(clock.now)
        return times

    assert asyncio.run(run()) == pytest.approx([number / 12.5 for number in range(10)])


def test_failures_that_are_no_push_back_change_nothing() -> None:
    made, sizes = play(20, ["failed"] * 50)
    assert sizes == [10.0] * 50
    assert made._paused_until == 0.0


@given(st.integers(1, 50), st.lists(st.sampled_from(["answered", "slowed", "failed"]), max_size=300))
def test_it_is_never_wider_than_asked_nor_narrower_than_one(most: int, outcomes: list[str]) -> None:
    made, sizes = play(most, outcomes)
    assert all(1 <= size <= most for size in sizes)
    assert made.in_flight == 0


def test_no_more_calls_are_in_flight_than_the_window_is_wide() -> None:
    async def run():
        made = window(6)
        most = 0
        chance = random.Random(4)

        async def call():
            nonlocal most
            await made.enter(1)
            most = max(most, made.in_flight)
            assert made.in_flight <= max(made.size, 6)
            await asyncio.sleep(0)
            made.leave(chance.choice(["answered", "answered", "slowed"]))

        await asyncio.gather(*(call() for _ in range(300)))
        return most, made.in_flight

    most, left = asyncio.run(run())
    assert most <= 6
    assert left == 0


def test_those_who_wait_come_in_in_turn_and_those_who_come_again_first() -> None:
    async def run():
        made = window(2)  # one at a time until the first answer
        came = []

        async def call(name, again=False):
            await made.enter(1, again=again)
            came.append(name)

        await made.enter(1)
        tasks = [asyncio.ensure_future(call(name, again=name == "again")) for name in ("a", "b", "again", "c")]
        await asyncio.sleep(0)
        for _ in range(4):
            made.leave("failed")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return came

    assert asyncio.run(run()) == ["again", "a", "b", "c"]


def test_one_who_comes_first_waits_behind_those_who_wait_already() -> None:
    async def run():
        made = window(2)
        came = []

        async def call(name):
            await made.enter(1)
            came.append(name)

        await made.enter(1)
        early = asyncio.ensure_future(call("early"))
        await asyncio.sleep(0)
        made.leave("failed")  # the place is early's, who has not run yet
        late = asyncio.ensure_future(call("late"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert came == ["early"]
        made.leave("failed")
        await asyncio.gather(early, late)
        return came

    assert asyncio.run(run()) == ["early", "late"]


@pytest.mark.parametrize("handed", [False, True])
def test_a_waiter_that_is_cancelled_takes_no_place_with_it(handed: bool) -> None:
    async def run():
        made = window(2)
        await made.enter(1)
        waiter = asyncio.ensure_future(made.enter(1))
        behind = asyncio.ensure_future(made.enter(1))
        await asyncio.sleep(0)
        if handed:
            made.leave("failed")  # the waiter has the place, and has not run yet
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
        else:
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            made.leave("failed")
        assert waiter.cancelled()
        await asyncio.wait_for(behind, 1)
        assert made.in_flight == 1
        made.leave("failed")
        return made.in_flight

    assert asyncio.run(run()) == 0


def test_a_call_that_is_cancelled_while_everybody_is_held_gives_its_place_back() -> None:
    async def run():
        made = Window(2)
        made.hold(100.0)
        waiter = asyncio.ensure_future(made.enter(1))
        await asyncio.sleep(0.01)
        assert made.in_flight == 1
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        return made.in_flight

    assert asyncio.run(run()) == 0


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60), st.randoms())
def test_whoever_is_cancelled_no_place_is_lost(most: int, steps: list[tuple[int, bool]], chance: random.Random) -> None:
    async def run():
        made = window(most)
        calls: list[asyncio.Task[None]] = []

        async def call(again):
            await made.enter(1, again=again)
            try:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            finally:
                made.leave("failed")

        for number, again in steps:
            calls.append(asyncio.ensure_future(call(again)))
            if number < 4:
                chance.choice(calls).cancel()
            for _ in range(number % 3):
                await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
        assert made.in_flight == 0
        await asyncio.wait_for(made.enter(1), 1)

    asyncio.run(run())


def test_retry_after_holds_everybody() -> None:
    async def run():
        clock = Clock()
        made = window(4, clock)
        await made.enter(1)
        await made.enter(1)
        made.leave("slowed", retry_after_s=7.0)
        made.leave("answered")
        entered = []

        async def call():
            await made.enter(1)
            entered.append(clock.now)

        await asyncio.gather(call(), call())
        return entered

    assert asyncio.run(run()) == [7.0, 7.0]


def test_a_server_that_asks_for_an_hour_holds_everybody_for_a_minute() -> None:
    async def run():
        clock = Clock()
        made = window(4, clock)
        await made.enter(1)
        made.leave("slowed", retry_after_s=3600.0)
        await made.enter(1)
        return clock.now

    assert 60.0 <= asyncio.run(run()) < 62.0


def test_where_nothing_but_refusals_comes_everybody_waits_longer_each_time_until_an_answer() -> None:
    async def run():
        clock = Clock()
        made = window(1, clock)
        pauses = []
        for outcome in [*["slowed"] * 48, "answered", *["slowed"] * 4]:
            await made.enter(1)
            before = made._paused_until
            made.leave(outcome)
            if made._paused_until != before:
                pauses.append(made._paused_until - clock.now)
        return pauses

    pauses = asyncio.run(run())
    assert len(pauses) == 13  # after every fourth refusal on end
    for pause, whole in zip(pauses, [*(0.25 * 2**n for n in range(12)), 0.25], strict=True):
        assert min(whole, 60.0) * 0.75 <= pause <= min(whole, 60.0) * 1.25


def test_a_round_with_one_answer_does_not_pause() -> None:
    clock = Clock()
    made = settled(10, 10.0, clock)
    play_round(made, clock, 9, 10)
    assert made._paused_until == 0.0


def entries(count: int, tokens: int, **limits: float) -> list[float]:
    """When so many calls come in that end at once."""

    async def run():
        clock = Clock()
        made = window(1000, clock, **limits)
        times = []
        for _ in range(count):
            await made.enter(tokens)
            times.append(clock.now)
            made.leave("answered")
        return times

    return asyncio.run(run())


def test_requests_per_minute_are_spaced_evenly_after_two_seconds_worth() -> None:
    times = entries(20, 999, requests_per_minute=60)
    assert times == [0.0, 0.0, 0.0, *(pytest.approx(float(n)) for n in range(1, 18))]


def test_tokens_per_minute_count_what_a_call_may_take() -> None:
    times = entries(12, 100, tokens_per_minute=6000)  # 100 tokens a second: a call a second
    assert times == [0.0, 0.0, 0.0, *(pytest.approx(float(n)) for n in range(1, 10))]


def test_of_both_limits_the_tighter_one_holds() -> None:
    both = entries(30, 100, requests_per_minute=600, tokens_per_minute=6000)
    assert both == pytest.approx(entries(30, 100, tokens_per_minute=6000))
    assert both[-1] == pytest.approx(27.0)
    both = entries(30, 100, requests_per_minute=60, tokens_per_minute=600_000)
    assert both[-1] == pytest.approx(27.0)


@given(st.floats(1, 6000), st.integers(2, 60))
def test_in_any_minute_no_more_come_in_than_the_limit_and_two_seconds_worth(limit: float, count: int) -> None:
    times = entries(count, 1, requests_per_minute=limit)
    for start in times:
        assert sum(start <= time < start + 60 for time in times) <= limit + limit / 30 + 2


def test_without_limits_nobody_waits() -> None:
    assert entries(50, 10**9) == [0.0] * 50
