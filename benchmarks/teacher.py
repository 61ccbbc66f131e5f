"""How fast and how faithful the teacher's calls are, against a plain loop and other tools, on one machine.

    python benchmarks/teacher.py            # everything but the peer
    python benchmarks/teacher.py --json     # ratio_clean, ratio_429, ratio_quota, gave_up, ...
    python benchmarks/teacher.py --curator /path/to/python   # one with bespokelabs-curator, beside ours

Raw is aiohttp with so many calls in flight and nothing else: no journal, no scoring, no log, a refused call sent again
at once. Ours has all of them on. Both send the same requests to the same fake server, which runs in a process of its
own; runs take turns, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from fake_teacher import MODEL, PROJECT, ROOT, TOKEN, FakeTeacher, concepts, fake_teacher, logged_nanousd, open_teacher

from po_distill.guaranteed import structured_role
from po_distill.journal import Journal
from po_distill.providers.gemini import request_body
from po_distill.records import Concept, GenerationSettings, Request, TeacherSummary
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole()
BUDGET_USD = 1000.0


def main() -> None:
    given = _arguments()
    os.environ["PO_DISTILL_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {"provider": given.provider, "calls": given.calls, "width": given.width}
        with fake_teacher(folder) as fake:
            found |= throughput(fake, folder, given, share_429=0.0, name="clean")
            found |= throughput(fake, folder, given, share_429=0.1, name="429")
            found |= quota(fake, folder, given)
            found |= repair(fake, folder, given)
        if given.curator:
            found |= curator(folder, given)
    if given.json:
        print(json.dumps(found))
    else:
        for title, value in found.items():
            print(f"{title:<28}{value:.3f}" if isinstance(value, float) else f"{title:<28}{value}")


# --- throughput ---------------------------------------------------------------------------------


def throughput(
    fake: FakeTeacher, folder: Path, given: argparse.Namespace, *, share_429: float, name: str
) -> dict[str, Any]:
    """Raw and ours in turns, on the same concepts; the ratio of their speeds."""
    cases = concepts(given.calls)
    bodies = bodies_of(cases)
    fake.turn(latency_s=0.0, share_429=0.0)
    asyncio.run(raw_loop(fake, bodies, given.width))  # so that the fake has written every answer once
    fake.turn(latency_s=given.latency_s, share_429=share_429)
    raw_s, ours_s, cpu_s = [], [], []
    for turn in range(given.runs):
        started = time.perf_counter()
        asyncio.run(raw_loop(fake, bodies, given.width))
        raw_s.append(time.perf_counter() - started)
        before, cpu_before = fake.bill()["nanousd"], _cpu_s()
        place = folder / f"{name}-{turn}"
        started = time.perf_counter()
        teacher = open_teacher(fake, place, batch_size=given.width, provider=given.provider)
        summary = teacher.write(cases, place / "answers.jsonl")
        ours_s.append(time.perf_counter() - started)
        cpu_s.append(_cpu_s() - cpu_before)
        check(summary, place, fake.bill()["nanousd"] - before, len(cases))
        assert summary.accepted == len(cases), summary
    raw, ours = statistics.median(raw_s), statistics.median(ours_s)
    return {f"raw_{name}_s": raw, f"ours_{name}_s": ours, f"ours_{name}_cpu_s": min(cpu_s), f"ratio_{name}": raw / ours}


def bodies_of(cases: Sequence[Concept]) -> list[dict[str, Any]]:
    """The requests that our teacher sends about these concepts."""
    asking = structured_role(ROLE)
    assert asking is not None
    generation = GenerationSettings(max_tokens=8192, thinking=1024)
    return [
        request_body(Request(messages=asking.render(case), generation=generation, json_schema=ROLE.json_schema()))
        for case in cases
    ]


async def raw_loop(fake: FakeTeacher, bodies: Sequence[dict[str, Any]], width: int) -> None:
    """The plain loop: a session, a semaphore, and the next call."""
    url = (
        f"{fake.base_url}/v1/projects/{PROJECT}/locations/us-central1/publishers/google/models/{MODEL}:generateContent"
    )
    places = asyncio.Semaphore(width)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {TOKEN}"}) as session:

        async def one(body: dict[str, Any]) -> None:
            async with places:
                while True:
                    async with session.post(url, json=body) as response:
                        answer = await response.json()
                        if response.status == 200:
                            assert answer["candidates"]
                            return
                        assert response.status == 429, answer

        await asyncio.gather(*(one(body) for body in bodies))


# --- a quota ------------------------------------------------------------------------------------


def quota(fake: FakeTeacher, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Calls under 40 a second with bursts of 8: the time against the least that the quota allows."""
    cases, per_second, burst = concepts(given.quota_calls, seed=11), 40, 8
    fake.turn(latency_s=given.latency_s, share_429=0.0, quota_rps=per_second, quota_burst=burst)
    before = fake.bill()
    place = folder / "quota"
    started = time.perf_counter()
    teacher = open_teacher(fake, place, batch_size=given.width, provider=given.provider)
    summary = teacher.write(cases, place / "answers.jsonl")
    took_s = time.perf_counter() - started
    after = fake.bill()
    check(summary, place, after["nanousd"] - before["nanousd"], len(cases))
    fake.turn(quota_rps=0.0)
    ideal_s = (len(cases) - burst) / per_second + given.latency_s
    refused = after["statuses"].get("429", 0) - before["statuses"].get("429", 0)
    return {
        "quota_ideal_s": ideal_s,
        "quota_s": took_s,
        "quota_refused": refused,
        "ratio_quota": took_s / ideal_s,
        "gave_up": len(cases) - summary.answered,
    }


# --- a teacher that needs repair ----------------------------------------------------------------


def repair(fake: FakeTeacher, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """A teacher that cuts at 2,048 tokens, leaves REVIEW out and is weak now and then: accepted by us and by a loop.

    The loop asks once, in free text, with 2,048 tokens. Ours is shown as it is used (structured output), and in free
    text with the loop's limit, where the repair has to do all.
    """
    cases = concepts(200, seed=13)
    fake.turn(
        latency_s=0.02, share_429=0.0, cut_below=2048, thinking_tokens=900, omit_review_share=0.4, low_score_share=0.12
    )
    settings: dict[str, dict[str, Any]] = {
        "plain": {"structured": False, "regenerate": 0, "generation": GenerationSettings(max_tokens=2048)},
        "ours_free_text": {"structured": False, "generation": GenerationSettings(max_tokens=2048)},
        "ours": {},
    }
    # A loop without repair keeps a cut answer; ours would double the limit, so its limit is its cap.
    found = {}
    for name, chosen in settings.items():
        place, before = folder / f"repair-{name}", fake.bill()["nanousd"]
        if name == "plain":
            found["accepted_plain"] = plain_loop(fake, cases, given.width)
            continue
        teacher = open_teacher(fake, place, batch_size=given.width, provider=given.provider, **chosen)
        summary = teacher.write(cases, place / "answers.jsonl")
        check(summary, place, fake.bill()["nanousd"] - before, len(cases))
        found[f"accepted_{name}"] = summary.accepted / len(cases)
        found[f"sends_{name}"] = summary.sends
    fake.turn(cut_below=0, thinking_tokens=0, omit_review_share=0.0, low_score_share=0.0)
    return found


def plain_loop(fake: FakeTeacher, cases: Sequence[Concept], width: int) -> float:
    """The share of concepts that one call each, as it comes, gives a usable answer to."""
    url = (
        f"{fake.base_url}/v1/projects/{PROJECT}/locations/us-central1/publishers/google/models/{MODEL}:generateContent"
    )
    generation = GenerationSettings(max_tokens=2048)

    async def all_of_them() -> list[str]:
        places = asyncio.Semaphore(width)
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:

            async def one(case: Concept) -> str:
                body = request_body(Request(messages=ROLE.render(case), generation=generation))
                async with places, session.post(url, json=body) as response:
                    candidate = (await response.json())["candidates"][0]
                    parts = candidate.get("content", {}).get("parts", [])
                    return "".join(part["text"] for part in parts)

            return await asyncio.gather(*(one(case) for case in cases))

    scores = [ROLE.score(case, text) for case, text in zip(cases, asyncio.run(all_of_them()), strict=True)]
    # The forgiving reading is ours, not the loop's; but it would take a missing quote, so it is given that.
    return sum(score.value >= 0.85 and score.valid for score in scores) / len(cases)


# --- a peer -------------------------------------------------------------------------------------


def curator(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """bespokelabs-curator, in its own environment, and ours through openai_compatible, on one fake OpenAI server."""
    command = [sys.executable, str(ROOT / "benchmarks" / "teacher_peer.py"), "--python", given.curator]
    command += ["--calls", str(given.calls), "--width", str(given.width), "--latency-s", str(given.latency_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=900)
    if done.returncode != 0:
        raise SystemExit(f"The peer failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- what has to hold in every run --------------------------------------------------------------


def check(summary: TeacherSummary, folder: Path, billed_nanousd: int, asked: int) -> None:
    """The counts add up; log, journal and the fake's bill are one sum; the budget holds; the journal is sound."""
    assert summary.asked == asked == summary.accepted + sum(summary.rejected.values()), summary
    assert summary.asked == summary.answered + sum(summary.failed.values()), summary
    with Journal(folder / "journal.sqlite") as journal:
        assert journal.integrity() == []
        charged = journal.charged_nanousd()
    assert charged == logged_nanousd(folder) == billed_nanousd, (charged, logged_nanousd(folder), billed_nanousd)
    assert charged <= BUDGET_USD * 1e9


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--width", type=int, default=64, help="calls in flight")
    parser.add_argument("--latency-s", type=float, default=0.3)
    parser.add_argument("--runs", type=int, default=5, help="turns of raw and ours")
    parser.add_argument("--quota-calls", type=int, default=600)
    parser.add_argument("--provider", default="vertex_cli", choices=["vertex_cli", "vertex_sdk"])
    parser.add_argument("--curator", help="a Python that has bespokelabs-curator")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
