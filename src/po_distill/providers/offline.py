"""Answers by the role's embedded rules: offline, free, deterministic, and marked as a stand-in."""

from __future__ import annotations

import time

from po_distill.errors import ProviderError, SettingsError
from po_distill.interfaces import Role
from po_distill.records import ProviderSettings, Request, Response, Usage


class OfflineProvider:
    """Stands in for a teacher where there is none: every response says `stand_in`."""

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        if settings.options:
            raise SettingsError(
                f"The provider offline has no options, but was given {', '.join(sorted(settings.options))}.",
                "Remove them.",
            )
        self._role = role
        self._model = settings.model or f"{role.name}-rules"

    async def generate(self, request: Request) -> Response:
        """The answer of the rules. No tokens are counted, as no model read or wrote any."""
        if request.concept is None:
            raise ProviderError(
                "The provider offline answers concepts, and this request names none.",
                "Ask through Teacher, or choose a provider with a model.",
                fault="bad_answer",
            )
        started = time.perf_counter()
        text = self._role.answer_by_rules(request.concept)
        usage = Usage(latency_s=time.perf_counter() - started)
        return Response(text=text, model=self._model, usage=usage, stand_in=True)

    async def aclose(self) -> None:
        """Nothing to give back."""
