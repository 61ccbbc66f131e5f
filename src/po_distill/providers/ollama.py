"""The provider `ollama`: a model of an Ollama server, through its own `/api/chat`.

Shapes as in Ollama's source (v0.33): answers are lines of JSON, durations are nanoseconds, and a number that is
zero is left out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from po_distill.errors import ProviderError, SettingsError
from po_distill.interfaces import Role
from po_distill.ollama_names import server_url
from po_distill.providers.http_json import JsonClient
from po_distill.records import ProviderSettings, ProviderTraits, Request, Response, Usage

if TYPE_CHECKING:
    import aiohttp

_SAMPLING = ("num_ctx", "top_k", "top_p", "min_p", "repeat_penalty", "stop")
_FINISHES = {"stop": "stop", "length": "length"}
_OVERFLOW = ("context length", "context size", "input too long")
_Text = Annotated[str, Field(min_length=1)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    timeout_s: float = Field(1800.0, gt=0)  # a large model may take minutes to load
    stream: bool = True
    keep_alive: int | float | str | None = None
    think: bool | None = None
    num_ctx: int | None = Field(None, gt=0)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0)
    stop: _Text | list[_Text] | None = None


class OllamaProvider:
    """Answers requests with the model that `settings.model` names, on the server at `settings.base_url`.

    Without a base_url the server is OLLAMA_HOST's, else http://127.0.0.1:11434. Options: num_ctx (tokens of context;
    the model's own, or by the machine's memory), top_k, top_p, min_p, repeat_penalty, stop (a text or a list), think
    (whether a model that can think does), keep_alive (how long the model stays loaded: seconds, or such as "10m"),
    stream (default true), timeout_s (of a whole call, loading included; default 1800). A prompt longer than the
    context is an error, where Ollama can say so; its own default is to cut it silently.
    """

    traits: ClassVar[ProviderTraits] = ProviderTraits(
        says_when_it_sends=True,
        structured_output=True,
        names_served_model=False,
        transport_options=("timeout_s", "stream", "keep_alive"),
    )

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self._options = _options(settings.options)
        if not settings.model:
            raise SettingsError("The provider ollama needs a model.", "Name one that `ollama list` shows.")
        self._model = settings.model
        self._url = server_url(settings.base_url, "base_url") + "/api/chat"
        self._client = JsonClient("Ollama", timeout_s=self._options.timeout_s, extra="http")

    async def generate(self, request: Request) -> Response:
        """Answer one request. Raises ProviderError."""
        body = self._body(request)
        answer = _Answer()
        try:
            async with self._client.stream(self._url, body) as response:
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
        """Close the connections. The model stays loaded for as long as keep_alive says."""
        await self._client.aclose()

    def _body(self, request: Request) -> dict[str, Any]:
        generation, given = request.generation, self._options.model_dump(exclude_none=True)
        sampling: dict[str, Any] = {
            "temperature": generation.temperature,
            "num_predict": generation.max_tokens,
            **{name: given[name] for name in _SAMPLING if name in given},
        }
        if isinstance(sampling.get("stop"), str):
            sampling["stop"] = [sampling["stop"]]
        if generation.seed is not None:
            sampling["seed"] = generation.seed
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.speaker, "content": message.content} for message in request.messages],
            "stream": self._options.stream,
            "truncate": False,  # servers that do not know it pass over it
            "options": sampling,
        }
        if request.json_schema is not None:
            body["format"] = request.json_schema
        if (think := _think(generation.thinking, given.get("think"))) is not None:
            body["think"] = think
        if "keep_alive" in given:
            body["keep_alive"] = given["keep_alive"]
        return body

    def _told_apart(self, error: ProviderError) -> ProviderError:
        """The error, with a narrower fault or a better fix where there is one."""
        fault, fix, words = error.fault, error.fix, error.problem.lower()
        refused = words.startswith(("ollama refused", "ollama broke off"))
        if error.fault == "unavailable" and isinstance(error.__cause__, OSError) and not error.doubtful:
            fix = "Start it: ollama serve. Where it runs elsewhere, give base_url or set OLLAMA_HOST."
        elif refused and "(404)" in words and "model" in words:
            fix = f"Get it: ollama pull {self._model}. `ollama list` shows what is there."
        elif refused and any(word in words for word in _OVERFLOW):
            fault, fix = "bad_answer", "Set the option num_ctx higher, or shorten the concept."
        elif refused and "does not support thinking" in words:
            fix = "Remove the option think, and generation.thinking."
        if (fault, fix) == (error.fault, error.fix):
            return error
        return ProviderError(
            error.problem, fix, fault=fault, retry_after_s=error.retry_after_s, doubtful=error.doubtful
        )


class _Answer:
    """One answer, put together from its lines or read whole."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._pieces: list[str] = []
        self._last: Mapping[str, Any] = {}  # the line that said that it is done, with all counts
        self._first_token_s: float | None = None
        self._latency_s = 0.0
        self.is_whole = False

    async def read(self, response: aiohttp.ClientResponse, *, streamed: bool) -> None:
        """Read a body to its end. Raises ProviderError where it holds an error, is cut, or is something else."""
        if response.content_type == "application/json" or not streamed:
            self._take(await response.read())
        else:
            lines = JsonLines()
            async for chunk in response.content.iter_any():
                for line in lines.feed(chunk):
                    self._take(line)
                    if self._pieces and self._first_token_s is None:
                        self._first_token_s = time.perf_counter() - self._started
            for line in lines.end():
                self._take(line)
        self._latency_s = time.perf_counter() - self._started
        if not self.is_whole:
            raise _cut("ended before it was done")

    def _take(self, line: bytes) -> None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _cut("is cut, or no JSON") from error
        if not isinstance(value, dict):
            raise _cut("is no JSON object")
        if value.get("error"):
            raise ProviderError(
                f"Ollama broke off with an error: {str(value['error'])[:300]}",
                "It is tried again; look at Ollama's log where this goes on.",
                fault="unavailable",
                doubtful=bool(self._pieces),
            )
        message = value.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and content:  # what the model thought stands in `thinking`
            self._pieces.append(content)
        if value.get("done") is True:
            self._last, self.is_whole = value, True
            self._latency_s = time.perf_counter() - self._started

    def response(self, *, asked: str) -> Response:
        """The answer as a record. Raises ProviderError where Ollama only loaded or unloaded the model."""
        reason = self._last.get("done_reason")
        if reason in ("load", "unload"):
            raise ProviderError(
                f"Ollama did not answer, it did a model's {reason}: the request has no messages.",
                "Ask with at least one message.",
                fault="bad_answer",
            )
        model = self._last.get("model")
        load_s = self._last.get("load_duration", 0 if "total_duration" in self._last else None)
        return Response.model_validate(
            {
                "text": _mended("".join(self._pieces)),
                "model": _mended(model) if isinstance(model, str) and model else asked,
                "finish": _FINISHES.get(str(reason), "other"),
                "finish_reason": None if reason is None else _mended(str(reason)),
                "usage": Usage(
                    prompt_tokens=self._count("prompt_eval_count"),
                    completion_tokens=self._count("eval_count"),
                    latency_s=self._latency_s,
                    first_token_s=self._first_token_s,
                    load_s=load_s / 1e9 if isinstance(load_s, int) else None,
                ),
            }
        )

    def _count(self, name: str) -> int:
        value = self._last.get(name)  # left out where it is zero
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


class JsonLines:
    """Lines out of chunks that end anywhere. They are cut as bytes, so a character that two chunks share stays one."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Each line that ends in this chunk and is not empty."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        yield from filter(bytes.strip, lines)

    def end(self) -> Iterator[bytes]:
        """What was left when the stream ended, where it is not empty."""
        if self._rest.strip():
            yield self._rest


def _mended(text: str) -> str:
    """The text without halves of characters: two that meet become one, one alone the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cut(what: str) -> ProviderError:
    return ProviderError(
        f"The answer of Ollama {what}.",
        "It is tried again; look at Ollama's log where this goes on.",
        fault="unavailable",
        doubtful=True,
    )


def _think(thinking: int | str | None, option: bool | None) -> bool | str | None:
    """What goes into `think`: a level or a yes or no, as Ollama knows no budget. The request goes before the option."""
    if thinking is None:
        return option
    if isinstance(thinking, str):
        return thinking
    if thinking == 0:
        return False
    raise ProviderError(
        f"Ollama has no field for a thinking budget of {thinking} tokens.",
        "Give generation.thinking as a level such as low, or 0; or set the option think.",
        fault="refused",
    )


def _options(given: Mapping[str, JsonValue]) -> _Options:
    try:
        return _Options.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise SettingsError(
                f"The provider ollama has no option {name!r}.", f"Its options: {', '.join(_Options.model_fields)}."
            ) from error
        raise SettingsError(f"The option {name} of ollama is {given[name]!r}.", f"{first['msg']}.") from error
