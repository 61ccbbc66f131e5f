"""Providers of ours as the engine of a `dspy.LM`: what the runtime makes of a prompt is what production gets.

The model is named `provider/model` or `provider/model@digest`, so an LM's copy under another name asks another model.
A provider works on an event loop of its own, on a thread; DSPy's threads wait there for their answers.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from dspy import lm15
from pydantic import JsonValue

from po_distill import plugins
from po_distill.dspy_form import CONTRACT
from po_distill.errors import PluginError, ProviderError
from po_distill.interfaces import Provider, Role
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request, Response, Usage
from po_distill.sending import find_provider, open_provider, traits_of

_T = TypeVar("_T")
ANSWER_CONCEPTS = ("offline", "replay")
"""Providers that answer concepts, and no prompts."""


class ModelPath(NamedTuple):
    """What the name of an LM says."""

    provider: str
    model: str
    digest: str | None

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}{f'@{self.digest}' if self.digest else ''}"


def read_model_path(name: str) -> ModelPath:
    """`provider/model@digest` taken apart. Raises PluginError where no provider stands before the first slash."""
    provider, slash, rest = name.partition("/")
    if not slash or not rest or (":" not in provider and provider not in plugins.names("providers")):
        raise PluginError(
            f"The model {name!r} names no provider of ours.",
            f"Write provider/model, with one of {', '.join(plugins.names('providers'))}.",
        )
    model, at, digest = rest.rpartition("@")
    return ModelPath(provider, model, digest) if at and "/" not in digest else ModelPath(provider, rest, None)


class ProviderEngine:
    """Asks providers. `options` are those of the provider, `role` names whose concepts prompts may be about.

    With a role, providers that answer concepts and no prompts (`offline`, `replay`) can be asked as well.
    """

    supported_params = ("temperature", "max_tokens", "seed", "response_format")

    def __init__(
        self, *, base_url: str | None = None, options: Mapping[str, JsonValue] | None = None, role: str | None = None
    ) -> None:
        self.base_url, self._options, self._role_name = base_url, dict(options or {}), role
        self._role = _open_role(role)
        self._opened: dict[tuple[str, str], Provider] = {}
        self._opening = threading.Lock()
        self._prepared: dict[Provider, asyncio.Future[None]] = {}  # of the providers' event loop alone
        self.supports_response_schema = False

    def for_provider(self, provider: str) -> ProviderEngine:
        """This engine, saying of itself what that provider can do."""
        self.supports_response_schema = traits_of(find_provider(provider)).structured_output
        return self

    # --- what DSPy calls --------------------------------------------------------------------------

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request. Raises errors of dspy.lm15."""
        waiting = self._send(request)
        try:
            return self._answer(request, waiting.result())
        except ProviderError as error:
            raise _translated(error, request.model) from error
        except BaseException:
            waiting.cancel()  # Ctrl-C: the runtime stops as well
            raise

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The answer as a stream of one piece."""
        yield from lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """Give back what the providers hold."""
        with self._opening:
            opened, self._opened = list(self._opened.values()), {}
        for provider in opened:
            _on_loop(provider.aclose()).result()

    def dump_state(self) -> dict[str, Any]:
        """What a saved program needs to open this engine again."""
        state = {"base_url": self.base_url, "options": self._options, "role": self._role_name}
        return {**state, "schema": self.supports_response_schema}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> ProviderEngine:
        """The engine of a saved program."""
        engine = cls(base_url=state["base_url"], options=state["options"], role=state["role"])
        engine.supports_response_schema = bool(state["schema"])
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> ProviderEngine:
        return self  # a copied program asks the same runtime

    # --- beside it ---------------------------------------------------------------------------------

    async def complete_later(self, request: lm15.Request) -> lm15.Response:
        """As `complete`, awaited on any event loop."""
        try:
            return self._answer(request, await asyncio.wrap_future(self._send(request)))
        except ProviderError as error:
            raise _translated(error, request.model) from error

    def count_tokens(self, model: str, messages: tuple[Message, ...]) -> int | None:
        """How many tokens the runtime makes of a prompt; None where it does not say."""
        counting = getattr(self._provider(read_model_path(model)), "token_ids", None)
        return len(_on_loop(counting(messages)).result()) if counting is not None else None

    def _send(self, request: lm15.Request) -> Future[Response]:
        try:
            return _on_loop(self._generated(self._provider(read_model_path(request.model)), self._asked(request)))
        except ProviderError as error:
            raise _translated(error, request.model) from error

    async def _generated(self, provider: Provider, request: Request) -> Response:
        prepare = getattr(provider, "prepare", None)
        if prepare is not None:
            if provider not in self._prepared:
                self._prepared[provider] = asyncio.ensure_future(prepare())
            try:
                await asyncio.shield(self._prepared[provider])
            except ProviderError:
                self._prepared.pop(provider, None)  # the next call tries again
                raise
        return await provider.generate(request)

    def _provider(self, path: ModelPath) -> Provider:
        with self._opening:
            key = (path.provider, path.model)
            if key not in self._opened:
                settings = ProviderSettings(
                    provider=path.provider, model=path.model, base_url=self.base_url, options=self._options
                )
                self._opened[key] = open_provider(settings, self._role)
            return self._opened[key]

    def _asked(self, request: lm15.Request) -> Request:
        config, messages = request.config, tuple(_messages(request))
        given = {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": config.seed}
        schema = (config.response_format or {}).get("schema")
        return Request(
            messages=messages,
            generation=GenerationSettings.model_validate({k: v for k, v in given.items() if v is not None}),
            concept=self._role.read_prompt(messages[-1].content) if self._role_name else None,
            json_schema=schema if isinstance(schema, dict) else None,
        )

    def _answer(self, request: lm15.Request, response: Response) -> lm15.Response:
        text = response.text
        if self._role_name and (documents := self._role.parse(text).documents):  # recorded in any of its forms
            text = self._role.canonical(documents)
        usage: Usage = response.usage
        reason = {"length": "length", "blocked": "content_filter"}.get(response.finish, "stop")
        return lm15.Response(
            id=None,
            model=response.model or request.model,
            message=lm15.Message.assistant([lm15.TextPart(text)]),
            finish_reason=reason,
            usage=lm15.Usage(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens),
        )


class AsyncProviderEngine:
    """The same providers for `lm.acall`."""

    def __init__(self, engine: ProviderEngine) -> None:
        self._engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request. Raises errors of dspy.lm15."""
        return await self._engine.complete_later(request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        """The answer as a stream of one piece."""
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing of its own to give back."""

    def dump_state(self) -> dict[str, Any]:
        """What a saved program needs to open this engine again."""
        return self._engine.dump_state()

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> AsyncProviderEngine:
        """The engine of a saved program."""
        return cls(ProviderEngine.load_state(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncProviderEngine:
        return self


# --- requests and answers -------------------------------------------------------------------------


class _NoRole:
    """In place of a role, for providers that answer prompts."""

    name = "program"


def _open_role(name: str | None) -> Role:
    if name is None:
        return _NoRole()  # type: ignore[return-value]
    kind = plugins.load("roles", name)
    role: Role = kind(contract=CONTRACT) if CONTRACT in kind.contracts else kind()
    return role


def _messages(request: lm15.Request) -> Iterator[Message]:
    if request.system:
        text = request.system if isinstance(request.system, str) else "".join(part.text for part in request.system)
        yield Message(speaker="system", content=text)
    for message in request.messages:
        if message.role not in ("user", "assistant") or message.text is None:
            raise lm15.UnsupportedFeatureError(
                f"A student reads text of user and assistant; this prompt has a {message.role} message that is "
                "something else.",
                feature="messages",
            )
        yield Message(speaker=message.role, content=message.text)


_ERRORS = {
    "rate_limited": lm15.RateLimitError,
    "unavailable": lm15.ServerError,
    "timeout": lm15.TimeoutError,
    "bad_answer": lm15.InvalidRequestError,
    "blocked": lm15.InvalidRequestError,
    "refused": lm15.ConfigurationError,
}


def _translated(error: ProviderError, model: str) -> lm15.LM15Error:
    kind = _ERRORS[error.fault]
    if error.fault == "bad_answer" and "context" in error.problem:
        kind = lm15.ContextLengthError
    translated: lm15.LM15Error = kind(str(error), provider=model.partition("/")[0])
    return translated


# --- the event loop of the providers ---------------------------------------------------------------

_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def _on_loop(work: Coroutine[Any, Any, _T]) -> Future[_T]:
    return asyncio.run_coroutine_threadsafe(work, _running_loop())


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop
    with _starting:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="po_distill providers", daemon=True).start()
            atexit.register(_loop.call_soon_threadsafe, _loop.stop)
        return _loop
