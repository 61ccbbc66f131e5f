"""A base model made ready to learn: loaded, given a fresh LoRA, and timed on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, set_seed

from po_distill.errors import TrainingError
from po_distill.records import LoRASettings
from po_distill.weights.answer_trainer import predict_loss
from po_distill.weights.lean_layers import FAMILIES, LeanLoRALinear, make_lean
from po_distill.weights.packed_rows import ATTENTION, pack, packed_attention
from po_distill.weights.tokenization import TokenizedRow
from po_distill.weights.training_plan import Precision

_BF16_GAIN = 1.2  # how much faster than fp32 products bf16 ones have to be before a processor trains in bf16
_PROBE_TOKENS = 1024
_SMALLEST_PROBE_FLOP = 5e8  # the time of a smaller product is that of its call, and says nothing
_PROBES = 5
_MEMORY_SHARE = 0.4  # of the free memory, for what a pack keeps for its backward pass
_MOST_TOKENS = 8192  # of a pack; beyond that nothing gets faster


def load_student(base: Path, lora: LoRASettings, precision: Precision, *, seed: int) -> PeftModel:
    """The base in `precision`, frozen, with a fresh fp32 LoRA; called with a pack, it returns its summed loss.

    Raises TrainingError where the model is of another family than `FAMILIES`, or has no such modules.
    """
    AttentionInterface.register(ATTENTION, packed_attention)
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    if config.model_type not in FAMILIES:
        raise TrainingError(
            f"{base} is a {config.model_type} model; the families that can be trained are {', '.join(FAMILIES)}.",
            "Choose a base model of the Llama, Mistral or Qwen2 family.",
        )
    if "lm_head" in lora.target_modules:
        raise TrainingError("LoRA on lm_head cannot be merged where it is tied.", "Take lm_head out of target_modules.")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=getattr(torch, precision),
            attn_implementation=ATTENTION,
            local_files_only=True,
            use_safetensors=True,
        )
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            task_type="CAUSAL_LM",
        )
        settings._register_custom_module({torch.nn.Linear: LeanLoRALinear})
        set_seed(seed)
        student = get_peft_model(model, settings)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base} cannot be trained: {error}.", "Look at the base and at target_modules.") from error
    make_lean(model.model)
    predict_loss(model)
    student.to("cuda" if torch.cuda.is_available() else "cpu").train()
    return student


# --- this machine -------------------------------------------------------------------------------


def fast_precision(base: Path) -> Precision:
    """The precision to train in here: bf16 on a GPU that has it, and on a processor that is faster in it.

    A processor may know bf16 instructions and still be slower with them (about half as fast as in fp32
    on a Xeon whose AMX units the virtual machine hides), so a product of the model's own shape is
    timed in both. A model so small that the time would be noise is not timed: it trains in fp32, every time.
    """
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    if 2 * _PROBE_TOKENS * config.hidden_size * config.intermediate_size < _SMALLEST_PROBE_FLOP:
        return "float32"
    trials: dict[Precision, Callable[[], Any]] = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        x = torch.ones(_PROBE_TOKENS, config.hidden_size, dtype=getattr(torch, precision))
        w = torch.ones(config.intermediate_size, config.hidden_size, dtype=x.dtype)
        trials[precision] = lambda x=x, w=w: torch.nn.functional.linear(x, w)  # type: ignore[misc]
    best = dict.fromkeys(trials, float("inf"))
    for _ in range(1 + _PROBES):  # in turn, so that a slow moment of the machine hits both
        for precision, trial in trials.items():
            best[precision] = min(best[precision], _seconds(trial))
    return "bfloat16" if best["bfloat16"] * _BF16_GAIN < best["float32"] else "float32"


def tokens_that_fit(student: PeftModel) -> int:
    """How many tokens a pack may have for its activations to fit into the memory that is free."""
    config = student.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # What the lean layers keep per token and layer: inputs of products and norms, attention's states.
    kept = 9 * config.hidden_size + 3 * config.intermediate_size + 4 * config.num_key_value_heads * width
    token_bytes = config.num_hidden_layers * kept * student.dtype.itemsize
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    return min(_MOST_TOKENS, int(free * _MEMORY_SHARE / token_bytes))


def seconds_per_token(student: PeftModel, packs: Sequence[Sequence[TokenizedRow]]) -> float:
    """What a token of a row costs, forward and backward, over the packs but the first; no weight is changed."""
    took_s, tokens = 0.0, 0
    with torch.random.fork_rng():
        for number, rows in enumerate(packs):
            batch = pack(rows)
            inputs = {k: v.to(student.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            pack_s = _seconds(lambda inputs=inputs: student(**inputs).backward())  # type: ignore[misc]
            if number or len(packs) == 1:
                took_s, tokens = took_s + pack_s, tokens + batch["packing"].row_tokens
    student.zero_grad(set_to_none=True)
    return took_s / tokens


def _seconds(work: Callable[[], Any]) -> float:
    started_s = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started_s
