import math
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from po_distill.errors import SettingsError
from po_distill.model_table import (
    cost_nanousd,
    find_model,
    price_for,
    price_id,
    read_rows,
    same_model,
    worst_price,
    worst_usage,
)
from po_distill.records import GenerationSettings, Message, ModelCapabilities, Price, Request, Usage

TODAY = date(2026, 11, 25)


def price(input_usd: float = 1.0, output_usd: float = 10.0, **fields: object) -> Price:
    return Price(input_usd=input_usd, output_usd=output_usd, seen_on="2026-09-20", source="a test", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gemini-2.5-pro", "gemini-2.5-pro"),
        ("gemini-2.5-pro-002", "gemini-2.5-pro"),
        ("gemini-2.5-pro@20260901", "gemini-2.5-pro"),
        ("gemini-2.5-flash-latest", "gemini-2.5-flash"),
        ("gemini-2.5-flash-2026-09-01", "gemini-2.5-flash"),
        ("publishers/google/models/gemini-3.5-flash", "gemini-3.5-flash"),
        ("models/gemini-2.5-pro-002", "gemini-2.5-pro"),
        ("gemini-2.5-flash-lite", None),
        ("gemini-2.5", None),
        ("gemini-2.5-pro-", None),
        ("gemini-2.5-professional", None),
        ("my-gemini-2.5-pro", None),
        ("", None),
        (None, None),
    ],
)
def test_a_model_is_known_by_its_name_and_its_versions_names(name: str | None, row: str | None) -> None:
    found = find_model(name)
    assert (found.model if found else None) == row


def test_every_row_of_the_librarys_table_has_a_price_with_its_source() -> None:
    for name in (
        "gemini-2.5-pro",
        "gemini-2.5-flash",
        "gemini-3.1-pro-preview",
        "gemini-3.5-flash",
        "gemini-3.8-flash",
    ):
        row = find_model(name)
        assert row is not None
        assert all(one.source and one.seen_on for one in row.prices)
        assert price_for(row.prices, 1000, TODAY) is not None


def test_the_prices_are_those_that_were_read() -> None:
    row = find_model("gemini-3.8-flash")
    assert row is not None
    now, later = price_for(row.prices, 10, date(2026, 12, 31)), price_for(row.prices, 10, date(2027, 1, 1))
    assert now is not None and later is not None
    assert (now.input_usd, now.output_usd, later.input_usd, later.output_usd) == (0.75, 3.75, 1.5, 7.5)
    pro = find_model("gemini-2.5-pro")
    assert pro is not None
    short, long = price_for(pro.prices, 200_000, TODAY), price_for(pro.prices, 200_001, TODAY)
    assert short is not None and long is not None
    assert (short.input_usd, long.input_usd) == (1.25, 2.5)
    assert price_id(pro.model, short) == "gemini-2.5-pro@2026-09-20"
    assert price_id(pro.model, long) == "gemini-2.5-pro@2026-09-20>200000"


OWN = """
- model: gemini-2.5-pro
  context_tokens: 1000
  output_cap_tokens: 100
- {model: house, context_tokens: 10, output_cap_tokens: 5}
- {model: house-2, context_tokens: 20, output_cap_tokens: 5}
"""


def test_rows_of_ones_own_come_first_and_the_longest_name_wins(tmp_path: Path) -> None:
    own = tmp_path / "models.yaml"
    own.write_text(OWN)
    found = find_model("gemini-2.5-pro-002", own)
    assert found is not None and found.context_tokens == 1000 and found.prices == ()
    flash = find_model("gemini-2.5-flash", own)
    assert flash is not None and flash.context_tokens > 1000
    both = find_model("house-2-001", own)
    assert both is not None and both.context_tokens == 20
    plain = find_model("house-3", own)  # a version of house
    assert plain is not None and plain.context_tokens == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: x", "no list of models"),
        ("- {model: a, context_tokens: 10, output_cap_tokens: 5}\n- {model: b}", r"model 2: context_tokens: field req"),
        ("- {model: a, context_tokens: 0, output_cap_tokens: 5}", r"model 1: context_tokens: .*greater than 0"),
        ("- {model: a, context_tokens: 9, output_cap_tokens: 5, colour: red}", r"model 1: colour: extra"),
        ("- just text", "model 1: the row: "),
        (
            "- {model: a, context_tokens: 9, output_cap_tokens: 5, prices: [{input_usd: -1, output_usd: 1,"
            " seen_on: '2026-01-01', source: s}]}",
            r"model 1: prices\.0\.input_usd",
        ),
        (
            "- {model: a, context_tokens: 9, output_cap_tokens: 5, prices: [{input_usd: .nan, output_usd: 1,"
            " seen_on: '2026-01-01', source: s}]}",
            r"model 1: prices\.0\.input_usd",
        ),
        (
            "- {model: a, context_tokens: 9, output_cap_tokens: 5, prices: [{input_usd: .inf, output_usd: 1,"
            " seen_on: '2026-01-01', source: s}]}",
            r"model 1: prices\.0\.input_usd",
        ),
        (
            "- {model: a, context_tokens: 9, output_cap_tokens: 5, prices: [{input_usd: 1, output_usd: 1,"
            " until: next year, seen_on: '2026-01-01', source: s}]}",
            r"model 1: prices\.0\.until",
        ),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_the_row_and_the_field(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=says) as caught:
        read_rows(path)
    assert str(path) in caught.value.problem
    assert caught.value.fix


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("gemini-2.5-pro", "gemini-2.5-pro", True),
        ("gemini-2.5-pro", "gemini-2.5-pro-002", True),
        ("gemini-2.5-pro", "models/gemini-2.5-pro", True),
        ("publishers/google/models/gemini-2.5-pro", "gemini-2.5-pro", True),
        ("gemini-2.5-pro", "gemini-3.8-flash", False),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite", False),
        ("gpt-5", "gpt-5-mini", False),
        ("gpt-5", "gpt-5-2026-08-07", True),
    ],
)
def test_a_version_of_the_model_is_the_model(asked: str, served: str, same: bool) -> None:
    assert same_model(asked, served) is same


def test_a_price_that_is_over_holds_no_more() -> None:
    prices = [price(1.0, until="2026-11-24"), price(2.0, until="2026-11-25"), price(3.0)]
    found = price_for(prices, 10, TODAY)
    assert found is not None and found.input_usd == 2.0
    assert price_for(prices[:1], 10, TODAY) is None
    assert price_for([], 10, TODAY) is None


# --- money --------------------------------------------------------------------------------------

MONEY = st.decimals(0, 30, places=3).map(float)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(st.integers(0, 1_048_576))
    return Usage(
        prompt_tokens=prompt,
        cached_tokens=draw(st.integers(0, prompt)),
        completion_tokens=draw(st.integers(0, 65_536)),
    )


@given(MONEY, MONEY, st.none() | MONEY, usages(), st.sampled_from([1.0, 0.5]))
def test_a_cost_is_exact_to_the_nano_dollar(
    input_usd: float, output_usd: float, cached_usd: float | None, usage: Usage, factor: float
) -> None:
    def exact(value: float) -> Fraction:
        return Fraction(Decimal(str(value)))

    cached = exact(input_usd if cached_usd is None else cached_usd)
    dollars_a_million = (
        (usage.prompt_tokens - usage.cached_tokens) * exact(input_usd)
        + usage.cached_tokens * cached
        + usage.completion_tokens * exact(output_usd)
    )
    half_up = math.floor(dollars_a_million * 1000 * exact(factor) + Fraction(1, 2))
    assert cost_nanousd(price(input_usd, output_usd, cached_input_usd=cached_usd), usage, factor) == half_up


def test_costs_of_the_list_are_what_one_computes_by_hand() -> None:
    usage = Usage(prompt_tokens=1000, completion_tokens=2000, thinking_tokens=500, cached_tokens=400)
    assert cost_nanousd(price(1.25, 10.0), usage) == 1000 * 1250 + 2000 * 10_000
    assert cost_nanousd(price(1.25, 10.0, cached_input_usd=0.31), usage) == 600 * 1250 + 400 * 310 + 2000 * 10_000
    assert cost_nanousd(price(0.75, 3.75), Usage(prompt_tokens=1, completion_tokens=1), 0.5) == 2250
    # More cached tokens than tokens is nonsense of a server: nothing is counted twice, nothing below zero.
    assert cost_nanousd(price(1.0, 0.0), Usage(prompt_tokens=10, cached_tokens=50)) == 10_000


@st.composite
def tables(draw: st.DrawFn) -> list[Price]:
    prices = [price(draw(MONEY), draw(MONEY), cached_input_usd=draw(st.none() | MONEY))]
    for above in draw(st.lists(st.integers(1, 1_048_576), max_size=3)):
        prices.append(price(draw(MONEY), draw(MONEY), above_prompt_tokens=above, until=draw(st.none() | DAYS)))
    if draw(st.booleans()):
        prices.append(price(draw(MONEY), draw(MONEY), until=draw(DAYS)))
    return prices


DAYS = st.sampled_from(["2026-01-01", "2026-11-25", "2027-01-01"])


@given(tables(), st.integers(0, 1_048_576), st.integers(0, 65_536), st.data())
@settings(max_examples=300)
def test_the_worst_price_covers_every_usage_within_the_worst_usage(
    prices: list[Price], prompt_tokens: int, completion_tokens: int, data: st.DataObject
) -> None:
    worst = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    def up_to(most: int) -> int:
        return data.draw(st.just(most) | st.integers(0, most))

    prompt = up_to(worst.prompt_tokens)
    usage = Usage(prompt_tokens=prompt, cached_tokens=up_to(prompt), completion_tokens=up_to(worst.completion_tokens))
    billed = price_for(prices, usage.prompt_tokens, TODAY)
    assume(billed is not None)
    assert billed is not None
    assert worst_price(prices, worst, TODAY) >= cost_nanousd(billed, usage)


def test_the_worst_price_covers_a_call_that_ends_after_a_price_did() -> None:
    """A call that is sent a second before midnight is billed, and priced by us, on the next day."""
    prices = [price(0.75, 3.75, until="2026-12-31"), price(1.5, 7.5)]
    usage = Usage(prompt_tokens=1000, completion_tokens=1000)
    billed = price_for(prices, 1000, date(2027, 1, 1))
    assert billed is not None
    assert worst_price(prices, usage, date(2026, 12, 31)) >= cost_nanousd(billed, usage)


def test_the_worst_usage_is_a_token_a_byte_within_what_the_model_can() -> None:
    capabilities = ModelCapabilities(model="m", context_tokens=1000, output_cap_tokens=50)
    messages = (Message(speaker="system", content="é" * 10), Message(speaker="user", content="abc"))
    request = Request(messages=messages, generation=GenerationSettings(max_tokens=80))
    usage = worst_usage(request, capabilities)
    assert usage.prompt_tokens >= 20 + 3
    assert usage.completion_tokens == 50
    schema = request.model_copy(update={"json_schema": {"type": "object"}})
    assert worst_usage(schema, capabilities).prompt_tokens >= usage.prompt_tokens + len('{"type": "object"}')
    long = request.model_copy(update={"messages": (Message(speaker="user", content="x" * 9999),)})
    assert worst_usage(long, capabilities).prompt_tokens == 1000
    assert worst_price([], usage, TODAY) == 0
