"""What a killed teacher pays twice: runs ended at random moments and resumed, against a fake that counts payments.

    python benchmarks/teacher_kills.py --runs 200            # kill -9
    python benchmarks/teacher_kills.py --runs 20 --sigterm   # SIGTERM: what is in flight is awaited
    python benchmarks/teacher_kills.py --memory 100000       # memory over so many concepts, offline

Asserted in every run: every concept has one completion, and all are accepted; no journalled result was bought again;
calls paid twice are never more than were in flight; the budget holds, calls in doubt at full price; the cost log and
the journal are one sum; inputs = accepted + rejected. After SIGTERM nothing is paid twice and nothing is in doubt.

Reported beside: the calls in doubt as the resumed run tells them, and as the fake counts them (paid, and not in the
journal), and in how many runs the two numbers agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_teacher import FakeTeacher, fake_teacher, logged_nanousd, open_teacher

from po_distill.artifacts import read_records
from po_distill.calls import Limits
from po_distill.journal import Journal
from po_distill.records import Completion, Concept
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.teacher import Teacher

CONCEPTS = 60
WIDTH = 12
BUDGET_USD = 30.0


def main() -> None:
    given = _arguments()
    os.environ["PO_DISTILL_QUIET"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.memory:
            found = memory(folder, given.memory)
        else:
            with fake_teacher(folder, latency_s=0.12, latency_sigma=0.5) as fake:
                found = kills(fake, folder, given)
    if given.json:
        print(json.dumps(found))
    else:
        for title, value in found.items():
            print(f"{title:<32}{value}")


def kills(fake: FakeTeacher, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """So many runs, each ended once at a random moment and then resumed to its end."""
    chance = random.Random(given.seed)
    number = signal.SIGTERM if given.sigterm else signal.SIGKILL
    counts = {"runs": 0, "ended_in_the_middle": 0, "in_doubt_told": 0, "in_doubt_by_fake": 0, "runs_that_agree": 0}
    counts |= {"never_left": 0, "paid_twice": 0, "most_paid_twice": 0, "bought_again": 0, "calls": 0}
    for run in range(given.runs):
        one = _one_run(
            fake, folder / f"run-{run}", ProductOwnerRole().generate_concepts(CONCEPTS, 1000 + run), number, chance
        )
        counts["runs"] += 1
        counts["ended_in_the_middle"] += one["in_the_middle"]
        counts["in_doubt_told"] += one["told"]
        counts["in_doubt_by_fake"] += one["by_fake"]
        counts["runs_that_agree"] += one["told"] == one["by_fake"]
        counts["never_left"] += one["told"] - one["by_fake"]
        counts["paid_twice"] += one["paid_twice"]
        counts["most_paid_twice"] = max(counts["most_paid_twice"], one["paid_twice"])
        counts["bought_again"] += one["bought_again"]
        counts["calls"] += one["calls"]
        if given.sigterm:
            assert one["told"] == one["paid_twice"] == 0, one
    return {"signal": number.name, "width": WIDTH, "concepts_a_run": CONCEPTS, **counts}


def _one_run(
    fake: FakeTeacher, place: Path, cases: list[Concept], number: signal.Signals, chance: random.Random
) -> dict[str, Any]:
    before = fake.bill()
    child = multiprocessing.get_context("fork").Process(target=_answer, args=(fake, place, cases))
    child.start()
    time.sleep(chance.uniform(0.02, 0.9))
    os.kill(child.pid or 0, number)
    child.join()
    while fake.bill()["in_flight"]:  # what had left is answered, and billed, without us
        time.sleep(0.01)
    middle = fake.bill()
    results = _results(place)
    bought = middle["billed"] - before["billed"]
    teacher = _open(fake, place)
    summary = teacher.write(cases, place / "answers.jsonl")
    after = fake.bill()

    answered = [completion.concept.concept_id for completion in read_records(place / "answers.jsonl", Completion)]
    assert answered == [case.concept_id for case in cases]
    assert summary.accepted == summary.asked == len(cases), summary
    twice = sum(times - 1 for times in after["by_digest"].values()) - sum(t - 1 for t in before["by_digest"].values())
    by_fake = bought - len(results)
    again = sum(1 for key, sends in _sends_by_key(place).items() if key in results and sends != results[key])
    assert again == 0
    assert twice <= by_fake <= summary.in_doubt <= WIDTH, (twice, by_fake, summary)
    billed = after["nanousd"] - before["nanousd"]
    with Journal(place / "journal.sqlite") as journal:
        assert journal.integrity() == []
        charged = journal.charged_nanousd()
        known = sum(row["cost_nanousd"] or 0 for row in journal.sends())
    assert known == logged_nanousd(place)
    assert billed <= charged <= BUDGET_USD * 1e9
    if summary.in_doubt == 0:
        assert known == billed == charged
    return {
        "in_the_middle": len(results) < len(cases),
        "told": summary.in_doubt,
        "by_fake": by_fake,
        "paid_twice": twice,
        "bought_again": again,
        "calls": after["billed"] - before["billed"],
    }


def _answer(fake: FakeTeacher, place: Path, cases: list[Concept]) -> None:
    try:
        _open(fake, place).write(cases, place / "answers.jsonl")
    except KeyboardInterrupt:
        os._exit(130)


def _open(fake: FakeTeacher, place: Path) -> Teacher:
    return open_teacher(fake, place, batch_size=WIDTH, limits=Limits(budget_usd=BUDGET_USD))


def _results(place: Path) -> dict[str, int]:
    """The calls with a result, and how often each was sent."""
    sends = _sends_by_key(place)
    return {key: sends[key] for (key,) in _rows(place, "SELECT key FROM results")}


def _sends_by_key(place: Path) -> dict[str, int]:
    return dict(_rows(place, "SELECT key, count(*) FROM sends GROUP BY key"))


def _rows(place: Path, query: str) -> list[Any]:
    path = place / "journal.sqlite"
    if not path.exists():
        return []
    database = sqlite3.connect(path)
    try:
        return database.execute(query).fetchall()
    except sqlite3.OperationalError:  # killed before the tables were made
        return []
    finally:
        database.close()


# --- memory -------------------------------------------------------------------------------------


def memory(folder: Path, count: int) -> dict[str, Any]:
    """The most memory that a process held which streamed so many concepts through the offline teacher."""
    started = time.perf_counter()
    teacher = Teacher(
        provider="offline", batch_size=64, journal_path=folder / "j.sqlite", log_path=folder / "calls.log"
    )
    summary = teacher.write(_many(count), folder / "answers.jsonl")
    assert summary.asked == summary.accepted + sum(summary.rejected.values()) == count
    return {
        "concepts": count,
        "accepted": summary.accepted,
        "peak_mb": round(_peak_bytes() / 1e6, 1),
        "concepts_per_s": round(count / (time.perf_counter() - started), 1),
    }


def _peak_bytes() -> int:
    """The most that was resident. The kernel's own mark, as `ru_maxrss` outlives an exec: a child of a large process
    would show its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _many(count: int) -> Iterator[Concept]:
    """So many concepts, a few at a time."""
    role, made = ProductOwnerRole(), 0
    while made < count:
        few = min(500, count - made)
        yield from role.generate_concepts(few, 1_000_000 + made)
        made += few


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--sigterm", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
