"""Does a student answer inside DSPy? `dspy.Predict` on held-out concepts, and one MIPROv2 optimization.

`python benchmarks/dspy_student.py --student WITH.gguf --without WITHOUT.gguf --data ROWS.test.jsonl` asks the role's
program with each student, through llama.cpp in this process and without a cache, `--cases` times, and counts the
answers that DSPy's ChatAdapter reads at the first try: nothing is asked twice, and no JSON is decoded under a schema
instead. WITH was trained with `--contracts fenced=0.5,dspy=0.5`, WITHOUT on the role's own contract alone. Then the
MIPROv2 preset optimizes the program for WITH (`--trials`; 0 leaves that out): unread answers, the longest prompt and
the context are printed. `--json` prints one object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from po_distill import plugins
from po_distill.dspy import dspy_metric, role_instructions, student_lm, time_mipro
from po_distill.held_out import read_cases
from po_distill.records import Concept


def parsed(gguf: Path, role_name: str, concepts: list[Concept], num_ctx: int, max_tokens: int) -> dict[str, Any]:
    """How many of the concepts a student answered so that DSPy reads it, and how well."""
    role = plugins.load("roles", role_name)("dspy")
    program, metric = dspy.Predict(role.signature()), dspy_metric(role_name)
    lm = student_lm(gguf, num_ctx=num_ctx, max_tokens=max_tokens, cache=False)
    scores, times = [], []
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        for concept in concepts:
            inputs, _ = role.metric_fields(concept, "")
            started = time.monotonic()
            with contextlib.suppress(AdapterParseError):
                scores.append(float(metric(dspy.Example(**inputs), program(**inputs))))
            times.append(time.monotonic() - started)
    lm.close()
    return {
        "calls": len(concepts),
        "parsed": len(scores),
        "score_of_parsed": round(statistics.fmean(scores), 4) if scores else None,
        "good_enough": sum(score >= 0.85 for score in scores),
        "s_per_call": round(statistics.median(times), 2),
    }


def optimized(gguf: Path, given: argparse.Namespace, concepts: list[Concept]) -> dict[str, Any]:
    """What one run of the MIPROv2 preset asked of a student, and what came out."""
    lm = student_lm(gguf, num_ctx=given.num_ctx, max_tokens=given.max_tokens, parallel=given.parallel)
    found = time_mipro(
        {"student": lm}, concepts, prompt_model=role_instructions(given.role), role=given.role, trials=given.trials,
        candidates=given.candidates, validation=given.validation,
    ).times["student"]  # fmt: skip
    lm.close()
    return {**found.model_dump(exclude={"model"}), "num_ctx": given.num_ctx}


def main() -> None:
    """Ask, optimize, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="GGUF of a student trained on DSPy's form too")
    parser.add_argument("--without", type=Path, help="GGUF of one that was not")
    parser.add_argument("--data", type=Path, required=True, help="held-out rows or concepts")
    parser.add_argument("--role", default="product_owner")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--num-ctx", type=int, default=8192)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--validation", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    concepts = read_cases(given.data, plugins.load("roles", given.role)("dspy"))
    found: dict[str, Any] = {}
    for name, gguf in (("with", given.student), ("without", given.without)):
        if gguf is not None:
            found[name] = parsed(gguf, given.role, concepts[: given.cases], given.num_ctx, given.max_tokens)
    if given.trials:
        found["mipro"] = optimized(given.student, given, concepts)
    if given.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:18} {value}")


if __name__ == "__main__":
    main()
