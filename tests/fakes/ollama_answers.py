"""How the fake of Ollama reads a request and sends an answer: plain, empty or in lines, and what may go wrong in it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from aiohttp import web

from fakes.ollama_create import CreateError
from fakes.ollama_models import DigestError
from fakes.ollama_runner import RunnerError
from fakes.serving import Fault, RefusedError, abort, plain

Line = dict[str, Any]
REFUSALS = (RefusedError, CreateError, RunnerError, DigestError, OSError)
_WITHIN = ("cut", "broken", "error", "stall")
_FIELDS: dict[str, tuple[type, str]] = {
    "model": (str, "string"), "name": (str, "string"), "source": (str, "string"), "destination": (str, "string"),
    "from": (str, "string"), "files": (dict, "map[string]string"), "template": (str, "string"),
    "system": (str, "string"), "parameters": (dict, "map[string]interface {}"), "stream": (bool, "bool"),
    "quantize": (str, "string"), "prompt": (str, "string"), "options": (dict, "map[string]interface {}"),
}  # fmt: skip


class LeftError(Exception):
    """Nobody waits for the work any more."""


def read_body(text: str) -> dict[str, Any]:
    """The request as Go's decoder reads it: unknown fields are passed over. Raises RefusedError."""
    if not text.strip():
        raise RefusedError(400, {"error": "missing request body"})
    try:
        body = json.loads(text)
    except ValueError:
        message = f"invalid character '{text.strip()[0]}' looking for beginning of value"
        raise RefusedError(400, {"error": message}) from None
    if not isinstance(body, dict):
        raise RefusedError(400, {"error": "json: cannot unmarshal into Go value of type api.Request"})
    for name, (kind, wanted) in _FIELDS.items():
        if body.get(name) is not None and not isinstance(body[name], kind):
            message = f"json: cannot unmarshal into Go struct field {name} of type {wanted}"
            raise RefusedError(400, {"error": message})
    return body


def error_message(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return str(error.body["error"])
    if isinstance(error, OSError) and error.filename:
        return f"write {error.filename}: {error.strerror}"
    return str(error)


def error_status(error: Exception) -> int:
    if isinstance(error, RefusedError | CreateError | RunnerError):
        return error.status
    return 400 if isinstance(error, DigestError) else 500


# --- one answer ---------------------------------------------------------------------------------


async def send_empty(request: web.Request, fault: Fault | None, status: int = 200) -> web.StreamResponse:
    return await _lost(request, fault) or web.Response(status=status)


async def send_json(request: web.Request, value: dict[str, Any], fault: Fault | None) -> web.StreamResponse:
    return await _lost(request, fault) or plain(value, fault)


async def send_whole(
    request: web.Request, lines: AsyncIterator[Line], text: str, fault: Fault | None
) -> web.StreamResponse:
    """All lines in one: the last, with the texts of all. `text` is where they are: message or response."""
    whole: Line = {}
    said = ""
    async for line in lines:
        said += line["message"]["content"] if text == "message" else line[text]
        whole = line
    if whole:
        whole[text] = {**whole["message"], "content": said} if text == "message" else said
    return await send_json(request, whole, fault)


async def end_upload(request: web.Request, fault: Fault) -> web.Response:
    """The end of an upload in its middle."""
    return await _lost(request, fault) or web.Response()


async def _lost(request: web.Request, fault: Fault | None) -> web.Response | None:
    """What comes in the place of an answer whose work is done; None where it arrives."""
    if fault is not None and fault.kind == "stall":
        await asyncio.sleep(3600)
    if fault is not None and fault.kind in ("broken", "cut"):
        abort(request)
        return web.Response()
    if fault is not None and fault.kind == "error":
        return web.json_response({"error": fault.message}, status=fault.status)
    return None


# --- lines --------------------------------------------------------------------------------------


def limit_of(fault: Fault | None) -> int | None:
    """After how many lines or bytes the fault comes; None where it does not come within an answer."""
    return fault.after if fault is not None and fault.kind in _WITHIN else None


async def send_lines(
    request: web.Request, lines: AsyncGenerator[Line, None], fault: Fault | None, pause_s: float
) -> web.StreamResponse:
    """The lines as they come. An error before the first has a status, one behind it is a line of its own."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    limit, sent = limit_of(fault), 0
    try:
        async with aclosing(lines):
            async for line in lines:
                if sent == limit:
                    break
                if not response.prepared:
                    await response.prepare(request)
                await response.write(_encoded(line))
                sent += 1
                await asyncio.sleep(pause_s)
    except REFUSALS as error:
        if not response.prepared:
            raise
        await response.write(_encoded({"error": error_message(error)}))
    if not response.prepared:
        await response.prepare(request)
    if limit is not None and fault is not None:
        if fault.kind == "error":
            await response.write(_encoded({"error": fault.message}))
        if fault.kind == "stall":
            await asyncio.sleep(3600)
        if fault.kind == "broken":
            abort(request)
            return response
    await response.write_eof()
    return response


async def lines_told_by(work: Callable[[Callable[[Line], None]], None]) -> AsyncGenerator[Line, None]:
    """The lines that the work says, in a thread, and a last one of success.

    The work waits at each line until that was sent. Where the reader goes, the work ends at its line; the real one
    waits there for ever, which comes to the same.
    """
    lines: asyncio.Queue[Line | None] = asyncio.Queue()
    taken, left = threading.Semaphore(0), threading.Event()
    loop = asyncio.get_running_loop()

    def say(line: Line) -> None:
        loop.call_soon_threadsafe(lines.put_nowait, line)
        taken.acquire()
        if left.is_set():
            raise LeftError

    def run() -> None:
        try:
            work(say)
        finally:
            loop.call_soon_threadsafe(lines.put_nowait, None)

    task = asyncio.create_task(asyncio.to_thread(run))
    try:
        while (line := await lines.get()) is not None:
            yield line
            taken.release()
        await task
        yield {"status": "success"}
    finally:
        left.set()
        taken.release()
        await asyncio.gather(task, return_exceptions=True)


def _encoded(value: Line) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
