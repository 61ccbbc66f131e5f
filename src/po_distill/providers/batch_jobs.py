"""Vertex AI's batch prediction jobs of one scope: numbered, named so that they are found again, joined by key.

A job's files lie below the bucket's prefix: `<display name>/input.jsonl`, and what it writes below
`<display name>/output/`. Input lines are `{"request": {contents, ..., labels}}`; output lines
`{"status", "processed_time", "request", "response"}`, in any order, in any number of files.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from po_distill.errors import ProviderError, ProviderFault
from po_distill.providers.cloud_bucket import CloudBucket
from po_distill.providers.gemini import response_of
from po_distill.providers.http_json import UnauthorizedError, broken_connections, refusal
from po_distill.providers.vertex_project import WHO, VertexProject
from po_distill.records import Response

Body = dict[str, Any]
_T = TypeVar("_T")

_WHO = "Vertex AI's batch service"
_KEY_LABEL = "po_distill_key"
_DONE = ("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED")
_ENDED_OTHERWISE = ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")
_EXCERPT = 300
_PRICE_FACTOR = 0.5
_LOOKS = 10  # at a job that cannot be seen, one after the other, before its requests are told
_LONGEST_WAIT_S = 600.0
_FAULTS_THAT_PASS = ("rate_limited", "unavailable", "timeout")
# google.rpc.Code: what may pass by itself. Every other code, such as PERMISSION_DENIED (7), concerns the settings.
_RESOURCE_EXHAUSTED = 8
_MAY_PASS = (1, 2, 4, 10, 13, 14)  # CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, ABORTED, INTERNAL, UNAVAILABLE


@dataclass(frozen=True)
class JobStatus:
    """How a job stands."""

    name: str  # the resource name, projects/.../batchPredictionJobs/...
    state: Literal["open", "done", "failed"]
    error: ProviderError | None = None  # of a failed job: what its requests are told
    latency_s: float = 0.0  # of an ended job, from its creation to its end; 0 where that is not known


def request_key(body: Body, model: str) -> str:
    """What a request is known by: 40 hex digits over its body and its model. Fits a label's value."""
    text = json.dumps({"model": model, "body": body}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class OpensClient(Protocol):
    """Opens a google-genai client once, and sees to its token; one that was `refused` is replaced."""

    async def __call__(self, refused: str | None = None) -> tuple[Any, str]:
        """(the client, its token)."""
        ...


class BatchJobs:
    """The jobs of one scope: a project, a model and a bucket's prefix. Methods raise ProviderError."""

    def __init__(self, vertex: VertexProject, client: OpensClient, bucket: CloudBucket) -> None:
        scope = hashlib.sha256("\n".join((vertex.project, vertex.model, bucket.uri())).encode()).hexdigest()[:12]
        self._stem = f"po-distill-{scope}"
        self._vertex, self._open, self._bucket = vertex, client, bucket

    def display_name(self, number: int) -> str:
        """The name of the job of that number; numbers count from 1."""
        return f"{self._stem}-{number}"

    # --- jobs -----------------------------------------------------------------------------------

    async def create(self, number: int) -> JobStatus:
        """Create the job whose input file has been written."""
        name = self.display_name(number)
        source, config = (
            self._bucket.uri(_input(name)),
            {"display_name": name, "dest": self._bucket.uri(f"{name}/output")},
        )
        model = self._vertex.model
        return _status(await self._ask(lambda batches: batches.create(model=model, src=source, config=config)))

    async def find(self, number: int) -> JobStatus | None:
        """The job of that number, if there is one; of several, one that is done or may yet be."""
        name = self.display_name(number)

        async def listed(batches: Any) -> list[JobStatus]:
            pages = await batches.list(config={"filter": f'display_name="{name}"', "page_size": 50})
            return [_status(job) async for job in pages if job.display_name == name]

        found = await self._ask(listed)
        return min(found, key=lambda status: ("done", "open", "failed").index(status.state), default=None)

    async def look(self, name: str) -> JobStatus:
        """How the job of that resource name stands now."""
        return _status(await self._ask(lambda batches: batches.get(name=name)))

    async def _ask(self, call: Callable[[Any], Awaitable[_T]]) -> _T:
        """What the SDK's batches answer; a token that is refused is replaced once."""
        client, token = await self._open()
        try:
            return await self._translated(call, client)
        except UnauthorizedError:
            client, _ = await self._open(refused=token)
        return await self._translated(call, client)

    async def _translated(self, call: Callable[[Any], Awaitable[_T]], client: Any) -> _T:
        from google.auth.exceptions import GoogleAuthError
        from google.genai.errors import APIError

        vertex = self._vertex
        try:
            with broken_connections(_WHO, vertex.origin, timeout_s=vertex.timeout_s, extra="vertex"):
                return await call(client.aio.batches)
        except APIError as error:
            body = json.dumps(error.details, default=str).encode()
            raise refusal(_WHO, error.code or 0, body, getattr(error.response, "headers", {})) from error
        except (ValueError, RecursionError, GoogleAuthError) as error:
            raise ProviderError(
                f"{_WHO} answered with nothing that can be read: {type(error).__name__}.",
                "It is tried again; check the address where this goes on.",
                fault="unavailable",
                doubtful=True,
            ) from error

    # --- files ----------------------------------------------------------------------------------

    async def upload(self, number: int, bodies: Mapping[str, Body]) -> bool:
        """Write a job's input file, a line for each key; False where that number has one already."""
        labels = self._vertex.labels
        lines = (
            json.dumps({"request": {**body, "labels": {**labels, _KEY_LABEL: key}}}) for key, body in bodies.items()
        )
        data = "".join(f"{line}\n" for line in lines).encode()
        return await self._bucket.create(_input(self.display_name(number)), data)

    async def keys(self, number: int) -> frozenset[str] | None:
        """The keys in a job's input file; None where there is no such file."""
        data = await self._bucket.read(_input(self.display_name(number)))
        return None if data is None else frozenset(key for key, _ in _keyed(data))

    async def lines(self, number: int) -> dict[str, dict[str, Any]]:
        """The output lines of a job that is done, by key. Raises ProviderError where it has no output file."""
        below = f"{self.display_name(number)}/output/"
        lines: dict[str, dict[str, Any]] = {}
        paths = [path for path in await self._bucket.paths(below) if _holds_predictions(path)]
        for path in paths:
            for key, line in _keyed(await self._bucket.read(path) or b""):
                if key not in lines or lines[key].get("status"):  # of two lines the one with an answer
                    lines[key] = line
        if not paths:
            raise ProviderError(
                f"The batch job {self.display_name(number)} is done, but nothing is below {self._bucket.uri(below)}.",
                "Bring its files back; or, to pay for its answers anew, name another folder in the option bucket.",
                fault="refused",
                doubtful=True,
            )
        return lines


@dataclass(eq=False)
class SentJob:
    """A job that was created, with the keys of those answers that nobody has taken."""

    number: int
    name: str  # the resource name
    keys: set[str]
    lines: dict[str, dict[str, Any]] | None = None  # its output by key, once it is done
    latency_s: float = 0.0

    async def watch(self, jobs: BatchJobs, poll_s: float) -> None:
        """Return when its output is there. Raises ProviderError where it failed, or cannot be seen for long."""
        while self.lines is None:
            status, self.lines = await self._seen(jobs, poll_s)
            if status.error:
                self.keys.clear()
                raise status.error
            self.latency_s = status.latency_s
            if self.lines is None:
                await asyncio.sleep(poll_s)

    async def _seen(self, jobs: BatchJobs, poll_s: float) -> tuple[JobStatus, dict[str, dict[str, Any]] | None]:
        """(how it stands, its output where it is done). What may pass by itself is waited for, ever longer."""
        failures = 0
        while True:
            try:
                status = await jobs.look(self.name)
                return status, await jobs.lines(self.number) if status.state == "done" else None
            except ProviderError as error:
                failures += 1
                may_pass = error.fault in _FAULTS_THAT_PASS
                if not may_pass or failures > _LOOKS:
                    raise ProviderError(
                        f"The batch job {self.name} cannot be looked at. {error.problem}",
                        error.fix,
                        fault="unavailable" if may_pass else error.fault,
                        doubtful=True,  # it goes on
                    ) from error
            await asyncio.sleep(min(poll_s * 1.5**failures, _LONGEST_WAIT_S))

    def take(self, key: str, model: str) -> Response | None:
        """The answer to a key, which is then no longer the job's; None where the job has no good one."""
        self.keys.discard(key)
        line = (self.lines or {}).pop(key, {})
        if line.get("status") or not isinstance(line.get("response"), dict):
            return None
        try:
            response = response_of(line["response"], asked=model, who=WHO)
        except ProviderError:
            return None
        usage = response.usage.model_copy(update={"latency_s": self.latency_s})
        return response.model_copy(update={"usage": usage, "price_factor": _PRICE_FACTOR})


def _input(display_name: str) -> str:
    return f"{display_name}/input.jsonl"


def _holds_predictions(path: str) -> bool:
    file = path.rpartition("/")[2]
    return file.startswith("prediction") and ".jsonl" in file


def _keyed(data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, line) of each line that has a key; what else is in the file is none of ours."""
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
            key = line["request"]["labels"][_KEY_LABEL]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(key, str):
            yield key, line


def _status(job: Any) -> JobStatus:
    state = str(getattr(job.state, "value", job.state))
    seconds = (job.end_time - job.create_time).total_seconds() if job.end_time and job.create_time else 0.0
    if state in _DONE:
        return JobStatus(job.name, "done", latency_s=max(0.0, seconds))
    if state in _ENDED_OTHERWISE:
        return JobStatus(job.name, "failed", error=_failure(job, state))
    return JobStatus(job.name, "open")  # whatever word it has for that: it goes on


def _failure(job: Any, state: str) -> ProviderError:
    """What the requests of a job are told that ended without answers."""
    what = f"The batch job {job.display_name} ({job.name})"
    if state == "JOB_STATE_CANCELLED":
        return ProviderError(f"{what} was cancelled.", "Run again to ask anew.", fault="refused")
    if state == "JOB_STATE_EXPIRED":
        return ProviderError(f"{what} expired before it ran.", "It is asked anew.", fault="unavailable")
    code = (job.error.code if job.error else None) or 0
    message = ((job.error.message if job.error else None) or "no reason given")[:_EXCERPT]
    fault: ProviderFault = "refused"
    fix = "Check the option bucket and that Vertex AI's service agent may read and write there."
    if code == _RESOURCE_EXHAUSTED or (not code and "RESOURCE_EXHAUSTED" in message):
        fault, fix = "rate_limited", "It is asked anew; ask for more quota where this goes on."
    elif code in _MAY_PASS or (not code and "internal error" in message.lower()):
        fault, fix = "unavailable", "It is asked anew."
    return ProviderError(f"{what} failed: {message}", fix, fault=fault)
