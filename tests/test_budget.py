import asyncio
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_distill.budget import Budget, BudgetSpentError

DOLLAR = 1_000_000_000


@pytest.mark.parametrize(
    ("limit_usd", "nanousd"),
    [(0.1, 100_000_000), (0.3, 300_000_000), (1e-9, 1), (29.99, 29_990_000_000), (5, 5 * DOLLAR)],
)
def test_the_limit_is_the_number_that_was_written(limit_usd: float, nanousd: int) -> None:
    assert Budget(limit_usd, 0).limit_nanousd == nanousd


def test_without_a_limit_it_only_counts() -> None:
    async def run():
        budget = Budget(None, 5)
        first = await budget.reserve(10**18)
        budget.settle(first, 7)
        budget.settle(await budget.reserve(20), None)
        return budget.charged_nanousd, budget.reserved_nanousd, budget.spent

    assert asyncio.run(run()) == (32, 0, False)


def test_a_cost_that_is_not_known_counts_whole() -> None:
    async def run():
        budget = Budget(1.0, 0)
        budget.settle(await budget.reserve(DOLLAR // 2), None)
        budget.settle(await budget.reserve(DOLLAR // 2), 0)
        return budget.charged_nanousd

    assert asyncio.run(run()) == DOLLAR // 2


def test_the_last_nano_dollar_may_be_spent_and_not_one_more() -> None:
    async def run():
        budget = Budget(1.0, DOLLAR - 10)
        budget.settle(await budget.reserve(10), 10)
        with pytest.raises(BudgetSpentError):
            await budget.reserve(1)
        return budget

    budget = asyncio.run(run())
    assert budget.spent
    assert budget.charged_nanousd == DOLLAR


def test_a_call_waits_while_one_in_flight_may_make_room_for_it() -> None:
    async def run():
        budget = Budget(1.0, 0)
        first = await budget.reserve(DOLLAR - 1)
        second = asyncio.ensure_future(budget.reserve(DOLLAR // 2))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.settle(first, 5)
        reservation = await asyncio.wait_for(second, 1)
        assert not budget.spent
        return reservation.nanousd, budget.charged_nanousd

    assert asyncio.run(run()) == (DOLLAR // 2, 5)


def test_all_who_wait_are_told_when_nothing_can_make_room_any_more() -> None:
    async def run():
        budget = Budget(1.0, 0)
        first = await budget.reserve(DOLLAR)
        waiting = [asyncio.ensure_future(budget.reserve(DOLLAR // 2)) for _ in range(5)]
        await asyncio.sleep(0)
        budget.settle(first, None)
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
        return [type(outcome) for outcome in outcomes], budget.spent

    assert asyncio.run(run()) == ([BudgetSpentError] * 5, True)


def test_a_call_that_is_larger_than_the_whole_budget_is_refused_at_once() -> None:
    with pytest.raises(BudgetSpentError):
        asyncio.run(Budget(0.5, 0).reserve(DOLLAR))


def test_a_waiter_that_is_cancelled_reserves_nothing() -> None:
    async def run():
        budget = Budget(1.0, 0)
        first = await budget.reserve(DOLLAR)
        waiter = asyncio.ensure_future(budget.reserve(10))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        budget.settle(first, 0)
        return budget.reserved_nanousd, budget.charged_nanousd

    assert asyncio.run(run()) == (0, 0)


CALLS = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1), st.booleans()), max_size=40)


@given(st.integers(0, 200), st.integers(0, 50), CALLS, st.randoms())
def test_it_is_never_passed_whatever_comes_in_between(
    limit: int, before: int, calls: list[tuple[int, float, bool]], chance: random.Random
) -> None:
    """Each call reserves, waits a few steps, and costs a share of what it reserved, or nobody knows how much."""

    async def run():
        budget = Budget(limit / DOLLAR, before)
        bound = max(limit, before)
        paid, refused = before, 0

        def check():
            assert budget.charged_nanousd + budget.reserved_nanousd <= bound
            assert budget.reserved_nanousd >= 0

        async def call(worst, share, known):
            nonlocal paid, refused
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            try:
                reservation = await budget.reserve(worst)
            except BudgetSpentError:
                refused += 1
                return
            check()
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            cost = int(worst * share) if known else None
            budget.settle(reservation, cost)
            paid += worst if cost is None else cost
            check()

        async with asyncio.timeout(10):
            await asyncio.gather(*(call(*one) for one in calls))
        assert budget.reserved_nanousd == 0
        assert budget.charged_nanousd == paid
        assert budget.spent == (refused > 0)

    asyncio.run(run())


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.randoms())
def test_nobody_waits_for_ever(worsts: list[int], chance: random.Random) -> None:
    async def run():
        budget = Budget(40 / DOLLAR, 0)

        async def call(worst):
            with contextlib.suppress(BudgetSpentError):
                reservation = await budget.reserve(worst)
                await asyncio.sleep(0)
                budget.settle(reservation, chance.randrange(worst + 1))

        async with asyncio.timeout(10):
            await asyncio.gather(*(call(worst) for worst in worsts))

    asyncio.run(run())
