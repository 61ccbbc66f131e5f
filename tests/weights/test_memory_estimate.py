"""The estimate against what is really kept: parameters, the tensors of a pack's backward pass, a process's growth."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from po_distill.records import ATTENTION_MODULES, LINEAR_MODULES, LoRASettings
from po_distill.weights.memory_estimate import MemoryNeeds, ModelShape, Packs, fit, longest_rows, remedies, shape_of
from po_distill.weights.packed_rows import pack
from po_distill.weights.student_model import load_student
from po_distill.weights.tokenization import TokenizedRow
from tiny_models import TINY_FAMILIES, tiny_model

MISTRAL_7B = ModelShape(
    hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, head_width=128, vocabulary=32768, tied=False, biases=0
)
ROWS = Packs(longest=1432, longest_answer=876, shared=400)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "mistral", "qwen2"])
def test_parameters_are_those_of_the_model(name: str) -> None:
    family, changes = TINY_FAMILIES[name]
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    config = AutoConfig.for_model(family, **{**sizes, **heads, **changes})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(config).parameters == sum(weight.numel() for weight in model.parameters())


def test_the_plans_run_fits_an_a100_of_40_gb_without_computing_activations_twice() -> None:
    assert MISTRAL_7B.parameters == 7_248_023_552
    assert MISTRAL_7B.adapter_parameters(LoRASettings()) == 83_886_080
    needs = MemoryNeeds(MISTRAL_7B, LoRASettings(), "bfloat16", ROWS, on_gpu=True)
    on_40 = fit(needs, batch=4, budget_bytes=38_000_000_000)
    assert (on_40.micro_batch, on_40.checkpoint_activations) == (2, False)
    on_24 = fit(needs, batch=4, budget_bytes=22_000_000_000)
    assert on_24.checkpoint_activations
    assert on_24.total < 22_000_000_000
    nothing = fit(needs, batch=4, budget_bytes=12_000_000_000)
    assert nothing.total > 12_000_000_000
    found = remedies(needs, 12_000_000_000)
    assert list(found) == ["--quantize-base nf4"]
    assert found["--quantize-base nf4"] < 12_000_000_000


def rows_of(lengths: tuple[int, ...], prompt: int, shared: int) -> list[TokenizedRow]:
    return [
        TokenizedRow(n, tuple([5] * shared + [n + 9] + [7] * (length - shared - 1)), prompt)
        for n, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("modules", [LINEAR_MODULES, ATTENTION_MODULES])
def test_activations_are_what_the_backward_pass_keeps(
    family: str, count: int, modules: tuple[str, ...], tmp_path: Path
) -> None:
    base = tiny_model(tmp_path / "base", family, hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    lora = LoRASettings(rank=4, alpha=8, dropout=0.1, target_modules=modules)
    student = load_student(base, lora, "float32", seed=1)
    rows = rows_of((200,) * count, prompt=150, shared=100)
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in student.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = student(**pack(rows))
    packs = longest_rows([200] * count, [50] * count, 100)
    needs = MemoryNeeds(shape_of(student.config), lora, "float32", packs, on_gpu=False)
    estimate = needs.with_pieces(count, checkpoint_activations=False)
    assert estimate.parts["activations"] == pytest.approx(sum(kept.values()), rel=0.05)
    loss.backward()


GROWTH = """
import sys
from pathlib import Path
import torch
from po_distill.records import LoRASettings
from po_distill.weights.memory_estimate import MemoryNeeds, longest_rows, shape_of
from po_distill.weights.packed_rows import pack
from po_distill.weights.student_model import load_student
from po_distill.weights.tokenization import TokenizedRow

def resident(line):
    status = Path("/proc/self/status").read_text()
    return int(status.split(line + ":")[1].split()[0]) * 1024

def rows(length):
    return [TokenizedRow(n, tuple([5] * 8 + [n + 9] + [7] * (length - 9)), length - 12) for n in range(4)]

torch.set_num_threads(1)
lora = LoRASettings(rank=8, alpha=16, dropout=0.0)
student = load_student(Path(sys.argv[1]), lora, "float32", seed=1, checkpoint_activations=True)
student(**pack(rows(16))).backward()  # brings in what has nothing to do with the size of a pack
for twice in (True, False):
    if not twice:
        student.get_base_model().gradient_checkpointing_disable()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    student(**pack(rows(512))).backward()
    needs = MemoryNeeds(shape_of(student.config), lora, "float32", longest_rows([512] * 4, [12] * 4, 8), on_gpu=False)
    parts = needs.with_pieces(4, checkpoint_activations=twice).parts
    print(resident("VmHWM") - before, parts["activations"] + parts["logits_or_workspace"])
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be measured anew")
@pytest.mark.slow
def test_a_process_grows_by_what_was_estimated(tmp_path: Path) -> None:
    base = tiny_model(
        tmp_path / "base", hidden_size=384, intermediate_size=1024, num_hidden_layers=8, max_position_embeddings=1024
    )
    # Memory that is given back at once makes the growth of the second pack its own.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    command = [sys.executable, "-c", GROWTH, str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    measured = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(measured) == 2
    for (grown, estimated), how in zip(measured, ("computed twice", "kept"), strict=True):
        assert grown == pytest.approx(estimated, rel=0.2), f"{how}: {grown / 1e6:.0f} MB, not {estimated / 1e6:.0f}"
