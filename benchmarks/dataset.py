"""How fast the dataset doctor and the builder are, and in how much memory, beside plain `datasets` on one machine.

    python benchmarks/dataset.py                  # a million rows: some 25 GB of disk, and the better part of an hour
    python benchmarks/dataset.py --rows 20000     # a minute
    python benchmarks/dataset.py --json           # rows_per_second, ratio_floor, peak_gib, ...

The rows are made up: concepts of the role's generator and answers of its rules, with other words in every row, and a
known number of defects in every hundred. Ours is `DatasetDoctor.check` and `DatasetBuilder.build_from` on all
processors. The floor is what people write without us: `load_dataset("json")`, map (lengths of the texts), filter, exact
dedup by a set of digests, written as JSONL; it reads no YAML, scores nothing and knows no near duplicates.

`rows_per_second` counts check and build together: rows / (check_s + build_s). `ratio_floor` is that as a share of the
floor's own rows per second. `peak_gib` is the larger of check and build: the sum, over the process and its workers, of
the most that each held. Asserted in every run: rows = accepted + rejected, and each defect is found as often as it was
planted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from po_distill.progress import is_quiet, progress
from po_distill.records import Concept
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.vocabulary import AUDIENCES, FEATURES, PRODUCTS, REGIONS

LIMIT_GIB = 2.0
PATTERNS = 360  # concepts that rows are made of, with other words each time
# What stands at these places of every hundred rows; the first three repeat the row before them.
PLANTED = {7: "duplicate", 23: "contradiction", 73: "near", 41: "cut", 59: "wrong_status"}


def main() -> None:
    given = _arguments()
    if given.part:
        print(json.dumps(PARTS[given.part](Path(given.folder))))
        return
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        found = measure(Path(name), given.rows)
    if given.json:
        print(json.dumps(found))
    else:
        for title, value in found.items():
            print(f"{title:<28}{value:,.3f}" if isinstance(value, float) else f"{title:<28}{value}")


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """All three, one after the other, each in a process of its own."""
    planted = write_rows(folder / "rows.jsonl", rows)
    floor, check, build = (run_part(name, folder) for name in ("floor", "check", "build"))
    assert_found(rows, planted, check, build)
    ours, plain = rows / (check["took_s"] + build["took_s"]), rows / floor["took_s"]
    peak = max(check["peak_gib"], build["peak_gib"])
    return {
        "rows": rows,
        "processors": len(os.sched_getaffinity(0)),
        "file_gib": (folder / "rows.jsonl").stat().st_size / 2**30,
        "rows_per_second": ours,
        "check_rows_per_second": rows / check["took_s"],
        "build_rows_per_second": rows / build["took_s"],
        "floor_rows_per_second": plain,
        "ratio_floor": ours / plain,
        "peak_gib": peak,
        "check_peak_gib": check["peak_gib"],
        "build_peak_gib": build["peak_gib"],
        "floor_peak_gib": floor["peak_gib"],
        "limit_gib": LIMIT_GIB,
        "within_limit": peak <= LIMIT_GIB,
        **{f"planted_{name}": count for name, count in planted.items()},
    }


def assert_found(rows: int, planted: dict[str, int], check: dict[str, Any], build: dict[str, Any]) -> None:
    """Nothing is lost, and everything that was planted is found."""
    unreadable = {"missing_review": planted["cut"], "status_outside_enum": planted["wrong_status"]}
    unreadable = {name: count for name, count in unreadable.items() if count}
    assert rows == check["rows"] == check["accepted"] + sum(check["rejected"].values()), check
    assert check["rejected"] == unreadable, check
    assert check["distinct_prompts"] == rows - planted["duplicate"] - planted["contradiction"], check
    assert check["exact_duplicate_rows"] == planted["duplicate"], check
    assert check["contradictory_prompts"] == planted["contradiction"], check
    assert check["near_duplicate_rows"] == planted["near"], check
    assert rows == build["inputs"] == build["kept"] + sum(build["rejected"].values()), build
    repeats = {
        "duplicate": "duplicate_prompt",
        "contradiction": "contradictory_prompt",
        "near": "near_duplicate_prompt",
    }
    expected = unreadable | {reason: planted[kind] for kind, reason in repeats.items() if planted[kind]}
    assert build["rejected"] == expected, (build["rejected"], expected)
    assert check["left"] == build["kept"], (check["left"], build["kept"])


# --- the rows -----------------------------------------------------------------------------------


def write_rows(path: Path, count: int) -> dict[str, int]:
    """Write so many rows, one at a time; how many of each defect there are."""
    planted: Counter[str] = Counter(dict.fromkeys(PLANTED.values(), 0))
    with path.open("w", encoding="utf-8") as file, progress("Making rows up", count, "rows") as advance:
        for number, (row, defect) in enumerate(made_up(count)):
            planted.update([defect] if defect else [])
            file.write(row)
            if number % 100 == 99:
                advance(100)
    return dict(planted)


def made_up(count: int) -> Iterator[tuple[str, str | None]]:
    """(line, the defect in it) of each row; equal counts give equal rows."""
    patterns, chance = (
        [Pattern(concept) for concept in ProductOwnerRole().generate_concepts(PATTERNS, 1)],
        random.Random(1),
    )
    pattern, words = patterns[0], patterns[0].words(chance)
    for number in range(count):
        defect = PLANTED.get(number % 100)
        if defect not in ("duplicate", "contradiction", "near"):
            pattern = patterns[number % len(patterns)]
            words = pattern.words(chance)
        yield pattern.line(defect or "sound", number, words), defect


_PHRASE = re.compile(
    "|".join(sorted(map(re.escape, (*PRODUCTS, *AUDIENCES, *REGIONS, *FEATURES)), key=len, reverse=True))
)
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ar", "en", "il", "on", "um")]


class Pattern:
    """A concept and the answers to it, with places for other words."""

    def __init__(self, concept: Concept) -> None:
        role = ProductOwnerRole()
        text = role.answer_by_rules(concept)
        opposite = self._opposite(role, concept, text)
        for answer in (text, opposite):
            score = role.score(concept, answer)
            assert score.value >= 0.85 and not score.violations, score
        texts = {
            "sound": text,
            "duplicate": text,
            "near": text,
            "contradiction": opposite,
            "cut": text[: text.index("```yaml REVIEW")],
            "wrong_status": re.sub('(?m)^status: ".*"', 'status: "conflicts"', text),
        }
        self._phrases: list[str] = sorted({match[0] for match in _PHRASE.finditer(concept.concept + text)})
        self._lines = {kind: self._cut_up(self._row(concept, kind, answer)) for kind, answer in texts.items()}

    def words(self, chance: random.Random) -> list[str]:
        """Invented words for the phrases of the concept."""
        return [
            f"{''.join(chance.choices(_SYLLABLES, k=3))} {''.join(chance.choices(_SYLLABLES, k=3))}"
            for _ in self._phrases
        ]

    def line(self, kind: str, number: int, words: list[str]) -> str:
        """A row as JSON, with its line end."""
        filled = [*words, f"{number:07d}"]
        return "".join(piece if isinstance(piece, str) else filled[piece] for piece in self._lines[kind])

    @staticmethod
    def _opposite(role: ProductOwnerRole, concept: Concept, text: str) -> str:
        """An answer of another class that passes the gate as well."""
        documents = role.normalised(role.parse(text).documents)
        review = documents["product_owner_review"]
        aligned = review["status"] == "aligned"
        review["status"] = "needs_adjustment" if aligned else "aligned"
        gaps = ["No requirement for a yearly review"] if aligned else []
        review["requirements_alignment"] = {**review["requirements_alignment"], "gaps": gaps, "conflicts": []}
        return role.canonical(documents)

    @staticmethod
    def _row(concept: Concept, kind: str, text: str) -> str:
        row = {
            "concept_id": "MADE-UP-#number#",
            "concept": concept.concept,
            "requirements_yaml": concept.requirements_yaml + ("# seen\n" if kind == "near" else ""),
            "response": text,
            "score": 0.9,
        }
        return json.dumps(row, ensure_ascii=False) + "\n"

    def _cut_up(self, line: str) -> list[str | int]:
        """A line as texts and the numbers of the words between them."""
        pieces: list[str | int] = []
        begin = 0
        for match in re.finditer(f"{_PHRASE.pattern}|#number#", line):
            number = len(self._phrases) if match[0] == "#number#" else self._phrases.index(match[0])
            pieces += [line[begin : match.start()], number]
            begin = match.end()
        return [*pieces, line[begin:]]


# --- what is measured ---------------------------------------------------------------------------


def check_part(folder: Path) -> dict[str, Any]:
    """The doctor."""
    from po_distill.stages.dataset_doctor import DatasetDoctor

    started = time.perf_counter()
    checkup = DatasetDoctor().check(folder / "rows.jsonl")
    took_s = time.perf_counter() - started
    names = ("rows", "accepted", "left", "rejected", "distinct_prompts", "exact_duplicate_rows")
    found = checkup.model_dump(include={*names, "contradictory_prompts", "near_duplicate_rows"})
    return {**found, "took_s": took_s, "peak_bytes": most_resident("self")}


def build_part(folder: Path) -> dict[str, Any]:
    """The builder."""
    from po_distill.stages.dataset_builder import DatasetBuilder

    started = time.perf_counter()
    dataset = DatasetBuilder().build_from(folder / "rows.jsonl", folder / "built" / "dataset.jsonl")
    took_s = time.perf_counter() - started
    found = {"inputs": dataset.inputs, "kept": sum(dataset.counts.values()), "rejected": dataset.rejected}
    return {**found, "took_s": took_s, "peak_bytes": most_resident("self")}


def floor_part(folder: Path) -> dict[str, Any]:
    """Plain `datasets`."""
    import datasets

    if is_quiet():
        datasets.disable_progress_bars()
    processors = len(os.sched_getaffinity(0))
    started = time.perf_counter()
    rows = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    rows = rows.map(_lengths, num_proc=processors)
    rows = rows.filter(_long_enough, num_proc=processors)
    seen: set[bytes] = set()

    def is_new(row: dict[str, Any]) -> bool:
        text = f"{row['concept']}\n{row['requirements_yaml']}\n{row['response']}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        new = digest not in seen
        seen.add(digest)
        return new

    rows = rows.filter(is_new, load_from_cache_file=False)
    rows.to_json(str(folder / "floor.jsonl"), num_proc=processors)
    return {"kept": len(rows), "took_s": time.perf_counter() - started, "peak_bytes": most_resident("self")}


def _lengths(row: dict[str, Any]) -> dict[str, int]:
    return {"characters": len(row["concept"]) + len(row["requirements_yaml"]) + len(row["response"])}


def _long_enough(row: dict[str, Any]) -> bool:
    return bool(row["characters"] > 200)


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {"check": check_part, "build": build_part, "floor": floor_part}


# --- memory -------------------------------------------------------------------------------------


def run_part(name: str, folder: Path) -> dict[str, Any]:
    """What a part prints, and `peak_gib`: the most that it and its processes held, looked at five times a second."""
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most = 0
    while process.poll() is None:
        most = max(most, sum(most_resident(number) for number in family(process.pid)))
        time.sleep(0.2)
    assert process.stdout is not None
    said = process.stdout.read()
    if process.returncode != 0:
        raise SystemExit(f"{name} failed.")
    found = dict(json.loads(said.splitlines()[-1]))
    return {**found, "peak_gib": max(most, found["peak_bytes"]) / 2**30}


def family(number: int) -> list[int]:
    """A process and all that it started, by the kernel's own lists."""
    found = [number]
    for parent in found:
        for listed in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in listed.read_text().split()]
            except OSError:  # it ended
                continue
    return found


def most_resident(number: int | str) -> int:
    """The most bytes that a process had resident; 0 where it has ended.

    The kernel's own mark, as `ru_maxrss` outlives an exec: a child of a large process would show its parent.
    """
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scratch", help="a folder with room for the rows, some 25 KB each")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
