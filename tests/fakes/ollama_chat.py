"""A fake of Ollama's `/api/chat`: it answers as that does (v0.33), and refuses what that refuses.

Not faked: images, tools, templates, pulling a model.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

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

_WHOLE = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed", "num_predict", "top_k",
          "repeat_last_n")  # fmt: skip
_REAL = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")


@dataclass
class OllamaChat:
    """The server and its knobs, which may be turned while it runs. A token is four characters."""

    models: tuple[str, ...] = ("po-student:latest",)
    answer: Answerer = echo
    thoughts: str | None = None  # what a model that can think thinks; None cannot
    latency_s: float = 0.0  # before the first byte
    pause_s: float = 0.0  # between lines
    load_s: float = 0.0  # the first request to a model takes so much longer
    chunk_bytes: int | None = None  # of the stream; None: a line is a chunk
    plain_json: bool = False  # in spite of stream: true
    crlf: bool = False
    last_newline: bool = True
    done_reason: str | None = None  # in place of stop and length
    prompt_eval_count: bool = True  # False: zero, and so left out
    served_model: str | None = None
    default_ctx: int = 4096
    faults: Faults = field(default_factory=Faults)
    counts: Counts = field(default_factory=Counts)
    loaded: set[str] = field(default_factory=set)

    @contextmanager
    def running(self) -> Iterator[str]:
        """The server's address."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/api/chat", self._chat)
        app.router.add_get("/api/version", self._version)
        with serving(app) as address:
            yield address

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "0.33.0"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        with self.counts.one():
            started = time.perf_counter()
            try:
                body, model = self._checked(await request.text())
            except RefusedError as refused:
                return web.json_response(refused.body, status=refused.status)
            if not body.get("messages"):
                return self._load_only(body, model)
            fault = self.faults.next()
            await asyncio.sleep(self.latency_s)
            if fault is not None and (wrong := await answer_wrongly(request, fault, {"error": fault.message})):
                return wrong
            load_s = 0.0 if model in self.loaded else self.load_s
            await asyncio.sleep(load_s)
            self.loaded.add(model)
            if body.get("keep_alive") == 0:
                self.loaded.discard(model)
            return await self._answer(request, body, fault, started, load_s)

    def _checked(self, text: str) -> tuple[dict[str, Any], str]:
        """(the body, the model's whole name). Raises RefusedError."""
        body = decoded(text)
        self.counts.bodies.append(body)
        if not body.get("model"):
            raise RefusedError(400, {"error": "model is required"})
        model = body["model"] if ":" in body["model"] else f"{body['model']}:latest"
        if model not in self.models:
            raise RefusedError(404, {"error": f"model '{body['model']}' not found"})
        if body.get("think") and self.thoughts is None:
            raise RefusedError(400, {"error": f'"{body["model"]}" does not support thinking'})
        check_options(body.get("options") or {})
        check_format(body.get("format"))
        if self._prompt_tokens(body) > self._num_ctx(body) and body.get("truncate") is False:
            raise RefusedError(400, {"error": "the input length exceeds the context length"})
        return body, model

    def _load_only(self, body: dict[str, Any], model: str) -> web.Response:
        unload = body.get("keep_alive") == 0
        (self.loaded.discard if unload else self.loaded.add)(model)
        reason = "unload" if unload else "load"
        message = {"role": "assistant", "content": ""}
        return plain({**self._head(body), "message": message, "done": True, "done_reason": reason}, None)

    async def _answer(
        self, request: web.Request, body: dict[str, Any], fault: Fault | None, started: float, load_s: float
    ) -> web.StreamResponse:
        tokens = pieces(self.answer(body["messages"]))
        limit = (body.get("options") or {}).get("num_predict", -1)
        reason = "length" if 0 <= limit < len(tokens) else "stop"
        tokens = tokens[:limit] if limit >= 0 else tokens
        thoughts = pieces(self.thoughts) if self.thoughts and body.get("think") else []
        last: dict[str, Any] = {"done": True, "done_reason": self.done_reason or reason}
        counts = {
            "total_duration": int((time.perf_counter() - started) * 1e9),
            "load_duration": int(load_s * 1e9),
            "prompt_eval_count": self._prompt_tokens(body) if self.prompt_eval_count else 0,
            "prompt_eval_duration": 1_000_000,
            "eval_count": len(tokens) + len(thoughts),
            "eval_duration": 2_000_000,
        }
        last.update({name: count for name, count in counts.items() if count})  # omitempty
        if body.get("stream") is False or self.plain_json or (fault is not None and fault.kind == "truncated"):
            message = {"role": "assistant", "content": "".join(tokens)}
            if thoughts:
                message["thinking"] = "".join(thoughts)
            return plain({**self._head(body), "message": message, **last}, fault)
        messages = [{"role": "assistant", "content": "", "thinking": thought} for thought in thoughts]
        messages += [{"role": "assistant", "content": token} for token in tokens]
        lines = [self._line({**self._head(body), "message": message, "done": False}) for message in messages]
        lines.append(self._line({**self._head(body), "message": {"role": "assistant", "content": ""}, **last}))
        if not self.last_newline:
            lines[-1] = lines[-1].rstrip()
        return await send_events(
            request,
            lines,
            content_type="application/x-ndjson",
            fault=fault,
            error=self._line({"error": fault.message if fault else ""}),
            chunk_bytes=self.chunk_bytes,
            pause_s=self.pause_s,
        )

    def _head(self, body: dict[str, Any]) -> dict[str, Any]:
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self.served_model or body["model"], "created_at": created}

    def _line(self, value: dict[str, Any]) -> bytes:
        return json.dumps(value, ensure_ascii=False).encode() + (b"\r\n" if self.crlf else b"\n")

    def _num_ctx(self, body: dict[str, Any]) -> int:
        return int((body.get("options") or {}).get("num_ctx") or self.default_ctx)

    def _prompt_tokens(self, body: dict[str, Any]) -> int:
        tokens = sum(len(pieces(message["content"])) + 3 for message in body.get("messages") or [])
        return min(tokens, self._num_ctx(body)) if body.get("truncate") is not False else tokens


def decoded(text: str) -> dict[str, Any]:
    """The request as Go's decoder reads it: unknown fields are passed over. Raises RefusedError."""
    if not text.strip():
        raise RefusedError(400, {"error": "missing request body"})
    try:
        body: dict[str, Any] = json.loads(text)
    except ValueError:
        message = f"invalid character '{text.strip()[0]}' looking for beginning of value"
        raise RefusedError(400, {"error": message}) from None
    _check_type(body, dict, "ChatRequest", "")
    for name, kind in {"model": str, "messages": list, "stream": bool, "options": dict, "truncate": bool}.items():
        _check_type(body.get(name), kind, "ChatRequest", name)
    for message in body.get("messages") or []:
        _check_type(message, dict, "Message", "messages")
        for name in ("role", "content"):
            _check_type(message.get(name), str, "ChatRequest", f"messages.{name}")
    if not isinstance(body.get("think"), bool | type(None)) and body["think"] not in ("low", "medium", "high", "max"):
        wanted = 'must be "high", "medium", "low", "max", true, or false'
        raise RefusedError(400, {"error": f'invalid think value: "{body["think"]}" ({wanted})'})
    return body


def _check_type(value: Any, kind: type, where: str, name: str) -> None:
    if value is None or isinstance(value, kind):
        return
    found = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}[type(value)]
    wanted = {str: "string", bool: "bool", list: "[]api.Message", dict: "map[string]interface {}"}[kind]
    message = f"json: cannot unmarshal {found} into Go struct field {where}.{name} of type {wanted}"
    raise RefusedError(400, {"error": message})


def check_options(options: dict[str, Any]) -> None:
    """Raise RefusedError for a wrong type; options that Ollama does not know it passes over."""
    for name, value in options.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _WHOLE and not number:  # Go cuts 1.5 to 1
            raise RefusedError(400, {"error": f'option "{name}" must be of type integer'})
        if name in _REAL and not number:
            raise RefusedError(400, {"error": f'option "{name}" must be of type float32'})
        if name == "stop" and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
            raise RefusedError(400, {"error": 'option "stop" must be of an array of strings'})


def check_format(wanted: Any) -> None:
    """Raise RefusedError for a `format` that is neither "json" nor a schema."""
    if wanted in (None, "", "json") or isinstance(wanted, dict):
        return
    message = f'invalid format: {json.dumps(wanted)}; expected "json" or a valid JSON Schema object'
    raise RefusedError(500, {"error": message})
