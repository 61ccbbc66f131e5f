"""A fake of Gemini on Vertex AI: it answers as the real one does, and refuses what the real one refuses.

In a test: `with FakeVertex(Knobs(latency_s=0.1)) as fake: ... fake.base_url`. As a process of its own, with tests on
the path: `python -m fakes.vertex --port 0 --latency-s 0.3 --ledger bill.jsonl --token T`, which prints one JSON line
when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from fakes.vertex_answers import Answered, Author, Knobs, decided, first_user_text
from fakes.vertex_checks import MODELS, RefusedError, check_body, invalid, parse_body, read_body
from fakes.vertex_oauth import Tokens

__all__ = ["FakeVertex", "Knobs"]

_ROUTE = "/v1/projects/{project}/locations/{location}/publishers/google/models/{model}:generateContent"


class Ledger:
    """What came and what it cost, in memory and, line by line, in a file that is only appended to."""

    def __init__(self, path: Path | str | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if path else None
        self.arrivals = 0
        self.nanousd = 0
        self.by_digest: Counter[str] = Counter()  # billed requests
        self.statuses: Counter[int] = Counter()
        self.in_flight = self.most_in_flight = 0

    def write(self, n: int, digest: str, concept: str, status: int, nanousd: int, fate: str = "") -> None:
        """Note an arrival. A 200 is billed, whatever becomes of its answer."""
        self.statuses[status] += 1
        self.nanousd += nanousd
        if status == 200:
            self.by_digest[digest] += 1
        if self._file is not None:
            line = {"n": n, "digest": digest, "concept": concept, "arrived": time.time(), "nanousd": nanousd,
                    "status": status, **({"fate": fate} if fate else {})}  # fmt: skip
            os.write(self._file, json.dumps(line).encode() + b"\n")

    def bill(self) -> dict[str, Any]:
        return {
            "calls": self.arrivals,
            "billed": self.by_digest.total(),
            "nanousd": self.nanousd,
            "by_digest": dict(self.by_digest),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
        }

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Quota:
    """A token bucket."""

    def __init__(self) -> None:
        self._left, self._seen = math.inf, 0.0

    def take(self, rps: float, burst: int) -> bool:
        """Whether one more request is within the quota."""
        now = time.monotonic()
        if rps <= 0.0:  # no quota: the bucket is full when there is one again
            self._left, self._seen = math.inf, now
            return True
        self._left = min(float(burst), self._left + (now - self._seen) * rps)
        self._seen = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class FakeVertex:
    """The server, on a free port of the loopback interface, in a thread of its own between enter and exit.

    `knobs` may be turned while it runs. `received` has the last bodies as they came, `headers` theirs.
    """

    def __init__(
        self,
        knobs: Knobs | None = None,
        *,
        answer: Callable[[dict[str, Any]], str | dict[str, Any]] | None = None,
        projects: Iterable[str] = ("test-project",),
        refresh_tokens: Iterable[str] = (),
        service_accounts: dict[str, str] | None = None,
        ledger: Path | str | None = None,
        port: int = 0,
    ) -> None:
        self.knobs, self.projects, self.port = knobs or Knobs(), set(projects), port
        self.tokens = Tokens(set(refresh_tokens), dict(service_accounts or {}))
        self.ledger, self._author, self._quota = Ledger(ledger), Author(answer), Quota()
        self.received: deque[dict[str, Any]] = deque(maxlen=1000)
        self.headers: deque[dict[str, str]] = deque(maxlen=1000)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bill(self) -> dict[str, Any]:
        """What `GET /_control/bill` says."""
        return self.ledger.bill()

    def issue_token(self, token: str | None = None) -> str:
        """An access token that is good from now on."""
        return self.tokens.issue(self.knobs.token_lifetime_s, token)

    # --- starting and stopping ------------------------------------------------------------------

    def __enter__(self) -> FakeVertex:
        listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(listening.set)), daemon=True)
        self._thread.start()
        if not listening.wait(10):
            raise RuntimeError("the fake of Vertex AI does not listen")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._stopping is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    async def __aenter__(self) -> FakeVertex:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.__exit__)

    async def serve(self, listening: Callable[[], None]) -> None:
        """Answer until `stop`; `listening` is called when the port is open."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post(_ROUTE.replace("{model}", "{model:[^:/]+}"), self._generate)
        app.router.add_post("/token", self._token)
        app.router.add_post("/_control/knobs", self._turn)
        app.router.add_post("/_control/prime", self._prime)
        app.router.add_get("/_control/bill", self._bill)
        # A client that goes away ends no call: what was accepted is computed to its end, and paid.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=False, shutdown_timeout=0.1)
        await runner.setup()
        handler: Any = runner.server
        server = await self._loop.create_server(
            lambda: _PatientHandler(handler, loop=self._loop, **handler._kwargs), "127.0.0.1", self.port, backlog=1024
        )
        self.port = server.sockets[0].getsockname()[1]
        listening()
        await self._stopping.wait()
        server.close()
        await runner.cleanup()
        self.ledger.close()

    def stop(self) -> None:
        """End `serve`; to be called in its loop."""
        if self._stopping is not None:
            self._stopping.set()

    # --- generateContent ------------------------------------------------------------------------

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.ledger.arrivals += 1
        self.ledger.in_flight += 1
        self.ledger.most_in_flight = max(self.ledger.most_in_flight, self.ledger.in_flight)
        try:
            return await self._answer(request, self.ledger.arrivals)
        finally:
            self.ledger.in_flight -= 1

    async def _answer(self, request: web.Request, n: int) -> web.StreamResponse:
        raw = await request.read()
        digest, concept = hashlib.sha256(raw).hexdigest(), ""
        try:
            body = self._accepted(request, raw)
            digest, concept = _digest(body), self._subject(body)
            self._throttle(n)
        except RefusedError as refused:
            self.ledger.write(n, digest, concept, refused.code, 0)
            headers = {}
            if refused.code == 429 and self.knobs.retry_after is not None:
                headers["Retry-After"] = f"{self.knobs.retry_after:g}"
            return web.json_response(refused.body, status=refused.code, headers=headers)
        name, knobs = request.match_info["model"], self.knobs
        answered = self._author.write(body, name, MODELS[name], knobs)
        fates = {"hang": knobs.hang_share, "truncate": knobs.truncate_share, "drop": knobs.drop_share}
        fate = next((what for what, share in fates.items() if decided(knobs, share, what, n)), "")
        self.ledger.write(n, digest, concept, 200, answered.nanousd, fate)
        await asyncio.sleep(self._latency_s(n))
        return await self._send(request, n, answered, fate)

    def _accepted(self, request: web.Request, raw: bytes) -> dict[str, Any]:
        """The body of a request that is not refused."""
        self.tokens.check(request.headers.get("Authorization"))
        if request.content_type != "application/json":
            raise invalid("Invalid content type.")
        parsed = parse_body(raw)
        self.received.append(parsed)
        self.headers.append(dict(request.headers))
        body = read_body(parsed)
        project, location, name = (request.match_info[part] for part in ("project", "location", "model"))
        if project not in self.projects:
            raise RefusedError(
                403, "PERMISSION_DENIED", f"Permission 'aiplatform.endpoints.predict' denied on project {project}."
            )
        if name not in MODELS:
            resource = f"projects/{project}/locations/{location}/publishers/google/models/{name}"
            raise RefusedError(
                404,
                "NOT_FOUND",
                f"Publisher Model `{resource}` was not found or your project does not have access to it.",
            )
        check_body(body, name, MODELS[name])
        return body

    def _throttle(self, n: int) -> None:
        knobs = self.knobs
        if decided(knobs, knobs.share_5xx, "5xx", n):
            raise RefusedError(503, "UNAVAILABLE", "The service is currently unavailable.")
        within = self._quota.take(knobs.quota_rps, knobs.quota_burst)
        if not within or decided(knobs, knobs.share_429, "429", n):
            raise RefusedError(429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later.")

    def _latency_s(self, n: int) -> float:
        knobs = self.knobs
        if knobs.latency_sigma <= 0.0:
            return knobs.latency_s
        return knobs.latency_s * math.exp(random.Random(f"{knobs.seed}|latency|{n}").gauss(0.0, knobs.latency_sigma))

    async def _send(self, request: web.Request, n: int, answered: Answered, fate: str) -> web.StreamResponse:
        while fate == "hang" and not self._has_gone(request):
            await asyncio.sleep(0.05)
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        data = json.dumps({**answered.body, "createTime": now, "responseId": f"fake-{n}"}, ensure_ascii=False).encode()
        if not fate:
            return web.Response(body=data, content_type="application/json", charset="UTF-8")
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
        if fate == "truncate":
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    def _has_gone(self, request: web.Request) -> bool:
        stopping = self._stopping is not None and self._stopping.is_set()
        return stopping or request.transport is None or request.transport.is_closing()

    def _subject(self, body: dict[str, Any]) -> str:
        prompt = first_user_text(body)
        concept = self._author.concept(prompt)
        return (concept.concept if concept else prompt).partition("\n")[0][:120]

    # --- everything else ------------------------------------------------------------------------

    async def _token(self, request: web.Request) -> web.Response:
        status, body = self.tokens.grant(await request.post(), f"{self.base_url}/token", self.knobs.token_lifetime_s)
        return web.json_response(body, status=status)

    async def _turn(self, request: web.Request) -> web.Response:
        turned = await request.json()
        if unknown := sorted(set(turned) - set(asdict(self.knobs))):
            return web.json_response({"error": f"no knob {unknown[0]}"}, status=400)
        for name, value in turned.items():
            setattr(self.knobs, name, value)
        return web.json_response(asdict(self.knobs))

    async def _prime(self, request: web.Request) -> web.Response:
        """Work answers out ahead: `{"prompts": [...]}`, the texts of user turns."""
        prompts = (await request.json())["prompts"]
        for prompt in prompts:
            for kind in ("application/json", "text/plain"):
                body = {"contents": [{"role": "user", "parts": [{"text": prompt}]}],
                        "generationConfig": {"responseMimeType": kind}}  # fmt: skip
                self._author.write(body, "gemini-2.5-pro", MODELS["gemini-2.5-pro"], Knobs())
        return web.json_response({"primed": len(prompts)})

    async def _bill(self, request: web.Request) -> web.Response:
        return web.json_response(self.bill())


class _PatientHandler(RequestHandler):
    """Takes a request that arrived whole, though its client died right behind it: the real service would bill it."""

    __slots__ = ()

    def connection_lost(self, exc: BaseException | None) -> None:
        asyncio.get_running_loop().call_later(0.02, super().connection_lost, exc)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# --- a process of its own -----------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fakes.vertex")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ledger")
    parser.add_argument("--project", action="append", dest="projects")
    parser.add_argument("--token", action="append", default=[], help="an access token that is good from the start")
    parser.add_argument("--refresh-token", action="append", default=[])
    parser.add_argument("--service-account", action="append", default=[], help="EMAIL=FILE of the public key in PEM")
    for field in fields(Knobs):
        kind = {"int": int, "str | None": str}.get(str(field.type), float)
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, default=field.default)
    return parser.parse_args()


async def _main() -> None:
    given = _arguments()
    accounts = dict(pair.split("=", 1) for pair in given.service_account)
    fake = FakeVertex(
        Knobs(**{field.name: getattr(given, field.name) for field in fields(Knobs)}),
        projects=given.projects or ("test-project",),
        refresh_tokens=given.refresh_token,
        service_accounts={email: Path(path).read_text() for email, path in accounts.items()},
        ledger=given.ledger,
        port=given.port,
    )
    for token in given.token:
        fake.issue_token(token)
    for one in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(one, fake.stop)

    def listening() -> None:
        sys.stdout.write(json.dumps({"base_url": fake.base_url, "port": fake.port}) + "\n")
        sys.stdout.flush()

    await fake.serve(listening)


if __name__ == "__main__":
    asyncio.run(_main())
