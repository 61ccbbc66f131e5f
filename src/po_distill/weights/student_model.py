"""A base model made ready to learn: loaded, given a fresh LoRA, and timed on this machine."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from po_distill.errors import TrainingError
from po_distill.records import LoRASettings
from po_distill.weights.answer_loss import predict_loss
from po_distill.weights.lean_layers import FAMILIES, LeanLoRALinear, make_lean
from po_distill.weights.memory_estimate import Precision
from po_distill.weights.packed_rows import ATTENTION, pack, packed_attention
from po_distill.weights.tokenization import TokenizedRow

_BF16_GAIN = 1.2  # how much faster than fp32 products bf16 ones have to be before a processor trains in bf16
_PROBE_TOKENS = 1024
_SMALLEST_PROBE_FLOP = 5e8  # the time of a smaller product is that of its call, and says nothing
_PROBES = 5


def load_student(
    base: Path,
    lora: LoRASettings,
    precision: Precision,
    *,
    seed: int,
    sharded: bool = False,
    checkpoint_activations: bool = False,
    nf4: bool = False,
) -> PeftModel:
    """The base in `precision`, frozen, with a fresh fp32 LoRA; called with a pack, it returns its summed loss.

    With `checkpoint_activations` the layers are computed again in the backward pass, and keep nothing but their inputs;
    with `nf4` the matrices of the base are held in 4 bits (QLoRA; Dettmers et al. 2023), on a CUDA GPU.

    Raises TrainingError where the model is of another family than `FAMILIES`, or has no such modules.
    """
    AttentionInterface.register(ATTENTION, packed_attention)
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    if config.model_type not in FAMILIES:
        raise TrainingError(
            f"{base} is a {config.model_type} model; the families that can be trained are {', '.join(FAMILIES)}.",
            "Choose a base model of the Llama, Mistral or Qwen2 family.",
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=getattr(torch, precision),
            attn_implementation=ATTENTION,
            local_files_only=True,
            use_safetensors=True,
            quantization_config=_in_4_bits(precision) if nf4 else None,
            device_map={"": torch.cuda.current_device()} if nf4 else None,
        )
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            task_type="CAUSAL_LM",
        )
        if not nf4:  # whose layers are bitsandbytes' own
            settings._register_custom_module({torch.nn.Linear: LeanLoRALinear})
        set_seed(seed)
        student = get_peft_model(model, settings)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{base} cannot be trained: {error}.", "Look at the base and at target_modules.") from error
    make_lean(model.model)
    predict_loss(model)
    if checkpoint_activations:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if sharded:
        return _spread(student).train()
    return student.to("cuda" if on_gpu() else "cpu").train()


def _in_4_bits(precision: Precision) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, precision),
    )


def _spread(student: PeftModel) -> PeftModel:
    """Spread the weights over the processes of the run (FSDP2), as the launcher's variables say."""
    from accelerate import Accelerator
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    return fsdp2_prepare_model(Accelerator(), student)


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


def choose_precision(base: Path, wanted: Literal["auto", "float32", "bfloat16"], *, nf4: bool) -> Precision:
    """The precision that is wanted; where that is left to us, bf16 for a base in 4 bits, else the fast one."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if nf4 else fast_precision(base)


def on_gpu() -> bool:
    """Whether runs compute on a GPU here."""
    return torch.cuda.is_available()


def free_memory() -> int:
    """Bytes that are free: of the GPU where there is one."""
    return int(torch.cuda.mem_get_info()[0] if on_gpu() else psutil.virtual_memory().available)


def peak_memory_bytes() -> int | None:
    """The most that this process held at a time: of the GPU where there is one. None where the system does not say."""
    if on_gpu():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def device_name() -> str:
    """What runs compute on here, for people."""
    if on_gpu():
        return str(torch.cuda.get_device_name())
    cores = f"{torch.get_num_threads()} cores"
    models = Path("/proc/cpuinfo")
    lines = models.read_text().splitlines() if models.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{cores} of {name or platform.processor() or platform.machine()}"


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
