"""Run in each process: a student whose weights are spread over all of them, against the whole one.

accelerate shards on GPUs alone, so its plugin is put where it would be there; what shards, gathers and
computes is the same. Arguments: the base, and a folder for what was found.
"""

import json
import os
import sys
from pathlib import Path

import accelerate
import torch
from accelerate.utils import FullyShardedDataParallelPlugin

from po_distill.records import LoRASettings
from po_distill.weights import student_model
from po_distill.weights.adapter_folder import learnt_weights
from po_distill.weights.packed_rows import pack
from po_distill.weights.process_team import join_team
from po_distill.weights.tokenization import TokenizedRow

LORA = LoRASettings(rank=4, alpha=8, dropout=0.0)


def main(base: Path, folder: Path) -> None:
    team = join_team()
    accelerator = accelerate.Accelerator()
    os.environ["FSDP_VERSION"] = "2"
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="full_state_dict",
    )
    accelerate.Accelerator = lambda: accelerator
    batch = pack([TokenizedRow(line=n, input_ids=tuple(range(5, 30 + n)), prompt_tokens=10) for n in range(2)])
    found = {}
    for sharded in (False, True):
        student = student_model.load_student(base, LORA, "bfloat16", seed=7, sharded=sharded)
        for _ in range(2):  # the second time with a B that is not zero
            student(**batch).backward()
            with torch.no_grad():
                for weight in student.parameters():
                    if weight.requires_grad:
                        weight -= 0.1 * weight.grad
            student.zero_grad()
        loss = float(student(**batch))
        weights = learnt_weights(student)
        held = sum(
            getattr(weight, "to_local", lambda weight=weight: weight)().numel() for weight in student.parameters()
        )
        found["sharded" if sharded else "whole"] = {
            "loss": loss,
            "held": held,
            "all": sum(weight.numel() for weight in student.parameters()),
            "names": sorted(weights),
            "sums": [float(weights[name].double().abs().sum()) for name in sorted(weights)],
        }
    (folder / f"{team.number}.json").write_text(json.dumps(found))
    team.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
