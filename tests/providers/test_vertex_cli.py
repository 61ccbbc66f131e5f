"""Where `vertex_cli` has its tokens from; what it shares with `vertex_sdk` is in test_vertex_both.py."""

import asyncio
import sys

import pytest

pytest.importorskip("aiohttp")

from fakes.logins import FakeGcloud
from fakes.vertex import FakeVertex
from po_distill.errors import MissingExtraError, ProviderError
from po_distill.providers.vertex_cli import GcloudTokens, VertexCliProvider
from po_distill.records import Message, ProviderSettings, Request

REQUEST = Request(messages=(Message(speaker="user", content="What is it?"),))


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    made = FakeGcloud(tmp_path / "bin", takes_s=0.1)
    made.put_on(monkeypatch)
    return made


def generate(base_url):
    async def run():
        settings = ProviderSettings(
            provider="vertex_cli", model="gemini-2.5-pro", base_url=base_url, options={"project": "test-project"}
        )
        provider = VertexCliProvider(settings, None)
        try:
            return await provider.generate(REQUEST)
        finally:
            await provider.aclose()

    return asyncio.run(run())


def test_the_token_is_the_one_that_gcloud_prints(gcloud):
    with FakeVertex() as fake:
        gcloud.prints(fake.issue_token())
        assert generate(fake.base_url).finish == "stop"
    assert gcloud.calls == ["auth print-access-token"]


def test_without_gcloud_the_error_says_how_to_get_and_use_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderError, match=r"not on PATH.*gcloud auth login") as caught:
        generate("http://127.0.0.1:9")
    assert caught.value.fault == "refused"


def test_a_gcloud_that_fails_is_quoted_and_followed_by_the_login_command(gcloud):
    gcloud.fails("ERROR: (gcloud.auth) You do not currently have an active account selected.")
    with pytest.raises(ProviderError, match="active account") as caught:
        generate("http://127.0.0.1:9")
    assert (caught.value.fault, caught.value.fix) == ("refused", "Run: gcloud auth login")


@pytest.mark.parametrize("printed", ["", "two words", "a\r\nX-Header: 1", "tökén"])
def test_what_is_no_token_is_refused_and_not_shown(gcloud, printed):
    gcloud.prints(printed)
    with pytest.raises(ProviderError, match="no access token") as caught:
        generate("http://127.0.0.1:9")
    assert caught.value.fault == "refused" and (not printed or printed not in str(caught.value))


def test_a_token_is_used_for_45_minutes_and_then_replaced(gcloud):
    async def run():
        now = [0.0]
        tokens = GcloudTokens(clock=lambda: now[0])
        found = []
        for printed, time_s in (("first", 0.0), ("second", 44 * 60), ("third", 46 * 60), ("fourth", 90 * 60)):
            now[0] = time_s
            gcloud.prints(printed)
            found.append(await tokens.token())
        return found

    assert asyncio.run(run()) == ["first", "first", "third", "third"]


def test_a_caller_that_is_cancelled_neither_ends_nor_repeats_what_the_others_wait_for(gcloud):
    async def run():
        gcloud.prints("token")
        tokens = GcloudTokens()
        first = asyncio.create_task(tokens.token())
        await asyncio.sleep(0.02)
        others = [asyncio.create_task(tokens.token()) for _ in range(5)]
        first.cancel()
        return await asyncio.gather(*others)

    assert asyncio.run(run()) == ["token"] * 5
    assert len(gcloud.calls) == 1


def test_after_a_failure_gcloud_is_asked_again(gcloud):
    async def run():
        tokens = GcloudTokens()
        gcloud.fails("no network")
        with pytest.raises(ProviderError):
            await tokens.token()
        (gcloud.folder / "error").unlink()
        gcloud.prints("token")
        return await tokens.token()

    assert asyncio.run(run()) == "token"


def test_without_aiohttp_the_error_names_the_extra(gcloud, monkeypatch):
    gcloud.prints("token")
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtraError, match=r"po-distill\[vertex\]"):
        generate("http://127.0.0.1:9")
