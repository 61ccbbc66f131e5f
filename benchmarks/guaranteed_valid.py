"""How many answers production can read when decoding is held to the role's schema, and how many without.

`python benchmarks/guaranteed_valid.py` asks the untrained base model (by default SmolLM2-135M-Instruct, packaged by the
library) about 200 generated concepts through llama.cpp, greedily, and counts the answers that production can read.
Some of the concepts are asked without the mode as well. `--json` prints one object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from pydantic import JsonValue

from po_distill.records import CandidateResult, Concept, GenerationSettings, ProviderSettings
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.evaluator import Evaluator
from po_distill.weights.checkpoint import locate
from po_distill.weights.gguf import write_gguf

ROLE = ProductOwnerRole()


def ask(
    model: Path,
    cases: list[Concept],
    folder: Path,
    *,
    guaranteed: bool,
    max_tokens: int,
    concurrency: int,
    threads: int | None,
) -> tuple[CandidateResult, float]:
    """What the evaluator finds of the model's answers, and how many seconds it took."""
    evaluator = Evaluator(
        ROLE,
        generation=GenerationSettings(temperature=0.0, max_tokens=max_tokens),
        concurrency=concurrency,
        guaranteed_valid=guaranteed,
        gate="basic",
        folder=folder,
        report_path=None,
        log_path=None,
    )
    options: dict[str, JsonValue] = {"n_parallel": concurrency, **({"n_threads": threads} if threads else {})}
    runtime = ProviderSettings(provider="llama_cpp", model=str(model), options=options)
    started = time.perf_counter()
    report = evaluator.evaluate(cases, {"base": runtime})
    return report.candidate("base"), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--plain-cases", type=int, default=10, help="How many of them are asked without the mode too.")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--quantization", default="q4_0")
    parser.add_argument("--max-tokens", type=int, default=1200)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--threads", type=int, help="Of llama.cpp.  [default: one per core]")
    parser.add_argument("--seed", type=int, default=11, help="Of the concepts.")
    parser.add_argument("--folder", type=Path, help="Where answers are kept: a run that was killed goes on from there.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases = ROLE.generate_concepts(arguments.cases, seed=arguments.seed)
    plain_cases = cases[: arguments.plain_cases]
    how = {"max_tokens": arguments.max_tokens, "concurrency": arguments.concurrency, "threads": arguments.threads}
    with ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = folder / "base.gguf"
        if not model.exists():
            write_gguf(locate(arguments.base).path, model, arguments.quantization)
        held, seconds = ask(model, cases, folder / "held", guaranteed=True, **how)
        plain = ask(model, plain_cases, folder / "plain", guaranteed=False, **how)[0] if plain_cases else None
        answers = [json.loads(line) for line in (folder / "held" / "base.completions.jsonl").read_text().splitlines()]
    tokens = [answer["usage"]["completion_tokens"] for answer in answers]
    found = {
        "base": arguments.base,
        "cases": len(cases),
        "valid": sum(case.score.valid for case in held.results),
        "cut": sum(answer["finish"] != "stop" for answer in answers),
        "max_tokens": arguments.max_tokens,
        "longest_tokens": max(tokens),
        "mean_tokens": round(sum(tokens) / len(tokens)),
        "seconds": round(seconds, 1),
        "plain_cases": len(plain_cases),
        "plain_valid": sum(case.score.valid for case in plain.results) if plain else 0,
    }
    print(json.dumps(found) if arguments.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
