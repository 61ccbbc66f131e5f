"""The provider `openai_compatible`: any server that speaks `/v1/chat/completions` - vLLM, llama-server, OpenAI.

Answers are streamed as server-sent events, so that a long one is no idle connection to the proxies
between, and the time to the first token is known.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from po_distill.errors import ProviderError, SettingsError
from po_distill.interfaces import Role
from po_distill.providers.chat_completions import USED_ONCE, WHO, ChatAnswer, narrowed
from po_distill.providers.http_json import JsonClient
from po_distill.records import ProviderSettings, ProviderTraits, Request, Response

_THINKING = "{thinking}"  # stands in extra_body for generation.thinking
_OURS = ("messages", "model", "stream")  # what extra_body cannot change
_KEYS = frozenset({"api_key", "apikey", "key", "token", "bearer", "authorization", "password", "secret"})


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    api_key_env: str | None = "OPENAI_API_KEY"
    stream: bool = True
    timeout_s: float = Field(600.0, gt=0)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    allow_plain_http: bool = False


class OpenAICompatibleProvider:
    """Answers requests with the model that `settings.model` names on the server at `settings.base_url`.

    Options: api_key_env (the name of the environment variable that holds the key; OPENAI_API_KEY where that is set;
    null sends none), stream (default true), timeout_s (of a whole call, default 600), max_tokens_field
    ("max_tokens" or "max_completion_tokens"), extra_body (fields added to the body; the text "{thinking}" in it
    stands for what the model may think), allow_plain_http (send the key to another host over plain http).
    """

    traits: ClassVar[ProviderTraits] = ProviderTraits(
        says_when_it_sends=True,
        paid=True,
        structured_output=True,
        names_served_model=True,
        transport_options=("timeout_s", "stream", "api_key_env", "allow_plain_http"),
    )

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self._options = _options(settings.options)
        if not settings.model:
            raise SettingsError(
                "The provider openai_compatible needs a model.",
                "Name it as the server does: GET /v1/models lists them.",
            )
        self._model = settings.model
        address = _address(settings.base_url)
        self._url = _chat_url(address)
        self._key = _key(self._options)
        if self._key and address.scheme == "http" and not self._options.allow_plain_http:
            _refuse_plain_http(address.hostname or "", self._options.api_key_env or "")
        self._headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if self._options.stream:
            self._headers.update(USED_ONCE)
        self._client = JsonClient(WHO, timeout_s=self._options.timeout_s, extra="http")

    async def generate(self, request: Request) -> Response:
        """Answer one request. Raises ProviderError."""
        body = self._body(request)
        answer = ChatAnswer()
        try:
            async with self._client.stream(self._url, body, self._headers) as response:
                await answer.read(response, streamed=self._options.stream)
        except ProviderError as error:
            if error.doubtful and answer.is_whole:  # what broke was only the end of the connection
                return answer.response(asked=self._model)
            told = self._told_apart(error)
            if told is error:
                raise
            raise told from error
        return answer.response(asked=self._model)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _body(self, request: Request) -> dict[str, Any]:
        generation, options = request.generation, self._options
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.speaker, "content": message.content} for message in request.messages],
            "temperature": generation.temperature,
            options.max_tokens_field: generation.max_tokens,
            "stream": options.stream,
        }
        if options.stream:
            body["stream_options"] = {"include_usage": True}
        if generation.seed is not None:
            body["seed"] = generation.seed
        if request.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": request.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        mapped = {name for name, value in options.extra_body.items() if _mentions_thinking(value)}
        if generation.thinking is not None and not mapped:
            if not isinstance(generation.thinking, str):
                raise ProviderError(
                    f"The chat completions API has no field for a thinking budget of {generation.thinking} tokens.",
                    "Give a level, such as low, or say where the budget goes: "
                    f'extra_body: {{"thinking": {{"budget_tokens": "{_THINKING}"}}}}.',
                    fault="refused",
                )
            body["reasoning_effort"] = generation.thinking
        for name, value in options.extra_body.items():
            if name not in mapped:
                body[name] = value
            elif generation.thinking is not None:
                body[name] = _with_thinking(value, generation.thinking)
        return body

    def _told_apart(self, error: ProviderError) -> ProviderError:
        """The error, with a narrower fault or a better fix where its words allow one, and without the key."""
        problem = error.problem
        if self._key and len(self._key) >= 8:
            problem = problem.replace(self._key, "(the key)")
        status = re.match(re.escape(WHO) + r" refused \((\d+)\)", problem)
        fault, fix = error.fault, error.fix
        if status and status[1] in ("400", "413", "422", "429"):
            fault, fix = narrowed(problem, error.fault, error.fix)
        elif status and status[1] in ("401", "403"):
            fix = (
                f"Check the key in the environment variable {self._options.api_key_env}, and what it may use."
                if self._key
                else "Put the key into an environment variable, and name that with the option api_key_env."
            )
        if (problem, fault, fix) == (error.problem, error.fault, error.fix):
            return error
        return ProviderError(problem, fix, fault=fault, retry_after_s=error.retry_after_s, doubtful=error.doubtful)


# --- settings ---------------------------------------------------------------------------------------------


def _options(given: Mapping[str, JsonValue]) -> _Options:
    if keys := sorted(name for name in given if name.lower() in _KEYS):
        raise SettingsError(
            f"The option {keys[0]} of openai_compatible would hold a key itself, and settings are written to logs.",
            "Put the key into an environment variable, and name that with the option api_key_env.",
        )
    try:
        options = _Options.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise SettingsError(
                f"The provider openai_compatible has no option {name!r}.",
                f"Its options: {', '.join(_Options.model_fields)}.",
            ) from error
        raise SettingsError(f"The option {name} of openai_compatible does not fit.", f"{first['msg']}.") from error
    if taken := [name for name in _OURS if name in options.extra_body]:
        raise SettingsError(
            f"The option extra_body of openai_compatible sets {taken[0]}, which the provider itself sets.",
            f"Remove {taken[0]} from it.",
        )
    return options


def _address(base_url: str | None) -> SplitResult:
    """The server's address, taken apart. The address itself is not repeated in errors where it may hold a key."""
    try:
        address = urlsplit((base_url or "").strip())
        usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        given = base_url if base_url is None or not set(base_url) & set("@?") else "another"
        raise SettingsError(
            f"The provider openai_compatible needs the server's address as base_url; it is {given!r}.",
            "Give one such as http://localhost:8000/v1.",
        )
    if address.username or address.password or address.query or address.fragment:
        raise SettingsError(
            "The base_url of openai_compatible holds a user, a password or a query, and settings are written to logs.",
            "Give the address alone; a key comes from the environment variable that api_key_env names.",
        )
    return address


def _chat_url(address: SplitResult) -> str:
    """Where chats are asked: below the path's version, or below /v1 where it has none."""
    path = address.path.rstrip("/").removesuffix("/chat/completions")
    if not any(re.fullmatch(r"v\d+\w*", part) for part in path.split("/")):
        path += "/v1"
    return f"{address.scheme}://{address.netloc}{path}/chat/completions"


def _key(options: _Options) -> str | None:
    """The key in the environment, None where none is wanted or, by default, set."""
    name = options.api_key_env
    if name is None:
        return None
    where = "put the key into an environment variable, and give that variable's name"
    # A name of lower-case letters may be a key in the wrong place, so it is not repeated.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise SettingsError("The option api_key_env does not name an environment variable.", f"{where.capitalize()}.")
    key = os.environ.get(name, "").strip()
    if not key and "api_key_env" in options.model_fields_set:
        shown = f" {name}" if name.isupper() else ""
        raise SettingsError(
            f"The environment variable{shown} that the option api_key_env names is not set.",
            f"Set it; or {where}; or give null to send no key.",
        )
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise SettingsError(
            f"The environment variable {name} holds characters that no key has, such as a space.", "Set it again."
        )
    return key or None


def _refuse_plain_http(host: str, name: str) -> None:
    """Raise SettingsError unless the host is this machine."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host == "localhost" or host.endswith(".localhost"):
        return
    raise SettingsError(
        f"The key in {name} would travel to {host} over plain http, where others can read it.",
        "Use https; or set api_key_env to null to send no key; or set allow_plain_http to true.",
    )


def _mentions_thinking(value: JsonValue) -> bool:
    if isinstance(value, dict):
        return any(map(_mentions_thinking, value.values()))
    return value == _THINKING


def _with_thinking(value: JsonValue, thinking: int | str) -> JsonValue:
    if isinstance(value, dict):
        return {name: _with_thinking(part, thinking) for name, part in value.items()}
    return thinking if value == _THINKING else value
