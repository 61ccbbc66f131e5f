"""What every provider does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from po_distill import plugins
from po_distill.errors import SettingsError
from po_distill.interfaces import Provider, Role
from po_distill.records import Concept, GenerationSettings, ProviderSettings, ProviderTraits, Request, Response
from po_distill.testing.registered import load_once

_ROLE = "product_owner"  # asked where the case brings no role of its own


@dataclass(frozen=True)
class ProviderCase:
    """A provider, ready to be opened, and what may differ between providers."""

    provider: str | Callable[[ProviderSettings, Any], Any]  # the name that it is registered under, or its class
    model: str | None = None
    base_url: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    role: Role | None = None  # whose concepts are asked; None takes the library's own
    concepts: Sequence[Concept] = ()  # two or more, where the provider cannot answer any
    max_tokens: int = 40
    served: str | None = None  # the name in the answer, where it is not the model's
    finish: str = "stop"
    counts: bool = True  # it counts tokens
    tells_apart: bool = True  # it answers one thing to one question, and another to another
    price_factor: float = 1.0
    of_family: tuple[str, ...] = ()  # transport options that only others of its family have
    checks_options: bool = True  # False: its options are free-form

    @property
    def kind(self) -> Callable[[ProviderSettings, Role], Any]:
        """The provider's class."""
        if isinstance(self.provider, str):
            found: Callable[[ProviderSettings, Role], Any] = load_once("providers", self.provider)
            return found
        return self.provider

    def open(self, **more: Any) -> Provider:
        """The provider, with `more` options."""
        name = self.provider if isinstance(self.provider, str) else "contract"
        options = {**self.options, **more}
        settings = ProviderSettings(provider=name, model=self.model, base_url=self.base_url, options=options)
        opened: Provider = self.kind(settings, self._role())
        return opened

    def request(self, number: int) -> Request:
        """One question of the role, decoded greedily."""
        role = self._role()
        concept = (self.concepts or role.generate_concepts(number + 1, seed=1))[number]
        generation = GenerationSettings(temperature=0, max_tokens=self.max_tokens)
        return Request(messages=role.render(concept), generation=generation, concept=concept)

    def _role(self) -> Role:
        opened: Role = self.role or plugins.load("roles", _ROLE)()
        return opened

    def answers(self, *requests: Request) -> list[Response]:
        """The answers to requests that are made at once, of a provider that is opened for them."""

        async def run() -> list[Response]:
            opened = self.open()
            try:
                await _prepare(opened)
                return await asyncio.gather(*(opened.generate(request) for request in requests))
            finally:
                await opened.aclose()

        return asyncio.run(run())


async def _prepare(opened: Provider) -> None:
    prepare = getattr(opened, "prepare", None)
    if prepare is not None:
        await prepare()


class ProviderContract:
    """The contract of a provider: subclass it, and say with a fixture how it is opened.

    class TestParrot(ProviderContract):
        @pytest.fixture
        def case(self) -> ProviderCase:
            return ProviderCase("parrot", model="parrot.txt")

    The provider is really asked: give it a server of your own, a fake or a small model.
    """

    @pytest.fixture
    def case(self) -> ProviderCase:
        """How the provider is opened. To be overridden."""
        pytest.fail(f"{type(self).__name__} needs a fixture `case` that returns a ProviderCase.")

    def test_it_opens_outside_of_a_loop_and_is_a_provider(self, case: ProviderCase) -> None:
        opened = case.open()
        assert isinstance(opened, Provider)
        asyncio.run(opened.aclose())

    def test_a_good_request_gets_an_answer_with_its_model_end_and_counts(self, case: ProviderCase) -> None:
        (answer,) = case.answers(case.request(0))
        assert isinstance(answer, Response)
        assert answer.text.strip() and answer.model == (case.served or case.model)
        assert answer.finish == case.finish and answer.price_factor == case.price_factor
        usage = answer.usage
        assert (usage.prompt_tokens > 0, usage.completion_tokens > 0) == (case.counts, case.counts)
        assert usage.thinking_tokens <= usage.completion_tokens and usage.cached_tokens <= usage.prompt_tokens
        assert 0 <= (usage.first_token_s or 0) <= usage.latency_s < 60

    def test_two_requests_at_once_get_the_answers_that_they_get_alone(self, case: ProviderCase) -> None:
        first, second = case.request(0), case.request(1)
        together = case.answers(first, second)
        alone = case.answers(first) + case.answers(second)
        assert [answer.text for answer in together] == [answer.text for answer in alone]
        assert (together[0].text != together[1].text) == case.tells_apart

    def test_an_option_that_it_does_not_know_is_refused_by_name(self, case: ProviderCase) -> None:
        if not case.checks_options:
            pytest.skip("its options are free-form")
        with pytest.raises(SettingsError, match="no_such_option"):
            case.open(no_such_option=1)

    def test_closing_it_twice_is_harmless(self, case: ProviderCase) -> None:
        async def run() -> None:
            opened = case.open()
            await _prepare(opened)
            await opened.generate(case.request(0))
            await opened.aclose()
            await opened.aclose()

        asyncio.run(run())

    def test_closing_one_that_was_never_asked_is_harmless(self, case: ProviderCase) -> None:
        async def run() -> None:
            opened = case.open()
            await opened.aclose()
            await opened.aclose()

        asyncio.run(run())

    def test_its_traits_are_a_record_and_name_options_that_it_has(self, case: ProviderCase) -> None:
        traits = getattr(case.kind, "traits", ProviderTraits())
        assert isinstance(traits, ProviderTraits)
        if not case.checks_options:
            return
        assert set(case.of_family) <= set(traits.transport_options)
        for name in traits.transport_options:
            with pytest.raises(SettingsError) as caught:  # no option is a mapping of lists
                case.open(**{name: {"a": []}})
            unknown = f"no option '{name}'" in str(caught.value)
            assert unknown == (name in case.of_family) and name in str(caught.value)
