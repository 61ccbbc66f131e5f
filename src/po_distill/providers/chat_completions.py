"""OpenAI's wire format: what `/v1/chat/completions` answers, as a Response or a ProviderError.

Shapes as in OpenAI's API reference (chat completions, chat completion chunks), with what vLLM, llama-server and
a few others add.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from po_distill.errors import ProviderError, ProviderFault
from po_distill.records import Response, Usage

if TYPE_CHECKING:
    import aiohttp

WHO = "The OpenAI-compatible server"  # in errors
# llama-server ends the connection after each stream without saying so, and the next request would break on it with
# nobody knowing whether it arrived. So a stream's connection is used once, and the server is told.
USED_ONCE = {"Connection": "close"}

_FINISHES = {"stop": "stop", "length": "length", "content_filter": "blocked"}

# The words that tell errors apart which share a status: OpenAI's codes, and what it, Azure, vLLM and llama-server say.
_OVERFLOW = (
    "context_length_exceeded",
    "maximum context length",
    "maximum model length",
    "exceeds the context window",
    "exceed_context_size",
    "available context size",
)
_FILTERED = ("content_filter", "content management policy", "content_policy", "flagged as potentially violating")


class ChatAnswer:
    """One answer, put together from its events or read whole."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._pieces: list[str] = []
        self._model: str | None = None
        self._finish: str | None = None
        self._refused = False
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._first_token_s: float | None = None
        self._latency_s = 0.0
        self.is_whole = False  # the model has ended it; only counts can be missing

    async def read(self, response: aiohttp.ClientResponse, *, streamed: bool) -> None:
        """Read a body to its end. Raises ProviderError where it holds an error, is cut, or is something else."""
        kind = response.content_type
        if "json" in kind or not (streamed or "event-stream" in kind):  # some servers do not stream though asked to
            self._take_whole(_object(await response.read()))
            self._latency_s = time.perf_counter() - self._started
            return
        async for data in _events(response):
            if data == "[DONE]":
                break
            self._take_chunk(_object(data))
        self._latency_s = time.perf_counter() - self._started
        response.close()  # see USED_ONCE
        if not self.is_whole:
            raise _cut("ended without a finish_reason")

    def _take_whole(self, value: Mapping[str, Any]) -> None:
        choice = self._choice(value)
        if choice is None:
            raise _cut("holds no choice")
        self._take(choice, _mapping(choice.get("message")))
        self.is_whole = True

    def _take_chunk(self, value: Mapping[str, Any]) -> None:
        choice = self._choice(value)
        if choice is None:
            return  # a ping, or the counts alone
        self._take(choice, _mapping(choice.get("delta")) or _mapping(choice.get("message")))
        if self._pieces and self._first_token_s is None:
            self._first_token_s = time.perf_counter() - self._started
        if self._finish:
            self.is_whole = True

    def _choice(self, value: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The first choice, and what stands beside it taken in. Raises ProviderError where it is an error."""
        if value.get("error"):
            raise error_in_answer(value["error"], begun=bool(self._pieces))
        if isinstance(value.get("model"), str) and value["model"]:
            self._model = value["model"]
        self._usage = _mapping(value.get("usage")) or self._usage
        self._timings = _mapping(value.get("timings")) or self._timings
        choices = value.get("choices")
        return _mapping(choices[0]) if isinstance(choices, list) and choices else None

    def _take(self, choice: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        if text := _text(message.get("content")):
            self._pieces.append(text)
        self._refused = self._refused or bool(message.get("refusal"))
        if choice.get("finish_reason"):
            self._finish = str(choice["finish_reason"])
            self._latency_s = time.perf_counter() - self._started

    def response(self, *, asked: str) -> Response:
        """The answer as a record; `asked` names the model where the server does not."""
        finish = "blocked" if self._refused else _FINISHES.get(self._finish or "", "other")
        return Response.model_validate(
            {
                "text": "" if finish == "blocked" else _mended("".join(self._pieces)),
                "model": _mended(self._model or asked),
                "finish": finish,
                "finish_reason": "refusal" if self._refused else self._finish and _mended(self._finish),
                "usage": self._counts(),
            }
        )

    def _counts(self) -> Usage:
        usage, timings = self._usage, self._timings
        prompt = _count(usage, "prompt_tokens") or _count(timings, "prompt_n") + _count(timings, "cache_n")
        completion = _count(usage, "completion_tokens") or _count(timings, "predicted_n")
        thinking = _count(_mapping(usage.get("completion_tokens_details")), "reasoning_tokens")
        if thinking and _count(usage, "total_tokens") == prompt + completion + thinking:
            completion += thinking  # xAI counts thinking beside the completion, OpenAI within it
        details = _mapping(usage.get("prompt_tokens_details"))
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            thinking_tokens=thinking,
            cached_tokens=_count(details, "cached_tokens") or _count(timings, "cache_n"),
            latency_s=self._latency_s,
            first_token_s=self._first_token_s,
        )


class EventStream:
    """The `data` of server-sent events, out of chunks that end anywhere (HTML standard, 9.2.6).

    More forgiving than the standard: an event at the very end needs no blank line, and a field `error` (older
    llama-servers) is given as `{"error": ...}`. Comments, `id`, `event` and `retry` are passed over.
    """

    def __init__(self) -> None:
        self._rest = b""  # a line whose end has not come
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The data of each event that ends in this chunk."""
        # Lines are cut as bytes and decoded whole, so a character that two chunks share stays one. A CR at the end
        # waits: the next chunk may begin with its LF.
        lines = (self._rest + chunk).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""
        for line in lines:
            yield from self._line(line)

    def end(self) -> Iterator[str]:
        """The data of what was left when the stream ended."""
        yield from self._line(self._rest)
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        field, _, value = line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "error":
            self._data.append(f'{{"error": {value}}}')
        elif not field and not value and self._data and not line.startswith(b":"):
            data, self._data = "\n".join(self._data), []
            yield data


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    events = EventStream()
    async for chunk in response.content.iter_any():
        for data in events.feed(chunk):
            yield data
    for data in events.end():
        yield data


def _object(data: bytes | str) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _cut("is cut, or no JSON") from error
    if not isinstance(value, dict):
        raise _cut("is no JSON object")
    return value


def _cut(what: str) -> ProviderError:
    return ProviderError(
        f"The answer of the OpenAI-compatible server {what}.",
        "It is tried again; look at the server, and at proxies between, where this goes on.",
        fault="unavailable",
        doubtful=True,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(counts: Mapping[str, Any], name: str) -> int:
    value = counts.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _mended(text: str) -> str:
    """The text without halves of characters: two that meet become one, one alone the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(content: Any) -> str:
    """The text of a content, which is a text or (Mistral) a list of typed parts, thinking among them."""
    if isinstance(content, str):
        return content
    parts = [_mapping(part) for part in content] if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if part.get("type") == "text")


def narrowed(words: str, fault: ProviderFault, fix: str) -> tuple[ProviderFault, str]:
    """The fault and fix that an error's words point to; the given ones where they say nothing special."""
    lower = words.lower()
    if fault in ("rate_limited", "unavailable") and _is_quota(lower):
        return "refused", "The account's quota is used up, and waiting does not help: see to its billing."
    if fault == "rate_limited":
        return fault, fix
    if any(word in lower for word in _OVERFLOW):
        return "bad_answer", "Shorten the concept, ask for fewer tokens, or choose a model with a longer context."
    if any(word in lower for word in _FILTERED):
        return "blocked", "Reword the concept, or leave it out."
    if "max_completion_tokens" in lower:
        return fault, "Set the option max_tokens_field to max_completion_tokens."
    return fault, fix


def _is_quota(lower: str) -> bool:
    # Gemini says the same sentence of limits that pass by themselves, with another link.
    return "insufficient_quota" in lower or ("exceeded your current quota" in lower and "openai.com" in lower)


def error_in_answer(error: Any, *, begun: bool) -> ProviderError:
    """The error that came where the answer should be. `begun`: part of the answer was there, so it may be billed."""
    parts = error if isinstance(error, dict) else {"message": error}
    message = str(parts.get("message") or "no message")[:300]
    limited = parts.get("code") in (429, "429") or "rate_limit" in f"{parts.get('code')} {parts.get('type')}"
    fault, fix = narrowed(
        f"{parts.get('code')} {parts.get('type')} {message}",
        "rate_limited" if limited else "unavailable",
        "It is tried again; look at the server where this goes on.",
    )
    return ProviderError(f"{WHO} broke off with an error: {message}", fix, fault=fault, doubtful=begun)
