"""A fake of Ollama (v0.33) that keeps models on disk and answers by running them, with what may go wrong.

In a test: `with FakeOllama(folder) as fake: ... fake.base_url`. It keeps to the real one's checks, statuses and error
forms, writes each GGUF of a user anew, and answers chats with llama.cpp (the package xllamacpp). Not faked: pulling
and pushing, converting and quantizing (501), adapters, images, tools, embeddings, and models in the cloud.

What may go wrong: `fake.faults["POST /api/create"].planned.append(Fault(...))`, by route. Kinds that come within an
answer count `after` in lines, in an upload in bytes; where the answer is no stream, or the upload shorter, `broken`
loses the answer after the work is done. `fake.meanwhile[route]` has calls that come between a request's checks and its
work, as another process's would: `fake.plant(...)`. `fake.store.room_bytes` is the size of the disk. `fake.restart()`
is what it says: the disk stays.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from fakes.ollama_answers import (
    REFUSALS,
    LeftError,
    end_upload,
    error_message,
    error_status,
    limit_of,
    lines_told_by,
    read_body,
    send_empty,
    send_json,
    send_lines,
    send_whole,
)
from fakes.ollama_chat import decoded
from fakes.ollama_create import CreateError, check, create
from fakes.ollama_models import ModelStore, Name, parse_name
from fakes.ollama_runner import Runners
from fakes.ollama_speaking import Speaking, read_name
from fakes.ollama_stored import read_model, shown_model, tag_line, timestamp
from fakes.serving import Fault, Faults, RefusedError, answer_wrongly

__all__ = ["FakeOllama", "Fault", "Knobs"]

_Work = Callable[[web.Request, Fault | None], Awaitable[web.StreamResponse]]


@dataclass
class Knobs:
    """May be turned while the server runs; the last four are read when it starts."""

    version: str = "0.33.0"
    latency_s: float = 0.0  # before an answer
    pause_s: float = 0.0  # between the lines of a stream
    load_s: float = 0.0  # a model's load takes so much longer
    rewrites: bool = True  # False: a GGUF is kept as it came
    prune_after_s: float = 3600.0  # at a start, unused blobs that are older go
    default_num_ctx: int = 4096  # the real one asks the machine's memory
    keep_alive_s: float = 300.0
    threads: int = 1  # of a model
    most_loaded: int = 3


@dataclass
class Seen:
    """What came, and what was done because of it."""

    requests: Counter[str] = field(default_factory=Counter)  # by route
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    uploads: Counter[str] = field(default_factory=Counter)  # digest -> times that all its bytes were taken in
    uploaded_bytes: int = 0  # of all uploads, the broken ones too
    creates: Counter[str] = field(default_factory=Counter)  # name -> times that create wrote it
    copies: Counter[str] = field(default_factory=Counter)  # destination -> times
    deletes: Counter[str] = field(default_factory=Counter)


class FakeOllama:
    """The server, on a free port of the loopback interface, in a thread of its own between enter and exit."""

    def __init__(self, folder: Path, knobs: Knobs | None = None) -> None:
        self.knobs, self.store, self.seen, self.port = knobs or Knobs(), ModelStore(folder), Seen(), 0
        self.faults: defaultdict[str, Faults] = defaultdict(Faults)
        self.meanwhile: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def names(self) -> list[str]:
        """The models' names, as `ollama list` shows them."""
        return [str(name) for name in self.store.names()]

    def model_digest(self, name: str) -> str | None:
        """The digest of the manifest that a name stands for, in bare hex."""
        manifest = self.store.manifest(parse_name(name))
        return manifest.digest if manifest else None

    def plant(self, name: str, gguf: Path, **fields: Any) -> str:
        """Make a model as another process would, without a request; its manifest's digest. Fields as of create."""
        with self.store.spool() as spool, gguf.open("rb") as file:
            while piece := file.read(1 << 20):
                spool.write(piece)
            layer = spool.keep()
        body = {"model": name, "files": {gguf.name: layer.digest}, **fields}
        return create(self.store, check(self.store, body), body, lambda _: None, rewrites=self.knobs.rewrites).digest

    # --- starting and stopping ------------------------------------------------------------------

    def __enter__(self) -> FakeOllama:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        listening = threading.Event()
        self._stopped.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening.set)), daemon=True)
        self._thread.start()
        if not listening.wait(10):
            raise RuntimeError("the fake of Ollama does not listen")

    def stop(self) -> None:
        """End every connection and forget what is not on disk."""
        assert self._loop is not None and self._stopping is not None and self._thread is not None
        self._stopped.set()
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(20)

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    async def _serve(self, listening: Callable[[], None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self.store.prune(self.knobs.prune_after_s)
        self._runners = Runners(self.knobs.threads, self.knobs.most_loaded)
        self._speaking = Speaking(self.store, self._runners, self.knobs.default_num_ctx, self.knobs.keep_alive_s)
        app = web.Application(client_max_size=64 * 2**20)
        for method, path, work in self._routes():
            app.router.add_route(method, path, self._served(work))
        # A body that is not read is drained for so long, as by Go's server; then the connection breaks.
        drain = {"lingering_time": 0.5}
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05, **drain)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, backlog=512, reuse_address=True).start()
        self.port = runner.addresses[0][1]
        listening()
        await self._stopping.wait()
        await runner.cleanup()
        self._runners.close()

    def _routes(self) -> list[tuple[str, str, _Work]]:
        return [
            ("GET", "/", self._running), ("HEAD", "/", self._running), ("GET", "/api/version", self._version),
            ("HEAD", "/api/blobs/{digest}", self._head_blob), ("POST", "/api/blobs/{digest}", self._post_blob),
            ("POST", "/api/create", self._create), ("POST", "/api/copy", self._copy),
            ("DELETE", "/api/delete", self._delete), ("POST", "/api/show", self._show),
            ("GET", "/api/tags", self._tags), ("GET", "/api/ps", self._ps), ("POST", "/api/chat", self._chat),
            ("POST", "/api/generate", self._generate),
        ]  # fmt: skip

    def _served(self, work: _Work) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            route = _route(request)
            self.seen.requests[route] += 1
            fault = self.faults[route].next()
            await asyncio.sleep(self.knobs.latency_s)
            if fault is not None and (wrong := await answer_wrongly(request, fault, {"error": fault.message})):
                return wrong
            try:
                return await work(request, fault)
            except REFUSALS as error:
                return web.json_response({"error": error_message(error)}, status=error_status(error))

        return serve

    async def _body(self, request: web.Request) -> dict[str, Any]:
        body = read_body(await request.text())
        self.seen.bodies.append((_route(request), body))
        return body

    def _let_others(self, request: web.Request) -> None:
        """Whatever another process does before this request's work."""
        calls = self.meanwhile[_route(request)]
        while calls:
            calls.pop(0)()

    # --- blobs ----------------------------------------------------------------------------------

    async def _head_blob(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        there = self.store.blob_path(request.match_info["digest"]).exists()
        return await send_empty(request, fault, 200 if there else 404)

    async def _post_blob(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if self.store.blob_path(digest).exists():
            return await send_empty(request, fault)
        limit = limit_of(fault)
        with self.store.spool() as spool:
            async for data in request.content.iter_any():
                taken = data if limit is None else data[: limit - spool.size]
                spool.write(taken)
                self.seen.uploaded_bytes += len(taken)
                if fault is not None and len(taken) < len(data):
                    return await end_upload(request, fault)
            layer = spool.keep()
        if layer.digest != digest:
            # The real one keeps what it got, under its true digest.
            message = f'digest mismatch, expected "{digest}", got "{layer.digest}"'
            raise RefusedError(400, {"error": message})
        self.seen.uploads[digest] += 1
        return await send_empty(request, fault, 201)

    # --- models ---------------------------------------------------------------------------------

    async def _create(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = await self._body(request)
        name = check(self.store, body)
        self._let_others(request)
        if body.get("stream") is not False:
            lines = lines_told_by(lambda say: self._work(name, body, say))
            return await send_lines(request, lines, fault, self.knobs.pause_s)
        said = 0

        def say(_: dict[str, Any]) -> None:
            nonlocal said
            if fault is not None and fault.kind == "error" and said == fault.after:
                raise CreateError(fault.message, fault.status)
            said += 1

        # A client that goes away ends nothing: the work is done to its end.
        task = asyncio.create_task(asyncio.to_thread(self._work, name, body, say))
        task.add_done_callback(lambda done: done.exception())
        await asyncio.shield(task)
        return await send_json(request, {"status": "success"}, fault)

    def _work(self, name: Name, body: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        def say_if_running(line: dict[str, Any]) -> None:
            say(line)
            if self._stopped.is_set():
                raise LeftError

        create(self.store, name, body, say_if_running, rewrites=self.knobs.rewrites)
        self.seen.creates[str(name)] += 1

    async def _copy(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = await self._body(request)
        names = {part: parse_name(body.get(part) or "") for part in ("source", "destination")}
        for part, name in names.items():
            if not name.is_valid:
                raise RefusedError(400, {"error": f'{part} "{body.get(part) or ""}" is invalid'})
        self._let_others(request)
        destination = self.store.existing(names["destination"])
        if not self.store.copy(self.store.existing(names["source"]), destination):
            raise RefusedError(404, {"error": f'model "{body["source"]}" not found'})
        self.seen.copies[str(destination)] += 1
        return await send_empty(request, fault)

    async def _delete(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = await self._body(request)
        asked = body.get("model") or body.get("name") or ""
        name = parse_name(asked)
        if not name.is_valid:
            raise RefusedError(400, {"error": f'name "{asked}" is invalid'})
        self._let_others(request)
        name = self.store.existing(name)
        if not self.store.remove(name):
            raise RefusedError(404, {"error": f"model '{asked}' not found"})
        self.seen.deletes[str(name)] += 1
        return await send_empty(request, fault)

    async def _show(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = await self._body(request)
        asked = body.get("model") or body.get("name")
        model = read_model(self.store, self.store.existing(read_name(asked)))
        if model is None:
            raise RefusedError(404, {"error": f"model '{asked}' not found"})
        return await send_json(request, shown_model(model), fault)

    async def _tags(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        known = [(name, self.store.manifest(name)) for name in self.store.names()]
        models = [tag_line(self.store, name, manifest) for name, manifest in known if manifest is not None]
        models.sort(key=lambda line: str(line["modified_at"])[:19], reverse=True)  # to the second, as the real one
        return await send_json(request, {"models": models}, fault)

    async def _ps(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        models = [{**runner.shown, "expires_at": timestamp(runner.expires_s)} for runner in self._runners.shown()]
        return await send_json(request, {"models": models}, fault)

    async def _version(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        return await send_json(request, {"version": self.knobs.version}, fault)

    async def _running(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        return web.Response(text="Ollama is running")

    # --- chats ----------------------------------------------------------------------------------

    async def _chat(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = decoded(await request.text())
        self.seen.bodies.append((_route(request), body))
        return await self._spoken(request, self._speaking.chat(body), "message", body, fault)

    async def _generate(self, request: web.Request, fault: Fault | None) -> web.StreamResponse:
        body = await self._body(request)
        return await self._spoken(request, self._speaking.generate(body), "response", body, fault)

    async def _spoken(
        self,
        request: web.Request,
        lines: AsyncIterator[dict[str, Any]],
        text: str,
        body: dict[str, Any],
        fault: Fault | None,
    ) -> web.StreamResponse:
        self._speaking.load_s = self.knobs.load_s
        only_loads = not body.get("messages" if text == "message" else "prompt")
        if body.get("stream") is False or body.get("_debug_render_only") or only_loads:
            return await send_whole(request, lines, text, fault)
        return await send_lines(request, lines, fault, self.knobs.pause_s)


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical.removesuffix('/{digest}') if resource else request.path}"
