"""Recorded completions scored: this library against a plain loop over the metric with PyYAML's pure Python loader.

`python benchmarks/evaluation.py` makes 10,000 completions (canonical ones, unquoted ones and broken ones), writes them
as JSONL, and scores them from the file on all cores, with all that a report needs of each case: validity, parts, what
the gate holds against it, why it failed, what repair would give. The plain loop reads the same rows and computes the
metric alone; it is timed on a part of them, since it takes minutes. `--json` prints one object; `ratio_plain_loop` is
how many times as many completions a second are scored, `largest_difference` that of the two metrics of a completion.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from po_distill import safe_yaml
from po_distill.rating import Answered, Rater
from po_distill.recorded_answers import Tries, read_completions
from po_distill.records import CaseResult, Concept
from po_distill.roles.product_owner import scoring
from po_distill.roles.product_owner.answers import find_blocks
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.row_stream import looked_at

ROLE = ProductOwnerRole()
CONCEPTS = 500


def unquoted(text: str) -> str:
    """The answer as most models write it, without the canonical form's quotes: read by the YAML loader."""
    return re.sub(r'^(\s*(?:- |[a-z_]+: ))"(.*)"$', r"\1\2", text, flags=re.MULTILINE)


def make(path: Path, rows: int) -> None:
    """Rows of answers: half canonical, three in eight unquoted, one in eight broken."""
    concepts = ROLE.generate_concepts(min(rows, CONCEPTS), seed=3)
    answers = [ROLE.answer_by_rules(concept) for concept in concepts]
    with path.open("w") as file:
        for number in range(rows):
            concept, answer = concepts[number % len(concepts)], answers[number % len(concepts)]
            text = answer.replace("Weekly use", f"Weekly use {number}")
            if number % 8 == 7:
                text = re.sub(r'^narrative: "', "narrative: In short: ", text, flags=re.MULTILINE)
            elif number % 2:
                text = unquoted(text)
            file.write(json.dumps(row_of(concept, number, text)) + "\n")


def row_of(concept: Concept, number: int, text: str) -> dict[str, Any]:
    return {
        "concept_id": f"{concept.concept_id}-{number}",
        "concept": concept.concept,
        "requirements_yaml": concept.requirements_yaml,
        "response": text,
        "latency_s": 1.0,
    }


def score_all(path: Path, workers: int | None) -> list[CaseResult]:
    """What is said of each completion of the file, in its order."""
    items = (Answered(Tries((completion,))) for completion in read_completions(path, ROLE))
    return list(looked_at(items, Rater(ROLE).rate, workers=workers))


def plain_loop(path: Path, most: int) -> list[float]:
    """The metric alone, with PyYAML's pure Python loader, of the first rows of the file."""

    def load(text: str, **_: object) -> Any:
        try:
            return yaml.load(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError) as error:
            raise safe_yaml.UnreadableYAMLError(str(error), "") from error

    ours, scoring.safe_yaml.load_shared = scoring.safe_yaml.load_shared, load  # type: ignore[assignment]
    scoring._requirements_in.cache_clear()
    try:
        values = []
        with path.open() as file:
            for line, _ in zip(file, range(most), strict=False):
                row = json.loads(line)
                _, blocks = find_blocks(row["response"])
                # The requirements of a row are read once, as a loop over rows would.
                scoring._requirements_in.cache_clear()
                example = {"requirements_yaml": row["requirements_yaml"]}
                values.append(scoring.product_owner_metric(example, blocks))
        return values
    finally:
        scoring.safe_yaml.load_shared = ours
        scoring._requirements_in.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--plain-rows", type=int, default=400, help="How many of them the plain loop scores.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "completions.jsonl"
        make(path, arguments.rows)
        plain_rows = min(arguments.plain_rows, arguments.rows)
        ours_s, plain_s = [], []
        for _ in range(arguments.runs):  # in turn, so that a busy machine slows both
            started = time.perf_counter()
            cases = score_all(path, arguments.workers)
            ours_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            values = plain_loop(path, plain_rows)
            plain_s.append(time.perf_counter() - started)
    ours, plain = min(ours_s) / arguments.rows, min(plain_s) / plain_rows
    apart = max(abs(case.score.value - value) for case, value in zip(cases, values, strict=False))
    found = {
        "rows": arguments.rows,
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds": round(min(ours_s), 2),
        "rows_per_second": round(1 / ours),
        "plain_rows_per_second": round(1 / plain, 1),
        "ratio_plain_loop": round(plain / ours, 2),
        "largest_difference": apart,
        "invalid": sum(not case.score.valid for case in cases),
        "repaired": sum(case.repaired_value is not None for case in cases),
    }
    print(json.dumps(found) if arguments.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
