"""An install that something breaks, fills up or kills leaves what was there answering, and the next one finishes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("ollama")
pytest.importorskip("xllamacpp")
from fakes.ollama_calls import wait_until
from fakes.ollama_models import parse_name
from fakes.ollama_server import FakeOllama, Fault
from fakes.scripted_gguf import write_scripted_gguf
from installs import ALIAS, ANSWER, NAME, ROLE, answer, finished, install, plant_old, whole_name
from po_distill.artifacts import read_manifest
from po_distill.errors import ProviderError
from po_distill.package_proof import UnprovenError
from po_distill.stages.packager import Packager
from scripted_student import scripted_student


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return scripted_student(tmp_path_factory.mktemp("models") / "po_student_v1", ANSWER, contract=ROLE.contract)


@pytest.fixture(scope="module")
def package(student):
    return Packager().package(student)


@pytest.fixture(scope="module")
def old_gguf(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("old") / "old.gguf", ["the old", " one"])


@pytest.fixture
def fake(tmp_path):
    with FakeOllama(tmp_path / "models") as server:
        yield server


# --- what breaks ----------------------------------------------------------------------------------

FAULTS = {
    "upload_cut": ("POST /api/blobs", [Fault("broken", after=100_000)]),
    "upload_lost": ("POST /api/blobs", [Fault("drop")]),
    "create_error": ("POST /api/create", [Fault("error", after=3, message="unexpected EOF")]),
    "create_cut": ("POST /api/create", [Fault("cut", after=3)]),
    "create_broken": ("POST /api/create", [Fault("broken", after=99)]),
    "show_lost": ("POST /api/show", [Fault("broken")]),
    "render_lost": ("POST /api/chat", [Fault("broken")]),
    "answer_broken": ("POST /api/chat", [None] * 4 + [Fault("broken", after=1)]),
    "copy_lost": ("POST /api/copy", [Fault("broken")]),
    "delete_lost": ("DELETE /api/delete", [Fault("broken")]),
    "alias_lost": ("POST /api/copy", [None, None, Fault("broken")]),
    "busy": ("POST /api/chat", [Fault("status", status=503, message="server busy")]),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_after_a_broken_run_the_old_alias_answers_and_the_next_run_finishes(fake, package, old_gguf, name):
    former = plant_old(fake, old_gguf)
    route, faults = FAULTS[name]
    fake.faults[route].planned += faults
    with pytest.raises(ProviderError) as caught:
        install(fake, package)
    assert not isinstance(caught.value, UnprovenError)
    assert "again" in caught.value.fix
    assert answer(fake) == (ANSWER if name == "alias_lost" else "the old one")
    finished(fake, package, former)


@pytest.mark.parametrize("room_bytes", [200_000, 450_000], ids=["upload", "create"])
def test_a_full_disk_is_told_leaves_the_old_alias_and_ends_when_there_is_room(fake, package, old_gguf, room_bytes):
    former = plant_old(fake, old_gguf)
    fake.store.room_bytes = sum(blob.stat().st_size for blob in fake.store.blobs.iterdir()) + room_bytes
    with pytest.raises(ProviderError, match="no space left") as caught:
        install(fake, package)
    assert "Free some space" in caught.value.fix
    assert fake.names() == [ALIAS]
    assert fake.seen.uploads == ({} if room_bytes == 200_000 else {package.gguf.digest: 1})
    fake.store.room_bytes = None
    finished(fake, package, former)


def test_a_restart_of_the_server_in_mid_create_leaves_the_old_alias_and_the_next_run_finishes(fake, package, old_gguf):
    former, failed = plant_old(fake, old_gguf), []
    fake.faults["POST /api/create"].planned.append(Fault("stall", after=3))

    def run():
        try:
            install(fake, package)
        except ProviderError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: fake.seen.requests["POST /api/create"] == 1)
    time.sleep(0.1)
    fake.restart()
    thread.join(10)
    assert [error.fault for error in failed] == ["unavailable"]
    assert answer(fake) == "the old one"
    finished(fake, package, former)


# --- who else is there ----------------------------------------------------------------------------


def test_another_process_that_makes_the_same_meanwhile_is_joined(fake, package, old_gguf):
    former = plant_old(fake, old_gguf)
    quicker = []
    fake.meanwhile["POST /api/create"].append(
        lambda: quicker.append(threading.Thread(target=install, args=(fake, package)))
    )
    fake.meanwhile["POST /api/create"].append(lambda: quicker[0].start())
    finished(fake, package, former)
    quicker[0].join(20)
    assert fake.names() == sorted([whole_name(package), ALIAS, f"{NAME}:kept-{former[:12]}"])


def test_a_process_that_was_quicker_and_has_cleared_up_is_no_failure(fake, package):
    unproven = parse_name(f"{whole_name(package)}-unproven")

    def be_quicker():
        fake.store.copy(unproven, parse_name(whole_name(package)))
        fake.store.remove(unproven)

    fake.meanwhile["POST /api/copy"].append(be_quicker)
    assert install(fake, package).made is False
    assert fake.names() == [whole_name(package), ALIAS]


def test_a_model_that_another_process_removes_while_it_is_proven_is_told(fake, package):
    unproven = parse_name(f"{whole_name(package)}-unproven")
    fake.meanwhile["POST /api/copy"].append(lambda: fake.store.remove(unproven))
    with pytest.raises(ProviderError, match="was removed by another process"):
        install(fake, package)
    assert install(fake, package).made is True


def test_a_tag_that_another_process_puts_there_meanwhile_is_not_written_over(fake, package, old_gguf):
    planted = []
    fake.meanwhile["POST /api/create"].append(lambda: planted.append(plant_old(fake, old_gguf, whole_name(package))))
    with pytest.raises(UnprovenError, match="is not what was packaged"):
        install(fake, package)
        install(fake, package)
    assert fake.model_digest(whole_name(package)) == planted[0]


# --- killed ---------------------------------------------------------------------------------------

# Forks a child for each line that it reads. The child installs, and kills itself before the request of that number, or
# as the piece or line of that number comes.
KILLED = """
import json, os, signal, sys
import httpx, ollama
from po_distill import ollama_server
from po_distill.stages.packager import Packager

def die_at(left, real):
    def counted(*arguments, **settings):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **settings)
    return counted

for line in sys.stdin:
    case = json.loads(line)
    child = os.fork()
    if child == 0:
        if case["what"] == "request":
            httpx.Client.send = die_at(case["number"], httpx.Client.send)
        elif case["what"] == "piece":
            ollama_server._PIECE_BYTES = 50_000
            real = ollama_server._pieces
            def pieces(path, tell):
                yield from real(path, die_at(case["number"], tell))
            ollama_server._pieces = pieces
        else:
            ollama._types.ProgressResponse.__init__ = die_at(case["number"], ollama._types.ProgressResponse.__init__)
        Packager().install(case["folder"], case["host"])
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
REQUESTS = 19  # of an install whose alias stood for something else
STEPS = [*(("request", number) for number in range(1, REQUESTS + 1)), ("piece", 2), ("line", 1), ("line", 4)]


@pytest.fixture(scope="module")
def killer(student, package):
    environment = {**os.environ, "PO_DISTILL_QUIET": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def kill(host, what, number):
            process.stdin.write(
                json.dumps({"folder": package.path, "host": host, "what": what, "number": number}) + "\n"
            )
            process.stdin.flush()
            return int(process.stdout.readline())

        yield kill
        process.stdin.close()


@pytest.mark.parametrize(("what", "number"), STEPS, ids=[f"{what}_{number}" for what, number in STEPS])
def test_killed_at_any_step_the_old_alias_answers_and_the_next_run_finishes(
    fake, package, old_gguf, killer, what, number
):
    former = plant_old(fake, old_gguf)
    assert killer(fake.base_url, what, number) == signal.SIGKILL
    assert fake.model_digest(ALIAS) == former
    assert answer(fake) == "the old one"
    finished(fake, package, former)
    assert set(fake.seen.uploads.values()) == {1}


def test_those_are_all_the_requests_that_there_are(fake, package, old_gguf, killer):
    plant_old(fake, old_gguf)
    assert killer(fake.base_url, "request", REQUESTS + 1) == 0
    assert fake.seen.requests.total() == REQUESTS
    assert read_manifest(package.path).stages.keys() == {"merge", "package"}
