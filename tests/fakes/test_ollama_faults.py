from __future__ import annotations

import http.client
import socket
import threading
import time

import pytest

from fakes.ollama_calls import ABSENT, ask, blobs, create, digest_of, upload, wait_until
from fakes.ollama_server import FakeOllama, Fault, Knobs
from fakes.scripted_gguf import write_scripted_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("gguf") / "student.gguf", ["Hello", " from", " here."])


@pytest.fixture
def fake(tmp_path):
    with FakeOllama(tmp_path / "models") as server:
        yield server


def test_an_upload_that_is_cut_in_its_middle_leaves_nothing_and_can_be_made_again(fake, gguf):
    fake.faults["POST /api/blobs"].planned.append(Fault("broken", after=100_000))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        upload(fake, gguf)
    assert (blobs(fake), fake.seen.uploaded_bytes) == ([], 100_000)
    upload(fake, gguf)
    assert (blobs(fake), fake.seen.uploads) == ([digest_of(gguf).replace(":", "-")], {digest_of(gguf): 1})


def test_a_client_that_dies_in_mid_upload_leaves_nothing(fake):
    with socket.create_connection(("127.0.0.1", fake.port)) as connection:
        head = f"POST /api/blobs/{ABSENT} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 50_000)
        wait_until(lambda: fake.seen.uploaded_bytes == 50_000)
        assert len(blobs(fake)) == 1
    wait_until(lambda: blobs(fake) == [])


def test_a_blob_that_is_there_is_not_read_again_and_a_long_body_breaks(fake):
    digest = upload(fake, b"data")
    with socket.create_connection(("127.0.0.1", fake.port)) as connection:
        head = f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        with pytest.raises(ConnectionError):
            for _ in range(300):
                connection.sendall(b"x")
                time.sleep(0.01)


def test_an_upload_to_a_full_disk_says_so_and_leaves_nothing(fake):
    fake.store.room_bytes = 1000
    status, answer = ask(fake, "POST", f"/api/blobs/{digest_of(b'x' * 2000)}", b"x" * 2000)
    assert status == 500
    assert answer["error"].startswith(f"write {fake.store.blobs}/sha256-")
    assert answer["error"].endswith(": no space left on device")
    assert blobs(fake) == []


def test_a_model_on_a_full_disk_is_not_made(fake, gguf):
    create(fake, "old", gguf)
    fake.store.room_bytes = sum(path.stat().st_size for path in fake.store.blobs.iterdir()) + 1000
    before = blobs(fake)
    status, answer = create(fake, "new", gguf, system="x")
    assert (status, answer["error"][-24:]) == (500, " no space left on device")
    assert (fake.names(), blobs(fake)) == (["old:latest"], before)


def test_an_error_line_in_mid_stream_comes_under_http_200_and_nothing_is_made(fake, gguf):
    fake.faults["POST /api/create"].planned.append(Fault("error", after=2, message="unexpected EOF"))
    status, lines = create(fake, "m", gguf, stream=True)
    assert (status, len(lines), lines[-1]) == (200, 3, {"error": "unexpected EOF"})
    assert (fake.names(), fake.seen.creates, blobs(fake)) == ([], {}, [digest_of(gguf).replace(":", "-")])
    assert create(fake, "m", gguf)[0] == 200


@pytest.mark.parametrize("after", range(5))
def test_a_stream_of_statuses_that_breaks_ends_the_work_at_its_line(fake, gguf, after):
    fake.faults["POST /api/create"].planned.append(Fault("broken", after=after))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        create(fake, "m", gguf, stream=True)
    assert fake.names() == []


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/create", {"model": "new", "from": "old"}), ("/api/copy", {"source": "old", "destination": "new"})],
)
def test_an_answer_may_be_lost_though_the_work_was_done(fake, gguf, path, body):
    fake.plant("old", gguf)
    fake.faults[f"POST {path}"].planned.append(Fault("broken"))
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(fake, "POST", path, {**body, "stream": False})
    assert fake.names() == ["new:latest", "old:latest"]


def test_another_process_makes_the_tag_between_our_check_and_our_create(fake, gguf):
    fake.meanwhile["POST /api/create"].append(lambda: fake.plant("m:1", gguf, system="theirs"))
    assert ask(fake, "POST", "/api/show", {"model": "m:1"})[0] == 404
    assert create(fake, "m:1", gguf, system="ours")[0] == 200  # the real one says nothing either
    assert ask(fake, "POST", "/api/show", {"model": "m:1"})[1]["system"] == "ours"
    assert digest_of(b"theirs").replace(":", "-") not in blobs(fake)


def test_a_restart_keeps_the_disk_and_breaks_what_was_under_way(fake, gguf):
    create(fake, "m", gguf)
    digest, port = fake.model_digest("m"), fake.port
    with socket.create_connection(("127.0.0.1", fake.port)) as connection:
        connection.sendall(f"POST /api/blobs/{ABSENT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\nxx".encode())
        wait_until(lambda: any(len(name) != 71 for name in blobs(fake)))
        fake.restart()
        assert connection.recv(100) == b""
    assert (fake.port, fake.model_digest("m")) == (port, digest)
    assert all(len(name) == 71 for name in blobs(fake))
    assert ask(fake, "HEAD", f"/api/blobs/{digest_of(gguf)}")[0] == 200  # unused, but younger than an hour
    fake.knobs.prune_after_s = 0.0
    fake.restart()
    assert ask(fake, "HEAD", f"/api/blobs/{digest_of(gguf)}")[0] == 404
    assert ask(fake, "POST", "/api/show", {"model": "m"})[0] == 200


def test_a_create_that_a_restart_breaks_is_never_finished(fake, gguf):
    fake.faults["POST /api/create"].planned.append(Fault("stall", after=3))
    broken = []

    def run() -> None:
        try:
            create(fake, "m", gguf, stream=True)
        except (http.client.HTTPException, ConnectionError) as error:
            broken.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: fake.seen.requests["POST /api/create"] == 1)
    time.sleep(0.1)
    fake.restart()
    thread.join(5)
    assert (fake.names(), len(broken)) == ([], 1)


def test_a_slow_server_is_slow(tmp_path):
    with FakeOllama(tmp_path / "models", Knobs(latency_s=0.2)) as fake:
        started = time.monotonic()
        assert ask(fake, "GET", "/api/version") == (200, {"version": "0.33.0"})
        assert time.monotonic() - started >= 0.2
