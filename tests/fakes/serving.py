"""Servers for tests: an aiohttp application on the loopback interface, and what may go wrong with one answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    `status`: that HTTP status, with an error body. `drop`: the connection ends without a word. `hang`: no answer
    ever. `html`: a web page. `truncated`: half of a plain JSON body. In a stream, after so many events: `cut` ends
    it, `broken` breaks the connection, `error` sends an error object, `stall` sends nothing more.
    """

    kind: Literal["status", "drop", "hang", "html", "truncated", "cut", "broken", "error", "stall"]
    status: int = 500
    code: str | int | None = None  # of an error object
    message: str = "The server had an error while processing your request."
    retry_after: str | None = None
    after: int = 2  # events


@dataclass
class Counts:
    """What came: every request's body as JSON, and how many were open at a time."""

    requests: int = 0
    open_now: int = 0
    most_open: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def one(self) -> Iterator[None]:
        self.requests += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            yield
        finally:
            self.open_now -= 1


@dataclass
class Faults:
    """The faults to come: `planned` are used up in turn (None is a good answer), `always` is for all after them."""

    planned: list[Fault | None] = field(default_factory=list)
    always: Fault | None = None

    def next(self) -> Fault | None:
        return self.planned.pop(0) if self.planned else self.always


class RefusedError(Exception):
    """A request that the server answers with an error, in its own form."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """The address of the application, served by a thread with a loop of its own until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def send_events(
    request: web.Request,
    events: list[bytes],
    *,
    content_type: str,
    fault: Fault | None,
    error: bytes,
    chunk_bytes: int | None = None,
    pause_s: float = 0.0,
) -> web.StreamResponse:
    """Stream the events, each a write of its own, or all in writes of `chunk_bytes`; `fault` may end it early."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    if fault is not None:
        events = [*events[: fault.after], *([error] if fault.kind == "error" else [])]
    whole = b"".join(events)
    writes = [whole[at : at + chunk_bytes] for at in range(0, len(whole), chunk_bytes)] if chunk_bytes else events
    for data in writes:
        await response.write(data)
        await asyncio.sleep(pause_s)
    if fault is not None and fault.kind == "stall":
        await asyncio.sleep(3600)
    if fault is not None and fault.kind == "broken":
        abort(request)
        return response
    await response.write_eof()
    return response


async def answer_wrongly(request: web.Request, fault: Fault, error: dict[str, Any]) -> web.Response | None:
    """The answer of a fault that comes before any answer; None for one that comes within it."""
    if fault.kind == "status":
        headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
        return web.json_response(error, status=fault.status, headers=headers)
    if fault.kind == "hang":
        await asyncio.sleep(3600)
    if fault.kind == "drop":
        abort(request)
        return web.Response()
    if fault.kind == "html":
        return web.Response(text="<html><body>Sign in</body></html>", content_type="text/html")
    return None


def plain(value: Mapping[str, Any], fault: Fault | None) -> web.Response:
    """The value as a plain JSON body, or half of it."""
    body = json.dumps(value, ensure_ascii=False).encode()
    if fault is not None and fault.kind == "truncated":
        body = body[: len(body) // 2]
    return web.Response(body=body, content_type="application/json")


def abort(request: web.Request) -> None:
    """Break the connection."""
    if request.transport is not None:
        request.transport.abort()


def pieces(text: str) -> list[str]:
    """A text as the fakes' tokens: four characters each."""
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def echo(messages: Messages) -> str:
    """An answer that shows what it answers, with characters of one to four bytes."""
    return f"Antwort auf “{messages[-1]['content']}”: süß, 東京, 🌱."


Answerer = Callable[[Messages], str]
