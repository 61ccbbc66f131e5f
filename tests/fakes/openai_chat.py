"""A fake of OpenAI's `/v1/chat/completions`: it answers as that does, and refuses what that refuses.

Not faked: tools, images, more than one choice, the moderation of prompts.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from fakes.serving import (
    Answerer,
    Counts,
    Fault,
    Faults,
    RefusedError,
    answer_wrongly,
    echo,
    pieces,
    plain,
    send_events,
    serving,
)

_FIELDS = frozenset({
    "messages", "model", "stream", "stream_options", "temperature", "top_p", "max_tokens", "max_completion_tokens",
    "seed", "stop", "response_format", "reasoning_effort", "n", "presence_penalty", "frequency_penalty", "logit_bias",
    "logprobs", "top_logprobs", "user", "tools", "tool_choice", "parallel_tool_calls", "metadata", "store",
    "service_tier", "modalities", "prediction", "verbosity", "safety_identifier", "prompt_cache_key",
})  # fmt: skip
_SPEAKERS = ("system", "developer", "user", "assistant", "tool", "function")
_OVERFLOWS: dict[str, tuple[str, dict[str, Any]]] = {  # what servers say of a prompt that is too long, and how
    "openai": (
        "This model's maximum context length is {limit} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages.",
        {"type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"},
    ),
    "vllm": (
        "This model's maximum context length is {limit} tokens. However, you requested {tokens} tokens in the "
        "messages, Please reduce the length of the messages.",
        {"type": "BadRequestError", "param": None, "code": 400},
    ),
    "llama-server": (
        "request ({tokens} tokens) exceeds the available context size ({limit} tokens), try increasing it",
        {"type": "exceed_context_size_error", "code": 400, "n_prompt_tokens": 0, "n_ctx": 0},
    ),
}


@dataclass
class OpenAIChat:
    """The server and its knobs, which may be turned while it runs. A token is four characters."""

    key: str | None = "sk-test-0123456789"  # None: no key is asked for
    models: tuple[str, ...] = ("tiny",)
    answer: Answerer = echo
    latency_s: float = 0.0  # before the first byte
    pause_s: float = 0.0  # between events
    chunk_bytes: int | None = None  # of the stream; None: an event is a chunk
    crlf: bool = False
    comments: bool = False  # a keep-alive comment before each event
    done_marker: bool = True
    last_blank_line: bool = True
    closes: bool = False  # the connection after a stream, without having said so, as llama-server does
    plain_json: bool = False  # in spite of stream: true
    usage: Literal["at the end", "none", "with the last choice"] = "at the end"
    thinking_tokens: int = 0
    cached_tokens: int = 0
    timings: bool = False  # llama-server's
    served_model: str | None = None  # the name in the answer, where it is another
    finish_reason: str | None = None  # in place of stop and length
    refusal: str | None = None
    context_tokens: int = 100_000
    overflow: Literal["openai", "vllm", "llama-server"] = "openai"
    faults: Faults = field(default_factory=Faults)
    counts: Counts = field(default_factory=Counts)

    @contextmanager
    def running(self) -> Iterator[str]:
        """The server's address, without /v1."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list)
        with serving(app) as address:
            yield address

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        with self.counts.one():
            try:
                body = self._checked(request.headers.get("Authorization"), await request.text())
            except RefusedError as refused:
                return web.json_response(refused.body, status=refused.status)
            self.counts.headers.append(dict(request.headers))
            fault = self.faults.next()
            await asyncio.sleep(self.latency_s)
            if fault is not None:
                error = {"message": fault.message, "type": "server_error", "param": None, "code": fault.code}
                if (wrong := await answer_wrongly(request, fault, {"error": error})) is not None:
                    return wrong
            return await self._answer(request, body, fault)

    def _checked(self, authorization: str | None, text: str) -> dict[str, Any]:
        """The body. Raises RefusedError."""
        if self.key is not None and authorization != f"Bearer {self.key}":
            raise _no_key(authorization)
        try:
            body = json.loads(text)
        except ValueError:
            raise _invalid("We could not parse the JSON body of your request.") from None
        if not isinstance(body, dict):
            raise _invalid("We could not parse the JSON body of your request.")
        self.counts.bodies.append(body)
        check_body(body)
        if body["model"] not in self.models:
            message = f"The model `{body['model']}` does not exist or you do not have access to it."
            raise _invalid(message, status=404, code="model_not_found")
        tokens = self._prompt_tokens(body)
        if tokens > self.context_tokens:
            words, more = _OVERFLOWS[self.overflow]
            raise _invalid(words.format(tokens=tokens, limit=self.context_tokens), **more)
        return body

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: Fault | None) -> web.StreamResponse:
        tokens = pieces("" if self.refusal else self.answer(body["messages"]))
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        reason = self.finish_reason or ("length" if limit is not None and len(tokens) > limit else "stop")
        tokens = tokens[:limit]
        if not body.get("stream") or self.plain_json or (fault is not None and fault.kind == "truncated"):
            message = {"role": "assistant", "content": "".join(tokens) or None, "refusal": self.refusal}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
            value = {**self._head(body, "chat.completion"), "choices": [choice]}
            if self.usage != "none":
                value["usage"] = self._usage(body, tokens)
            return plain({**value, **self._timings(body, tokens)}, fault)
        events = [self._event(value) for value in self._chunks(body, tokens, reason)]
        if self.done_marker:
            events.append(self._event("[DONE]"))
        if not self.last_blank_line:
            events[-1] = events[-1].rstrip()
        error = {"message": fault.message if fault else "", "type": "server_error", "code": fault and fault.code}
        response = await send_events(
            request,
            events,
            content_type="text/event-stream",
            fault=fault,
            error=self._event({"error": error}),
            chunk_bytes=self.chunk_bytes,
            pause_s=self.pause_s,
        )
        if self.closes and request.transport is not None:
            request.transport.close()
        return response

    def _chunks(self, body: dict[str, Any], tokens: list[str], reason: str) -> Iterator[dict[str, Any]]:
        head = self._head(body, "chat.completion.chunk")
        wanted = bool((body.get("stream_options") or {}).get("include_usage")) and self.usage != "none"
        if wanted and self.usage == "at the end":
            head["usage"] = None

        def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

        yield chunk({"role": "assistant", "content": "", "refusal": None})
        if self.refusal:
            yield chunk({"refusal": self.refusal})
        for token in tokens:
            yield chunk({"content": token})
        last = chunk({}, reason)
        if wanted and self.usage == "with the last choice":
            last["usage"] = self._usage(body, tokens)
        yield {**last, **self._timings(body, tokens)}
        if wanted and self.usage == "at the end":
            yield {**head, "choices": [], "usage": self._usage(body, tokens)}

    def _head(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        model = self.served_model or body["model"]
        return {"id": f"chatcmpl-{self.counts.requests}", "object": kind, "created": int(time.time()), "model": model}

    def _usage(self, body: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
        prompt, completion = self._prompt_tokens(body), len(tokens) + self.thinking_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": self.thinking_tokens, "audio_tokens": 0},
        }

    def _timings(self, body: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
        if not self.timings:
            return {}
        read = self._prompt_tokens(body) - self.cached_tokens
        timings = {"cache_n": self.cached_tokens, "prompt_n": read, "prompt_ms": 1.5, "predicted_n": len(tokens)}
        return {"timings": {**timings, "predicted_ms": 2.5}}

    def _event(self, value: dict[str, Any] | str) -> bytes:
        data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        comment = ": keep-alive\n\n" if self.comments else ""
        text = f"{comment}data: {data}\n\n"
        return (text.replace("\n", "\r\n") if self.crlf else text).encode()

    @staticmethod
    def _prompt_tokens(body: dict[str, Any]) -> int:
        return sum(len(pieces(message["content"])) + 3 for message in body["messages"])


def _invalid(message: str, *, status: int = 400, **more: Any) -> RefusedError:
    parts = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}
    return RefusedError(status, {"error": parts})


def _no_key(authorization: str | None) -> RefusedError:
    if authorization:
        return _invalid("Incorrect API key provided: sk-***.", status=401, code="invalid_api_key")
    return _invalid(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY).",
        status=401,
    )


def check_body(body: dict[str, Any]) -> None:
    """Raise RefusedError for a body that OpenAI refuses."""
    if unknown := sorted(set(body) - _FIELDS):
        raise _invalid(f"Unrecognized request argument supplied: {unknown[0]}")
    if not isinstance(body.get("model"), str):
        raise _invalid("you must provide a model parameter")
    _check_messages(body.get("messages"))
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise _invalid("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
    for name in ("max_tokens", "max_completion_tokens"):
        limit = body.get(name)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise _invalid(
                f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {limit!r} instead.",
                param=name,
                code="integer_below_min_value",
            )
    temperature = body.get("temperature")
    if temperature is not None and (not isinstance(temperature, int | float) or not 0 <= temperature <= 2):
        raise _invalid(f"Invalid 'temperature': expected a value between 0 and 2, got {temperature!r}.")
    if not isinstance(body.get("stream", False), bool):
        raise _invalid("Invalid type for 'stream': expected a boolean.")
    if body.get("stream_options") is not None and not body.get("stream"):
        raise _invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    _check_response_format(body.get("response_format"))


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise _invalid("Invalid 'messages': empty array. Expected an array with minimum length 1.")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise _invalid(f"Invalid value for 'content': expected a string at 'messages[{at}]'.")
        if message.get("role") not in _SPEAKERS:
            known = ", ".join(f"'{speaker}'" for speaker in _SPEAKERS)
            raise _invalid(f"Invalid value: '{message.get('role')}'. Supported values are: {known}.")


def _check_response_format(wanted: Any) -> None:
    if wanted is None or wanted == {"type": "text"} or wanted == {"type": "json_object"}:
        return
    form = wanted.get("json_schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None
    if not isinstance(form, dict):
        raise _invalid("Invalid value for 'response_format'.", param="response_format")
    name = form.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name):
        raise _invalid("Missing or invalid 'response_format.json_schema.name'.", param="response_format")
    if not isinstance(form.get("schema"), dict):
        raise _invalid("Missing required parameter: 'response_format.json_schema.schema'.", param="response_format")
    if form.get("strict") and (wrong := strict_problem(form["schema"])):
        raise _invalid(f"Invalid schema for response_format '{name}': {wrong}", param="response_format")


def strict_problem(schema: dict[str, Any]) -> str | None:
    """What OpenAI's strict mode holds against a schema; None where it takes it."""
    if schema.get("type") != "object" or "anyOf" in schema:
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    return _problem_within(schema, ())


def _problem_within(schema: Any, context: tuple[str, ...]) -> str | None:
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema and len(schema) > 1:
        return f"context={context!r}, $ref cannot have keywords {sorted(set(schema) - {'$ref'})}."
    if "default" in schema:
        return f"In context={context!r}, 'default' is not permitted."
    properties = schema.get("properties")
    if schema.get("type") == "object" or properties is not None:
        if schema.get("additionalProperties") is not False:
            return f"In context={context!r}, 'additionalProperties' is required to be supplied and to be false."
        if missing := sorted(set(properties or {}) - set(schema.get("required", []))):
            return (
                f"In context={context!r}, 'required' is required to be supplied and to be an array including every "
                f"key in properties. Missing '{missing[0]}'."
            )
    below: list[tuple[tuple[str, ...], Any]]
    below = [((key, name), part) for key in ("properties", "$defs") for name, part in (schema.get(key) or {}).items()]
    below += [((key, str(at)), part) for key in ("anyOf", "allOf") for at, part in enumerate(schema.get(key) or [])]
    below.append((("items",), schema.get("items")))
    return next((wrong for path, part in below if (wrong := _problem_within(part, context + path))), None)
