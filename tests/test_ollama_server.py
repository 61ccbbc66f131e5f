"""The client of an Ollama server: what it sends, what it makes of errors, and how little it holds in memory."""

from __future__ import annotations

import builtins
import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("ollama")
pytest.importorskip("xllamacpp")
from fakes.ollama_calls import TEMPLATE, blobs, digest_of
from fakes.ollama_server import FakeOllama, Fault
from fakes.scripted_gguf import write_scripted_gguf
from po_distill.errors import InputError, MissingExtraError, ProviderError, SettingsError
from po_distill.ollama_server import MissingModelError, OllamaServer

HI = [{"role": "user", "content": "hi"}]
PARAMETERS = {"num_ctx": 256, "num_predict": 16, "temperature": 0.4, "stop": ["<|im_end|>", 'a "b"\n']}
MOST_BYTES = 100 * 10**6
UPLOAD_BYTES = int(os.environ.get("PO_DISTILL_TEST_UPLOAD_BYTES", 2**30))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("gguf") / "student.gguf", ["Hello", " from", " here."])


@pytest.fixture
def fake(tmp_path, monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    with FakeOllama(tmp_path / "models") as server:
        yield server


@pytest.fixture
def server(fake):
    return OllamaServer(fake.base_url)


def make(server, gguf, name="m:1", **changes):
    server.upload(gguf, digest_of(gguf))
    given = {"template": TEMPLATE, "system": "Be good.", "parameters": PARAMETERS, "license": "MIT", **changes}
    server.create(name, {gguf.name: digest_of(gguf)}, **given)


# --- what it does ---------------------------------------------------------------------------------


def test_a_model_is_made_of_exactly_what_is_given(fake, server, gguf):
    make(server, gguf)
    body = next(body for route, body in fake.seen.bodies if route == "POST /api/create")
    assert body == {
        "model": "m:1", "files": {"student.gguf": digest_of(gguf)}, "template": TEMPLATE, "system": "Be good.",
        "parameters": PARAMETERS, "license": "MIT", "stream": True,
    }  # fmt: skip
    shown = server.show("m:1")
    assert (shown["template"], shown["system"], shown["license"]) == (TEMPLATE, "Be good.", "MIT")


def test_a_file_that_is_there_is_not_sent_again(fake, server, gguf):
    assert server.upload(gguf, digest_of(gguf)) is True
    assert server.upload(gguf, digest_of(gguf)) is False
    assert fake.seen.requests == {"HEAD /api/blobs": 2, "POST /api/blobs": 1}
    assert fake.seen.uploads == {digest_of(gguf): 1}


def test_a_name_is_found_in_any_case_copied_and_removed(fake, server, gguf):
    make(server, gguf, "PO-Student:1")
    found = server.find("po-student:1")
    assert (found.name, found.digest, found.quantization) == ("PO-Student:1", fake.model_digest("PO-Student:1"), "F16")
    assert found.size_bytes > gguf.stat().st_size
    server.copy("PO-Student:1", "other")
    assert {model.name for model in server.models()} == {"PO-Student:1", "other:latest"}  # listed by the second made
    server.delete("other")
    assert fake.names() == ["PO-Student:1"]
    assert server.find("other") is None


def test_a_prompt_is_rendered_and_a_chat_is_answered(server, gguf):
    make(server, gguf)
    assert server.render("m:1", HI) == (
        "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    spoken = server.chat("m:1", HI, temperature=0.0)
    assert (spoken.text, spoken.done_reason, spoken.answer_tokens) == ("Hello from here.", "stop", 4)
    assert spoken.prompt_tokens > 20 and spoken.latency_s > 0
    assert server.chat("m:1", HI, num_predict=2).done_reason == "length"


def test_the_server_is_the_given_one_else_ollama_hosts_else_this_machines(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "gpu:7")
    assert OllamaServer("https://other").url == "https://other:443"
    assert OllamaServer().url == "http://gpu:7"
    monkeypatch.delenv("OLLAMA_HOST")
    assert OllamaServer().url == "http://127.0.0.1:11434"
    with pytest.raises(SettingsError, match="--host") as caught:
        OllamaServer("http://user:secret@host")
    assert "secret" not in str(caught.value)


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(fake, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = OllamaServer(fake.base_url)
    assert (server.models(), server.has_blob("sha256:" + "0" * 64)) == ([], False)


def test_without_the_client_the_error_says_which_extra_brings_it(monkeypatch):
    found = builtins.__import__

    def refuse(name, *rest, **more):
        if name in ("ollama", "httpx"):
            raise ImportError(name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"po-distill\[ollama\]"):
        OllamaServer()


# --- uploads --------------------------------------------------------------------------------------


def test_an_upload_says_how_long_it_is(tmp_path):
    heads = []

    def serve(listening):
        for answer in (b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.1 201 Created\r\n"):
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                head = b"".join(iter(lines.readline, b"\r\n")).decode().lower()
                heads.append(head)
                lines.read(300_000 if "post" in head else 0)
                connection.sendall(answer + b"Content-Length: 0\r\nConnection: close\r\n\r\n")

    (tmp_path / "f").write_bytes(b"x" * 300_000)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        assert OllamaServer(f"http://127.0.0.1:{listening.getsockname()[1]}").upload(tmp_path / "f", "sha256:1")
        thread.join()
    assert "content-length: 300000" in heads[1] and "transfer-encoding" not in heads[1]


_UPLOADING = """
import sys
from pathlib import Path
from po_distill.stages.packager import Packager
from po_distill.ollama_server import OllamaServer
OllamaServer(sys.argv[1]).upload(Path(sys.argv[2]), sys.argv[3])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_an_upload_of_a_large_file_is_never_held_in_memory(fake, tmp_path):
    path, piece, whole = tmp_path / "large.gguf", bytes(2**20), hashlib.sha256()
    with path.open("wb") as file:
        file.truncate(UPLOAD_BYTES)
    for _ in range(UPLOAD_BYTES // 2**20):
        whole.update(piece)
    digest = f"sha256:{whole.hexdigest()}"
    command = [sys.executable, "-c", _UPLOADING, fake.base_url, str(path), digest]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert fake.seen.uploads == {digest: 1}
    fake.store.blob_path(digest).unlink()  # pytest keeps the folder
    assert int(result.stdout) * 1024 < MOST_BYTES, result.stdout
    assert "upload large.gguf" in result.stderr


def test_an_upload_that_breaks_is_an_error_and_can_be_made_again(fake, server, gguf):
    fake.faults["POST /api/blobs"].planned.append(Fault("broken", after=100_000))
    with pytest.raises(ProviderError, match=r"broke over the file student\.gguf") as caught:
        server.upload(gguf, digest_of(gguf))
    assert (caught.value.fault, blobs(fake)) == ("unavailable", [])
    assert server.upload(gguf, digest_of(gguf)) is True


def test_an_upload_whose_answer_alone_is_lost_is_done(fake, server, gguf):
    fake.faults["POST /api/blobs"].planned.append(Fault("broken", after=10**9))
    assert server.upload(gguf, digest_of(gguf)) is True
    assert fake.seen.uploads == {digest_of(gguf): 1}


def test_a_full_disk_there_is_told_as_such(fake, server, gguf):
    fake.store.room_bytes = 1000
    with pytest.raises(ProviderError, match="no space left on device") as caught:
        server.upload(gguf, digest_of(gguf))
    assert "Free some space" in caught.value.fix


def test_a_file_that_was_changed_is_refused_by_the_server(server, gguf):
    with pytest.raises(ProviderError, match="digest mismatch") as caught:
        server.upload(gguf, "sha256:" + "0" * 64)
    assert "package it again" in caught.value.fix


def test_a_file_that_is_gone_is_named(server, tmp_path):
    with pytest.raises(InputError, match=r"gone\.gguf cannot be read"):
        server.upload(tmp_path / "gone.gguf", "sha256:" + "0" * 64)


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_error_line_under_status_200_is_an_error(fake, server, gguf):
    fake.faults["POST /api/create"].planned.append(Fault("error", after=2, message="unexpected EOF"))
    with pytest.raises(ProviderError, match=r"broke off over the model m:1: unexpected EOF") as caught:
        make(server, gguf)
    assert (caught.value.fault, fake.names()) == ("refused", [])


def test_a_stream_that_ends_without_success_is_an_error(fake, server, gguf):
    fake.faults["POST /api/create"].planned.append(Fault("cut", after=3))
    with pytest.raises(ProviderError, match="the last that it said was"):
        make(server, gguf)


def test_a_chat_that_ends_before_it_is_done_is_an_error(fake, server, gguf):
    make(server, gguf)
    fake.faults["POST /api/chat"].planned += [Fault("cut", after=1), Fault("cut", after=0)]
    for _ in range(2):
        with pytest.raises(ProviderError, match="in the middle of m:1's answer"):
            server.chat("m:1", HI)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda server: server.show("no"), "what no is made of"),
        (lambda server: server.copy("no", "x"), "the name x"),
        (lambda server: server.delete("no"), "the removal of no"),
        (lambda server: server.render("no", HI), "the prompt of no"),
        (lambda server: server.chat("no", HI), "the answer of no"),
    ],
)
def test_what_is_not_there_is_told_by_an_error_of_its_own(server, ask, message):
    with pytest.raises(MissingModelError, match=message):
        ask(server)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault("status", status=500, message="runner failed"), "refused", "runner failed"),
        (Fault("status", status=503, message="busy"), "unavailable", "busy"),
        (Fault("html"), "unavailable", "is not what Ollama answers"),
        (Fault("drop"), "unavailable", "broke over"),
        (Fault("truncated"), "unavailable", "is not what Ollama answers"),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
@pytest.mark.parametrize("route", ["GET /api/tags", "POST /api/show"])
def test_each_way_to_fail_is_one_of_our_errors(fake, server, gguf, route, fault, kind, message):
    make(server, gguf)
    fake.faults[route].planned.append(fault)
    with pytest.raises(ProviderError, match=message) as caught:
        server.models() if route == "GET /api/tags" else server.show("m:1")
    assert caught.value.fault == kind


def test_a_server_that_is_silent_is_an_error(fake, gguf):
    make(OllamaServer(fake.base_url), gguf)
    server = OllamaServer(fake.base_url, timeout_s=0.2)
    fake.faults["POST /api/show"].planned.append(Fault("hang"))
    with pytest.raises(ProviderError, match="silent for too long over what m:1 is made of") as caught:
        server.show("m:1")
    assert caught.value.fault == "timeout"


def test_no_server_is_an_error_that_says_how_to_start_one(fake):
    server = OllamaServer(fake.base_url)
    fake.stop()
    try:
        for ask in (server.models, lambda: server.show("m"), lambda: server.chat("m", HI)):
            with pytest.raises(ProviderError, match="No Ollama server answers at") as caught:
                ask()
            assert "ollama serve" in caught.value.fix
    finally:
        fake.start()


def test_a_server_that_does_not_show_its_prompts_is_told_to_be_too_old(fake, server, gguf, monkeypatch):
    make(server, gguf)
    monkeypatch.setattr(server, "_posted", lambda *_: {"message": {"content": "I answered."}})
    with pytest.raises(ProviderError, match="does not show the prompts"):
        server.render("m:1", HI)
