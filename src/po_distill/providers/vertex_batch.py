"""The provider `vertex_batch`: Gemini on Vertex AI through batch prediction jobs, at half the price.

Requests are gathered into jobs. A job is known by its name and its requests by a label in each line, so a run that
was killed finds what it has paid for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from po_distill.errors import ProviderError, SettingsError
from po_distill.interfaces import Role
from po_distill.providers.batch_jobs import BatchJobs, Body, SentJob, request_key
from po_distill.providers.cloud_bucket import CloudBucket
from po_distill.providers.gemini import request_body
from po_distill.providers.vertex_project import vertex_project
from po_distill.providers.vertex_sdk import VertexSdkProvider
from po_distill.records import ProviderSettings, ProviderTraits, Request, Response

_ONLINE_OPTIONS = VertexSdkProvider.traits.transport_options
_OWN_OPTIONS = ("bucket", "max_batch", "min_batch", "gather_s", "poll_s", "storage_base_url")
_MAX_BATCH, _MIN_BATCH = 1000, 25
_ONLINE_WINDOW = 16
_ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+(:\d{1,5})?/?|http://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?/?")


@dataclass(eq=False)
class _Question:
    """A request on its way to an answer, and how many wait for it."""

    key: str
    request: Request
    body: Body
    answer: asyncio.Future[Response]
    waiters: int = 0
    sent_before: bool = False  # an earlier send is what is billed, not the one that waits now


class _Online(VertexSdkProvider):
    """The road for single questions; jobs and files travel with its client and its credentials."""

    async def client(self, refused: str | None = None) -> tuple[Any, str]:
        """(the SDK's client, the token that it will send); a token that was refused is replaced."""
        await self._open()
        token = await self._token(refused)
        return self._client, token

    async def credentials(self) -> Any:
        """The credentials of google-auth."""
        await self._open()
        return self._credentials


class VertexBatchProvider:
    """Answers requests through batch jobs, and through `vertex_sdk` where a job is not worth it.

    Options: those of vertex_sdk; bucket (gs://bucket/prefix, for the files of its jobs); max_batch (requests in a job,
    default 1000); min_batch (fewer go online, at full price; default 25); gather_s (a batch is sent when no request
    came for so long, default 5); poll_s (how often a job is looked at, default 30); storage_base_url (another Cloud
    Storage, such as an emulator). A request whose line failed in a job is asked again online.
    """

    traits: ClassVar[ProviderTraits] = ProviderTraits(
        family="vertex",
        paid=True,
        structured_output=True,
        names_served_model=True,
        transport_options=(*_ONLINE_OPTIONS, *_OWN_OPTIONS),
        window=_MAX_BATCH,
    )

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        vertex = vertex_project(settings, "vertex_batch", ("credentials_path", *_OWN_OPTIONS))
        self._model, options = vertex.model, settings.options
        self._max_batch = _count(options, "max_batch", _MAX_BATCH)
        self._min_batch = _count(options, "min_batch", min(_MIN_BATCH, self._max_batch))
        if self._min_batch > self._max_batch:
            raise SettingsError(
                f"The options of vertex_batch allow no job: min_batch {self._min_batch}, max_batch {self._max_batch}.",
                "Set max_batch to min_batch or more.",
            )
        self._gather_s, self._poll_s = _seconds(options, "gather_s", 5.0), _seconds(options, "poll_s", 30.0)
        online = {name: value for name, value in options.items() if name not in _OWN_OPTIONS}
        self._online = _Online(settings.model_copy(update={"options": online}), role)
        self._bucket = CloudBucket(
            _bucket_uri(options),
            project=vertex.project,
            credentials=self._online.credentials,
            endpoint=_storage_address(options),
            timeout_s=vertex.timeout_s,
        )
        self._api = BatchJobs(vertex, self._online.client, self._bucket)
        self._questions: dict[str, _Question] = {}  # all that wait, by key
        self._gathered: dict[str, _Question] = {}  # of those, the ones that are in no batch yet
        self._jobs: dict[int, SentJob] = {}
        self._waiting: dict[int, list[_Question]] = {}  # for the job of that number
        self._orphans: dict[int, frozenset[str]] = {}  # keys of input files whose job was never created
        self._next = 1
        self._numbering = asyncio.Lock()
        self._online_slots = asyncio.Semaphore(_ONLINE_WINDOW)
        self._lookup: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def generate(self, request: Request) -> Response:
        """Answer one request, which may take as long as a job does. Raises ProviderError.

        Cancelled, it leaves its job to run: that is paid for, and the next run finds it.
        """
        await self._jobs_looked_up()
        body = request_body(request)
        key = request_key(body, self._model)
        question = self._questions.get(key)
        if question is None:
            answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
            question = self._questions[key] = _Question(key, request, body, answer)
            question.waiters = 1
            self._place(question)
        else:
            question.waiters += 1
        try:
            response = await asyncio.shield(question.answer)
        finally:
            question.waiters -= 1
            if not question.waiters and not question.answer.done():
                self._leave(question)
        sent_before, question.sent_before = question.sent_before, True
        return response.model_copy(update={"bought_before": True}) if sent_before else response

    async def aclose(self) -> None:
        """Stop looking at jobs, which go on, and close the connections."""
        self._closed = True
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for question in list(self._questions.values()):
            self._fail(question, _closed())
        await self._online.aclose()
        await self._bucket.aclose()

    # --- who waits for what ---------------------------------------------------------------------

    def _place(self, question: _Question) -> None:
        """Let it wait for the newest job that it is in; else gather it."""
        jobs = [job for job in self._jobs.values() if question.key in job.keys]
        if jobs:
            question.sent_before = True
            self._attach(max(jobs, key=lambda job: job.number), question)
            return
        self._gathered[question.key] = question
        if len(self._gathered) >= self._max_batch:
            self._cut()
            return
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._gather_s, self._cut)

    def _leave(self, question: _Question) -> None:
        """Nobody waits for it any more: unsent it is forgotten, sent its answer is kept for who asks again."""
        question.sent_before = True
        if self._gathered.pop(question.key, None):
            self._forget(question)

    def _forget(self, question: _Question) -> None:
        if self._questions.get(question.key) is question:
            del self._questions[question.key]

    def _answer(self, question: _Question, response: Response) -> None:
        self._forget(question)
        if not question.answer.done():
            question.answer.set_result(response)

    def _fail(self, question: _Question, error: BaseException) -> None:
        self._forget(question)
        if not question.answer.done():
            question.answer.set_exception(error)
            question.answer.exception()  # seen, even where nobody waits

    def _start(self, work: Coroutine[Any, Any, None], questions: Iterable[_Question] = ()) -> asyncio.Task[None]:
        """Run `work` beside; where it fails, so do the questions."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                for question in list(questions):
                    self._fail(question, error)

        task.add_done_callback(ended)
        return task

    # --- finding jobs ---------------------------------------------------------------------------

    async def _jobs_looked_up(self) -> None:
        if self._closed:
            raise _closed()
        if self._lookup is None:
            self._lookup = self._start(self._look_up())
        lookup = self._lookup
        try:
            await asyncio.shield(lookup)
        except Exception:
            if self._lookup is lookup:
                self._lookup = None
            raise

    async def _look_up(self) -> None:
        """Find the jobs that were created, and the input files that were written for a job that was not."""
        async with self._numbering:
            number = 1
            while True:
                if number not in self._jobs:
                    status = await self._api.find(number)
                    failed = status is not None and status.state == "failed"
                    keys = frozenset() if failed else await self._api.keys(number)
                    if status is None and keys is None:
                        break
                    if status is None:
                        self._orphans[number] = keys or frozenset()
                    else:
                        self._jobs[number] = SentJob(number, status.name, set(keys or ()))
                        self._orphans.pop(number, None)
                number += 1
            self._next = number

    # --- sending --------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Send what has been gathered."""
        if self._timer:
            self._timer.cancel()
        batch, self._gathered = self._gathered, {}
        if batch:
            self._start(self._send(batch), batch.values())

    async def _send(self, batch: dict[str, _Question]) -> None:
        """Send a batch, and take out of it what is on its way."""
        try:
            async with self._numbering:
                for number, keys in list(self._orphans.items()):
                    if keys and keys <= batch.keys():
                        await self._create(number, {key: batch[key] for key in keys}, batch)
                if len(batch) >= self._min_batch:
                    while not await self._api.upload(self._next, {key: each.body for key, each in batch.items()}):
                        self._next += 1
                    self._next += 1
                    await self._create(self._next - 1, dict(batch), batch)
        except ProviderError:
            self._lookup = None  # it may have been created after all: look before anything else is sent
            raise
        for question in list(batch.values()):
            del batch[question.key]
            self._start(self._ask_online(question), [question])

    async def _create(self, number: int, questions: dict[str, _Question], batch: dict[str, _Question]) -> None:
        status = await self._api.create(number)
        self._orphans.pop(number, None)
        job = self._jobs[number] = SentJob(number, status.name, set(questions))
        for key, question in questions.items():
            del batch[key]
            self._attach(job, question)

    async def _ask_online(self, question: _Question) -> None:
        async with self._online_slots:
            if not question.waiters:  # they were cancelled: nobody would take what it costs
                self._forget(question)
                return
            question.sent_before = False
            self._answer(question, await self._online.generate(question.request))

    # --- answers --------------------------------------------------------------------------------

    def _attach(self, job: SentJob, question: _Question) -> None:
        if job.lines is not None:
            self._deliver(job, question)
        elif waiting := self._waiting.get(job.number):
            waiting.append(question)
        else:
            self._waiting[job.number] = [question]
            self._start(self._follow(job))

    async def _follow(self, job: SentJob) -> None:
        """Hand out the answers of a job when it has ended."""
        try:
            await job.watch(self._api, self._poll_s)
        except Exception as error:
            for question in self._waiting.pop(job.number):
                self._fail(question, error)
            return
        for question in self._waiting.pop(job.number):
            self._deliver(job, question)

    def _deliver(self, job: SentJob, question: _Question) -> None:
        if not question.waiters:
            self._forget(question)  # the answer stays with the job
        elif response := job.take(question.key, self._model):
            self._answer(question, response)
        else:
            self._start(self._ask_online(question), [question])


def _closed() -> ProviderError:
    return ProviderError(
        "The provider vertex_batch was closed before the answer came.",
        "Run again: a job that was sent goes on, and is found.",
        fault="unavailable",
        doubtful=True,
    )


# --- options ------------------------------------------------------------------------------------


def _bucket_uri(options: Mapping[str, Any]) -> str:
    uri = options.get("bucket")
    if not isinstance(uri, str):
        raise SettingsError(
            "The provider vertex_batch needs the option bucket: where the files of its jobs lie.",
            "Give gs://BUCKET/FOLDER, a bucket that the project may write to.",
        )
    return uri


def _storage_address(options: Mapping[str, Any]) -> str | None:
    address = options.get("storage_base_url")
    if address is None:
        return None
    if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
        raise SettingsError(
            f"The option storage_base_url of vertex_batch is {address!r}.",
            "Give https://HOST, or http://127.0.0.1:PORT for an emulator on this machine.",
        )
    return address.rstrip("/")


def _count(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingsError(f"The option {name} of vertex_batch is {value!r}.", "Give a whole number, 1 or more.")
    return value


def _seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise SettingsError(f"The option {name} of vertex_batch is {value!r}.", f"Give seconds, such as {default:g}.")
    return float(value)
