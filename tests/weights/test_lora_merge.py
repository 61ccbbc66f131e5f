import json
import math

import pytest

torch = pytest.importorskip("torch")
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from adapters import assert_equal_within_a_rounding  # noqa: E402
from po_distill.errors import WeightsError  # noqa: E402
from po_distill.weights.lora_merge import merge_lora  # noqa: E402
from tiny_models import tiny_adapter, tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture
def adapter(base, tmp_path):
    return tiny_adapter(base, tmp_path / "adapter")


def merge(base, adapter, tmp_path):
    path = tmp_path / "merged" / "student_v1.safetensors"
    return merge_lora(base, adapter, path), load_file(path)


def by_peft(base, adapter):
    """peft's own merge in float32, rounded to float16 once."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    return {name: value.half() for name, value in model.merge_and_unload().state_dict().items()}


def edit_config(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(adapter, change):
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file(weights, adapter / "adapter_model.safetensors")


def first(weights, part):
    return next(name for name in sorted(weights) if part in name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6}},
        {"alpha_pattern": {"down_proj": 3}, "use_rslora": True},
        {"modules_to_save": ["lm_head"], "target_modules": ["o_proj", "up_proj"]},
        {"target_modules": ["lm_head", "gate_proj"]},
        {"layers_to_transform": [1], "target_modules": ["k_proj"], "r": 1},
    ],
    ids=["plain", "rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "output_layer", "one_layer"],
)
def test_the_merged_weights_are_those_of_pefts_own_merge(base, tmp_path, settings):
    adapter = tiny_adapter(base, tmp_path / "adapter", **settings)
    result, merged = merge(base, adapter, tmp_path)
    assert_equal_within_a_rounding(merged, by_peft(base, adapter))
    original = load_file(base / "model.safetensors")
    changed = [name for name in merged if not torch.equal(merged[name], original[name].half())]
    assert (result.tensors, result.merged_tensors) == (len(merged), len(changed))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_base_in_half_precision_is_summed_in_float32(tmp_path, dtype):
    base = tiny_model(tmp_path / "base", "qwen2", dtype=dtype)
    adapter = tiny_adapter(base, tmp_path / "adapter")
    assert_equal_within_a_rounding(merge(base, adapter, tmp_path)[1], by_peft(base, adapter))


def test_conv1d_layers_are_updated_transposed(tmp_path):
    changes = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_inner": 64}
    base = tiny_model(tmp_path / "base", "gpt2", "gpt-2", tie_word_embeddings=True, **changes)
    adapter = tiny_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    theirs = by_peft(base, adapter)
    ours = merge(base, adapter, tmp_path)[1]
    assert_equal_within_a_rounding(ours, {name: theirs[name] for name in ours})


def test_transformers_loads_the_merged_folder_as_it_is(base, adapter, tmp_path):
    merge(base, adapter, tmp_path)
    folder = tmp_path / "merged"
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "student_v1.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert_equal_within_a_rounding(dict(model.state_dict()), by_peft(base, adapter))
    text = "It's 2026."
    assert AutoTokenizer.from_pretrained(folder)(text) == AutoTokenizer.from_pretrained(base)(text)


def test_a_sharded_base_merges_to_the_same_bytes(base, adapter, tmp_path):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "shards" / name).write_bytes((base / name).read_bytes())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    merge_lora(base, adapter, tmp_path / "one" / "m.safetensors")
    merge_lora(tmp_path / "shards", adapter, tmp_path / "two" / "m.safetensors")
    assert (tmp_path / "one" / "m.safetensors").read_bytes() == (tmp_path / "two" / "m.safetensors").read_bytes()


def test_an_adapter_that_changes_nothing_is_refused_and_leaves_no_file(base, tmp_path):
    adapter = tiny_adapter(base, tmp_path / "adapter", scale=0.0)
    with pytest.raises(WeightsError, match="changes no weight"):
        merge(base, adapter, tmp_path)
    assert list((tmp_path / "merged").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "LoRA of an embedding"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"bias": "lora_only"}, "bias"),
    ],
)
def test_what_peft_trains_and_the_merge_cannot_do_exactly_is_refused_by_name(base, tmp_path, settings, words):
    adapter = tiny_adapter(base, tmp_path / "adapter", **settings)
    with pytest.raises(WeightsError, match=words):
        merge(base, adapter, tmp_path)


@pytest.mark.parametrize(
    "field",
    [
        {"layer_replication": [[0, 1], [0, 2]]},
        {"use_qalora": True},
        {"a_field_of_the_future": 3},
        {"peft_type": "IA3"},
        {"r": 0},
        {"lora_alpha": None},
        {"r": 5},
        {"rank_pattern": {"(": 4}},
    ],
)
def test_a_config_field_that_does_not_fit_is_refused_by_name(base, adapter, tmp_path, field):
    edit_config(adapter, **field)
    with pytest.raises(WeightsError, match="rank" if field == {"r": 5} else next(iter(field))):
        merge(base, adapter, tmp_path)


def test_dora_and_other_foreign_tensors_are_refused_by_name(base, adapter, tmp_path):
    for name in ("lora_magnitude_vector.weight", "lora_B.bias", "lora_X.weight", "weight"):
        edit_weights(adapter, lambda w, name=name: w.update({f"base_model.model.model.norm.{name}": torch.ones(64)}))
        with pytest.raises(WeightsError, match=r"model\.norm\." + name):
            merge(base, adapter, tmp_path)
        edit_weights(adapter, lambda w, name=name: w.pop(f"base_model.model.model.norm.{name}"))


def test_a_lora_on_a_tied_output_layer_is_refused(tmp_path):
    base = tiny_model(tmp_path / "base", tie_word_embeddings=True)
    adapter = tiny_adapter(base, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    with pytest.raises(WeightsError, match=r"lm_head.* tied to the output layer"):
        merge(base, adapter, tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_with_values_that_are_not_finite_is_refused(base, adapter, tmp_path, value):
    edit_weights(adapter, lambda w: w[first(w, "q_proj.lora_B")].view(-1)[3:4].fill_(value))
    with pytest.raises(WeightsError, match=r"q_proj\.lora_B\.weight holds values that are not finite"):
        merge(base, adapter, tmp_path)


def test_a_weight_beyond_float16_is_refused_by_name_and_value(tmp_path):
    base = tiny_model(tmp_path / "base", dtype="bfloat16")
    adapter = tiny_adapter(base, tmp_path / "adapter")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][5] = 1e5
    save_file(weights, base / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.norm\.weight holds 99840, beyond float16"):
        merge(base, adapter, tmp_path)


def test_an_adapter_of_another_base_is_refused_by_the_tensor_that_does_not_fit(base, tmp_path):
    other = tiny_model(tmp_path / "other", hidden_size=32)
    with pytest.raises(WeightsError, match="updates a tensor of the shape"):
        merge(base, tiny_adapter(other, tmp_path / "adapter"), tmp_path)
    deeper = tiny_model(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(WeightsError, match=r"layers\.2\..* belongs to no tensor of the base"):
        merge(base, tiny_adapter(deeper, tmp_path / "adapter2"), tmp_path)


def test_half_of_a_lora_pair_is_refused(base, adapter, tmp_path):
    for part in ("lora_A", "lora_B"):
        whole = (adapter / "adapter_model.safetensors").read_bytes()
        edit_weights(adapter, lambda w, part=part: w.pop(first(w, part)))
        with pytest.raises(WeightsError, match=f"has no {part} beside it"):
            merge(base, adapter, tmp_path)
        (adapter / "adapter_model.safetensors").write_bytes(whole)


def test_a_pickled_adapter_and_a_quantized_base_are_refused(base, adapter, tmp_path):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(WeightsError, match="pickle"):
        merge(base, adapter, tmp_path)
    quantized = tiny_model(tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(WeightsError, match="awq"):
        merge(quantized, adapter, tmp_path)


def test_a_truncated_base_is_refused(adapter, tmp_path):
    base = tiny_model(tmp_path / "base")
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="ends within"):
        merge(base, adapter, tmp_path)
