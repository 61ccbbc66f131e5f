"""A prompt model that asks nobody: it proposes the instructions that a role's students were trained under."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import dspy
from dspy import lm15

from po_distill import plugins
from po_distill.dspy_form import asked_outputs, write_fields
from po_distill.errors import SettingsError


class _Proposals:
    """The engine: every field that is asked for is the next proposal."""

    def __init__(self, proposals: Sequence[str]) -> None:
        self._proposals = tuple(proposals)
        self._turn = itertools.cycle(self._proposals)
        self._taking = threading.Lock()

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The next proposal, as the answer in DSPy's form."""
        with self._taking:
            proposal = next(self._turn)
        names = asked_outputs(request.messages[-1].text or "") or ("proposed_instruction",)
        message = lm15.Message.assistant([lm15.TextPart(write_fields(dict.fromkeys(names, proposal)))])
        return lm15.Response(
            id=None, model=request.model, message=message, finish_reason="stop", usage=lm15.Usage(0, 0)
        )

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The same as a stream of one piece."""
        yield from lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to give back."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Proposals:
        return self


class _AsyncProposals:
    def __init__(self, proposals: _Proposals) -> None:
        self._proposals = proposals

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return self._proposals.complete(request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        for event in self._proposals.stream(request):
            yield event

    async def aclose(self) -> None: ...

    def __deepcopy__(self, memo: dict[int, Any]) -> _AsyncProposals:
        return self


def role_instructions(role: str = "product_owner") -> dspy.LM:
    """A `prompt_model` for MIPROv2 that proposes the role's `other_instructions`, in turn.

    A distilled student follows the instructions that it has seen; what a large model invents it may not. Nothing is
    asked, so nothing is paid for. Raises SettingsError where the role names none.
    """
    proposals = getattr(plugins.load("roles", role), "other_instructions", ())
    if not proposals:
        raise SettingsError(
            f"The role {role} names no other instructions to propose.",
            "Give its class `other_instructions`, or a model as the prompt_model.",
        )
    engine = _Proposals(proposals)
    return dspy.LM(f"proposals/{role}", engine=engine, async_engine=_AsyncProposals(engine), cache=False)
