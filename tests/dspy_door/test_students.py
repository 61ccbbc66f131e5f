"""A student as a dspy.LM: which runtime, which context, whose answers the cache holds."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("xllamacpp")
import dspy
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError, LMError

from answers_of_dspy import CONCEPTS, GOOD, Prepared, inputs_of, saying
from fakes.ollama_server import FakeOllama
from fakes.openai_chat import OpenAIChat
from installs import CHATML
from po_distill.dspy import ProductOwner, StudentLM, student_lm
from po_distill.dspy.engine import ProviderEngine, read_model_path
from po_distill.errors import InputError, PluginError, SettingsError


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return saying(tmp_path_factory.mktemp("gguf") / "student.gguf", GOOD)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return saying(tmp_path_factory.mktemp("gguf") / "other.gguf", renamed(GOOD))


@pytest.fixture(scope="module")
def local(gguf):
    lm = student_lm(gguf, num_ctx=4096, parallel=2)
    yield lm
    lm.close()


@pytest.fixture
def ollama(tmp_path, gguf):
    with FakeOllama(tmp_path / "models") as server:
        server.plant("po-student:latest", gguf, template=CHATML, parameters={"num_ctx": 3072, "stop": ["<|im_end|>"]})
        yield server


def renamed(text):
    return text.replace('product_name: "', 'product_name: "New ')


def asked(lm, concept=CONCEPTS[0]):
    with dspy.context(lm=lm):
        return ProductOwner()(**inputs_of(concept))


# --- in this process ------------------------------------------------------------------------------


def test_a_gguf_answers_the_program_in_this_process(local):
    assert asked(local).product_vision.startswith("product_name:")
    assert (local.num_ctx, local.parallel) == (4096, 2)
    assert local.history[-1]["usage"]["prompt_tokens"] > 100


def test_threads_and_coroutines_ask_at_the_same_time(local):
    with dspy.context(lm=local):
        program = ProductOwner()
        found = program.batch(
            [dspy.Example(**inputs_of(one)).with_inputs(*inputs_of(one)) for one in CONCEPTS[:4]], num_threads=2
        )
        assert len([one for one in found if one.product_vision]) == 4

        async def both():
            return await asyncio.gather(*(program.acall(**inputs_of(one)) for one in CONCEPTS[4:6]))

        assert all(one.product_owner_review for one in asyncio.run(both()))


def test_a_prompt_longer_than_the_context_is_dspys_error_for_that(gguf):
    lm = student_lm(gguf, num_ctx=256)
    with pytest.raises(ContextWindowExceededError, match="256"):
        asked(lm)
    lm.close()


def test_the_runtime_counts_the_tokens_of_a_prompt(local):
    from po_distill.records import Message

    few, many = (local.count_tokens((Message(speaker="user", content="word " * count),)) for count in (1, 9))
    assert 0 < few < many


def test_an_answer_in_another_form_is_a_parse_error(tmp_path):
    lm = student_lm(saying(tmp_path / "m.gguf", "I am sorry, I cannot"), max_tokens=20)
    with pytest.raises(AdapterParseError):
        asked(lm)
    lm.close()


def test_a_file_with_other_bytes_is_another_model_to_the_cache(gguf, other, tmp_path):
    path = tmp_path / "student.gguf"
    path.write_bytes(gguf.read_bytes())
    first = student_lm(path)
    before = asked(first).product_vision
    path.write_bytes(other.read_bytes())
    second = student_lm(path)
    assert first.model != second.model
    assert asked(second).product_vision == renamed(before)
    for lm in (first, second):
        lm.close()


def test_a_saved_program_asks_the_same_student_again(local, tmp_path):
    program = ProductOwner()
    program.set_lm(local)
    program.save(tmp_path / "program.json")
    loaded = ProductOwner()
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    lm = loaded.write.lm
    assert (lm.model, lm.num_ctx, lm.parallel, lm.kwargs) == (local.model, 4096, 2, local.kwargs)
    assert loaded(**inputs_of(CONCEPTS[7])).product_vision
    lm.close()


# --- on a server ----------------------------------------------------------------------------------


def test_ollama_is_asked_with_the_context_of_the_package(ollama):
    lm = student_lm("po-student", base_url=ollama.base_url)
    assert lm.num_ctx == 3072
    assert asked(lm).product_vision
    call = [body for route, body in ollama.seen.bodies if route == "POST /api/chat"][-1]
    assert call["options"]["num_ctx"] == 3072
    assert call["options"]["temperature"] == 0
    assert call["messages"][0]["role"] == "system"


def test_a_tag_that_is_made_again_never_answers_with_the_old_models_text(ollama, other):
    lm = student_lm("po-student", base_url=ollama.base_url, num_ctx=4096)
    before, name = asked(lm).product_vision, lm.model
    assert asked(lm).product_vision == before
    assert lm.history[-1]["usage"] == {}  # from the cache
    ollama.plant("po-student:latest", other, template=CHATML, parameters={"num_ctx": 3072, "stop": ["<|im_end|>"]})
    assert asked(lm).product_vision == renamed(before)
    assert lm.model != name


def test_a_model_that_is_not_there_is_said_at_once(ollama):
    with pytest.raises(Exception, match="no-such"):
        student_lm("no-such", base_url=ollama.base_url)


def test_any_openai_compatible_server_can_be_asked_and_nothing_of_it_is_cached():
    server = OpenAIChat(key=None, models=("student",), answer=lambda _: GOOD)
    with server.running() as address:
        lm = student_lm("openai_compatible:student", base_url=f"{address}/v1", num_ctx=4096)
        assert asked(lm).product_vision
        assert asked(lm).product_vision
        assert server.counts.requests == 2
        known = student_lm("openai_compatible:student", base_url=f"{address}/v1", digest="v1")
        assert (known.model, known.cache) == ("openai_compatible/student@v1", True)


def test_the_config_of_a_pipeline_names_the_student(ollama, tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"providers:\n  ollama: {{type: ollama, base_url: {ollama.base_url}}}\n"
        "roles:\n  product_owner: {provider: ollama, model: po-student, temperature: 0.3, max_tokens: 900}\n"
    )
    lm = student_lm(config=tmp_path / "config.yaml", role="product_owner")
    assert read_model_path(lm.model).model == "po-student:latest"
    assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"]) == (0.3, 900)
    assert asked(lm).product_vision


# --- without a model ------------------------------------------------------------------------------


def test_the_rules_answer_as_a_teacher():
    assert asked(student_lm("offline")).product_owner_review.startswith("summary:")


def test_a_call_that_names_no_concept_is_an_error_of_dspys():
    with pytest.raises(LMError, match="names none"):
        student_lm("offline")("hello")


def test_what_names_nothing_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="named by"):
        student_lm()
    with pytest.raises(InputError, match="0 GGUF files"):
        student_lm(tmp_path)
    with pytest.raises(PluginError, match="names no provider"):
        read_model_path("gpt-9")


def test_a_provider_that_has_to_log_in_prepares_once_and_again_where_that_failed():
    engine = ProviderEngine()
    lm = StudentLM("answers_of_dspy:Prepared/m", engine=engine, temperature=0.0, max_tokens=9, cache=False)
    with pytest.raises(LMError, match="Nobody"):
        lm("a")
    assert [lm("b"), lm("c")] == [["yes"], ["yes"]]
    assert Prepared.logins == 2


def test_the_config_says_where_a_named_models_provider_is(ollama, tmp_path):
    (tmp_path / "config.yaml").write_text(f"providers:\n  ollama: {{type: ollama, base_url: {ollama.base_url}}}\n")
    assert student_lm("po-student", config=tmp_path / "config.yaml").num_ctx == 3072
