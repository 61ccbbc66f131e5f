"""What every provider of ours does. A new one is a row of PROVIDERS, with a context manager that makes its Case."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from haiku import HaikuRole, ScriptedProvider, haiku, haiku_concept
from po_distill.errors import SettingsError
from po_distill.interfaces import Provider
from po_distill.providers.llama_cpp import LlamaCppProvider
from po_distill.providers.offline import OfflineProvider
from po_distill.providers.ollama import OllamaProvider
from po_distill.providers.openai_compatible import OpenAICompatibleProvider
from po_distill.providers.replay import ReplayProvider
from po_distill.records import GenerationSettings, ProviderSettings, ProviderTraits, Request


@dataclass(frozen=True)
class Case:
    """One provider, ready to be opened, and what may differ between providers."""

    provider: Callable[[ProviderSettings, HaikuRole], Any]
    model: str | None = None
    base_url: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    served: str | None = None  # the name in the answer, where it is not the model's
    finish: str = "stop"
    counts: bool = True  # it counts tokens
    price_factor: float = 1.0
    of_family: tuple[str, ...] = ()  # transport options that only others of its family have
    checks_options: bool = True  # False: its options are free-form

    def open(self, **more: Any) -> Provider:
        options = {**self.options, **more}
        named = ProviderSettings(provider="contract", model=self.model, base_url=self.base_url, options=options)
        return self.provider(named, HaikuRole())


@contextmanager
def offline(folder: Path) -> Iterator[Case]:
    yield Case(OfflineProvider, served="haiku-rules", counts=False)


@contextmanager
def replay(folder: Path) -> Iterator[Case]:
    rows = [
        {**haiku_concept(number).model_dump(), "model": "recorded", "response": haiku("spring", f"pond {number}")}
        for number in range(2)
    ]
    (folder / "recorded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # It has no options, and passes over those that it is given.
    yield Case(ReplayProvider, str(folder / "recorded.jsonl"), served="recorded", counts=False, checks_options=False)


@contextmanager
def scripted(folder: Path) -> Iterator[Case]:
    before = ScriptedProvider.open_now, ScriptedProvider.most_open, ScriptedProvider.busiest
    yield Case(ScriptedProvider, served="scripted", checks_options=False)
    ScriptedProvider.open_now, ScriptedProvider.most_open, ScriptedProvider.busiest = before  # it counts each aclose


@contextmanager
def openai_compatible(folder: Path) -> Iterator[Case]:
    pytest.importorskip("aiohttp")
    from fakes.openai_chat import OpenAIChat

    with OpenAIChat(key=None).running() as address:
        yield Case(OpenAICompatibleProvider, "tiny", address, {"api_key_env": None})


@contextmanager
def ollama(folder: Path) -> Iterator[Case]:
    pytest.importorskip("aiohttp")
    from fakes.ollama_chat import OllamaChat

    with OllamaChat().running() as address:
        yield Case(OllamaProvider, "po-student", address)


def echo(body: dict[str, Any]) -> str:
    """A fake Gemini's answer to any prompt, another one for each."""
    from fakes.vertex_answers import first_user_text

    return f"You said: {first_user_text(body)}"


@contextmanager
def vertex_cli(folder: Path) -> Iterator[Case]:
    pytest.importorskip("aiohttp")
    from fakes.logins import FakeGcloud
    from fakes.vertex import FakeVertex
    from po_distill.providers.vertex_cli import VertexCliProvider

    gcloud = FakeGcloud(folder / "bin")
    with FakeVertex(answer=echo) as fake, pytest.MonkeyPatch.context() as environment:
        gcloud.put_on(environment)
        gcloud.prints(fake.issue_token())
        options = {"project": "test-project"}
        yield Case(VertexCliProvider, "gemini-2.5-pro", fake.base_url, options, of_family=("credentials_path",))


@contextmanager
def vertex_sdk(folder: Path) -> Iterator[Case]:
    pytest.importorskip("aiohttp")
    pytest.importorskip("google.genai")
    from fakes.logins import service_account
    from fakes.vertex import FakeVertex
    from po_distill.providers.vertex_sdk import VertexSdkProvider

    with FakeVertex(answer=echo) as fake:
        options = {"project": "test-project", "credentials_path": str(service_account(folder / "account.json", fake))}
        yield Case(VertexSdkProvider, "gemini-2.5-pro", fake.base_url, options)


@contextmanager
def vertex_batch(folder: Path) -> Iterator[Case]:
    pytest.importorskip("aiohttp")
    pytest.importorskip("google.genai")
    pytest.importorskip("google.cloud.storage")
    from fakes.logins import service_account
    from fakes.vertex_batch import FakeBatchVertex, Knobs
    from po_distill.providers.vertex_batch import VertexBatchProvider

    with FakeBatchVertex(Knobs(answer=echo)) as fake:
        place = {"project": "test-project", "bucket": "gs://po-bucket/runs", "storage_base_url": fake.base_url}
        login = {"credentials_path": str(service_account(folder / "account.json", fake))}
        jobs = {"gather_s": 0.05, "poll_s": 0.01, "min_batch": 1}  # every request goes by a job
        options = {**place, **login, **jobs}
        yield Case(VertexBatchProvider, "gemini-2.5-flash", fake.base_url, options, price_factor=0.5)
        assert fake.jobs and not fake.calls["online"]


@contextmanager
def llama_cpp(folder: Path) -> Iterator[Case]:
    # An untrained model never ends by itself.
    yield Case(LlamaCppProvider, tiny_gguf(folder), options={"n_threads": 1}, served="tiny.gguf", finish="length")


@contextmanager
def openai_compatible_with_llama_server(folder: Path) -> Iterator[Case]:
    pytest.importorskip("aiohttp")
    settings = ProviderSettings(provider="llama_cpp", model=tiny_gguf(folder), options={"n_threads": 1})
    running = LlamaCppProvider(settings, HaikuRole())
    address = running._running_server().listening_address
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLAMA_SERVER_KEY", running._key)
        options = {"api_key_env": "LLAMA_SERVER_KEY"}
        yield Case(OpenAICompatibleProvider, settings.model, address, options, finish="length")
    asyncio.run(running.aclose())


def tiny_gguf(folder: Path) -> str:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("torch")
    from po_distill.weights.gguf import write_gguf
    from tiny_models import tiny_model

    write_gguf(tiny_model(folder / "model", max_position_embeddings=1024), folder / "tiny.gguf", "q8_0")
    return str(folder / "tiny.gguf")


PROVIDERS: dict[str, Callable[[Path], AbstractContextManager[Case]]] = {
    "offline": offline,
    "replay": replay,
    "scripted": scripted,
    "openai_compatible": openai_compatible,
    "ollama": ollama,
    "vertex_cli": vertex_cli,
    "vertex_sdk": vertex_sdk,
    "vertex_batch": vertex_batch,
    "llama_cpp": llama_cpp,
    "openai_compatible_with_llama_server": openai_compatible_with_llama_server,
}


@pytest.fixture(scope="module", params=list(PROVIDERS))
def case(request, tmp_path_factory):
    with ExitStack() as stack:
        yield stack.enter_context(PROVIDERS[request.param](tmp_path_factory.mktemp(request.param)))


def ask(number=0):
    concept = haiku_concept(number)
    generation = GenerationSettings(temperature=0, max_tokens=40)
    return Request(messages=HaikuRole().render(concept), generation=generation, concept=concept)


def answers(case, *requests):
    async def run():
        opened = case.open()
        try:
            return await asyncio.gather(*(opened.generate(request) for request in requests))
        finally:
            await opened.aclose()

    return asyncio.run(run())


def test_it_opens_outside_of_a_loop_and_is_a_provider(case):
    opened = case.open()
    assert isinstance(opened, Provider)
    asyncio.run(opened.aclose())


def test_a_good_request_gets_an_answer_with_its_model_end_and_counts(case):
    (answer,) = answers(case, ask())
    assert answer.text.strip() and answer.model == (case.served or case.model)
    assert answer.finish == case.finish and answer.price_factor == case.price_factor
    usage = answer.usage
    assert (usage.prompt_tokens > 0, usage.completion_tokens > 0) == (case.counts, case.counts)
    assert usage.thinking_tokens <= usage.completion_tokens and usage.cached_tokens <= usage.prompt_tokens
    assert 0 <= (usage.first_token_s or 0) <= usage.latency_s < 60


def test_two_requests_at_once_get_the_answers_that_they_get_alone(case):
    together = answers(case, ask(0), ask(1))
    alone = answers(case, ask(0)) + answers(case, ask(1))
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert together[0].text != together[1].text


def test_an_option_that_it_does_not_know_is_refused_by_name(case):
    if not case.checks_options:
        pytest.skip("its options are free-form")
    with pytest.raises(SettingsError, match="no_such_option"):
        case.open(no_such_option=1)


def test_closing_it_twice_is_harmless(case):
    async def run():
        opened = case.open()
        await opened.generate(ask())
        await opened.aclose()
        await opened.aclose()

    asyncio.run(run())


def test_closing_one_that_was_never_asked_is_harmless(case):
    async def run():
        opened = case.open()
        await opened.aclose()
        await opened.aclose()

    asyncio.run(run())


def test_its_traits_are_a_record_and_name_options_that_it_has(case):
    traits = getattr(case.provider, "traits", ProviderTraits())
    assert isinstance(traits, ProviderTraits)
    if case.checks_options:
        assert set(case.of_family) <= set(traits.transport_options)
        for name in traits.transport_options:
            with pytest.raises(SettingsError) as caught:  # no option is a mapping of lists
                case.open(**{name: {"a": []}})
            unknown = f"no option '{name}'" in str(caught.value)
            assert unknown == (name in case.of_family) and name in str(caught.value)
