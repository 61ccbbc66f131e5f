"""For a role's own code: a model's answer that production can read, or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from po_distill import plugins
from po_distill.artifacts import now
from po_distill.errors import ProviderError
from po_distill.guaranteed import GuaranteedForm, check_traits
from po_distill.interfaces import Provider, Role
from po_distill.records import Concept, GenerationSettings, ProviderSettings
from po_distill.sending import find_provider, traits_of

_GENERATION = GenerationSettings(temperature=0.0, max_tokens=4096)


class ValidAnswers:
    """Asks one model in a role, each answer decoded under a JSON schema and written in the role's own form.

    An asynchronous context manager: the provider is opened once and closed at the end.

        async with ValidAnswers("product_owner", ProviderSettings(provider="ollama", model="po-student")) as model:
            text = await model.answer(concept)
    """

    def __init__(
        self, role: str | Role, settings: ProviderSettings, *, generation: GenerationSettings = _GENERATION
    ) -> None:
        """Raises SettingsError where the provider does not hold answers to a schema."""
        self.role: Role = plugins.load("roles", role)() if isinstance(role, str) else role
        kind = find_provider(settings.provider)
        check_traits(traits_of(kind), settings.provider)
        self._settings, self._generation = settings, generation
        self._form = GuaranteedForm(self.role)
        self._provider: Provider = kind(settings, self.role)
        self._prepared = False

    async def answer(self, concept: Concept) -> str:
        """An answer in the role's form. One request, not tried again.

        Raises InputError where the role cannot work on the concept, SettingsError where `max_tokens` may not suffice,
        and ProviderError where no answer came, it was cut, or production could not read it.
        """
        self.role.check(concept)
        request = self._form.request(concept, self._generation)
        await self._prepare()
        response = await self._provider.generate(request)
        text = self._form.written(response, now())
        if response.finish != "stop":
            raise ProviderError(
                f"{self._settings.model} was cut about {concept.concept_id}: the answer ended by {response.finish} "
                f"after {response.usage.completion_tokens} tokens.",
                "Give the model a longer context, or a higher max_tokens.",
                fault="bad_answer",
            )
        score = self.role.score(concept, text)
        if not score.valid:
            found = ", ".join(violation.kind for violation in score.violations) or "it is unreadable"
            raise ProviderError(
                f"{self._settings.provider} did not hold {self._settings.model} to the schema: {found}.",
                "Ask a server that holds answers to a JSON schema (Ollama, llama.cpp, vLLM).",
                fault="bad_answer",
            )
        return text

    async def _prepare(self) -> None:
        prepare = getattr(self._provider, "prepare", None)
        if prepare is not None and not self._prepared:
            await prepare()
        self._prepared = True

    async def aclose(self) -> None:
        """Close the provider."""
        await self._provider.aclose()

    async def __aenter__(self) -> ValidAnswers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def valid_answer(
    role: str | Role, settings: ProviderSettings, concept: Concept, *, generation: GenerationSettings = _GENERATION
) -> str:
    """One answer of `ValidAnswers`, for code that is not async; it works inside a running event loop (a notebook) too.

    The provider is opened and closed with it: a model in this process is loaded anew each time, a server is not.
    """

    async def ask() -> str:
        async with ValidAnswers(role, settings, generation=generation) as model:
            return await model.answer(concept)

    return _completed(ask())


def _completed(work: Coroutine[Any, Any, str]) -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, work).result()
