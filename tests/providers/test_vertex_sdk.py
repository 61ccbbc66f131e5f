"""Credentials and the client of google-genai; what `vertex_sdk` shares with `vertex_cli` is in test_vertex_both.py."""

import asyncio
import json
import sys

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("google.genai")

from google import genai

from fakes.logins import EMAIL, authorized_user, service_account
from fakes.vertex import FakeVertex, Knobs
from po_distill.errors import MissingExtraError, ProviderError, SettingsError
from po_distill.providers.vertex_sdk import VertexSdkProvider
from po_distill.records import GenerationSettings, Message, ProviderSettings, Request

REQUEST = Request(messages=(Message(speaker="user", content="What is it?"),))


def provider(base_url, path=None, model="gemini-2.5-pro"):
    options = {"project": "test-project", **({"credentials_path": str(path)} if path else {})}
    settings = ProviderSettings(provider="vertex_sdk", model=model, base_url=base_url, options=options)
    return VertexSdkProvider(settings, None)


def generate(opened, *requests):
    async def run():
        try:
            return await asyncio.gather(*map(opened.generate, requests or (REQUEST,)))
        finally:
            await opened.aclose()

    return asyncio.run(run())


def test_a_user_s_credentials_file_logs_in(tmp_path, monkeypatch):
    with FakeVertex() as fake:
        path = authorized_user(tmp_path / "user.json", fake, monkeypatch)
        (response,) = generate(provider(fake.base_url, path))
    assert response.finish == "stop" and fake.tokens.grants == 1


def test_application_default_credentials_are_used_where_no_file_is_named(tmp_path, monkeypatch):
    with FakeVertex() as fake:
        path = service_account(tmp_path / "account.json", fake)
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        (response,) = generate(provider(fake.base_url))
    assert response.finish == "stop" and fake.tokens.grants == 1


def test_without_any_credentials_the_error_names_the_login_command(tmp_path, monkeypatch):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderError, match="gcloud auth application-default login") as caught:
        generate(provider("http://127.0.0.1:9"))
    assert caught.value.fault == "refused"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "no credentials that can be read"),
        ("[]", "no credentials that can be read"),
        ('{"type": "service_account", "client_email": "x"}', "no credentials that can be read"),
        ('{"type": "service_account", "client_email": "x", "private_key": "SECRET", "token_uri": "x"}', "can be read"),
        ('{"type": "authorized_user"}', "no credentials that can be read"),
        ('{"type": "external_account", "credential_source": {"executable": {"command": "sh"}}}', "external_account"),
    ],
)
def test_a_file_without_usable_credentials_is_refused_by_path(tmp_path, text, words):
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(ProviderError, match=words) as caught:
        generate(provider("http://127.0.0.1:9", path))
    assert caught.value.fault == "refused" and str(path) in caught.value.problem and "SECRET" not in str(caught.value)


def test_a_credentials_file_that_is_not_there_is_refused_on_opening(tmp_path):
    with pytest.raises(SettingsError, match="credentials_path"):
        provider("http://127.0.0.1:9", tmp_path / "none.json")


def test_credentials_that_google_no_longer_takes_are_refused(tmp_path):
    with FakeVertex() as fake:
        path = service_account(tmp_path / "account.json", fake)
        del fake.tokens.service_accounts[EMAIL]
        with pytest.raises(ProviderError, match="invalid_grant") as caught:
            generate(provider(fake.base_url, path))
    assert caught.value.fault == "refused" and "application-default login" in caught.value.fix


def test_a_token_endpoint_that_cannot_be_reached_is_unavailable_and_nothing_was_sent(tmp_path):
    with FakeVertex() as fake:
        path = service_account(tmp_path / "account.json", fake)
        info = json.loads(path.read_text())
        path.write_text(json.dumps({**info, "token_uri": "http://127.0.0.1:9/token"}))
        with pytest.raises(ProviderError, match="no access token") as caught:
            generate(provider(fake.base_url, path))
        assert fake.bill()["calls"] == 0
    assert (caught.value.fault, caught.value.doubtful) == ("unavailable", False)


def test_a_token_that_is_about_to_expire_is_replaced_before_it_is_refused(tmp_path):
    async def run(opened):
        await opened.generate(REQUEST)
        await opened.generate(REQUEST)
        await opened.aclose()

    with FakeVertex(Knobs(token_lifetime_s=100.0)) as fake:  # google-auth replaces tokens 225 s before their end
        asyncio.run(run(provider(fake.base_url, service_account(tmp_path / "account.json", fake))))
        assert fake.bill()["statuses"] == {"200": 2}
        assert fake.tokens.grants >= 2


def test_a_run_opens_one_client_whose_calls_go_through_aiohttp(tmp_path, monkeypatch):
    httpx = pytest.importorskip("httpx")
    opened = []

    class CountedClient(genai.Client):
        def __init__(self, **arguments):
            opened.append(arguments)
            super().__init__(**arguments)

    def no_httpx(*_, **__):
        raise AssertionError("httpx was asked")

    monkeypatch.setattr(genai, "Client", CountedClient)
    monkeypatch.setattr(httpx.AsyncClient, "send", no_httpx)
    with FakeVertex() as fake:
        path = service_account(tmp_path / "account.json", fake)
        assert len(generate(provider(fake.base_url, path), *[REQUEST] * 5)) == 5
    assert len(opened) == 1 and opened[0]["http_options"].timeout == 600_000


def test_a_thinking_level_that_the_sdk_does_not_know_is_refused_with_those_it_knows(tmp_path):
    request = Request(messages=REQUEST.messages, generation=GenerationSettings(thinking="gigantic"))
    with FakeVertex() as fake:
        opened = provider(fake.base_url, service_account(tmp_path / "account.json", fake), "gemini-3.8-flash")
        with pytest.raises(ProviderError, match=r"GIGANTIC.*LOW") as caught:
            generate(opened, request)
        assert caught.value.fault == "refused" and fake.bill()["calls"] == 0


@pytest.mark.parametrize("missing", ["google.genai", "aiohttp"])
def test_without_its_packages_the_error_names_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "google.genai":
        monkeypatch.delattr(sys.modules["google"], "genai", raising=False)
    with pytest.raises(MissingExtraError, match=r"po-distill\[vertex\]"):
        generate(provider("http://127.0.0.1:9"))
