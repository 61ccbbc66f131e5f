"""A loopback server that does Vertex AI's batch prediction jobs, Cloud Storage's JSON API, and what they cost.

Paths, fields, states and error shapes as google-genai and google-cloud-storage write and read them. A job runs in
the background; its output lines echo their requests and come in another order than the input's.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
from aiohttp import web

from fakes.vertex_checks import RefusedError
from fakes.vertex_oauth import Tokens
from po_distill.roles.product_owner.role import ProductOwnerRole

# Nano-dollars for a token, list price: 0.30 and 2.50 dollars for a million.
INPUT_NANO, OUTPUT_NANO = 300, 2500
_LINE_FIELDS = {"contents", "systemInstruction", "generationConfig", "safetySettings", "labels"}
_JOB_SHAPE: dict[str, Any] = {
    "displayName": str,
    "model": str,
    "inputConfig": {"instancesFormat": str, "gcsSource": {"uris": list}},
    "outputConfig": {"predictionsFormat": str, "gcsDestination": {"outputUriPrefix": str}},
}
_STATUS_WORDS = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
_MODEL = re.compile(r"publishers/google/models/(.+)")


def product_owner_answer(body: dict[str, Any]) -> str:
    """The Product Owner's rules, on the prompt in the body; JSON where JSON is asked for."""
    form = "json" if body.get("generationConfig", {}).get("responseMimeType") == "application/json" else "fenced"
    role = ProductOwnerRole(form)
    concept = role.read_prompt(body["contents"][-1]["parts"][0]["text"])
    return role.answer_by_rules(concept) if concept else "I see no concept."


def tokens(text: str) -> int:
    return len(text.encode()) // 4 + 1


def prompt_of(body: dict[str, Any]) -> str:
    """What is asked, whichever way it comes: what a bill is written for."""
    contents = [*body.get("contents", ()), body.get("systemInstruction") or {}]
    return "\n".join(part["text"] for content in contents for part in content.get("parts", ()))


@dataclass
class Knobs:
    """How the server behaves; a test may change them while it runs."""

    pending_s: float = 0.0
    run_s: float = 0.03
    error_line_share: float = 0.0  # lines with a status
    missing_line_share: float = 0.0  # requests without a line
    garbage_line_share: float = 0.0  # lines whose response says nothing
    shards: int = 1  # output files
    shuffle: int = 7  # seed of the order of the lines
    fail_job: str = ""  # the message of a job that fails as a whole
    fail_code: int = 7  # its google.rpc.Code
    end_state: str = ""  # JOB_STATE_CANCELLED, ...: how a job ends that does nothing
    partial: bool = False  # PARTIALLY_SUCCEEDED in place of SUCCEEDED
    poll_503_share: float = 0.0
    loose_filter: bool = False  # the list has other jobs too
    create_status: int = 0  # refuse to create jobs, with this status
    create_hold_s: float = 0.0  # wait before a job is created
    created_hold_s: float = 0.0  # wait after a job is created, before that is answered
    break_create: bool = False  # create the job, and cut the connection in place of an answer
    storage_is_open: bool = True  # Cloud Storage takes any caller, as an emulator does
    storage_503: int = 0  # so many storage calls fail
    page_size: int = 100  # the most that a page of a list holds
    models: tuple[str, ...] = ("gemini-2.5-flash", "gemini-2.5-pro")
    answer: Callable[[dict[str, Any]], str] = product_owner_answer


@dataclass(frozen=True)
class Bill:
    """One billed answer."""

    prompt: str
    mode: str  # batch or online
    nano_usd: int


@dataclass
class FakeBatchVertex:
    """`with FakeBatchVertex() as vertex:` serves at `vertex.base_url` until the block ends."""

    knobs: Knobs = field(default_factory=Knobs)
    bucket: str = "po-bucket"

    def __post_init__(self) -> None:
        self.base_url = ""
        self.jobs: dict[str, dict[str, Any]] = {}  # id -> the job as JSON
        self.objects: dict[str, tuple[bytes, int]] = {}  # name -> (data, generation)
        self.bills: list[Bill] = []
        self.tokens = Tokens(set(), {})
        self.calls: Counter[str] = Counter()
        self.filters: list[str] = []
        self._uploads: dict[str, tuple[str, bytearray]] = {}
        self._chance = random.Random(2)
        self._running: set[asyncio.Task[None]] = set()

    def times_billed(self) -> dict[str, int]:
        """How often each prompt was billed, in whatever mode."""
        return dict(Counter(bill.prompt for bill in self.bills))

    def nano_usd(self, mode: str) -> int:
        return sum(bill.nano_usd for bill in self.bills if bill.mode == mode)

    def wait_for(self, what: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Wait until `what` is so."""
        end = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < end, f"never came; calls so far: {dict(self.calls)}"
            time.sleep(0.01)

    def finish(self, job: dict[str, Any]) -> None:
        """Let a job that pends for ever do its work now."""
        job.update(self._predict(job), state="JOB_STATE_SUCCEEDED", endTime=now())

    # --- the server -----------------------------------------------------------------------------

    def __enter__(self) -> FakeBatchVertex:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**30, middlewares=[self._gate])
        here = "/v1/projects/{project}/locations/{location}"
        app.router.add_post(f"{here}/batchPredictionJobs", self._create_job)
        app.router.add_get(f"{here}/batchPredictionJobs", self._list_jobs)
        app.router.add_get(f"{here}/batchPredictionJobs/{{id}}", self._get_job)
        app.router.add_post(f"{here}/publishers/google/models/{{model}}:generateContent", self._generate)
        app.router.add_post("/token", self._token)
        app.router.add_post("/upload/storage/v1/b/{bucket}/o", self._insert)
        app.router.add_put("/upload/storage/v1/b/{bucket}/o", self._resume)
        app.router.add_get("/storage/v1/b/{bucket}/o", self._list_objects)
        app.router.add_get("/storage/v1/b/{bucket}/o/{name:.+}", self._get_object)
        app.router.add_get("/download/storage/v1/b/{bucket}/o/{name:.+}", self._get_object)
        self.add_routes(app.router)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        ready.set()
        await self._stop.wait()
        for task in self._running:
            task.cancel()
        await runner.cleanup()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Routes of a fake that does more than batches."""

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        storage = "/storage/v1/" in request.path
        self.calls[f"{request.method} {'storage' if storage else 'vertex'}"] += 1
        if request.path != "/token" and not (storage and self.knobs.storage_is_open):
            try:
                self.tokens.check(request.headers.get("Authorization"))
            except RefusedError as refused:
                return web.json_response(refused.body, status=refused.code)
        if storage and "/o" in request.path and self.knobs.storage_503 > 0:  # the SDK asks for the bucket on its own
            self.knobs.storage_503 -= 1
            return refuse(503, "We encountered an internal error. Please try again.")
        if storage and request.match_info.get("bucket", self.bucket) != self.bucket:
            return refuse(403, "The caller does not have storage.objects access to the Google Cloud Storage bucket.")
        return await handler(request)

    # --- batch jobs -----------------------------------------------------------------------------

    async def _create_job(self, request: web.Request) -> web.StreamResponse:
        self.calls["create"] += 1
        body = await request.json()
        if problem := misfit(body, _JOB_SHAPE, "batch_prediction_job"):
            return refuse(400, problem)
        if self.knobs.create_status:
            return refuse(self.knobs.create_status, "Permission 'aiplatform.batchPredictionJobs.create' denied.")
        model = _MODEL.fullmatch(body["model"])
        if not model or model[1] not in self.knobs.models:
            return refuse(404, f"Publisher Model `{body['model']}` not found.")
        await asyncio.sleep(self.knobs.create_hold_s)
        number = str(4_000_000_000 + len(self.jobs))
        project, location = request.match_info["project"], request.match_info["location"]
        name = f"projects/{project}/locations/{location}/batchPredictionJobs/{number}"
        times = {"createTime": now(), "updateTime": now()}
        job = self.jobs[number] = {**body, "name": name, "state": "JOB_STATE_QUEUED", **times}
        task = asyncio.create_task(self._run(job))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        answer = web.json_response(job)
        if self.knobs.break_create and request.transport is not None:
            request.transport.close()
        await asyncio.sleep(self.knobs.created_hold_s)
        return answer

    async def _get_job(self, request: web.Request) -> web.StreamResponse:
        self.calls["poll"] += 1
        if self._chance.random() < self.knobs.poll_503_share:
            return refuse(503, "The service is currently unavailable.")
        job = self.jobs.get(request.match_info["id"])
        return web.json_response(job) if job else refuse(404, "The BatchPredictionJob does not exist.")

    async def _list_jobs(self, request: web.Request) -> web.StreamResponse:
        self.calls["list"] += 1
        if unknown := set(request.query) - {"filter", "pageSize", "pageToken"}:
            return refuse(400, f"Unknown query parameter {sorted(unknown)[0]}.")
        self.filters.append(request.query.get("filter", ""))
        wanted = re.fullmatch(r'display_name="([^"]*)"', self.filters[-1])
        if self.filters[-1] and not wanted:
            return refuse(400, "Invalid filter.")
        found = [
            job
            for job in self.jobs.values()
            if not wanted or self.knobs.loose_filter or job["displayName"] == wanted[1]
        ]
        page, following = self._page(found, request.query.get("pageSize"), request.query.get("pageToken"))
        return web.json_response({"batchPredictionJobs": page, **following} if page else {})

    async def _run(self, job: dict[str, Any]) -> None:
        knobs = self.knobs
        set_state(job, "PENDING")
        await asyncio.sleep(knobs.pending_s)
        set_state(job, "RUNNING", startTime=now())
        await asyncio.sleep(knobs.run_s)
        if knobs.end_state:
            set_state(job, knobs.end_state.removeprefix("JOB_STATE_"), endTime=now())
            return
        error = {"code": knobs.fail_code, "message": knobs.fail_job} if knobs.fail_job else None
        try:
            done = error or await asyncio.to_thread(self._predict, job)
        except BadInputError as problem:
            done = {"code": 3, "message": str(problem)}
        if "code" in done:
            set_state(job, "FAILED", error=done, endTime=now())
            return
        set_state(job, "PARTIALLY_SUCCEEDED" if knobs.partial else "SUCCEEDED", endTime=now(), **done)

    def _predict(self, job: dict[str, Any]) -> dict[str, Any]:
        """Write the output files; what the job says of them."""
        (uri,) = job["inputConfig"]["gcsSource"]["uris"]
        data, _ = self.objects.get(self._name(uri), (None, 0))
        if data is None:
            raise BadInputError(f"The file {uri} cannot be read: not found.")
        requests = [read_line(line) for line in data.decode().splitlines()]
        model = job["model"].rpartition("/")[2]
        lines = self._lines(requests, model)
        folder = f"{job['outputConfig']['gcsDestination']['outputUriPrefix'].rstrip('/')}/prediction-model-{now()}"
        shards = self.knobs.shards
        for shard in range(shards):
            name = "predictions.jsonl" if shards == 1 else f"predictions_{shard:04d}-of-{shards:04d}.jsonl"
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[shard::shards])
            self._put(self._name(f"{folder}/{name}"), text.encode())
        good = sum(not line["status"] for line in lines)
        stats = {"successfulCount": str(good), "failedCount": str(len(lines) - good)}
        return {"outputInfo": {"gcsOutputDirectory": folder}, "completionStats": stats}

    def _lines(self, requests: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
        order = list(requests)
        random.Random(self.knobs.shuffle).shuffle(order)
        if order == requests:
            order.reverse()
        wrong, missing, garbage = (
            round(share * len(order))
            for share in (self.knobs.error_line_share, self.knobs.missing_line_share, self.knobs.garbage_line_share)
        )
        lines = []
        for place, body in enumerate(order):
            line = {"status": "", "processed_time": now(), "request": body, "response": {}}
            if place < wrong:
                line["status"] = "Internal error occurred. Failed to get generateContentResponse."
            elif place < wrong + missing:
                continue
            elif place < wrong + missing + garbage:
                line["response"] = {"modelVersion": model}
            else:
                line["response"] = self._answer(body, model, "batch")
            lines.append(line)
        return lines

    async def _token(self, request: web.Request) -> web.Response:
        status, body = self.tokens.grant(await request.post(), f"{self.base_url}/token", 3600.0)
        return web.json_response(body, status=status)

    # --- answers, and what they cost ------------------------------------------------------------

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.calls["online"] += 1
        body, model = await request.json(), request.match_info["model"]
        if model not in self.knobs.models:
            return refuse(404, f"Publisher Model `{model}` not found.")
        if unknown := set(body) - _LINE_FIELDS:
            return refuse(400, f"Unknown name {sorted(unknown)[0]!r}: Cannot find field.")
        return web.json_response(self._answer(body, model, "online"))

    def _answer(self, body: dict[str, Any], model: str, mode: str) -> dict[str, Any]:
        text, prompt = self.knobs.answer(body), prompt_of(body)
        share = 2 if mode == "batch" else 1
        nano = tokens(prompt) * (INPUT_NANO // share) + tokens(text) * (OUTPUT_NANO // share)
        self.bills.append(Bill(prompt, mode, nano))
        counts = {"promptTokenCount": tokens(prompt), "candidatesTokenCount": tokens(text)}
        return {
            "candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}],
            "usageMetadata": {**counts, "totalTokenCount": sum(counts.values())},
            "modelVersion": model,
            "createTime": now(),
            "responseId": hashlib.sha256(prompt.encode()).hexdigest()[:16],
        }

    # --- Cloud Storage --------------------------------------------------------------------------

    async def _insert(self, request: web.Request) -> web.StreamResponse:
        kind, data, name = request.query.get("uploadType"), await request.read(), request.query.get("name")
        if kind == "multipart":
            metadata, data = read_multipart(request.headers["Content-Type"], data)
            name = metadata.get("name", name)
            if metadata.get("crc32c", crc32c(data)) != crc32c(data) or metadata.get("md5Hash", md5(data)) != md5(data):
                return refuse(400, "Provided checksum doesn't match.")
        elif kind == "resumable":
            name = json.loads(data or b"{}").get("name", name)
        if not name:
            return refuse(400, "Required parameter: name")
        if self._conflicts(name, request):
            return refuse(412, "At least one of the pre-conditions you specified did not hold.")
        if kind == "resumable":
            ticket = f"upload-{len(self._uploads)}"
            self._uploads[ticket] = (name, bytearray())
            return web.Response(headers={"Location": f"{self.base_url}{request.path}?upload_id={ticket}"})
        return web.json_response(self._put(name, data))

    async def _resume(self, request: web.Request) -> web.StreamResponse:
        name, data = self._uploads[request.query["upload_id"]]
        data += await request.read()
        total = request.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(data) < int(total):
            return web.Response(status=308, headers={"Range": f"bytes=0-{len(data) - 1}"})
        return web.json_response(self._put(name, bytes(data)))

    async def _get_object(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in self.objects:
            return refuse(404, f"No such object: {self.bucket}/{name}")
        data, generation = self.objects[name]
        if request.query.get("alt") != "media":
            return web.json_response(self._metadata(name))
        hashes = f"crc32c={crc32c(data)},md5={md5(data)}"
        return web.Response(body=data, headers={"x-goog-hash": hashes, "x-goog-generation": str(generation)})

    async def _list_objects(self, request: web.Request) -> web.StreamResponse:
        names = sorted(name for name in self.objects if name.startswith(request.query.get("prefix", "")))
        page, following = self._page(names, request.query.get("maxResults"), request.query.get("pageToken"))
        items = [self._metadata(name) for name in page]
        return web.json_response({"kind": "storage#objects", **({"items": items} if items else {}), **following})

    def _conflicts(self, name: str, request: web.Request) -> bool:
        wanted = request.query.get("ifGenerationMatch")
        return wanted is not None and int(wanted) != self.objects.get(name, (b"", 0))[1]

    def _put(self, name: str, data: bytes) -> dict[str, Any]:
        self.objects[name] = (data, time.time_ns())
        return self._metadata(name)

    def _metadata(self, name: str) -> dict[str, Any]:
        data, generation = self.objects[name]
        numbers = {"size": str(len(data)), "generation": str(generation), "metageneration": "1"}
        return {"name": name, "bucket": self.bucket, **numbers, "crc32c": crc32c(data), "md5Hash": md5(data)}

    def _name(self, uri: str) -> str:
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        if bucket != self.bucket:
            raise BadInputError(f"The service account has no access to {bucket}.")
        return name

    def _page(self, found: list[Any], size: str | None, token: str | None) -> tuple[list[Any], dict[str, str]]:
        first = int(token or 0)
        end = first + min(int(size or self.knobs.page_size), self.knobs.page_size)
        return found[first:end], {"nextPageToken": str(end)} if end < len(found) else {}


class BadInputError(Exception):
    """What makes a job fail as a whole."""


def set_state(job: dict[str, Any], state: str, **more: Any) -> None:
    job.update(more, state=f"JOB_STATE_{state}", updateTime=now())


def read_line(line: str) -> dict[str, Any]:
    value = json.loads(line)
    if set(value) != {"request"} or not value["request"].get("contents"):
        raise BadInputError("Each line must be an object with the field `request`.")
    if unknown := set(value["request"]) - _LINE_FIELDS:
        raise BadInputError(f"Cannot find field: {sorted(unknown)[0]}.")
    for name, label in value["request"].get("labels", {}).items():
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name) or not re.fullmatch(r"[a-z0-9_-]{0,63}", label):
            raise BadInputError(f"Invalid label: {name}.")
    return value["request"]


def misfit(value: Any, shape: Any, where: str) -> str:
    """What of a body is not of the shape; empty where all is."""
    if not isinstance(shape, dict):
        return "" if isinstance(value, shape) else f"Invalid value at {where!r}."
    if not isinstance(value, dict):
        return f"Invalid value at {where!r}."
    for name in value:
        if name not in shape:
            return f"Invalid JSON payload received. Unknown name {name!r} at {where!r}: Cannot find field."
    if lacking := [name for name in shape if name not in value]:
        return f"Required field {lacking[0]!r} at {where!r} is missing."
    return next((found for name in shape if (found := misfit(value[name], shape[name], name))), "")


def read_multipart(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """(the metadata, the data) of a multipart/related upload."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    parts = body.split(b"--" + boundary)
    metadata, data = (part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts[1:3])
    return json.loads(metadata), data


def refuse(status: int, message: str) -> web.Response:
    word = _STATUS_WORDS.get(status, "UNAVAILABLE")
    return web.json_response({"error": {"code": status, "message": message, "status": word}}, status=status)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(data).digest()).decode()


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
