"""Any `dspy.Module` as one more provider, so that what `Evaluator` measures is the program that ships."""

from __future__ import annotations

import asyncio
import importlib
import time
from typing import Any, ClassVar

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from po_distill.artifacts import digest_value
from po_distill.errors import ProviderError, ProviderFault, SettingsError
from po_distill.interfaces import Role
from po_distill.records import ProviderSettings, Request, Response, Usage


class ModuleProvider:
    """Answers concepts with a program. A candidate for `Evaluator.evaluate` is `ModuleProvider.of(program)`.

    `settings.model` is what `of` gave, or `package.module:program` of a program on the Python path. The program gets
    the fields that the role's metric has as an example; its prediction becomes an answer as the role joins documents.
    DSPy's cache is passed by, so that times are those of calls.
    """

    _programs: ClassVar[dict[str, dspy.Module]] = {}

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self._role, self._name = role, settings.model or ""
        self._program = _uncached(self._programs.get(self._name) or _imported(self._name))

    @classmethod
    def of(cls, program: dspy.Module, name: str | None = None) -> ProviderSettings:
        """A candidate that asks this program, in this process.

        Its name holds a digest of the program's state: answers of an evaluation that was stopped are found again for
        the same program and LM alone.
        """
        state = program.dump_state() if any(program.predictors()) else {}
        models = [str(getattr(one.lm or dspy.settings.lm, "model", None)) for one in program.predictors()]
        digest = digest_value([repr(state), models])[7:19]
        key = f"{name or type(program).__name__}-{digest}"
        cls._programs[key] = program
        return ProviderSettings(provider=f"{__name__}:{cls.__name__}", model=key)

    async def generate(self, request: Request) -> Response:
        """Ask the program about the request's concept. Raises ProviderError."""
        if request.concept is None:
            raise ProviderError(
                "A program answers concepts, and this request names none.", "Ask through Evaluator.", fault="bad_answer"
            )
        inputs, _ = self._role.metric_fields(request.concept, "")
        return await asyncio.to_thread(self._answer, dict(inputs))

    async def aclose(self) -> None:
        """The program stays its owner's."""

    def _answer(self, inputs: dict[str, Any]) -> Response:
        started = time.monotonic()
        with dspy.track_usage() as tracker:
            try:
                prediction = self._program(**inputs)
                text = self._role.join_documents(dict(prediction)) or ""
            except AdapterParseError as error:  # an answer, though none that the program can read
                text = error.lm_response or ""
            except LMError as error:
                raise _provider_error(error) from error
        used = tracker.get_total_tokens().values()
        return Response(
            text=text,
            model=self._name,
            usage=Usage(
                prompt_tokens=sum(int(one.get("prompt_tokens") or 0) for one in used),
                completion_tokens=sum(int(one.get("completion_tokens") or 0) for one in used),
                latency_s=time.monotonic() - started,
            ),
        )


def _imported(name: str) -> dspy.Module:
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else None
    except Exception as error:  # the user's module may raise anything
        raise SettingsError(f"The program {name!r} does not load: {type(error).__name__}: {error}.", _FIX) from error
    if isinstance(found, type) and issubclass(found, dspy.Module):
        found = found()
    if not isinstance(found, dspy.Module):
        raise SettingsError(f"{name!r} is no dspy.Module.", _FIX)
    return found


def _uncached(program: dspy.Module) -> dspy.Module:
    copied = program.deepcopy()
    for predictor in copied.predictors():
        lm = predictor.lm or dspy.settings.lm
        if lm is not None:
            predictor.lm = lm.copy(cache=False)
    return copied


def _provider_error(error: LMError) -> ProviderError:
    from dspy.utils.exceptions import ContextWindowExceededError, LMInvalidRequestError, is_retryable_lm_error

    fault: ProviderFault = "unavailable" if is_retryable_lm_error(error) else "refused"
    if isinstance(error, (ContextWindowExceededError, LMInvalidRequestError)):
        fault = "bad_answer"
    return ProviderError(f"The program's model failed: {error}", "Look at the LM of the program.", fault=fault)


_FIX = "Give ModuleProvider.of(program), or package.module:program."
