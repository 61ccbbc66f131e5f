import asyncio
import http.client
import json
import time
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiohttp")
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.openai_chat import OpenAIChat, strict_problem
from fakes.serving import Fault, echo, pieces
from po_distill.errors import MissingExtraError, ProviderError, SettingsError
from po_distill.providers.chat_completions import EventStream
from po_distill.providers.openai_compatible import OpenAICompatibleProvider
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request

KEY = "sk-test-0123456789"
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["aligned", "misaligned"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def running():
    fake = OpenAIChat()
    with fake.running() as address:
        yield fake, address


@pytest.fixture
def server(running, monkeypatch):
    """(the fake with its knobs as they come, its address)"""
    fake, address = running
    vars(fake).update(vars(OpenAIChat()))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return fake, address


def provider(address, model="tiny", **options):
    named = ProviderSettings(provider="openai_compatible", model=model, base_url=address, options=options)
    return OpenAICompatibleProvider(named, None)


def ask(text="What is it?", *, json_schema=None, **generation):
    messages = (Message(speaker="system", content="Be brief."), Message(speaker="user", content=text))
    return Request(messages=messages, generation=GenerationSettings(**generation), json_schema=json_schema)


def answers(address, *requests, model="tiny", **options):
    async def run():
        opened = provider(address, model, **options)
        try:
            return await asyncio.gather(*(opened.generate(request) for request in requests))
        finally:
            await opened.aclose()

    return asyncio.run(run())


def failure(address, request=None, **options):
    with pytest.raises(ProviderError) as caught:
        answers(address, request or ask(), **options)
    return caught.value


# --- good answers -------------------------------------------------------------------------------


def test_an_answer_says_its_text_model_end_counts_and_times(server):
    fake, address = server
    fake.thinking_tokens, fake.cached_tokens, fake.served_model = 20, 4, "tiny-2026-01-01"
    fake.latency_s, fake.pause_s = 0.05, 0.002
    (answer,) = answers(address, ask())
    text = echo([{"content": "What is it?"}])
    assert (answer.text, answer.model, answer.finish, answer.finish_reason) == (text, "tiny-2026-01-01", "stop", "stop")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (12, 4)
    assert (usage.completion_tokens, usage.thinking_tokens) == (len(pieces(text)) + 20, 20)
    assert 0.05 <= usage.first_token_s < usage.latency_s - 0.02 < 5
    assert usage.cost_usd == 0 and not answer.stand_in


def test_the_body_is_what_the_api_asks_for(server):
    fake, address = server
    answers(address, ask(temperature=0.25, max_tokens=77, seed=3, thinking="low", json_schema=SCHEMA))
    assert fake.counts.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
            "temperature": 0.25,
            "max_tokens": 77,
            "stream": True,
            "stream_options": {"include_usage": True},
            "seed": 3,
            "reasoning_effort": "low",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
            },
        }
    ]
    assert fake.counts.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_without_streaming_nothing_of_a_stream_is_asked_for(server):
    fake, address = server
    (answer,) = answers(address, ask(), stream=False)
    assert fake.counts.bodies[0]["stream"] is False and "stream_options" not in fake.counts.bodies[0]
    assert answer.text == echo([{"content": "What is it?"}])
    assert answer.usage.completion_tokens > 5 and answer.usage.first_token_s is None


@pytest.mark.parametrize(
    "knobs",
    [{"chunk_bytes": 1}, {"chunk_bytes": 3, "crlf": True}, {"chunk_bytes": 7, "pause_s": 0.0005}, {"crlf": True},
     {"comments": True}, {"done_marker": False}, {"last_blank_line": False},
     {"done_marker": False, "last_blank_line": False}, {"plain_json": True}, {"usage": "with the last choice"}],
)  # fmt: skip
def test_however_the_answer_travels_it_is_the_same(server, knobs):
    fake, address = server
    (whole,) = answers(address, ask())
    vars(fake).update(knobs)
    (answer,) = answers(address, ask())
    assert (answer.text, answer.finish) == (whole.text, "stop")
    assert answer.usage.completion_tokens == whole.usage.completion_tokens > 5


def test_a_server_that_counts_nothing_is_read_all_the_same(server):
    fake, address = server
    fake.usage = "none"
    (answer,) = answers(address, ask())
    assert answer.text and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (0, 0)
    fake.timings, fake.cached_tokens = True, 5
    (answer,) = answers(address, ask())
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens) == (12, 5)
    assert answer.usage.completion_tokens == len(pieces(answer.text))


def test_thinking_that_is_counted_beside_the_completion_is_added_to_it(server):
    fake, address = server
    counts = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 22}
    fake._usage = lambda body, tokens: {**counts, "completion_tokens_details": {"reasoning_tokens": 7}}
    try:
        (answer,) = answers(address, ask())
    finally:
        del fake._usage
    assert (answer.usage.completion_tokens, answer.usage.thinking_tokens) == (12, 7)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "blocked"), ("tool_calls", "other"), ("new", "other")],
)
def test_the_servers_word_for_the_end_is_kept_beside_ours(server, reason, finish):
    fake, address = server
    fake.finish_reason = reason
    (answer,) = answers(address, ask())
    assert (answer.finish, answer.finish_reason) == (finish, reason)
    assert bool(answer.text) == (finish != "blocked") and answer.usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_is_a_blocked_answer(server, stream):
    fake, address = server
    fake.refusal = "I cannot help with that."
    (answer,) = answers(address, ask(), stream=stream)
    assert (answer.text, answer.finish, answer.finish_reason) == ("", "blocked", "refusal")


def test_an_answer_that_reached_max_tokens_is_cut_and_says_so(server):
    _, address = server
    (answer,) = answers(address, ask(max_tokens=3))
    assert (answer.finish, answer.usage.completion_tokens, len(answer.text)) == ("length", 3, 12)


def test_halves_of_a_character_in_two_deltas_become_the_character(server):
    fake, address = server
    fake.answer = lambda messages: "abc\ud83c\udf31 \ud83c."
    fake._event = lambda value: f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()
    try:
        (answer,) = answers(address, ask())
    finally:
        del fake._event
    assert answer.text == "abc🌱 \ufffd."


def test_many_calls_go_out_at_once(server):
    fake, address = server
    fake.latency_s = 0.2
    requests = [ask(f"question {number}") for number in range(80)]
    started = time.monotonic()
    got = answers(address, *requests)
    assert [answer.text for answer in got] == [echo([{"content": f"question {number}"}]) for number in range(80)]
    assert fake.counts.most_open == 80 and time.monotonic() - started < 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_server_that_ends_connections_unannounced_breaks_no_later_call(server, stream):
    fake, address = server
    fake.closes = True

    async def run():
        opened = provider(address, stream=stream)
        for number in range(30):
            await opened.generate(ask(f"question {number}"))
        kept = sum(map(len, opened._client._session.connector._conns.values()))
        await opened.aclose()
        return kept

    assert asyncio.run(run()) == (0 if stream else 1)  # connections for the next call
    assert fake.counts.requests == 30


def test_a_budget_for_thinking_goes_where_extra_body_says(server):
    fake, address = server
    extra = {"metadata": {"budget": "{thinking}", "kind": "on"}, "top_p": 0.5}
    answers(address, ask(thinking=512), ask(), extra_body=extra)
    asked = {json.dumps(body.get("metadata")): body for body in fake.counts.bodies}
    assert set(asked) == {'{"budget": 512, "kind": "on"}', "null"}
    assert all(body["top_p"] == 0.5 and "reasoning_effort" not in body for body in asked.values())
    error = failure(address, ask(thinking=512))
    assert error.fault == "refused" and "extra_body" in error.fix and fake.counts.requests == 2


def test_max_tokens_can_go_by_its_newer_name(server):
    fake, address = server
    answers(address, ask(max_tokens=9), max_tokens_field="max_completion_tokens")
    assert fake.counts.bodies[0]["max_completion_tokens"] == 9 and "max_tokens" not in fake.counts.bodies[0]


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "expected", "doubtful"),
    [
        (Fault("status", 429), "rate_limited", False),
        (Fault("status", 500), "unavailable", False),
        (Fault("status", 503), "unavailable", False),
        (Fault("status", 408), "unavailable", False),
        (Fault("status", 400, message="Unsupported value"), "refused", False),
        (Fault("status", 403), "refused", False),
        (Fault("status", 413), "bad_answer", False),
        (Fault("status", 302), "refused", False),
        (Fault("status", 400, message="Your prompt triggered Azure's content management policy"), "blocked", False),
        (Fault("drop"), "unavailable", True),
        (Fault("html"), "unavailable", True),
        (Fault("truncated"), "unavailable", True),
        (Fault("cut", after=0), "unavailable", True),
        (Fault("cut", after=3), "unavailable", True),
        (Fault("broken", after=3), "unavailable", True),
        (Fault("error", after=1), "unavailable", False),
        (Fault("error", after=3), "unavailable", True),
        (Fault("error", code=429, message="Slow down."), "rate_limited", True),
        (Fault("error", code="context_length_exceeded"), "bad_answer", True),
        (Fault("error", code="insufficient_quota"), "refused", True),
    ],
)
def test_what_goes_wrong_is_told_apart_by_what_may_help(server, fault, expected, doubtful):
    fake, address = server
    fake.faults.always = fault
    error = failure(address)
    assert (error.fault, error.doubtful) == (expected, doubtful)
    assert fake.counts.requests == 1 and "What is it" not in str(error) and "Antwort" not in str(error)


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("stall", after=3)])
def test_a_call_that_times_out_is_doubtful(server, fault):
    fake, address = server
    fake.faults.always = fault
    error = failure(address, timeout_s=0.3)
    assert (error.fault, error.doubtful) == ("timeout", True) and "0.3 s" in error.problem


@pytest.mark.parametrize(("header", "wait"), [("7", 7.0), ("0.5", 0.5), (None, None), ("soon", None)])
def test_a_limit_says_how_long_to_wait_where_the_server_does(server, header, wait):
    fake, address = server
    fake.faults.always = Fault("status", 429, retry_after=header)
    assert failure(address).retry_after_s == wait


def test_a_quota_that_is_used_up_is_refused_as_waiting_does_not_help(server):
    fake, address = server
    spent = "You exceeded your current quota, please check your plan and billing details. For more information on this "
    openai = spent + "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
    fake.faults.planned = [
        Fault("status", 429, code="insufficient_quota", message=openai),
        Fault("status", 429, code="insufficient_quota", message="Slow down."),
        Fault("status", 429, message=spent + "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits."),
    ]
    error = failure(address)
    assert error.fault == "refused" and "billing" in error.fix
    assert failure(address).fault == "refused"
    assert failure(address).fault == "rate_limited"


@pytest.mark.parametrize("overflow", ["openai", "vllm", "llama-server"])
def test_a_prompt_longer_than_the_context_concerns_that_request_alone(server, overflow):
    fake, address = server
    fake.context_tokens, fake.overflow = 50, overflow
    error = failure(address, ask("word " * 100))
    assert error.fault == "bad_answer" and "Shorten" in error.fix


def test_an_answer_whose_end_was_seen_counts_though_the_connection_then_breaks(server):
    fake, address = server
    fake.answer = lambda messages: "abcd"
    fake.faults.always = Fault("broken", after=3)  # the speaker, the text, the end; the counts are missing
    (answer,) = answers(address, ask())
    assert (answer.text, answer.finish, answer.usage.completion_tokens) == ("abcd", "stop", 0)
    fake.faults.always = Fault("stall", after=3)
    (answer,) = answers(address, ask(), timeout_s=0.3)
    assert answer.text == "abcd"


def test_a_server_that_goes_on_after_the_end_is_not_waited_for(server):
    fake, address = server
    fake.answer = lambda messages: "abcd"
    fake.faults.always = Fault("stall", after=5)  # all, [DONE] included
    started = time.monotonic()
    (answer,) = answers(address, ask())
    assert answer.usage.completion_tokens == 1 and time.monotonic() - started < 3


def test_a_server_that_is_not_there_is_unavailable_and_nothing_was_sent():
    error = failure("http://127.0.0.1:9", api_key_env=None)
    assert (error.fault, error.doubtful) == ("unavailable", False) and "127.0.0.1:9" in error.problem


def test_a_wrong_key_is_refused_by_the_name_of_its_variable_and_never_shown(server, monkeypatch):
    fake, address = server
    monkeypatch.setenv("MY_KEY", "sk-wrong-987654321")
    error = failure(address, api_key_env="MY_KEY")
    assert error.fault == "refused" and "MY_KEY" in error.fix
    fake.key = "sk-wrong-987654321"
    fake.faults.always = Fault("status", 401, message="No such key: sk-wrong-987654321")
    assert "987654321" not in str(failure(address, api_key_env="MY_KEY"))


def test_a_server_that_wants_a_key_and_got_none_says_where_to_put_one(server):
    _, address = server
    error = failure(address, api_key_env=None)
    assert error.fault == "refused" and "api_key_env" in error.fix


def test_an_unknown_model_is_refused_by_name(server):
    _, address = server
    error = failure(address, model="huge")
    assert error.fault == "refused" and "`huge`" in error.problem and "model" in error.fix


def test_a_model_that_wants_the_newer_field_gets_a_fix_that_names_the_option(server):
    fake, address = server
    message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
    fake.faults.always = Fault("status", 400, message=message)
    assert "max_tokens_field" in failure(address).fix


def test_a_cancelled_call_ends_at_once_and_the_next_is_answered(server):
    fake, address = server
    fake.faults.planned = [Fault("hang")]

    async def run():
        opened = provider(address)
        task = asyncio.create_task(opened.generate(ask()))
        while not fake.counts.open_now:
            await asyncio.sleep(0.005)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer = await opened.generate(ask())
        await opened.aclose()
        return answer, time.monotonic() - started

    answer, waited = asyncio.run(run())
    assert answer.text and waited < 2


def test_without_aiohttp_it_opens_and_the_first_call_names_the_extra(server, monkeypatch):
    import sys

    _, address = server
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    opened = provider(address)
    with pytest.raises(MissingExtraError, match=r"po-distill\[http\]"):
        asyncio.run(opened.generate(ask()))


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [({"max_token": 5}, r"no option 'max_token'.*Its options: api_key_env, stream"), ({"stream": "yes"}, "stream"),
     ({"timeout_s": 0}, "timeout_s"), ({"timeout_s": True}, "timeout_s"), ({"timeout_s": float("inf")}, "timeout_s"),
     ({"max_tokens_field": "tokens"}, "max_tokens_field"), ({"extra_body": []}, "extra_body"),
     ({"extra_body": {"messages": []}}, "sets messages"), ({"extra_body": {"model": "x"}}, "sets model"),
     ({"extra_body": {"stream": True}}, "sets stream"), ({"allow_plain_http": 1}, "allow_plain_http"),
     ({"api_key_env": 3}, "api_key_env"), ({"api_key_env": ""}, "api_key_env")],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused_by_name(options, words):
    with pytest.raises(SettingsError, match=words):
        provider("http://localhost:8000", **options)


@pytest.mark.parametrize(
    "options",
    [{"api_key": "sk-secret-1"}, {"Authorization": "sk-secret-1"}, {"api_key_env": "sk-secret-1"},
     {"api_key_env": "hf_secretsecret"}],
)  # fmt: skip
def test_a_key_in_the_settings_is_refused_and_not_repeated(options):
    with pytest.raises(SettingsError, match="environment variable") as caught:
        provider("http://localhost:8000", **options)
    assert "secret" not in str(caught.value)


def test_a_named_variable_that_is_not_set_is_an_error_and_the_default_one_is_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    provider("http://localhost:8000")
    with pytest.raises(SettingsError, match=r"MY_KEY .* is not set"):
        provider("http://localhost:8000", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "two words")
    with pytest.raises(SettingsError, match="MY_KEY holds characters"):
        provider("http://localhost:8000", api_key_env="MY_KEY")


@pytest.mark.parametrize(
    "address",
    ["http://localhost:8000", "http://127.0.0.1/v1", "http://127.9.9.9", "http://[::1]:8000", "https://example.org"],
)
def test_a_key_may_go_to_this_machine_or_over_https(monkeypatch, address):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert KEY in provider(address)._headers["Authorization"]


@pytest.mark.parametrize("address", ["http://gpu.lan:8000", "http://10.0.0.7", "http://localhost.example.org"])
def test_a_key_never_goes_to_another_host_over_plain_http_unless_allowed(monkeypatch, address):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(SettingsError, match="plain http") as caught:
        provider(address)
    assert KEY not in str(caught.value)
    assert "Authorization" in provider(address, allow_plain_http=True)._headers
    assert "Authorization" not in provider(address, api_key_env=None)._headers


@pytest.mark.parametrize(
    ("given_url", "asked"),
    [("http://h:1", "http://h:1/v1"), ("http://h:1/", "http://h:1/v1"), ("http://h:1/v1/", "http://h:1/v1"),
     ("http://h/v1/chat/completions", "http://h/v1"), ("https://h/api/v4", "https://h/api/v4"),
     ("https://h/v1beta/openai/", "https://h/v1beta/openai"), ("http://h/proxy", "http://h/proxy/v1")],
)  # fmt: skip
def test_an_address_is_read_with_or_without_its_version(monkeypatch, given_url, asked):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert provider(given_url)._url == f"{asked}/chat/completions"


@pytest.mark.parametrize(
    "address",
    [None, "", "localhost:8000", "ftp://h", "http://", "http://h:x", "http://u:secret@h", "http://h?key=secret"],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(address):
    with pytest.raises(SettingsError, match="base_url") as caught:
        provider(address)
    assert "secret" not in str(caught.value)


def test_a_model_must_be_named():
    with pytest.raises(SettingsError, match="needs a model"):
        provider("http://localhost:8000", model=None)


# --- the event stream ---------------------------------------------------------------------------


def read(data, cuts=()):
    stream, at, found = EventStream(), 0, []
    for cut in [*sorted(cuts), len(data)]:
        found += stream.feed(data[at:cut])
        at = cut
    return [*found, *stream.end()]


TEXT = '\ufeff: hello\nevent: a\ndata: süß 東京 🌱\ndata:two\n\ndata: {"a": 1}\nid: 4\n\n\n:\n\ndata\n\ndata: last'


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_events_are_the_same_byte_by_byte_and_cut_once_anywhere(line_end):
    raw = TEXT.replace("\n", line_end).encode()
    for cuts in [range(len(raw)), *([at] for at in range(len(raw)))]:
        assert read(raw, cuts) == ["süß 東京 🌱\ntwo", '{"a": 1}', "", "last"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_events_are_the_same_wherever_the_chunks_end(data):
    raw = TEXT.replace("\n", data.draw(st.sampled_from(["\n", "\r\n", "\r"]))).encode()
    cuts = data.draw(st.lists(st.integers(0, len(raw))))
    assert read(raw, cuts) == ["süß 東京 🌱\ntwo", '{"a": 1}', "", "last"]


@settings(max_examples=200, deadline=None)
@given(st.binary(), st.lists(st.integers(0, 50)))
def test_any_bytes_are_read_alike_in_any_chunks(raw, cuts):
    assert read(raw, [min(cut, len(raw)) for cut in cuts]) == read(raw)


def test_a_field_named_error_is_an_error():
    assert read(b'error: {"code": 500}\n\n') == ['{"error": {"code": 500}}']


# --- the fake refuses what OpenAI refuses -------------------------------------------------------

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


def post(address, body, key=KEY, path="/v1/chat/completions"):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)
    response = connection.getresponse()
    status, answer = response.status, json.loads(response.read())
    connection.close()
    return status, answer


def with_schema(**schema):
    form = {"name": "answer", "strict": True, "schema": {"type": "object", "additionalProperties": False, **schema}}
    return {**GOOD, "response_format": {"type": "json_schema", "json_schema": form}}


def test_the_fake_answers_a_good_request(server):
    status, answer = post(server[1], GOOD)
    assert status == 200 and answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop" and answer["usage"]["total_tokens"] > 3
    assert post(server[1], with_schema(properties={"a": {"type": "string"}}, required=["a"]))[0] == 200


@pytest.mark.parametrize(
    ("body", "key", "status", "words"),
    [
        (GOOD, None, 401, "You didn't provide an API key"),
        (GOOD, "sk-other", 401, "Incorrect API key"),
        ({**GOOD, "model": "huge"}, KEY, 404, "`huge` does not exist"),
        ({"messages": GOOD["messages"]}, KEY, 400, "model parameter"),
        ({**GOOD, "num_ctx": 5}, KEY, 400, "Unrecognized request argument supplied: num_ctx"),
        ({**GOOD, "messages": [{"role": "teacher", "content": "x"}]}, KEY, 400, "Invalid value: 'teacher'"),
        ({**GOOD, "messages": []}, KEY, 400, "empty array"),
        ({**GOOD, "messages": [{"role": "user", "content": None}]}, KEY, 400, "content"),
        ({**GOOD, "max_tokens": 0}, KEY, 400, "minimum value"),
        ({**GOOD, "max_completion_tokens": -1}, KEY, 400, "minimum value"),
        ({**GOOD, "max_tokens": 5, "max_completion_tokens": 5}, KEY, 400, "at the same time"),
        ({**GOOD, "temperature": 2.5}, KEY, 400, "temperature"),
        ({**GOOD, "temperature": -0.1}, KEY, 400, "temperature"),
        ({**GOOD, "stream_options": {"include_usage": True}}, KEY, 400, "only allowed when 'stream'"),
        ({**GOOD, "response_format": {"type": "json_schema"}}, KEY, 400, "response_format"),
        (with_schema(additionalProperties=True), KEY, 400, "'additionalProperties' is required"),
        (with_schema(properties={"a": {"type": "string"}}), KEY, 400, "Missing 'a'"),
        (with_schema(type="array"), KEY, 400, "JSON Schema of 'type: \"object\"'"),
        (b"{", KEY, 400, "could not parse"),
        (b"[]", KEY, 400, "could not parse"),
    ],
)
def test_the_fake_refuses_what_openai_refuses(server, body, key, status, words):
    got, answer = post(server[1], body, key)
    assert got == status and words in answer["error"]["message"]


def test_the_fake_looks_into_nested_schemas():
    inner = {"type": "object", "properties": {"b": {"type": "string"}}, "required": [], "additionalProperties": False}
    outer = {"type": "object", "properties": {"a": {"type": "array", "items": inner}}, "required": ["a"],
             "additionalProperties": False}  # fmt: skip
    assert "Missing 'b'" in strict_problem(outer)
    assert "default" in strict_problem({**outer, "properties": {"a": {"type": "string", "default": ""}}})
    assert "$ref" in strict_problem({**outer, "properties": {"a": {"$ref": "#/$defs/A", "description": "x"}}})
    assert strict_problem(SCHEMA) is None
