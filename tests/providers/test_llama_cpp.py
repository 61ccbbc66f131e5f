import asyncio
import json
import time

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("torch")
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill.errors import MissingExtraError, ProviderError, SettingsError
from po_distill.interfaces import Provider
from po_distill.providers.gguf_header import read_metadata
from po_distill.providers.llama_cpp import LlamaCppProvider
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request
from po_distill.weights.gguf import write_gguf
from tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("provider")
    tiny = tiny_model(folder / "model", max_position_embeddings=4096)
    write_gguf(tiny, folder / "tiny.gguf", "q8_0")
    return folder / "tiny.gguf"


def provider(path, **options):
    options = {"n_threads": 1, **options}  # a tiny model is slower on two threads, which wait for each other
    return LlamaCppProvider(ProviderSettings(provider="llama_cpp", model=str(path), options=options), None)


def ask(text, *, json_schema=None, **generation):
    generation = {"temperature": 0, "max_tokens": 12, **generation}
    message = Message(speaker="user", content=text)
    return Request(messages=(message,), generation=GenerationSettings(**generation), json_schema=json_schema)


def answers(path, *requests, **options):
    async def run():
        opened = provider(path, **options)
        try:
            return await asyncio.gather(*(opened.generate(request) for request in requests))
        finally:
            await opened.aclose()

    return asyncio.run(run())


def test_it_is_a_provider(model):
    assert isinstance(provider(model), Provider)


def test_greedy_answers_repeat_and_count_their_tokens(model):
    first, second = answers(model, ask("What is it?"), ask("What is it?"))
    assert first.text == second.text and first.text
    assert first.model == "tiny.gguf" and first.stand_in is False
    assert (first.finish, first.usage.completion_tokens) == ("length", 12)
    assert first.usage.prompt_tokens > 10 and first.usage.latency_s > 0


def test_a_seed_repeats_a_sampled_answer_and_another_changes_it(model):
    hot = {"temperature": 1.5, "max_tokens": 20}
    texts = [one.text for one in answers(model, *(ask("x", **hot, seed=seed) for seed in (1, 1, 2)))]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_answer(model):
    (whole,) = answers(model, ask("What is it?", max_tokens=30))
    stop = whole.text[5:8]
    (cut,) = answers(model, ask("What is it?", max_tokens=30), stop=stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish == "stop"


def test_an_answer_by_schema_is_json_of_that_schema(model):
    schema = {
        "type": "object",
        "properties": {"verdict": {"enum": ["aligned", "misaligned"]}},
        "required": ["verdict"],
        "additionalProperties": False,
    }
    (answer,) = answers(model, ask("x", json_schema=schema, max_tokens=200))
    assert json.loads(answer.text)["verdict"] in ("aligned", "misaligned")


def test_json_by_schema_stands_on_one_line(model):
    schema = {
        "type": "object",
        "properties": {"names": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3}},
        "required": ["names"],
        "additionalProperties": False,
    }
    (answer,) = answers(model, ask("x", json_schema=schema, max_tokens=200))
    assert answer.finish == "stop"
    assert answer.text == json.dumps(json.loads(answer.text), ensure_ascii=False)


def test_a_schema_that_llama_cpp_passes_over_is_an_error_and_no_free_answer(model):
    schema = {"type": "object", "properties": {"text": {"type": "nonsense"}}, "required": ["text"]}
    with pytest.raises(ProviderError, match="did not hold the answer to the JSON schema") as caught:
        answers(model, ask("x", json_schema=schema))
    assert caught.value.fault == "bad_answer"


def test_parallel_requests_get_the_answers_that_they_would_get_alone(model):
    requests = [ask(f"question {number}") for number in range(4)]
    together = answers(model, *requests, n_parallel=4, n_ctx=256)
    assert [one.text for one in together] == [one.text for one in answers(model, *requests, n_ctx=256)]


def test_other_coroutines_run_while_it_answers(model):
    async def run():
        opened = provider(model)
        ticks = 0
        task = asyncio.create_task(opened.generate(ask("x", max_tokens=400)))
        while not task.done():
            await asyncio.sleep(0.005)
            ticks += 1
        await opened.aclose()
        return ticks

    assert asyncio.run(run()) > 5


def test_a_cancelled_request_ends_at_once_and_the_next_is_answered(model):
    async def run():
        opened = provider(model)
        await opened.generate(ask("warm up"))
        task = asyncio.create_task(opened.continue_greedily([1, 5, 9], 3500))  # no end token ends it early
        await asyncio.sleep(0.1)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer = await opened.generate(ask("y"))
        await opened.aclose()
        return time.monotonic() - started, answer

    waited, answer = asyncio.run(run())
    assert answer.text and waited < 5


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(model):
    with pytest.raises(ProviderError, match=r"prompt has \d+ tokens, the context 64") as caught:
        answers(model, ask("word " * 200), n_ctx=64)
    assert caught.value.fault == "bad_answer"


def test_a_schema_that_is_none_concerns_that_request_alone(model):
    with pytest.raises(ProviderError) as caught:
        answers(model, ask("x", json_schema={"type": "nonsense"}))
    assert caught.value.fault == "bad_answer"


def test_a_closed_provider_refuses_to_answer(model):
    async def run():
        opened = provider(model)
        await opened.aclose()
        await opened.generate(ask("x"))

    with pytest.raises(ProviderError, match="closed"):
        asyncio.run(run())


def test_it_writes_nothing_to_standard_output_or_error(model, capfd):
    answers(model, ask("x"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n_contxt": 5}, "no option 'n_contxt'"), ({"n_ctx": "8k"}, "n_ctx"), ({"n_parallel": 0}, "n_parallel"),
     ({"stop": 3}, "stop"), ({"n_threads": True}, "n_threads")],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_refused_by_name(model, options, words):
    with pytest.raises(SettingsError, match=words):
        provider(model, **options)


def test_a_missing_model_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ProviderError, match=r"no\.gguf does not exist"):
        provider(tmp_path / "no.gguf")
    with pytest.raises(SettingsError, match="path of a GGUF"):
        LlamaCppProvider(ProviderSettings(provider="llama_cpp"), None)


def test_without_xllamacpp_the_error_names_the_extra(model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match=r"po-distill\[llamacpp\]"):
        answers(model, ask("x"))


@settings(max_examples=80, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_gguf_is_refused_before_llama_cpp_sees_it(model, tmp_path_factory, share):
    data = model.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "cut.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ProviderError, match="no whole GGUF file") as caught:
        provider(path)
    assert caught.value.fault == "refused"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_header_is_read_or_refused_but_never_crashes(model, tmp_path_factory, data):
    head = bytearray(model.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        head[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("odd") / "odd.gguf"
    path.write_bytes(head)
    try:
        read_metadata(path)
    except ProviderError as error:
        assert str(path) in error.problem


def test_a_gguf_that_llama_cpp_refuses_is_a_provider_error(model, tmp_path):
    data = model.read_bytes().replace(b"llama.block_count", b"llama.block_xxxxx")
    (tmp_path / "odd.gguf").write_bytes(data)
    with pytest.raises(ProviderError, match="cannot load") as caught:
        answers(tmp_path / "odd.gguf", ask("x"))
    assert caught.value.fault == "refused"
