from __future__ import annotations

import http.client
import time

import pytest

from fakes.ollama_calls import TEMPLATE, ask, create, digest_of
from fakes.ollama_prompt import PromptTemplate, Turn
from fakes.ollama_server import FakeOllama, Fault, Knobs
from fakes.scripted_gguf import CHATML, write_scripted_gguf

SAID = ["product_vision:", " a map", " for moles"]
HI = [{"role": "user", "content": "hi"}]
GREEDY = {"num_ctx": 256, "temperature": 0.0, "stop": ["<|im_end|>"]}
TOOLS = CHATML + "{# tools #}"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("gguf") / "student.gguf", SAID)


@pytest.fixture(scope="module")
def server(tmp_path_factory, gguf):
    with FakeOllama(tmp_path_factory.mktemp("models")) as fake:
        create(fake, "plain", gguf, parameters=GREEDY)
        create(fake, "student", gguf, system="Be good.", parameters=GREEDY)
        yield fake


def chat(fake, model="plain", messages=HI, **fields):
    return ask(fake, "POST", "/api/chat", {"model": model, "messages": messages, "stream": False, **fields})


def rendered(fake, model="plain", messages=HI, **fields):
    status, answer = chat(fake, model, messages, _debug_render_only=True, **fields)
    assert status == 200
    return answer["_debug_info"]["rendered_template"]


def test_a_chat_is_answered_by_the_gguf(server):
    status, answer = chat(server)
    assert (status, answer["message"]) == (200, {"role": "assistant", "content": "".join(SAID)})
    assert (answer["model"], answer["done"], answer["done_reason"]) == ("plain", True, "stop")


def test_a_stream_has_a_line_per_token_and_the_counts_in_the_last(server):
    status, lines = chat(server, stream=True)
    assert status == 200
    assert [line["message"]["content"] for line in lines] == [*SAID, ""]
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert "eval_count" not in lines[0]
    last = lines[-1]
    assert (last["done_reason"], last["eval_count"]) == ("stop", len(SAID) + 1)  # the end is a token too
    assert last["prompt_eval_count"] == 3 + len("user\nhi\nassistant\n")  # a token is a byte, or a special one
    durations = [last[name] for name in ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")]
    assert all(isinstance(duration, int) for duration in durations)
    assert 1_000_000 < max(durations) == durations[0] < 60_000_000_000  # nanoseconds


def test_a_prompt_that_is_known_already_is_counted_all_the_same(server):
    counts = [chat(server)[1]["prompt_eval_count"] for _ in range(2)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("options", "said", "reason"),
    [({"num_predict": 2}, "product_vision: a map", "length"), ({"stop": [" for"]}, "product_vision: a map", "stop")],
)
def test_an_answer_ends_at_its_limit_or_its_stop(server, options, said, reason):
    _, answer = chat(server, options=options)
    assert (answer["message"]["content"], answer["done_reason"]) == (said, reason)


def test_a_plain_client_creates_calls_and_removes(server, gguf):
    ollama = pytest.importorskip("ollama", reason="the package ollama is not installed")
    client = ollama.Client(host=server.base_url)
    assert client.create_blob(gguf) == digest_of(gguf)
    made = client.create("of-client:1", files={"m.gguf": digest_of(gguf)}, template=TEMPLATE, parameters=GREEDY)
    assert made.status == "success"
    assert "of-client:1" in [model.model for model in client.list().models]
    answer = client.chat("of-client:1", [{"role": "system", "content": "Be good."}, *HI])
    assert answer.message.content == "".join(SAID)
    assert "".join(piece.message.content for piece in client.chat("of-client:1", HI, stream=True)) == "".join(SAID)
    assert client.generate("of-client:1", "hi").response == "".join(SAID)
    assert client.show("of-client:1").template == TEMPLATE
    assert client.copy("of-client:1", "of-client:2").status == "success"
    assert [client.delete(f"of-client:{tag}").status for tag in "12"] == ["success", "success"]
    with pytest.raises(ollama.ResponseError, match="model 'of-client:1' not found") as caught:
        client.chat("of-client:1", HI)
    assert caught.value.status_code == 404


def test_a_plain_client_sees_an_error_in_mid_stream_as_one_without_a_status(server):
    ollama = pytest.importorskip("ollama", reason="the package ollama is not installed")
    server.faults["POST /api/chat"].planned.append(Fault("error", after=1, message="it broke"))
    with pytest.raises(ollama.ResponseError, match="it broke") as caught:
        list(ollama.Client(host=server.base_url).chat("plain", HI, stream=True))
    assert caught.value.status_code == -1


def test_the_prompt_is_the_template_of_the_messages_and_of_the_models_system(server):
    system, user = Turn("system", "Be good."), Turn("user", "hi <|im_end|> {{ .X }}")
    messages = [{"role": "user", "content": user.content}]
    assert rendered(server, messages=messages) == PromptTemplate(TEMPLATE).render([user])
    assert rendered(server, "student", messages) == PromptTemplate(TEMPLATE).render([system, user])
    own = {"role": "system", "content": "Be bad."}
    assert rendered(server, "student", [own, *messages]) == PromptTemplate(TEMPLATE).render([Turn(**own), user])


def test_a_chat_template_that_speaks_of_tools_goes_before_a_template_that_does_not(server, tmp_path):
    known = write_scripted_gguf(tmp_path / "tools.gguf", SAID, chat_template=TOOLS)
    bare = "{{ range .Messages }}# {{ .Content }}\n{{ end }}"
    create(server, "overridden", known, template=bare, parameters=GREEDY)
    create(server, "with-tools", known, template=bare + "{{ .Tools }}", parameters=GREEDY)
    assert rendered(server, "overridden") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(server, "with-tools") == "# hi\n<no value>"
    assert chat(server, "overridden")[1]["message"]["content"] == "".join(SAID)
    shown = [ask(server, "POST", "/api/show", {"model": name})[1] for name in ("overridden", "with-tools", "plain")]
    assert [one["capabilities"] for one in shown] == [["completion", "tools"]] * 2 + [["completion"]]


def test_a_model_without_any_template_has_llama_cpps_own(server, tmp_path):
    bare = write_scripted_gguf(tmp_path / "bare.gguf", SAID, chat_template=None)
    create(server, "bare", bare, template="", parameters=GREEDY)
    assert rendered(server, "bare") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat(server, "bare", stream=True)[1][-1]["done_reason"] == "stop"


# --- the context --------------------------------------------------------------------------------

LONG = [{"role": "system", "content": "Be good."}, {"role": "user", "content": "x" * 200},
        {"role": "assistant", "content": "y" * 100}, {"role": "user", "content": "hi"}]  # fmt: skip


def test_the_oldest_turns_are_dropped_in_silence_where_the_context_is_too_short(server):
    turns = [Turn(**one) for one in LONG]
    template = PromptTemplate(TEMPLATE)
    assert rendered(server, messages=LONG, options={"num_ctx": 512}) == template.render(turns)
    assert rendered(server, messages=LONG, options={"num_ctx": 256}) == template.render([turns[0], *turns[2:]])
    assert rendered(server, messages=LONG, options={"num_ctx": 100}) == template.render([turns[0], turns[3]])


def test_a_single_turn_that_is_too_long_is_cut_in_its_middle(server):
    long = [{"role": "user", "content": "x" * 400}]
    _, answer = chat(server, messages=long, options={"num_ctx": 256, "num_predict": 1})
    assert answer["prompt_eval_count"] == 256 - (256 - 4) // 2
    status, answer = chat(server, messages=long, shift=False)
    assert (status, answer["error"][:57]) == (400, "the prompt is longer than the context length currently av")
    status, answer = chat(server, messages=long, truncate=False)
    assert (status, "exceed_context_size_error" in answer["error"]) == (400, True)


def test_a_context_that_is_not_set_is_the_machines(tmp_path, gguf):
    with FakeOllama(tmp_path / "models", Knobs(default_num_ctx=128)) as fake:
        create(fake, "m", gguf)
        assert chat(fake, "m", [])[1]["done_reason"] == "load"
        assert ask(fake, "GET", "/api/ps")[1]["models"][0]["context_length"] == 128
        chat(fake, "m", [], options={"num_ctx": 9999})
        assert ask(fake, "GET", "/api/ps")[1]["models"][0]["context_length"] == 512  # the model's own is the most


# --- generate, load, options --------------------------------------------------------------------


def test_generate_renders_a_prompt_or_takes_it_raw(server):
    def generate(**fields):
        return ask(server, "POST", "/api/generate", {"model": "student", "prompt": "hi", "stream": False, **fields})[1]

    assert generate()["response"] == "".join(SAID)
    prompt = generate(_debug_render_only=True)["_debug_info"]["rendered_template"]
    assert prompt == PromptTemplate(TEMPLATE).render([Turn("system", "Be good."), Turn("user", "hi")])
    assert "Be bad." in generate(system="Be bad.", _debug_render_only=True)["_debug_info"]["rendered_template"]
    raw = generate(raw=True)
    assert (raw["prompt_eval_count"], "context" in raw) == (2, False)
    assert len(generate()["context"]) > len(prompt) - 50
    assert generate(raw=True, system="x")["error"] == "raw mode does not support template, system, or context"
    assert generate(suffix="x")["error"].endswith("student:latest does not support insert")


def test_an_empty_request_loads_and_one_without_a_time_to_live_unloads(server):
    assert chat(server, messages=[])[1]["done_reason"] == "load"
    assert "plain:latest" in [model["name"] for model in ask(server, "GET", "/api/ps")[1]["models"]]
    assert chat(server, messages=[], keep_alive=0)[1]["done_reason"] == "unload"
    assert "plain:latest" not in [model["name"] for model in ask(server, "GET", "/api/ps")[1]["models"]]


def test_a_loaded_model_goes_when_its_time_is_over(server):
    chat(server, messages=[], keep_alive="50ms")
    time.sleep(0.06)
    assert "plain:latest" not in [model["name"] for model in ask(server, "GET", "/api/ps")[1]["models"]]


def test_a_wrong_parameter_is_found_when_the_model_is_used_not_when_it_is_made(server, gguf):
    assert create(server, "wrong", gguf, parameters={"num_ctx": "many"})[0] == 200
    assert chat(server, "wrong") == (500, {"error": 'option "num_ctx" must be of type integer'})


def test_an_answer_keeps_to_a_schema(server):
    for model in ("plain", "student"):
        _, answer = chat(server, model, format={"const": "xy"}, options={"num_predict": 4})
        assert (answer["message"]["content"], answer["done_reason"]) == ('"xy"', "length")
    assert chat(server, format="yaml")[0] == 500


def test_an_answer_that_goes_nowhere_ends_without_a_last_line(server):
    schema = {"type": "object", "properties": {"a": {"const": "xy"}}, "required": ["a"], "additionalProperties": False}
    _, lines = chat(server, format=schema, stream=True)  # this model likes white space best, and the schema allows it
    assert [line["message"]["content"].strip() for line in lines] == ["{"] + [""] * 31
    assert not any(line["done"] for line in lines)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"model": ""}, 400, "model is required"),
        ({"model": "a b"}, 400, "invalid model name"),
        ({"model": "nobody"}, 404, "model 'nobody' not found"),
        ({"model": "plain", "think": True}, 400, '"plain" does not support thinking'),
        ({"model": "plain", "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
    ],
)
def test_what_chat_refuses(server, fields, status, message):
    assert ask(server, "POST", "/api/chat", {"messages": HI, **fields}) == (status, {"error": message})


# --- what goes wrong ----------------------------------------------------------------------------


def test_an_answer_may_break_off_stop_or_come_as_a_page(server):
    faults = server.faults["POST /api/chat"].planned
    faults += [
        Fault("broken", after=1),
        Fault("cut", after=1),
        Fault("status", status=503, message="busy"),
        Fault("html"),
    ]
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        chat(server, stream=True)
    assert [line["done"] for line in chat(server, stream=True)[1]] == [False]
    assert chat(server) == (503, {"error": "busy"})
    with pytest.raises(ValueError, match="Expecting value"):
        chat(server)


def test_a_restart_unloads_and_the_next_chat_loads_again(tmp_path, gguf):
    with FakeOllama(tmp_path / "models", Knobs(load_s=0.2)) as fake:
        create(fake, "m", gguf, parameters=GREEDY)
        first, second = chat(fake, "m")[1], chat(fake, "m")[1]
        fake.restart()
        assert ask(fake, "GET", "/api/ps")[1] == {"models": []}
        third = chat(fake, "m")[1]
        assert [answer["load_duration"] > 200_000_000 for answer in (first, second, third)] == [True, False, True]
        assert {answer["message"]["content"] for answer in (first, second, third)} == {"".join(SAID)}


def test_the_requests_are_counted_by_their_route(server):
    before = server.seen.requests.copy()
    chat(server)
    ask(server, "GET", "/api/version")
    assert server.seen.requests - before == {"POST /api/chat": 1, "GET /api/version": 1}
    assert server.seen.bodies[-1][1]["messages"] == HI
