"""Each model family beside transformers: the same tokens in llama.cpp, and what it would compute otherwise refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
import gguf  # noqa: E402
from gguf.quants import dequantize  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from po_distill.errors import MissingExtraError, WeightsError  # noqa: E402
from po_distill.weights import gguf_quantization  # noqa: E402
from po_distill.weights.gguf import write_gguf  # noqa: E402
from po_distill.weights.gguf_families import FAMILIES  # noqa: E402
from po_distill.weights.gguf_header import context_tokens  # noqa: E402
from po_distill.weights.gguf_layout import architecture_of, head_size, is_tied, transformers_name  # noqa: E402
from po_distill.weights.gguf_rope import read_rope, rope_keys  # noqa: E402
from runtime import Runtime  # noqa: E402
from tiny_models import TINY_FAMILIES, tiny_family  # noqa: E402

SHORT = ([(i * 37) % 400 + 3 for i in range(60)], [1, 5, 300, 17, 44])
LONG = ([(i * 37) % 400 + 3 for i in range(300)],)
ENDS = [0, 2]  # the tiny tokenizer's tokens that end an answer, which llama.cpp is told not to choose


def agreement(gguf_path: Path, checkpoint: Path, prompts=SHORT, count=20) -> float:
    """The share of positions where transformers in float32 puts the token that llama.cpp put."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    same = []
    with Runtime(gguf_path, n_ctx=512) as runtime:
        for prompt in prompts:
            said = runtime.continue_greedily(prompt, count)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            logits[:, ENDS] = -torch.inf
            same += [a == b for a, b in zip(logits.argmax(-1).tolist(), said, strict=True)]
    return sum(same) / len(same)


def with_config(folder: Path, copy: Path, **changes: object) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    return copy


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", [name for name in TINY_FAMILIES if name != "phi3_longrope"])
def test_llama_cpp_puts_the_tokens_that_transformers_puts(tmp_path, name):
    folder = tiny_family(tmp_path / "model", name, dtype="float16")
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert agreement(tmp_path / "m.gguf", folder) >= 0.95


def test_phi_3s_factors_for_short_and_for_long_texts_are_those_of_transformers(tmp_path):
    folder = tiny_family(tmp_path / "model", "phi3_longrope", dtype="float16")
    written = write_gguf(folder, tmp_path / "long.gguf", "f16")
    assert "at most 256 both are the same" in written.notes[0]
    assert agreement(tmp_path / "long.gguf", folder, LONG) >= 0.95
    assert agreement(tmp_path / "long.gguf", folder, SHORT) < 0.6  # what the note says
    rope = {**json.loads((folder / "config.json").read_text())["rope_parameters"]}
    rope["original_max_position_embeddings"] = 512  # so that the runtime's context is a short one
    short = with_config(folder, tmp_path / "short", rope_parameters=rope, original_max_position_embeddings=512)
    write_gguf(short, tmp_path / "short.gguf", "f16")
    assert agreement(tmp_path / "short.gguf", short, SHORT) >= 0.95


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": 50.0}),
        ("gemma2", {"sliding_window": 512}),
        ("gemma3", {"sliding_window": 512}),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                }
            },
        ),
        ("llama3_rope", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("phi3_partial", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ],
    ids=["soft_cap", "window", "window_of_gemma3", "local_theta", "llama3", "partial"],
)
def test_a_header_that_says_otherwise_is_seen_in_the_tokens(tmp_path, name, changes):
    folder = tiny_family(tmp_path / "model", name, dtype="float16")
    write_gguf(with_config(folder, tmp_path / "other", **changes), tmp_path / "m.gguf", "f16")
    assert agreement(tmp_path / "m.gguf", folder) < 0.8


def test_every_family_of_the_table_has_a_tiny_model(tmp_path):
    classes = set()
    for model_type, _ in TINY_FAMILIES.values():
        family = {"gemma3_text": "Gemma3"}.get(model_type, model_type.title())
        classes.add(f"{family}ForCausalLM")
    assert classes == set(FAMILIES)


# --- tensors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gemmas_one_is_added_to_norms_in_the_dtype_in_which_the_converter_adds_it(tmp_path, dtype):
    folder = tiny_family(tmp_path / "model", "gemma3", dtype=dtype)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    weights = load_file(folder / "model.safetensors")
    names = {
        "blk.3.attn_norm": "layers.3.input_layernorm",
        "blk.3.attn_k_norm": "layers.3.self_attn.k_norm",
        "blk.3.post_attention_norm": "layers.3.post_attention_layernorm",
        "blk.3.ffn_norm": "layers.3.pre_feedforward_layernorm",
        "blk.3.post_ffw_norm": "layers.3.post_feedforward_layernorm",
        "output_norm": "norm",
    }
    for name, source in names.items():
        weight = weights[f"model.{source}.weight"]
        added = (weight + 1).float() if dtype == "float16" else weight.float() + 1
        assert np.array_equal(stored[f"{name}.weight"], added.numpy()), name
    if dtype == "float16":
        assert not torch.equal(added, weight.float() + 1)  # the two ways do differ


def test_llama_3s_factors_for_frequencies_are_those_of_transformers(tmp_path):
    folder = tiny_family(tmp_path / "model", "llama3_rope")
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = 500.0 ** -(np.arange(0, 16, 2) / 16)
    expected = plain / model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_allclose(stored["rope_freqs.weight"], expected, rtol=1e-5)
    assert len(set(np.round(expected, 3))) > 2  # some stay, some are stretched, some are between


def test_q4_k_m_stores_values_and_the_way_down_more_finely_where_llama_cpp_does(tmp_path):
    folder = tiny_family(
        tmp_path / "model", "qwen3_tied", hidden_size=256, intermediate_size=512, num_hidden_layers=9, dtype="float16"
    )
    written = write_gguf(folder, tmp_path / "m.gguf", "q4_k_m")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    fine = {name for name, kind in kinds.items() if kind == "Q6_K"}
    layers = (0, 3, 6, 7, 8)  # the first eighth, every third, the last eighth
    assert fine == {
        "token_embd.weight",
        *(f"blk.{layer}.{part}.weight" for layer in layers for part in ("attn_v", "ffn_down")),
    }
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_down.weight"] == "Q4_K"
    assert kinds["blk.0.attn_q_norm.weight"] == "F32"
    assert (written.quantization, fields(tmp_path / "m.gguf")["general.file_type"]) == ("q4_k_m", 15)
    restored = {
        transformers_name(tensor.name, FAMILIES["Qwen3ForCausalLM"]): torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type).copy()
        )
        for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    save_file(restored, folder / "model.safetensors", {"format": "pt"})
    assert agreement(tmp_path / "m.gguf", folder) >= 0.6  # llama.cpp rounds activations to 8 bits there


def test_q4_k_m_without_libgguf_is_refused_with_the_extra_that_brings_it(tmp_path, monkeypatch):
    folder = tiny_family(tmp_path / "model", "llama")
    monkeypatch.setattr(gguf_quantization, "has_libgguf", lambda: False)
    with pytest.raises(MissingExtraError, match=r"Q4_K_M.*libgguf") as caught:
        write_gguf(folder, tmp_path / "m.gguf", "q4_k_m")
    assert "po-distill[gguf]" in caught.value.fix
    assert not (tmp_path / "m.gguf").exists()


# --- configs as they come from the hub ------------------------------------------------------------

_HUB: dict[str, dict[str, Any]] = {
    "gemma-2-2b-it": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-2-27b-it": {
        "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "head_dim": 128, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 4608, "intermediate_size": 36864,
        "max_position_embeddings": 8192, "num_attention_heads": 32, "num_hidden_layers": 46, "num_key_value_heads": 16,
        "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "vocab_size": 262144,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
        "use_sliding_window": False, "vocab_size": 151936,
    },
    "Llama-3.2-1B-Instruct": {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256,
    },
    "Phi-3-mini-4k-instruct": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 32, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False,
        "vocab_size": 32064,
    },
    "Phi-4-mini-instruct": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "num_attention_heads": 24,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75, "rms_norm_eps": 1e-5,
        "rope_scaling": {"long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True, "vocab_size": 200064,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "architecture", "context", "tied", "keys"),
    [
        ("gemma-2-2b-it", "gemma2", 8192, True, {"dimension_count": 256, "freq_base": 10000.0}),
        ("gemma-2-27b-it", "gemma2", 8192, True, {"dimension_count": 128, "freq_base": 10000.0}),
        (
            "gemma-3-1b-it",
            "gemma3",
            32768,
            True,
            {"dimension_count": 256, "freq_base": 1000000.0, "freq_base_swa": 10000.0},
        ),
        ("Qwen3-0.6B", "qwen3", 40960, True, {"dimension_count": 128, "freq_base": 1000000.0}),
        ("Llama-3.2-1B-Instruct", "llama", 131072, True, {"dimension_count": 64, "freq_base": 500000.0}),
        (
            "Phi-3-mini-4k-instruct",
            "phi3",
            2047,  # its sliding window, which llama.cpp does not slide
            False,
            {"dimension_count": 96, "freq_base": 10000.0, "scaling.original_context_length": 4096},
        ),
        (
            "Phi-4-mini-instruct",
            "phi3",
            131072,
            True,
            {
                "dimension_count": 96,
                "freq_base": 10000.0,
                "scaling.original_context_length": 4096,
                "scaling.attn_factor": pytest.approx(1.190238),
            },
        ),
    ],
)
def test_a_config_as_the_hub_has_it_is_read_with_its_familys_defaults(model, architecture, context, tied, keys):
    config = _HUB[model]
    family = FAMILIES[config["architectures"][0]]
    assert architecture_of(config, model) == architecture
    assert (context_tokens(config), is_tied(config, family)) == (context, tied)
    rope = read_rope(config, family, head_size(config, family))
    assert rope_keys(rope, config, architecture) == keys


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ("Qwen3-0.6B", {"architectures": ["MixtralForCausalLM"]}, "supported: LlamaForCausalLM, .*Phi3ForCausalLM"),
        ("Qwen3-0.6B", {"hidden_act": "gelu"}, "hidden_act: 'gelu'; llama.cpp computes qwen3 with 'silu' only"),
        ("Qwen3-0.6B", {"attention_bias": True}, "attention_bias: True"),
        ("Qwen3-0.6B", {"layer_types": ["sliding_attention"] * 28}, "sliding windows to other layers"),
        ("Qwen3-0.6B", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("gemma-2-2b-it", {"attn_logit_softcapping": None}, "no attn_logit_softcapping"),
        ("gemma-2-2b-it", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar 224; .* with 256"),
        ("gemma-2-27b-it", {"query_pre_attn_scalar": 128}, "query_pre_attn_scalar 128; .* with 144"),
        ("gemma-2-2b-it", {"tie_word_embeddings": False}, "unties the output layer"),
        ("gemma-2-2b-it", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaling 'linear'.*Known for gemma2"),
        ("gemma-3-1b-it", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0"),
        ("gemma-3-1b-it", {"sliding_window_pattern": 2}, "sliding windows to other layers.*every 6"),
        ("gemma-3-1b-it", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma-3-1b-it", {"sliding_window": None}, "no sliding_window"),
        (
            "gemma-3-1b-it",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "sliding_attention",
        ),
        ("Llama-3.2-1B-Instruct", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "scaling 'dynamic'"),
        ("Llama-3.2-1B-Instruct", {"rope_scaling": {"rope_type": "yarn"}}, "'yarn' without factor"),
        (
            "Llama-3.2-1B-Instruct",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}},
            "beta_fast 16 for yarn",
        ),
        ("Phi-4-mini-instruct", {"partial_rotary_factor": 1.0}, r"longrope factors of the lengths \[48\].*64"),
        ("Phi-3-mini-4k-instruct", {"head_dim": 64}, "32 heads of 64 for a hidden_size of 3072"),
        ("Phi-3-mini-4k-instruct", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "scaling 'yarn'"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused_by_name(model, changes, words):
    with pytest.raises(WeightsError) as caught:
        architecture_of({**_HUB[model], **changes}, "the model")
    assert re.search(words, f"{caught.value.problem} {caught.value.fix}"), caught.value


@pytest.mark.parametrize(
    ("name", "extra", "words"),
    [
        ("qwen3", "model.layers.0.self_attn.q_proj.bias", "self_attn.q_proj.bias is none of a plain qwen3 model"),
        ("phi3", "model.layers.0.self_attn.q_proj.weight", "q_proj.weight is none of a plain phi3 model"),
        ("llama", "model.layers.0.self_attn.q_norm.weight", "q_norm.weight is none of a plain llama model"),
    ],
)
def test_a_tensor_that_the_family_does_not_have_is_refused(tmp_path, name, extra, words):
    folder = tiny_family(tmp_path / "model", name)
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, extra: torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=words):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")


@pytest.mark.parametrize(
    ("name", "missing", "words"),
    [
        ("qwen2", "model.layers.1.self_attn.k_proj.bias", r"lacks the tensor blk\.1\.attn_k\.bias"),
        ("qwen3", "model.layers.1.self_attn.k_norm.weight", r"lacks the tensor blk\.1\.attn_k_norm\.weight"),
        ("gemma2", "model.layers.1.post_feedforward_layernorm.weight", r"blk\.1\.post_ffw_norm\.weight"),
    ],
)
def test_a_tensor_without_which_llama_cpp_does_not_load_the_model_is_missed_by_name(tmp_path, name, missing, words):
    folder = tiny_family(tmp_path / "model", name)
    weights = load_file(folder / "model.safetensors")
    del weights[missing]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=words):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")


# --- beside llama.cpp's converter -----------------------------------------------------------------


@pytest.mark.skipif(
    "PO_DISTILL_ORACLE" not in os.environ, reason="PO_DISTILL_ORACLE names no Python with the converter"
)
def test_every_tensor_is_the_one_that_llama_cpps_converter_writes():
    script = Path(__file__).parents[2] / "benchmarks" / "converter_oracle.py"
    done = subprocess.run([sys.executable, str(script), "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tensors"] > 1000 and found["wrong"] == []
