"""Ours and bespokelabs-curator on one fake OpenAI server, with the same prompts and as many calls in flight.

    python benchmarks/teacher_peer.py --python /path/to/python    # a Python that has bespokelabs-curator

Prints one JSON object. The peer's limits are lifted and its display, telemetry and viewer are off; it also runs once
with its own defaults. Ours has journal, scoring and log on, and does not stream, as the peer does not. Each answers one
prompt before it is timed, so imports are not; that prompt is among its requests, and so is the peer's question for
rate limits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fake_teacher import ROOT, concepts

from po_distill.records import GenerationSettings
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.teacher import Teacher

ROLE = ProductOwnerRole()
MODEL = "tiny"
MAX_TOKENS = 8192
MOST_WITH_DEFAULTS = 60  # calls; its default limits make it slow by design
PEER_TIMEOUT_S = 400.0
UNLIMITED = {"max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10}


class PeerError(Exception):
    """The peer could not be run; one line."""


def main() -> None:
    given = _arguments()
    if given.serve:
        serve(given.calls, given.latency_s)
        return
    os.environ["PO_DISTILL_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as name, fake_openai(given.calls, given.latency_s) as fake:
        found = compared(fake, Path(name), given)
    print(json.dumps(found))


def compared(fake: FakeOpenAI, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The peer with its defaults, the peer with its limits lifted, and ours."""
    few = min(given.calls, MOST_WITH_DEFAULTS)
    try:
        defaults = peer(fake, folder / "defaults", given.python, few, {})
        fake.counts()
        lifted = peer(
            fake, folder / "lifted", given.python, given.calls, {**UNLIMITED, "max_concurrent_requests": given.width}
        )
    except PeerError as error:
        return {"peer": "bespokelabs-curator", "peer_error": str(error)}
    peer_counts = fake.counts()
    ours_s = ours(fake, folder / "ours", given.calls, given.width)
    ours_counts = fake.counts()
    return {
        "peer": lifted["peer"],
        "peer_defaults_requests_per_minute": few / defaults["s"] * 60,
        "peer_s": lifted["s"],
        "ours_openai_s": ours_s,
        "ratio_peer": lifted["s"] / ours_s,
        "peer_server_requests": peer_counts["requests"],
        "peer_most_in_flight": peer_counts["most_open"],
        "ours_server_requests": ours_counts["requests"],
        "ours_most_in_flight": ours_counts["most_open"],
        "calls": given.calls,
        "width": given.width,
    }


def ours(fake: FakeOpenAI, folder: Path, calls: int, width: int) -> float:
    """The seconds that our teacher takes."""

    def run(count: int, place: Path) -> float:
        cases = concepts(count)
        started = time.perf_counter()
        teacher = Teacher(
            ROLE,
            provider="openai_compatible",
            model=MODEL,
            base_url=fake.base_url,
            options={"api_key_env": None, "stream": False},
            structured=False,
            batch_size=width,
            generation=GenerationSettings(max_tokens=MAX_TOKENS),
            journal_path=place / "journal.sqlite",
            log_path=place / "calls.log",
        )
        summary = teacher.write(cases, place / "answers.jsonl")
        took_s = time.perf_counter() - started
        assert summary.accepted == count, summary
        return took_s

    run(1, folder / "first")  # what is imported or opened late is not timed
    return run(calls, folder / "timed")


def peer(fake: FakeOpenAI, folder: Path, python: str, calls: int, backend_params: dict[str, Any]) -> dict[str, Any]:
    """What peer_curator.py says of so many calls, in its own Python. Raises PeerError."""
    folder.mkdir()
    prompts = [dict(zip(("system", "user"), prompt_of(case), strict=True)) for case in concepts(calls)]
    asked = {
        "model": MODEL,
        "base_url": f"{fake.base_url}/v1",
        "backend_params": backend_params,
        "generation_params": {"temperature": 0.7, "max_tokens": MAX_TOKENS},
        "prompts": prompts,
    }
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    # Not resolved: the link is what makes it the Python of its environment.
    interpreter = str(Path(shutil.which(python) or python).absolute())
    command = [interpreter, str(ROOT / "benchmarks" / "peer_curator.py"), str(folder / "asked.json")]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=alone(folder),
            timeout=PEER_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"{type(error).__name__}: {error}"[:300]) from error
    if done.returncode != 0:
        raise PeerError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1][:300])
    said = dict(json.loads(done.stdout.splitlines()[-1]))
    if said["answers"] != calls:
        raise PeerError(f"it answered {said['answers']} of {calls} prompts")
    return said


def prompt_of(case: Any) -> list[str]:
    """What the system says and what the user asks about a concept."""
    return [message.content for message in ROLE.render(case)]


def alone(folder: Path) -> dict[str, str]:
    """An environment that has no key, keeps every file in the folder, and asks for nothing beyond the server."""
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "CURATOR_CACHE_DIR": str(folder / "cache"),
        "CURATOR_DISABLE_CACHE": "1",
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "CURATOR_VIEWER": "0",
        "TELEMETRY_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches its prices when it is imported
        "NO_PROXY": "*",
        "OPENAI_API_KEY": "sk-nobody",  # it does not start without one
    }


# --- the server, in a process of its own --------------------------------------------------------


class FakeOpenAI:
    """The server, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.base_url = str(self._line()["base_url"])

    def counts(self) -> dict[str, int]:
        """The requests that came since the last time, and how many of them were open at a time."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))


@contextmanager
def fake_openai(calls: int, latency_s: float) -> Iterator[FakeOpenAI]:
    """The server that answers so many concepts, until the block ends."""
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", "--calls", str(calls)]
    command += ["--latency-s", str(latency_s)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield FakeOpenAI(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


def serve(calls: int, latency_s: float) -> None:
    """Serve until standard input ends; each line that comes is answered with the counts since the last."""
    from fakes.openai_chat import OpenAIChat
    from fakes.serving import Counts

    answers = {prompt_of(case)[-1]: ROLE.answer_by_rules(case) for case in concepts(calls)}
    server = OpenAIChat(key=None, models=(MODEL,), answer=lambda messages: answers[messages[-1]["content"]])
    server.latency_s = latency_s
    with server.running() as base_url:
        print(json.dumps({"base_url": base_url}), flush=True)
        for _ in sys.stdin:
            counts, server.counts = server.counts, Counts()
            print(json.dumps({"requests": counts.requests, "most_open": counts.most_open}), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python that has bespokelabs-curator")
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--width", type=int, default=64, help="calls in flight")
    parser.add_argument("--latency-s", type=float, default=0.3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
