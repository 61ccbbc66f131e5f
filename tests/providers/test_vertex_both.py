"""What `vertex_cli` and `vertex_sdk` have in common: everything but where their tokens come from."""

import asyncio
import json
import socket
import time
import warnings

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("google.genai")

from fakes.logins import FakeGcloud, service_account
from fakes.vertex import FakeVertex, Knobs
from fakes.vertex_checks import read_body
from po_distill.errors import ProviderError
from po_distill.interfaces import Provider
from po_distill.providers.gemini import request_body
from po_distill.providers.vertex_cli import VertexCliProvider
from po_distill.providers.vertex_sdk import VertexSdkProvider
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole("json")
CONCEPT = ROLE.generate_concepts(1, seed=3)[0]
SECRET = "the secret plans of the customer"


class GcloudLogin:
    """`vertex_cli`, logged in by a fake gcloud."""

    def __init__(self, folder, monkeypatch):
        self.gcloud = FakeGcloud(folder / "bin")
        self.gcloud.put_on(monkeypatch)

    def open(self, fake, *, model="gemini-2.5-pro", base_url=None, **options):
        self.renew(fake)
        options = {"project": "test-project", **options}
        settings = ProviderSettings(
            provider="vertex_cli", model=model, base_url=base_url or fake.base_url, options=options
        )
        return VertexCliProvider(settings, ROLE)

    def renew(self, fake):
        """Let the next token that is asked for be a good one."""
        self.gcloud.prints(fake.issue_token())

    def tokens_fetched(self, fake):
        return len(self.gcloud.calls)


class ServiceAccountLogin:
    """`vertex_sdk`, logged in by the file of a service account."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder

    def open(self, fake, *, model="gemini-2.5-pro", base_url=None, **options):
        path = service_account(self.folder / "account.json", fake)
        options = {"project": "test-project", "credentials_path": str(path), **options}
        settings = ProviderSettings(
            provider="vertex_sdk", model=model, base_url=base_url or fake.base_url, options=options
        )
        return VertexSdkProvider(settings, ROLE)

    def renew(self, fake):
        pass

    def tokens_fetched(self, fake):
        return fake.tokens.grants


@pytest.fixture(params=[GcloudLogin, ServiceAccountLogin], ids=["cli", "sdk"])
def login(request, tmp_path, monkeypatch):
    return request.param(tmp_path, monkeypatch)


def ask(text="What is it?", *, system=None, json_schema=None, **generation):
    turns = [Message(speaker="user", content=text)]
    if system:
        turns.insert(0, Message(speaker="system", content=system))
    return Request(messages=tuple(turns), generation=GenerationSettings(**generation), json_schema=json_schema)


def ask_about(concept, **generation):
    return Request(
        messages=ROLE.render(concept), generation=GenerationSettings(**generation), json_schema=ROLE.json_schema()
    )


def outcomes(provider, *requests):
    """The Response or the exception of each request, all sent at once."""

    async def run():
        try:
            return await asyncio.gather(*map(provider.generate, requests), return_exceptions=True)
        finally:
            await provider.aclose()

    return asyncio.run(run())


def answer(provider, request):
    (outcome,) = outcomes(provider, request)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def fault_of(provider, request):
    (outcome,) = outcomes(provider, request)
    assert isinstance(outcome, ProviderError), outcome
    assert outcome.fix and SECRET not in str(outcome)
    return outcome


# --- what is sent, and what comes back ----------------------------------------------------------


def test_it_is_a_provider_that_says_what_it_is(login):
    with FakeVertex() as fake:
        provider = login.open(fake)
    assert isinstance(provider, Provider)
    assert (provider.traits.family, provider.traits.paid, provider.traits.names_served_model) == ("vertex", True, True)
    assert "credentials_path" in provider.traits.transport_options


def test_the_request_arrives_as_it_was_meant(login):
    request = Request(
        messages=(
            Message(speaker="system", content="Be brief."),
            Message(speaker="user", content="One?"),
            Message(speaker="assistant", content="Two."),
            Message(speaker="user", content="Three – ünï?"),
        ),
        generation=GenerationSettings(temperature=0.25, max_tokens=500, seed=42),
    )
    with FakeVertex() as fake:
        answer(login.open(fake, labels={"team": "search"}), request)
        (body,) = fake.received
    assert read_body(body) == {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "One?"}]},
            {"role": "model", "parts": [{"text": "Two."}]},
            {"role": "user", "parts": [{"text": "Three – ünï?"}]},
        ],
        "generationConfig": {"temperature": 0.25, "maxOutputTokens": 500, "seed": 42},
        "labels": {"team": "search"},
    }


@pytest.mark.parametrize(
    ("model", "thinking"), [("gemini-2.5-pro", 1024), ("gemini-2.5-flash", 0), ("gemini-3.8-flash", "low")]
)
def test_thinking_and_schema_arrive_as_the_wire_format_has_them(login, model, thinking):
    request = ask_about(CONCEPT, thinking=thinking, seed=7)
    with FakeVertex() as fake:
        answer(login.open(fake, model=model), request)
        (body,) = fake.received
    assert read_body(body) == read_body(request_body(request))
    said = read_body(body)["generationConfig"]["thinkingConfig"]
    assert said == ({"thinkingLevel": "LOW"} if thinking == "low" else {"thinkingBudget": thinking})
    assert read_body(body)["generationConfig"]["responseJsonSchema"] == ROLE.json_schema()


def test_a_structured_answer_is_read_by_the_role(login):
    with FakeVertex() as fake:
        response = answer(login.open(fake), ask_about(CONCEPT))
    assert set(json.loads(response.text)) == {"product_vision", "product_owner_review"}
    score = ROLE.score(CONCEPT, response.text)
    assert score.valid and score.value >= 0.85 and score.label == CONCEPT.planted_label
    assert (response.finish, response.finish_reason, response.model) == ("stop", "STOP", "gemini-2.5-pro")


def test_usage_counts_thinking_as_part_of_the_answer(login):
    with FakeVertex(Knobs(thinking_tokens=50, latency_s=0.05), answer=lambda body: "x" * 40) as fake:
        usage = answer(login.open(fake), ask("y" * 80)).usage
        bill = fake.bill()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.thinking_tokens) == (21, 11 + 50, 50)
    assert usage.cost_usd == 0.0 and 0.05 <= usage.latency_s < 5
    assert bill["nanousd"] == 21 * 1250 + 61 * 10_000


@pytest.mark.parametrize(("thinking", "kept"), [(0, "half of "), (900, "")])
def test_an_answer_that_was_cut_is_an_answer(login, thinking, kept):
    with FakeVertex(Knobs(cut_below=500, thinking_tokens=thinking), answer=lambda body: "half of the text") as fake:
        response = answer(login.open(fake), ask(max_tokens=500))
    assert (response.text, response.finish, response.finish_reason) == (kept, "length", "MAX_TOKENS")
    assert response.usage.completion_tokens >= (500 if thinking else 1)


@pytest.mark.parametrize(
    ("knob", "finish", "reason"),
    [
        ("safety_share", "blocked", "SAFETY"),
        ("blocked_prompt_share", "blocked", "prompt: PROHIBITED_CONTENT"),
        ("recitation_share", "other", "RECITATION"),
    ],
)
def test_an_answer_that_was_withheld_is_an_answer_without_text(login, knob, finish, reason):
    with FakeVertex(Knobs(**{knob: 1.0})) as fake:
        response = answer(login.open(fake), ask())
        assert fake.bill()["billed"] == 1
    assert (response.text, response.finish, response.finish_reason) == ("", finish, reason)
    assert response.usage.prompt_tokens > 0


def test_words_that_nobody_knows_neither_break_nor_warn(login):
    finished = {"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "WENT_FISHING"}]}
    unfinished = {
        "candidates": [{**finished["candidates"][0], "finishReason": "CONTINUATION", "continuationToken": "eA=="}]
    }
    blocked = {"promptFeedback": {"blockReason": "BAD_WEATHER"}}
    for body, finish, reason in (
        (finished, "other", "WENT_FISHING"),
        (unfinished, "other", "CONTINUATION"),
        (blocked, "blocked", "prompt: BAD_WEATHER"),
    ):
        with FakeVertex(answer=lambda _, body=body: body) as fake, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            response = answer(login.open(fake), ask())
        assert (response.finish, response.finish_reason) == (finish, reason)
        assert fake.bill()["calls"] == 1


def test_a_served_model_other_than_the_asked_one_is_said(login):
    with FakeVertex(Knobs(served_model="gemini-3.8-flash")) as fake:
        assert answer(login.open(fake), ask()).model == "gemini-3.8-flash"


# --- tokens -------------------------------------------------------------------------------------


def test_sixty_four_calls_at_a_time_need_one_token(login):
    with FakeVertex(Knobs(latency_s=1.5)) as fake:
        found = outcomes(login.open(fake), *(ask(f"{number}") for number in range(64)))
        assert [one.finish for one in found] == ["stop"] * 64
        assert login.tokens_fetched(fake) == 1
        assert fake.bill()["most_in_flight"] == 64


def test_a_token_that_is_refused_is_replaced_once_for_all_calls(login):
    async def run(fake, provider):
        await provider.generate(ask("first"))
        fake.tokens.revoke_all()
        login.renew(fake)
        found = await asyncio.gather(*(provider.generate(ask(f"{number}")) for number in range(8)))
        await provider.aclose()
        return found

    with FakeVertex(Knobs(latency_s=0.05)) as fake:
        found = asyncio.run(run(fake, login.open(fake)))
        assert len(found) == 8 and login.tokens_fetched(fake) == 2
        assert fake.bill()["statuses"] == {"200": 9, "401": 8}


def test_a_fresh_token_that_is_refused_too_ends_in_a_refusal(login):
    with FakeVertex(Knobs(token_lifetime_s=0.0)) as fake:
        error = fault_of(login.open(fake), ask(SECRET))
        assert fake.bill()["statuses"] == {"401": 2}
    assert error.fault == "refused" and "gcloud auth" in error.fix


# --- refusals and failures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "generation", "words"),
    [
        ({"project": "another-project"}, {}, r"\(403\).*denied on project another-project"),
        ({"model": "gemini-1.0-nano"}, {}, r"\(404\).*gemini-1.0-nano` was not found"),
        ({}, {"max_tokens": 70_000}, r"\(400\).*maxOutputTokens value of 70000"),
    ],
)
def test_what_the_server_refuses_is_refused_with_its_words(login, settings, generation, words):
    with FakeVertex() as fake:
        error = fault_of(login.open(fake, **settings), ask(SECRET, **generation))
        assert fake.bill()["calls"] == 1 and fake.bill()["billed"] == 0
    assert (error.fault, error.doubtful) == ("refused", False)
    with pytest.raises(ProviderError, match=words):
        raise error


@pytest.mark.parametrize("retry_after", [None, 7.0])
def test_one_429_is_one_request_and_says_how_long_to_wait(login, retry_after):
    with FakeVertex(Knobs(share_429=1.0, retry_after=retry_after)) as fake:
        error = fault_of(login.open(fake), ask(SECRET))
        assert fake.bill()["calls"] == 1
    assert (error.fault, error.retry_after_s, error.doubtful) == ("rate_limited", retry_after, False)


def test_one_503_is_one_request_and_unavailable(login):
    with FakeVertex(Knobs(share_5xx=1.0)) as fake:
        error = fault_of(login.open(fake), ask(SECRET))
        assert fake.bill()["calls"] == 1
    assert (error.fault, error.doubtful) == ("unavailable", False)


@pytest.mark.parametrize("knobs", [{"latency_s": 2.0}, {"hang_share": 1.0}], ids=["slow", "hung"])
def test_a_call_that_times_out_is_one_request_and_doubtful(login, knobs):
    with FakeVertex(Knobs(**knobs)) as fake:
        error = fault_of(login.open(fake, timeout_s=0.3), ask(SECRET))
        assert (fake.bill()["calls"], fake.bill()["billed"]) == (1, 1)
    assert (error.fault, error.doubtful) == ("timeout", True)


@pytest.mark.parametrize("knob", ["truncate_share", "drop_share"])
def test_a_connection_that_breaks_is_one_request_and_doubtful(login, knob):
    """google-genai by itself waits up to ten seconds after such a break, and sends and pays the call again."""
    with FakeVertex(Knobs(**{knob: 1.0})) as fake:
        error = fault_of(login.open(fake), ask(SECRET))
        assert (fake.bill()["calls"], fake.bill()["billed"]) == (1, 1)
    assert (error.fault, error.doubtful) == ("unavailable", True)


def test_a_server_that_is_not_there_is_unavailable_at_once(login):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with FakeVertex() as fake:
        provider = login.open(fake, base_url=nobody)
        started = time.monotonic()
        error = fault_of(provider, ask(SECRET))
        assert time.monotonic() - started < 3
    assert (error.fault, error.doubtful) == ("unavailable", False)


@pytest.mark.parametrize(
    ("status", "kind", "body", "fault", "doubtful"),
    [
        ("200 OK", "text/html", "<html>", "unavailable", True),
        ("200 OK", "application/json", '{"candidates": [', "unavailable", True),
        ("200 OK", "application/json", '{"usageMetadata": {}}', "unavailable", True),
        ("502 Bad Gateway", "text/html", "<html>", "unavailable", False),
        ("302 Found\r\nLocation: http://127.0.0.1:9/", "text/html", "", "refused", False),
        (
            "400 Bad Request",
            "application/json",
            '{"error": {"code": 400, "message": "The input token count (9) exceeds the maximum number of tokens'
            ' allowed (8).", "status": "INVALID_ARGUMENT"}}',
            "bad_answer",
            False,
        ),
    ],
)
def test_an_answer_of_another_server_is_told_apart(login, status, kind, body, fault, doubtful):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async def run(fake):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        provider = login.open(fake, base_url=f"http://127.0.0.1:{port}")
        try:
            with pytest.raises(ProviderError) as caught:
                await provider.generate(ask(SECRET))
            return caught.value
        finally:
            await provider.aclose()
            server.close()

    with FakeVertex() as fake:
        error = asyncio.run(run(fake))
    assert (error.fault, error.doubtful) == (fault, doubtful) and SECRET not in str(error)


def test_a_cancelled_call_ends_at_once_and_the_next_is_answered(login):
    async def run(fake, provider):
        await provider.generate(ask("warm up"))
        fake.knobs.hang_share = 1.0
        task = asyncio.create_task(provider.generate(ask("hangs")))
        while fake.bill()["in_flight"] == 0:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waited = time.monotonic() - started
        fake.knobs.hang_share = 0.0
        response = await provider.generate(ask("next"))
        while fake.bill()["in_flight"]:
            await asyncio.sleep(0.01)
        await provider.aclose()
        return waited, response

    with FakeVertex() as fake:
        waited, response = asyncio.run(run(fake, login.open(fake)))
    assert waited < 1 and response.finish == "stop"
