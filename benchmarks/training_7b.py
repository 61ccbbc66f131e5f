"""The memory of the plan's run, Mistral-7B's true shape with random weights: estimated, and on a CUDA GPU measured.

    python benchmarks/training_7b.py [--json]

Without a GPU the estimate is printed by parts for GPUs of several sizes, and held against a trace: the layers run on
tensors with shapes and no memory, and what their backward pass keeps is counted. On a GPU the run is
made: ours and plain `trl.SFTTrainer` in turn, the same rows, rank and batch, with tokens per second, the share of the
GPU's peak arithmetic (MFU) and the peak memory beside the estimate. `--layers` makes a smaller one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, MistralConfig

from po_distill.records import LoRASettings
from po_distill.weights import packed_rows
from po_distill.weights.answer_loss import predict_loss
from po_distill.weights.lean_layers import LeanLoRALinear, answer_loss, make_lean
from po_distill.weights.memory_estimate import MemoryNeeds, fit, longest_rows, shape_of
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


def measured(data: Sequence[TokenizedRow], layers: int, run: Callable[..., int]) -> dict[str, float]:
    """Tokens per second and peak memory of steps, the first ones aside."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    order = row_order([len(row.input_ids) for row in data], batch=BATCH, steps=STEPS, epochs=99, seed=7)
    steps = [[data[i] for i in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    work = run(layers, data)
    tokens, started_s = 0, 0.0
    for number, step in enumerate(steps):
        if number == WARM_UP:
            torch.cuda.synchronize()
            started_s = time.perf_counter()
        work(step)
        tokens += sum(len(row.input_ids) for row in step) if number >= WARM_UP else 0
    torch.cuda.synchronize()
    tokens_per_s = tokens / (time.perf_counter() - started_s)
    name = device_name()
    peak = next((tflops for gpu, tflops in PEAK_TFLOPS.items() if gpu in name), None)
    # Forward 2 and backward 2 per parameter and token: the base is frozen, its gradients are not computed.
    flop_per_token = 4 * shape_of(config(layers)).parameters
    return {
        "tokens_per_s": round(tokens_per_s, 1),
        "mfu": round(tokens_per_s * flop_per_token / (peak * 1e12), 4) if peak else 0.0,
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def ours(layers: int, data: Sequence[TokenizedRow]) -> Any:
    estimate = fit(needs(data, layers), batch=BATCH, budget_bytes=round(free_memory() * 0.95))
    model = student(layers, "cuda", lean=True, checkpointing=estimate.checkpoint_activations)
    predict_loss(model.get_base_model())
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-4, fused=True)

    def step(chosen: Sequence[TokenizedRow]) -> None:
        answers = sum(row.answer_tokens for row in chosen)
        for start in range(0, len(chosen), estimate.micro_batch):
            batch = pack(chosen[start : start + estimate.micro_batch])
            inputs = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            (model(**inputs) / answers).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_trl(layers: int, data: Sequence[TokenizedRow]) -> Any:
    """One step at a time of `trl.SFTTrainer` as it comes: padded batches, logits everywhere, activations twice."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    model = student(layers, "cuda", lean=False)
    columns = {"input_ids": [list(row.input_ids) for row in data], "labels": [row.labels for row in data]}
    settings = SFTConfig(
        output_dir="/dev/null", per_device_train_batch_size=BATCH, report_to="none", bf16=True, max_length=None,
        save_strategy="no", dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", pad_token="</s>")
    dataset = Dataset.from_dict(columns)
    trainer = SFTTrainer(model=model, args=settings, train_dataset=dataset, processing_class=tokenizer)
    trainer.create_optimizer()

    def step(chosen: Sequence[TokenizedRow]) -> None:
        batch = trainer.data_collator([{"input_ids": list(row.input_ids), "labels": row.labels} for row in chosen])
        trainer.training_step(trainer.model, batch)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
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
        estimate = fit(needs(data, given.layers), batch=BATCH, budget_bytes=round(free_memory() * 0.95))
        found["estimated_gb"] = round((estimate.total - estimate.parts["cuda"]) / 1e9, 2)  # the allocator's own count
        found["ours"] = measured(data, given.layers, ours)
        found["trl"] = measured(data, given.layers, plain_trl)
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
    for name in ("ours", "trl"):
        if name in found:
            print(f"{name}: {found[name]}")


if __name__ == "__main__":
    sys.exit(main())
