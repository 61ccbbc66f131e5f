"""Every provider of ours keeps the contract of `po_distill.testing`. A new one is a row of PROVIDERS."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from haiku import HaikuRole, ScriptedProvider, haiku, haiku_concept
from po_distill.providers.llama_cpp import LlamaCppProvider
from po_distill.providers.offline import OfflineProvider
from po_distill.providers.ollama import OllamaProvider
from po_distill.providers.openai_compatible import OpenAICompatibleProvider
from po_distill.providers.replay import ReplayProvider
from po_distill.records import ProviderSettings
from po_distill.testing import ProviderCase, ProviderContract


def contract(provider: Callable[[ProviderSettings, Any], Any], model: str | None = None, **more: Any) -> ProviderCase:
    """A provider that answers about haikus."""
    return ProviderCase(provider, model, role=HaikuRole(), concepts=(haiku_concept(0), haiku_concept(1)), **more)


@contextmanager
def offline(folder: Path) -> Iterator[ProviderCase]:
    yield contract(OfflineProvider, served="haiku-rules", counts=False)


@contextmanager
def replay(folder: Path) -> Iterator[ProviderCase]:
    rows = [
        {**haiku_concept(number).model_dump(), "model": "recorded", "response": haiku("spring", f"pond {number}")}
        for number in range(2)
    ]
    (folder / "recorded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # It has no options, and passes over those that it is given.
    yield contract(
        ReplayProvider, str(folder / "recorded.jsonl"), served="recorded", counts=False, checks_options=False
    )


@contextmanager
def scripted(folder: Path) -> Iterator[ProviderCase]:
    before = ScriptedProvider.open_now, ScriptedProvider.most_open, ScriptedProvider.busiest
    yield contract(ScriptedProvider, served="scripted", checks_options=False)
    ScriptedProvider.open_now, ScriptedProvider.most_open, ScriptedProvider.busiest = before  # it counts each aclose


@contextmanager
def openai_compatible(folder: Path) -> Iterator[ProviderCase]:
    pytest.importorskip("aiohttp")
    from fakes.openai_chat import OpenAIChat

    with OpenAIChat(key=None).running() as address:
        yield contract(OpenAICompatibleProvider, "tiny", base_url=address, options={"api_key_env": None})


@contextmanager
def ollama(folder: Path) -> Iterator[ProviderCase]:
    pytest.importorskip("aiohttp")
    from fakes.ollama_chat import OllamaChat

    with OllamaChat().running() as address:
        yield contract(OllamaProvider, "po-student", base_url=address)


def echo(body: dict[str, Any]) -> str:
    """A fake Gemini's answer to any prompt, another one for each."""
    from fakes.vertex_answers import first_user_text

    return f"You said: {first_user_text(body)}"


@contextmanager
def vertex_cli(folder: Path) -> Iterator[ProviderCase]:
    pytest.importorskip("aiohttp")
    from fakes.logins import FakeGcloud
    from fakes.vertex import FakeVertex
    from po_distill.providers.vertex_cli import VertexCliProvider

    gcloud = FakeGcloud(folder / "bin")
    with FakeVertex(answer=echo) as fake, pytest.MonkeyPatch.context() as environment:
        gcloud.put_on(environment)
        gcloud.prints(fake.issue_token())
        own = {"base_url": fake.base_url, "options": {"project": "test-project"}}
        yield contract(VertexCliProvider, "gemini-2.5-pro", **own, of_family=("credentials_path",))


@contextmanager
def vertex_sdk(folder: Path) -> Iterator[ProviderCase]:
    pytest.importorskip("aiohttp")
    pytest.importorskip("google.genai")
    from fakes.logins import service_account
    from fakes.vertex import FakeVertex
    from po_distill.providers.vertex_sdk import VertexSdkProvider

    with FakeVertex(answer=echo) as fake:
        options = {"project": "test-project", "credentials_path": str(service_account(folder / "account.json", fake))}
        yield contract(VertexSdkProvider, "gemini-2.5-pro", base_url=fake.base_url, options=options)


@contextmanager
def vertex_batch(folder: Path) -> Iterator[ProviderCase]:
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
        own = {"base_url": fake.base_url, "options": options}
        yield contract(VertexBatchProvider, "gemini-2.5-flash", **own, price_factor=0.5)
        assert fake.jobs and not fake.calls["online"]


@contextmanager
def llama_cpp(folder: Path) -> Iterator[ProviderCase]:
    # An untrained model never ends by itself.
    yield contract(LlamaCppProvider, tiny_gguf(folder), options={"n_threads": 1}, served="tiny.gguf", finish="length")


@contextmanager
def openai_compatible_with_llama_server(folder: Path) -> Iterator[ProviderCase]:
    pytest.importorskip("aiohttp")
    settings = ProviderSettings(provider="llama_cpp", model=tiny_gguf(folder), options={"n_threads": 1})
    running = LlamaCppProvider(settings, HaikuRole())
    address = running._running_server().listening_address
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LLAMA_SERVER_KEY", running._key)
        options = {"api_key_env": "LLAMA_SERVER_KEY"}
        yield contract(OpenAICompatibleProvider, settings.model, base_url=address, options=options, finish="length")
    asyncio.run(running.aclose())


def tiny_gguf(folder: Path) -> str:
    pytest.importorskip("xllamacpp")
    pytest.importorskip("torch")
    from po_distill.weights.gguf import write_gguf
    from tiny_models import tiny_model

    write_gguf(tiny_model(folder / "model", max_position_embeddings=1024), folder / "tiny.gguf", "q8_0")
    return str(folder / "tiny.gguf")


PROVIDERS: dict[str, Callable[[Path], AbstractContextManager[ProviderCase]]] = {
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


class TestProviders(ProviderContract):
    @pytest.fixture(scope="module", params=list(PROVIDERS))
    def case(self, request, tmp_path_factory):
        with ExitStack() as stack:
            yield stack.enter_context(PROVIDERS[request.param](tmp_path_factory.mktemp(request.param)))
