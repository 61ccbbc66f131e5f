"""A LoRA adapter in PEFT's layout, read as updates of a base checkpoint's tensors.

W' = W + scale * B A (Hu et al. 2021, section 4.1) with scale = alpha / r, or alpha / sqrt(r) for
rsLoRA (Kalajdzievski 2023). What peft can train and this does not merge exactly is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from po_distill.errors import WeightsError
from po_distill.weights.adapter_config import CONFIG_NAME, rank_and_alpha, read_adapter_config, scale_of
from po_distill.weights.foreign_files import escaped
from po_distill.weights.safetensors_file import TensorFiles, TensorInfo, read_header

_PREFIX = "base_model.model."
_MERGED_FIELDS = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save"}
# Fields that say how the adapter was trained or where it applies; its tensors say the latter again.
_FIELDS_WITHOUT_EFFECT = {
    "task_type",
    "peft_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "target_modules",
    "exclude_modules",
    "lora_dropout",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
    "eva_config",
    "ensure_weight_tying",
}
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True)
class LoRAUpdate:
    """What one LoRA pair adds to one tensor of the base."""

    a: str  # the name of A in the adapter, (r, inputs)
    b: str  # the name of B, (outputs, r)
    scale: float
    transposed: bool  # the base stores (inputs, outputs)


@dataclass(frozen=True)
class AdapterPlan:
    """What an adapter does to a base: updates and replacements by the base tensor's name."""

    updates: dict[str, LoRAUpdate]
    replacements: dict[str, str]  # base tensor -> the adapter's tensor that takes its place


def adapter_weights(adapter: Path) -> Path:
    """The safetensors file of an adapter folder. Raises WeightsError where there is none, or only a pickle."""
    path = adapter / "adapter_model.safetensors"
    if path.is_file():
        return path
    if (adapter / "adapter_model.bin").exists():
        raise WeightsError(
            f"{adapter} holds its weights as a pickle file (adapter_model.bin), which can run code when read.",
            "Save the adapter again with peft: save_pretrained(folder, safe_serialization=True).",
        )
    raise WeightsError(
        f"{adapter} has no adapter_model.safetensors.", "Give a folder that peft's save_pretrained wrote."
    )


def plan_merge(adapter: Path, tensors: TensorFiles, base: TensorFiles, base_config: Mapping[str, Any]) -> AdapterPlan:
    """Every tensor of the adapter matched to the base, with shapes and scales checked.

    `tensors` are the adapter's, `base` and `base_config` the checkpoint's. Raises WeightsError that names
    the field or the tensor which cannot be merged.
    """
    config = read_adapter_config(adapter)
    _check_fields(config, adapter / CONFIG_NAME)
    saved = tuple(config.get("modules_to_save") or ())
    tied = bool(base_config.get("tie_word_embeddings")) or "lm_head.weight" not in base.infos
    modules = {name: _module_of(name, adapter) for name in sorted(tensors.infos)}
    updates: dict[str, LoRAUpdate] = {}
    replacements: dict[str, str] = {}
    for name, (module, kind) in modules.items():
        if not np.isfinite(tensors.float32(name)).all():
            raise _refused(adapter, name, "holds values that are not finite", "Train again with a lower learning rate.")
        target = module if kind == "whole" else f"{module}.weight"
        if target not in base.infos and not (tied and _is_embedding(target)):
            raise _refused(adapter, name, "belongs to no tensor of the base", _WRONG_BASE)
        if tied and _is_embedding(target):
            raise _refused(adapter, name, "changes an embedding tied to the output layer, which peft merges wrongly")
        if kind == "lora_A":
            updates[target] = _update(name, module, config, tensors, base.infos[target], base_config, adapter)
        elif kind == "lora_B" and f"{_PREFIX}{module}.lora_A.weight" not in tensors.infos:
            raise _refused(adapter, name, "has no lora_A beside it")
        elif kind == "base_layer" and not _equal(tensors, name, base, target):
            raise _refused(adapter, name, "is a copy of the base's tensor that differs from it", _WRONG_BASE)
        elif kind == "whole":
            _check_replacement(name, module, saved, tensors, base.infos[target], adapter)
            replacements[target] = name
    copies = sum(kind == "base_layer" for _, kind in modules.values())
    used = 2 * len(updates) + len(replacements) + copies
    if used != len(tensors.infos) or (not updates and not replacements):
        raise WeightsError(
            f"{adapter}: {used} of {len(tensors.infos)} tensors would be merged.", "Train the adapter again."
        )
    return AdapterPlan(updates, replacements)


_WRONG_BASE = "Check that this is the base that the adapter was trained on."


def _is_embedding(target: str) -> bool:
    return target.rpartition(".")[0].rpartition(".")[2] in ("lm_head", "embed_tokens", "wte")


def _equal(tensors: TensorFiles, name: str, base: TensorFiles, target: str) -> bool:
    return np.array_equal(tensors.float32(name), base.float32(target))


def _check_replacement(
    name: str, module: str, saved: tuple[str, ...], tensors: TensorFiles, base: TensorInfo, adapter: Path
) -> None:
    if not any(module.rpartition(".")[0].endswith(suffix) for suffix in saved):
        raise _refused(adapter, name, "is a whole tensor that modules_to_save does not list")
    if base.shape != tensors.infos[name].shape:
        raise _refused(adapter, name, f"has the shape {tensors.infos[name].shape}, the base {base.shape}", _WRONG_BASE)


def factors(update: LoRAUpdate, tensors: TensorFiles) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(left, right) with update.scale * (left @ right) = what the update adds, in the base's orientation."""
    a, b = tensors.float32(update.a), tensors.float32(update.b)
    return (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if update.transposed else (b, a)


def _check_fields(config: dict[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise WeightsError(
            f"{path}: peft_type is {escaped(repr(config.get('peft_type')))}.", "Only LoRA adapters are merged."
        )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_INITS_THAT_CHANGE_THE_BASE):
        raise WeightsError(
            f"{path}: init_lora_weights is {escaped(repr(init))}, which changes the base before training.",
            "Convert the adapter to plain LoRA with peft (path_initial_model_for_weight_conversion).",
        )
    for field, value in config.items():
        if (
            field in _MERGED_FIELDS
            or field in _FIELDS_WITHOUT_EFFECT
            or not value
            or (field, value) == ("bias", "none")
        ):
            continue
        raise WeightsError(
            f"{path}: {escaped(field)} is {escaped(repr(value))}, which is not merged here.",
            "Train without that, or merge with peft's merge_and_unload and package the folder that it saves.",
        )


def _module_of(name: str, adapter: Path) -> tuple[str, str]:
    """(module, "lora_A", "lora_B" or "base_layer"), or (tensor name, "whole") for a tensor of modules_to_save.

    A base_layer is the copy that peft keeps of an output layer with LoRA on it.
    """
    if not name.startswith(_PREFIX):
        raise _refused(adapter, name, f"does not begin with {_PREFIX}")
    rest = name.removeprefix(_PREFIX)
    if match := re.match(r"^(.+)\.(lora_A|lora_B|base_layer)\.weight$", rest):
        return match[1], match[2]
    for mark, what in (
        ("lora_magnitude_vector", "DoRA"),
        ("lora_embedding", "LoRA of an embedding"),
        ("trainable_tokens", "trainable_token_indices"),
        ("lora_B.bias", "lora_bias"),
        ("lora_", "a kind of LoRA that is not known here"),
    ):
        if mark in rest:
            raise _refused(adapter, name, f"is {what}, which is not merged here")
    return rest, "whole"


def _update(
    name: str,
    module: str,
    config: dict[str, Any],
    tensors: TensorFiles,
    base: TensorInfo,
    base_config: Mapping[str, Any],
    adapter: Path,
) -> LoRAUpdate:
    other = name.replace(".lora_A.", ".lora_B.")
    if other not in tensors.infos:
        raise _refused(adapter, name, "has no lora_B beside it")
    a, b = tensors.infos[name].shape, tensors.infos[other].shape
    rank, alpha = rank_and_alpha(config, module, adapter / CONFIG_NAME)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != rank:
        raise _refused(adapter, name, f"has the shape {a} and its lora_B {b}; adapter_config.json says rank {rank:g}")
    transposed = _transposed(bool(config.get("fan_in_fan_out")), str(base_config.get("model_type", "")))
    expected = (a[1], b[0]) if transposed else (b[0], a[1])
    if base.shape != expected:
        raise _refused(
            adapter,
            name,
            f"updates a tensor of the shape {expected}; {escaped(base.name)} of the base has {base.shape}",
            _WRONG_BASE,
        )
    return LoRAUpdate(name, other, scale_of(config, rank, alpha), transposed)


def _transposed(fan_in_fan_out: bool, model_type: str) -> bool:
    """As peft decides: Conv1D layers are stored transposed, Linear ones never, whatever the field says."""
    if model_type in _CONV1D_FAMILIES:
        return True
    return fan_in_fan_out and model_type not in ("llama", "mistral", "qwen2")


def _refused(adapter: Path, name: str, what: str, fix: str = "") -> WeightsError:
    return WeightsError(
        f"{adapter}: {escaped(name)} {what}.",
        fix or "Train the adapter with LoRA on linear layers alone (q, k, v, o, MLP).",
    )


def read_adapter(adapter: Path) -> TensorFiles:
    """The tensors of an adapter folder."""
    if not (adapter / CONFIG_NAME).is_file():
        raise WeightsError(f"{adapter} has no {CONFIG_NAME}.", "Give a folder that peft's save_pretrained wrote.")
    return TensorFiles(read_header(adapter_weights(adapter)))
