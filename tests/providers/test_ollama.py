import asyncio
import http.client
import json
import time
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiohttp")
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.ollama_chat import OllamaChat
from fakes.serving import Fault, echo, pieces
from po_distill.errors import MissingExtraError, ProviderError, SettingsError
from po_distill.providers.ollama import JsonLines, OllamaProvider
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request

MODEL = "po-student"


@pytest.fixture(scope="module")
def running():
    fake = OllamaChat()
    with fake.running() as address:
        yield fake, address


@pytest.fixture
def server(running):
    """(the fake with its knobs as they come, its address)"""
    fake, address = running
    vars(fake).update(vars(OllamaChat()))
    return fake, address


def provider(address, model=MODEL, **options):
    return OllamaProvider(ProviderSettings(provider="ollama", model=model, base_url=address, options=options), None)


def ask(text="What is it?", *, json_schema=None, **generation):
    messages = (Message(speaker="system", content="Be brief."), Message(speaker="user", content=text))
    return Request(messages=messages, generation=GenerationSettings(**generation), json_schema=json_schema)


def answers(address, *requests, model=MODEL, **options):
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
    fake.load_s, fake.pause_s = 0.1, 0.002
    first, second = answers(address, ask()) + answers(address, ask())
    text = echo([{"content": "What is it?"}])
    assert (first.text, first.model, first.finish, first.finish_reason) == (text, MODEL, "stop", "stop")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (12, len(pieces(text)))
    assert first.usage.load_s == 0.1 and second.usage.load_s == 0  # seconds, out of nanoseconds
    assert 0.1 <= first.usage.first_token_s < first.usage.latency_s - 0.02 < 5


def test_the_body_is_what_ollama_asks_for(server):
    fake, address = server
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    fake.thoughts = "Hm."
    options = {"num_ctx": 8192, "top_k": 5, "top_p": 0.5, "min_p": 0, "repeat_penalty": 1, "stop": "###"}
    request = ask(temperature=0, max_tokens=77, seed=3, json_schema=schema)
    answers(address, request, **options, think=False, keep_alive="10m")
    assert fake.counts.bodies == [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
            "stream": True,
            "truncate": False,
            "options": {"temperature": 0, "num_predict": 77, "seed": 3, **options, "stop": ["###"]},
            "format": schema,
            "think": False,
            "keep_alive": "10m",
        }
    ]


def test_what_is_not_set_is_left_to_the_model(server):
    fake, address = server
    answers(address, ask(temperature=0.5, max_tokens=9))
    (body,) = fake.counts.bodies
    assert body["options"] == {"temperature": 0.5, "num_predict": 9}
    assert set(body) == {"model", "messages", "stream", "truncate", "options"}


@pytest.mark.parametrize(
    "knobs",
    [{"chunk_bytes": 1}, {"chunk_bytes": 3, "crlf": True}, {"chunk_bytes": 7, "pause_s": 0.0005}, {"crlf": True},
     {"last_newline": False}, {"plain_json": True}],
)  # fmt: skip
def test_however_the_answer_travels_it_is_the_same(server, knobs):
    fake, address = server
    (whole,) = answers(address, ask())
    vars(fake).update(knobs)
    (answer,) = answers(address, ask())
    assert (answer.text, answer.finish) == (whole.text, "stop")
    assert answer.usage.completion_tokens == whole.usage.completion_tokens > 5


def test_without_streaming_the_time_to_the_first_token_is_not_known(server):
    fake, address = server
    (answer,) = answers(address, ask(), stream=False)
    assert fake.counts.bodies[0]["stream"] is False and answer.text == echo([{"content": "What is it?"}])
    assert answer.usage.completion_tokens > 5 and answer.usage.first_token_s is None


def test_a_count_that_is_left_out_is_zero(server):
    fake, address = server
    fake.prompt_eval_count = False
    (answer,) = answers(address, ask())
    assert answer.usage.prompt_tokens == 0 and answer.usage.completion_tokens > 5


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_model_thinks_is_no_part_of_its_answer(server, stream):
    fake, address = server
    fake.thoughts = "Let me see. "
    (answer,) = answers(address, ask(), think=True, stream=stream)
    assert answer.text == echo([{"content": "What is it?"}])
    assert answer.usage.completion_tokens == len(pieces(answer.text)) + len(pieces(fake.thoughts))


@pytest.mark.parametrize(
    ("thinking", "option", "sent"),
    [("low", None, "low"), (0, True, False), (None, True, True), ("high", False, "high")],
)
def test_the_requests_own_thinking_goes_before_the_option(server, thinking, option, sent):
    fake, address = server
    fake.thoughts = "Hm."
    answers(address, ask(thinking=thinking), **({} if option is None else {"think": option}))
    assert fake.counts.bodies[0]["think"] is sent or fake.counts.bodies[0]["think"] == sent != 0


@pytest.mark.parametrize(("reason", "finish"), [("stop", "stop"), ("length", "length"), ("new", "other")])
def test_ollamas_word_for_the_end_is_kept_beside_ours(server, reason, finish):
    fake, address = server
    fake.done_reason = reason
    (answer,) = answers(address, ask())
    assert (answer.finish, answer.finish_reason) == (finish, reason) and answer.text


def test_an_answer_that_reached_max_tokens_is_cut_and_says_so(server):
    (answer,) = answers(server[1], ask(max_tokens=3))
    assert (answer.finish, answer.usage.completion_tokens, len(answer.text)) == ("length", 3, 12)


def test_the_model_that_answered_is_the_one_that_ollama_names(server):
    fake, address = server
    fake.served_model = "po-student:v2"
    assert answers(address, ask())[0].model == "po-student:v2"


def test_halves_of_a_character_in_two_lines_become_the_character(server):
    fake, address = server
    fake.answer = lambda messages: "abc\ud83c\udf31 \ud83c."
    fake._line = lambda value: json.dumps(value).encode() + b"\n"
    try:
        (answer,) = answers(address, ask())
    finally:
        del fake._line
    assert answer.text == "abc🌱 \ufffd."


def test_many_calls_go_out_at_once(server):
    fake, address = server
    fake.latency_s = 0.2
    started = time.monotonic()
    got = answers(address, *(ask(f"question {number}") for number in range(80)))
    assert [answer.text for answer in got] == [echo([{"content": f"question {number}"}]) for number in range(80)]
    assert fake.counts.most_open == 80 and time.monotonic() - started < 4


def test_a_keep_alive_of_zero_unloads_the_model_after_the_answer(server):
    fake, address = server
    answers(address, ask())
    assert fake.loaded == {"po-student:latest"}
    answers(address, ask(), keep_alive=0)
    assert fake.loaded == set()


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "expected", "doubtful"),
    [
        (Fault("status", 503, message="server busy, please try again"), "unavailable", False),
        (Fault("status", 500), "unavailable", False),
        (Fault("status", 429), "rate_limited", False),
        (Fault("status", 400, message="invalid options"), "refused", False),
        (Fault("status", 400, message="the input length exceeds the context length"), "bad_answer", False),
        (Fault("status", 500, message="the input length exceeds the context length"), "bad_answer", False),
        (Fault("drop"), "unavailable", True),
        (Fault("html"), "unavailable", True),
        (Fault("truncated"), "unavailable", True),
        (Fault("cut", after=0), "unavailable", True),
        (Fault("cut", after=3), "unavailable", True),
        (Fault("broken", after=3), "unavailable", True),
        (Fault("error", after=0), "unavailable", False),
        (Fault("error", after=3, message="model runner has unexpectedly stopped"), "unavailable", True),
        (Fault("error", after=3, message="the context length is exceeded"), "bad_answer", True),
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


def test_an_answer_whose_end_was_seen_counts_though_the_connection_then_breaks(server):
    fake, address = server
    fake.answer = lambda messages: "abcd"
    fake.faults.always = Fault("broken", after=2)
    (answer,) = answers(address, ask())
    assert (answer.text, answer.finish, answer.usage.completion_tokens) == ("abcd", "stop", 1)


def test_an_unknown_model_is_refused_with_the_command_that_gets_it(server):
    error = failure(server[1], model="qwen2.5:7b")
    assert error.fault == "refused" and "model 'qwen2.5:7b' not found" in error.problem
    assert "ollama pull qwen2.5:7b" in error.fix and "ollama list" in error.fix


def test_a_server_that_is_not_there_is_unavailable_with_the_command_that_starts_it():
    error = failure("http://127.0.0.1:9")
    assert (error.fault, error.doubtful) == ("unavailable", False)
    assert "127.0.0.1:9" in error.problem and "Start it: ollama serve" in error.fix


def test_a_prompt_longer_than_the_context_is_an_error_and_not_cut_silently(server):
    error = failure(server[1], ask("word " * 300), num_ctx=64)
    assert error.fault == "bad_answer" and "num_ctx" in error.fix


def test_a_request_without_messages_is_a_bad_answer_as_it_only_loads_the_model(server):
    error = failure(server[1], Request(messages=()))
    assert error.fault == "bad_answer" and "no messages" in error.problem


def test_a_model_that_cannot_think_gets_a_fix_that_names_the_option(server):
    error = failure(server[1], think=True)
    assert error.fault == "refused" and "option think" in error.fix


def test_a_budget_for_thinking_is_refused_before_anything_is_sent(server):
    fake, address = server
    error = failure(address, ask(thinking=512))
    assert error.fault == "refused" and "512" in error.problem and fake.counts.requests == 0


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

    monkeypatch.setitem(sys.modules, "aiohttp", None)
    opened = provider(server[1])
    with pytest.raises(MissingExtraError, match=r"po-distill\[http\]"):
        asyncio.run(opened.generate(ask()))


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n_ctx": 5}, r"no option 'n_ctx'.*Its options: timeout_s, stream"), ({"num_ctx": "8k"}, "num_ctx .* '8k'"),
     ({"num_ctx": 0}, "num_ctx"), ({"num_ctx": True}, "num_ctx"), ({"top_k": -1}, "top_k"), ({"top_p": 1.5}, "top_p"),
     ({"min_p": "x"}, "min_p"), ({"repeat_penalty": 0}, "repeat_penalty"), ({"stop": 3}, "stop"),
     ({"stop": [""]}, "stop"),
     ({"think": "yes"}, "think"), ({"keep_alive": True}, "keep_alive"), ({"stream": 1}, "stream"),
     ({"timeout_s": 0}, "timeout_s")],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused_by_name(options, words):
    with pytest.raises(SettingsError, match=words):
        provider(None, **options)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("", "http://127.0.0.1:11434"),
        ("gpu", "http://gpu:11434"),
        ("gpu:8080", "http://gpu:8080"),
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://gpu", "http://gpu:80"),
        ("https://gpu.example.org/ollama/", "https://gpu.example.org:443/ollama"),
        ("::1", "http://[::1]:11434"),
        ("[::]:8080", "http://[::1]:8080"),
        (' "gpu:1" ', "http://gpu:1"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(monkeypatch, host, origin):
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert provider(None)._url == f"{origin}/api/chat"


def test_a_base_url_goes_before_ollama_host_and_without_either_it_is_this_machine(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "gpu")
    assert provider("http://other:1/")._url == "http://other:1/api/chat"
    monkeypatch.delenv("OLLAMA_HOST")
    assert provider(None)._url == "http://127.0.0.1:11434/api/chat"


@pytest.mark.parametrize("address", ["ftp://h", "http://h:x", "http://u:secret@h", "http://h?key=secret", "two words"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(monkeypatch, address):
    with pytest.raises(SettingsError, match="base_url") as caught:
        provider(address)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("OLLAMA_HOST", address)
    with pytest.raises(SettingsError, match="OLLAMA_HOST"):
        provider(None)


def test_a_model_must_be_named():
    with pytest.raises(SettingsError, match="needs a model"):
        provider(None, model=None)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))), st.lists(st.integers(0, 99))
)
def test_lines_are_the_same_wherever_the_chunks_end(texts, cuts):
    raw = "\n".join(texts).encode()
    lines, at, found = JsonLines(), 0, []
    for cut in [*sorted(min(cut, len(raw)) for cut in cuts), len(raw)]:
        found += lines.feed(raw[at:cut])
        at = cut
    assert [*found, *lines.end()] == [text.encode() for text in texts if text.encode().strip()]


# --- the fake refuses what Ollama refuses -------------------------------------------------------

GOOD = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": False}


def post(address, body):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    connection.request("POST", "/api/chat", body if isinstance(body, bytes) else json.dumps(body).encode())
    response = connection.getresponse()
    status, answer = response.status, json.loads(response.read())
    connection.close()
    return status, answer


@pytest.mark.parametrize(
    "more",
    [{}, {"unknown_field": 5}, {"format": "json"}, {"format": {"type": "object"}}, {"format": ""}, {"format": None},
     {"options": {"unknown_option": "x", "top_k": 1.5, "stop": ["a"]}}, {"model": "po-student:latest"}],
)  # fmt: skip
def test_the_fake_answers_what_ollama_answers(server, more):
    status, answer = post(server[1], {**GOOD, **more})
    assert (status, answer["done"], answer["done_reason"]) == (200, True, "stop") and answer["message"]["content"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "missing request body"),
        (b"x", 400, "invalid character 'x' looking for beginning of value"),
        ({"messages": GOOD["messages"]}, 400, "model is required"),
        ({**GOOD, "model": "huge"}, 404, "model 'huge' not found"),
        ({**GOOD, "format": "yaml"}, 500, 'invalid format: "yaml"; expected "json" or a valid JSON Schema object'),
        ({**GOOD, "format": 5}, 500, "invalid format: 5"),
        ({**GOOD, "options": {"num_ctx": "8k"}}, 400, 'option "num_ctx" must be of type integer'),
        ({**GOOD, "options": {"temperature": True}}, 400, 'option "temperature" must be of type float32'),
        ({**GOOD, "options": {"stop": "x"}}, 400, 'option "stop" must be of an array of strings'),
        ({**GOOD, "options": "hot"}, 400, "cannot unmarshal string into Go struct field ChatRequest.options"),
        ({**GOOD, "messages": "x"}, 400, "cannot unmarshal string into Go struct field ChatRequest.messages"),
        ({**GOOD, "stream": "yes"}, 400, "cannot unmarshal string"),
        ({**GOOD, "think": True}, 400, "does not support thinking"),
        ({**GOOD, "think": "hard"}, 400, 'invalid think value: "hard"'),
    ],
)
def test_the_fake_refuses_what_ollama_refuses(server, body, status, words):
    got, answer = post(server[1], body)
    assert got == status and words in answer["error"] and set(answer) == {"error"}


def test_the_fake_loads_and_unloads_a_model_that_is_asked_nothing(server):
    fake, address = server
    status, answer = post(address, {"model": MODEL})
    assert (status, answer["done_reason"], fake.loaded) == (200, "load", {"po-student:latest"})
    status, answer = post(address, {"model": MODEL, "keep_alive": 0})
    assert (status, answer["done_reason"], fake.loaded) == (200, "unload", set())


def test_the_fake_cuts_a_long_prompt_silently_unless_told_not_to(server):
    long = {**GOOD, "messages": [{"role": "user", "content": "word " * 100}], "options": {"num_ctx": 64}}
    assert post(server[1], long)[1]["prompt_eval_count"] == 64
    assert post(server[1], {**long, "truncate": False}) == (
        400,
        {"error": "the input length exceeds the context length"},
    )
