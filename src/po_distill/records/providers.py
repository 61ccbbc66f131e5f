"""Providers and models as they are described and chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from po_distill.records.record import Day, Dollars, Record


class Price(Record):
    """A list price, in US dollars for a million tokens. Thinking is billed as output."""

    input_usd: Dollars
    output_usd: Dollars
    cached_input_usd: Dollars | None = None  # None: as other input
    above_prompt_tokens: int = 0  # this price holds for prompts of more tokens than that
    until: Day | None = None  # the last day on which it holds
    seen_on: Day  # the day on which somebody read it
    source: str  # where


class ModelCapabilities(Record):
    """What a model can do and costs, as data: one row of the model table."""

    model: str  # its name, and the beginning of its versions' names
    context_tokens: Annotated[int, Field(gt=0)]
    output_cap_tokens: Annotated[int, Field(gt=0)]  # thinking included
    thinking: Literal["none", "budget", "level"] = "none"  # how it is told how much to think
    default_thinking: int | str | None = None  # a budget in tokens or a level, by `thinking`
    structured_output: Literal["none", "gemini", "json_schema"] = "none"  # the dialect of its schemas
    prices: tuple[Price, ...] = ()  # empty: not known


class ProviderTraits(Record):
    """What a provider says of itself; `traits` of its class. Every field has a default."""

    family: str | None = None  # providers of one family give the same answers: Vertex by SDK, by command, by batch
    paid: bool = False  # a call may cost money, so a budget needs prices
    structured_output: bool = False  # it holds answers to the request's JSON schema, if the model can
    names_served_model: bool = False  # `Response.model` is comparable with the model that was asked for
    # Options that change how a request travels, and not its answer: they are no part of what a call is known by.
    transport_options: tuple[str, ...] = ()
    window: int | None = None  # calls that it wants at a time, where it gathers them into one job
    says_when_it_sends: bool = False  # it calls `interfaces.leaving` in the step in which a request leaves


class ProviderSettings(Record):
    """What a provider is opened with."""

    provider: str  # the plugin's name
    model: str | None = None  # the model to ask; None for the provider's own default
    base_url: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)  # the provider's own settings
    capabilities: ModelCapabilities | None = None  # the model's row of the model table, where it has one
