"""The memory of the plan's run, Mistral-7B's true shape with random weights: estimated, and on a CUDA GPU measured.

    python benchmarks/training_7b.py [--card-gb 40] [--json]

Without a GPU the estimate is printed by parts for GPUs of several sizes, and held against a trace: the layers run on
tensors with shapes and no memory, and what their backward pass keeps is counted. On a GPU the run is
made: ours and plain `trl.SFTTrainer` in turn, the same rows, rank and batch, with tokens per second, the share of the
GPU's peak arithmetic (MFU) and the peak memory beside the estimate; with `--card-gb` ours once more, planned for a card
of that memory. `--layers` makes a smaller one.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, MistralConfig

from po_distill.records import LoRASettings
from po_distill.weights import packed_rows
from po_distill.weights.answer_loss import predict_loss
from po_distill.weights.lean_layers import LeanLoRALinear, answer_loss, make_lean
from po_distill.weights.memory_estimate import MemoryEstimate, MemoryNeeds, fit, longest_rows, shape_of
from po_distill.weights.packed_rows import ATTENTION, Packing, pack, packed_attention
from po_distill.weights.student_model import device_name, free_memory
from po_distill.weights.tokenization import TokenizedRow
from po_distill.weights.training_plan import row_order

GPUS_GB = (12, 16, 24, 40, 80)
PEAK_TFLOPS = {"A100": 312, "H100": 989, "H200": 989, "L4": 121, "A10G": 125, "T4": 65}  # bf16, without sparsity
LORA = LoRASettings()
BATCH, STEPS, WARM_UP = 4, 8, 2


def config(layers: int) -> MistralConfig:
    """Mistral-7B-Instruct-v0.3's."""
    return MistralConfig(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32768, sliding_window=None, tie_word_embeddings=False,
    )  # fmt: skip


def rows(count: int, seed: int = 7) -> list[TokenizedRow]:
    """Rows as long as those of the real teacher: prompts that begin alike, answers of 500 to 876 tokens."""
    chance = random.Random(seed)
    system = [chance.randrange(10, 32000) for _ in range(400)]
    made = []
    for line in range(count):
        own, answer = chance.randint(100, 156), chance.randint(500, 876)
        ids = system + [chance.randrange(10, 32000) for _ in range(own + answer - 1)] + [2]
        made.append(TokenizedRow(line + 1, tuple(ids), len(system) + own))
    return made


def needs(data: Sequence[TokenizedRow], layers: int, *, nf4: bool = False) -> MemoryNeeds:
    packs = longest_rows([len(row.input_ids) for row in data], [row.answer_tokens for row in data], 400)
    return MemoryNeeds(shape_of(config(layers)), LORA, "bfloat16", packs, on_gpu=True, nf4=nf4)


def student(layers: int, device: str, *, lean: bool, checkpointing: bool = False) -> Any:
    """The model with a fresh LoRA, in bfloat16."""
    AttentionInterface.register(ATTENTION, packed_attention)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config(layers), dtype=torch.bfloat16, attn_implementation=ATTENTION if lean else "sdpa"
        )
        settings = LoraConfig(
            r=LORA.rank, lora_alpha=LORA.alpha, lora_dropout=LORA.dropout, target_modules=list(LORA.target_modules)
        )
        if lean:
            settings._register_custom_module({torch.nn.Linear: LeanLoRALinear})
        adapted = get_peft_model(model, settings)
    if lean:
        make_lean(model.model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return adapted.train()


# --- without a GPU --------------------------------------------------------------------------------


def estimates(data: Sequence[TokenizedRow], layers: int) -> dict[str, Any]:
    """What the run would take on GPUs of several sizes."""
    found = {}
    for size in GPUS_GB:
        for nf4 in (False, True):
            estimate = fit(needs(data, layers, nf4=nf4), batch=BATCH, budget_bytes=round(size * 1e9 * 0.95))
            fits = estimate.total <= size * 1e9 * 0.95
            name = f"{size} GB" + (", nf4" if nf4 else "")
            found[name] = {"fits": fits, "gb": round(estimate.total / 1e9, 2), **estimate.model_dump()}
            if fits:
                break
    return found


def traced_ratio(data: Sequence[TokenizedRow], layers: int) -> float:
    """Bytes that the backward pass keeps, counted on tensors without memory, over those that the formula says."""
    traced = min(layers, 4)  # layers are alike
    longest = max(data, key=lambda row: len(row.input_ids))
    model = student(traced, "meta", lean=True)
    weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
    kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage, storage.nbytes())
        return tensor

    base_model, length = model.get_base_model(), len(longest.input_ids)
    with (
        torch.device("meta"),
        mock.patch.object(packed_rows, "scaled_dot_product_attention", _fused_attention),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        states = base_model.base_model(
            input_ids=torch.zeros(1, length, dtype=torch.long),
            position_ids=torch.arange(length)[None],
            packing=Packing(0, (length,)),
            use_cache=False,
        )
        targets = torch.zeros(longest.answer_tokens, dtype=torch.long)
        answer_loss(states.last_hidden_state[0, -longest.answer_tokens :], base_model.lm_head.weight, targets)
    estimate = needs([longest], traced).with_pieces(1, checkpoint_activations=False)
    products = estimate.parts["adapter"] // 3  # the bfloat16 copies of the adapter, a part of their own
    return (sum(size for _, size in kept.values()) - products) / estimate.parts["activations"]


def _fused_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """What a fused kernel keeps; left to itself, the meta device would take the attention that keeps all scores."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)[0]


# --- on a GPU -------------------------------------------------------------------------------------


class Meter:
    """Tokens per second and peak memory of the same steps for every trainer, the first ones aside."""

    def __init__(self, data: Sequence[TokenizedRow]) -> None:
        order = row_order([len(row.input_ids) for row in data], batch=BATCH, steps=STEPS, epochs=99, seed=7)
        self.rows = [data[i] for i in order]
        self.steps = [self.rows[start : start + BATCH] for start in range(0, len(order), BATCH)]
        self._done, self._started_s, self._took_s = 0, 0.0, 0.0
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def step_ended(self) -> None:
        """To be called behind each step."""
        torch.cuda.synchronize()
        self._done += 1
        if self._done == WARM_UP:
            self._started_s = time.perf_counter()
        self._took_s = time.perf_counter() - self._started_s

    def figures(self, layers: int) -> dict[str, float]:
        """What was measured, and the share of the GPU's peak arithmetic where that is known (else 0)."""
        tokens = sum(len(row.input_ids) for step in self.steps[WARM_UP:] for row in step)
        tokens_per_s = tokens / self._took_s
        name = device_name()
        peak = next((tflops for gpu, tflops in PEAK_TFLOPS.items() if gpu in name), None)
        # Forward 2 and backward 2 per parameter and token: the base is frozen, its gradients are not computed.
        flop_per_token = 4 * shape_of(config(layers)).parameters
        return {
            "tokens_per_s": round(tokens_per_s, 1),
            "mfu": round(tokens_per_s * flop_per_token / (peak * 1e12), 4) if peak else 0.0,
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }


def ours(layers: int, data: Sequence[TokenizedRow], estimate: MemoryEstimate) -> dict[str, Any]:
    """Ours, in the pieces that the estimate planned, and what it estimated."""
    meter = Meter(data)
    model = student(layers, "cuda", lean=True, checkpointing=estimate.checkpoint_activations)
    predict_loss(model.get_base_model())
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-4, fused=True)
    for rows_of_step in meter.steps:
        answers = sum(row.answer_tokens for row in rows_of_step)
        for start in range(0, BATCH, estimate.micro_batch):
            batch = pack(rows_of_step[start : start + estimate.micro_batch])
            inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            (model(**inputs) / answers).backward()
        optimizer.step()
        optimizer.zero_grad()
        meter.step_ended()
    found = meter.figures(layers)
    estimated_gb = (estimate.total - estimate.parts["cuda"]) / 1e9  # the allocator's own count
    return found | {
        "estimated_gb": round(estimated_gb, 2),
        "peak_over_estimated": round(found["peak_gb"] / estimated_gb, 3),
        "rows_at_a_time": estimate.micro_batch,
        "activations_twice": estimate.checkpoint_activations,
    }


def plain_trl(layers: int, data: Sequence[TokenizedRow]) -> dict[str, Any]:
    """`trl.SFTTrainer` as it comes: padded batches, logits everywhere, activations twice."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    meter = Meter(data)

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.step_ended()

    columns = {
        "input_ids": [list(row.input_ids) for row in meter.rows],
        "labels": [list(row.labels) for row in meter.rows],
    }
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", pad_token="</s>")
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-4, max_length=None,
            report_to="none", save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        SFTTrainer(
            model=student(layers, "cuda", lean=False), args=settings, train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer, callbacks=[Steps()],
        ).train()  # fmt: skip
    return meter.figures(layers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--card-gb", type=float, help="measure also what is planned for a card of so much memory")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    data = rows(64)
    found: dict[str, Any] = {
        "parameters": shape_of(config(given.layers)).parameters,
        "adapter_parameters": shape_of(config(given.layers)).adapter_parameters(LORA),
        "longest": max(len(row.input_ids) for row in data),
        "estimates": estimates(data, given.layers),
        "traced_over_estimated": round(traced_ratio(data, given.layers), 4),
        "gpu": device_name() if torch.cuda.is_available() else None,
    }
    if torch.cuda.is_available():
        budgets = {"ours": free_memory()}
        if given.card_gb:
            budgets[f"ours_{given.card_gb:g}gb"] = min(free_memory(), round(given.card_gb * 1e9))
        for name, budget in budgets.items():
            estimate = fit(needs(data, given.layers), batch=BATCH, budget_bytes=round(budget * 0.95))
            found[name] = ours(given.layers, data, estimate)
        found["trl"] = plain_trl(given.layers, data)
        found["ratio_trl"] = round(found["ours"]["tokens_per_s"] / found["trl"]["tokens_per_s"], 3)
    if given.json:
        print(json.dumps(found))
        return 0
    tell(found)
    return 0


def tell(found: dict[str, Any]) -> None:
    """The figures for people."""
    print(f"{found['parameters']:,} parameters, adapter {found['adapter_parameters']:,}; rows to {found['longest']}")
    for name, size in found["estimates"].items():
        pieces = f"{size['micro_batch']} rows at a time" + ", activations twice" * size["checkpoint_activations"]
        print(f"{name:>12}: {'fits' if size['fits'] else 'too small'}, {size['gb']} GB, {pieces}")
    print(f"activations traced over the formula's: {found['traced_over_estimated']}")
    if not torch.cuda.is_available():
        print("No CUDA GPU here: nothing was measured.")
    for name, run in found.items():
        if name == "trl" or name.startswith("ours"):
            print(f"{name}: {run}")


if __name__ == "__main__":
    sys.exit(main())
