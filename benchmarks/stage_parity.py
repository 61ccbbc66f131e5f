"""Does stage parity see planted faults where models really answer, and pass the sound road?

    python benchmarks/stage_parity.py --student artifacts/models/po_student_v1 --base artifacts/models/base/BASE.gguf \\
        --data artifacts/distillation/po_teacher_dataset.test.jsonl

The stages are the adapter on its base (transformers and peft), the merged model as an F16 GGUF, and the package's own
GGUF (both in llama.cpp), asked the same held-out prompts, greedily. At the last stage three faults are planted, one at
a time: the base model's weights (a merge that merged nothing), the student's under another chat template, and the
student's where the end of an answer is not heeded. Prints what is found at the last stage of each road; exits with 1
where that is not what was planted. `--json` prints one object. Six cases take about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from po_distill import Merger, plugins
from po_distill.held_out import read_cases
from po_distill.interfaces import Role
from po_distill.providers.llama_cpp import LlamaCppProvider
from po_distill.records import Completion, Concept, GenerationSettings, ProviderSettings, Request, StageParity, Usage
from po_distill.stage_parity import compare_stages
from po_distill.weights.checkpoint import locate
from po_distill.weights.tokenization import load_tokenizer

OTHER_TEMPLATE = (
    "{% for message in messages %}### Instruction:\n{{ message['content'] }}\n\n{% endfor %}### Response:\n"
)
PLANTED = {"sound": None, "base weights": "no_op_merge", "template": "wrong_template", "no stop": "missing_stop"}


class Endless(LlamaCppProvider):
    """The same model in a runtime that does not heed the end of an answer."""

    async def _ask(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        return await super()._ask(path, body | {"ignore_eos": True})


def main() -> None:
    given = _arguments()
    role: Role = plugins.load("roles", given.role)()
    cases = read_cases(given.data, role)[: given.cases]
    package = next(path for path in sorted(given.student.glob("*.gguf")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        merged = Merger(gguf="f16", checkpoint=False).merge(given.student / "adapter", folder / "merged").gguf
        assert merged is not None
        asked = {
            "base": (LlamaCppProvider, given.base),
            "merged": (LlamaCppProvider, Path(merged.path)),
            "sound": (LlamaCppProvider, package),
            "template": (LlamaCppProvider, _with_template(package, folder / "template.gguf")),
            "no stop": (Endless, package),
        }
        said = {
            who: asyncio.run(_ask(kind, path, cases, role, given.max_tokens, who))
            for who, (kind, path) in asked.items()
        }
        said["adapter"] = _ask_adapter(given.student / "adapter", cases, role, given.max_tokens)
    said["base weights"] = said["base"]
    roads = {planted: _walk(said, planted, role, given.max_tokens) for planted in PLANTED}
    found = {planted: road.stages[-1].fault for planted, road in roads.items()}
    if given.json:
        print(
            json.dumps({"found": found, "roads": {name: road.model_dump(mode="json") for name, road in roads.items()}})
        )
    else:
        for planted, road in roads.items():
            for stage in road.stages:
                told = f"{stage.fault or 'sound'} {stage.detail}"
                print(f"{planted:<14}{stage.stage:<9} metric {stage.score_mean:.3f}  {told}")
    sys.exit(0 if found == PLANTED and all(road.stages[1].fault is None for road in roads.values()) else 1)


def _walk(said: dict[str, list[Completion]], planted: str, role: Role, limit: int) -> StageParity:
    stages = {"adapter": said["adapter"], "merged": said["merged"], "gguf": said[planted]}
    return compare_stages(stages, role, base=said["base"], max_tokens=limit)


async def _ask(
    kind: type[LlamaCppProvider], path: Path, cases: Sequence[Concept], role: Role, limit: int, who: str
) -> list[Completion]:
    provider = kind(ProviderSettings(provider="llama_cpp", model=str(path), options={"n_parallel": 2}), role)

    async def one(case: Concept) -> Completion:
        request = Request(messages=role.render(case), generation=GenerationSettings(temperature=0.0, max_tokens=limit))
        answer = await provider.generate(request)
        return _completion(case, role, answer.text, answer.finish, answer.usage)

    try:
        found = list(await asyncio.gather(*map(one, cases)))
    finally:
        await provider.aclose()
    print(f"{who}: {len(found)} answers", file=sys.stderr, flush=True)
    return found


def _ask_adapter(adapter: Path, cases: Sequence[Concept], role: Role, limit: int) -> list[Completion]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    checkpoint = locate(_base_name(adapter))
    tokenizer = load_tokenizer(checkpoint.path)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32, local_files_only=True)
    student = PeftModel.from_pretrained(model, str(adapter)).eval()
    found = []
    for case in cases:
        messages = [{"role": each.speaker, "content": each.content} for each in role.render(case)]
        asked = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = student.generate(**asked, max_new_tokens=limit, do_sample=False)[0][asked["input_ids"].shape[1] :]
        usage = Usage(prompt_tokens=asked["input_ids"].shape[1], completion_tokens=len(ids))
        finish = "length" if len(ids) == limit else "stop"
        found.append(_completion(case, role, tokenizer.decode(ids, skip_special_tokens=True), finish, usage))
    print(f"adapter: {len(found)} answers", file=sys.stderr, flush=True)
    return found


def _base_name(adapter: Path) -> str:
    """The base model that the adapter was trained on."""
    return str(json.loads((adapter / "po_distill.json").read_text(encoding="utf-8"))["base_name"])


def _completion(case: Concept, role: Role, text: str, finish: str, usage: Usage) -> Completion:
    return Completion(
        concept=case, text=text, model="student", provider="llama_cpp", contract_digest=role.contract.digest,
        finish=finish, usage=usage,
    )  # fmt: skip


def _with_template(path: Path, other: Path) -> Path:
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template", OTHER_TEMPLATE]
    subprocess.run([*command, str(path), str(other)], check=True, capture_output=True)
    return other


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, help="a version folder with adapter and GGUF")
    parser.add_argument("--base", type=Path, required=True, help="the base model as a GGUF")
    parser.add_argument("--data", type=Path, required=True, help="held-out rows")
    parser.add_argument("--role", default="product_owner")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=640)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
