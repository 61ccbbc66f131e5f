import gc
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
import gguf  # noqa: E402
from gguf.quants import dequantize  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from po_distill.errors import WeightsError  # noqa: E402
from po_distill.weights import gguf_quantization  # noqa: E402
from po_distill.weights.gguf import write_gguf  # noqa: E402
from runtime import Runtime, greedy_agreement  # noqa: E402
from tiny_models import TEXTS, tiny_model  # noqa: E402

CHATS = [
    [{"role": "user", "content": TEXTS[0]}],
    [{"role": "system", "content": TEXTS[1]}, {"role": "user", "content": TEXTS[3]}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": TEXTS[2]}, {"role": "user", "content": "b"}],
]
EDGES = [
    *TEXTS,
    "",
    " ",
    "  two  spaces ",
    "\n\n\n a\r\n\tb",
    "don't DON'T we'LL",
    "1234567890",
    "<|im_end|>x<|im_start|>",
    "\u00a0\u200b!",
]


def fields(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("llama", {"head_dim": 32, "attention_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}),
        ("mistral", {"num_key_value_heads": 4, "sliding_window": None}),
        ("qwen2", {}),
    ],
    ids=["llama", "tied", "biases", "linear_rope", "mistral", "qwen2"],
)
def test_llama_cpp_computes_what_transformers_computes(tmp_path, model_type, changes):
    folder = tiny_model(tmp_path / "model", model_type, **changes)
    written = write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert written.architecture == ("qwen2" if model_type == "qwen2" else "llama")
    prompts = [[1, 5, 300, 17, 44], list(range(3, 60, 2)), [200] * 9]
    assert greedy_agreement(tmp_path / "m.gguf", folder, prompts, 30) >= 0.95


@pytest.mark.parametrize("split", ["smollm", "qwen2", "gpt-2", "llama-bpe", "tekken"])
def test_llama_cpp_makes_the_token_ids_of_the_tokenizer_that_training_used(tmp_path, split):
    # transformers takes the splitting of a Qwen2 model from its own code, that of a Llama from tokenizer.json.
    folder = tiny_model(tmp_path / "model", "qwen2" if split == "qwen2" else "llama", split)
    written = write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert any("NFC" in note for note in written.notes) is (split == "qwen2")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == split
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        for chat in CHATS:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            assert runtime.token_ids(chat) == ids
        for text in EDGES if split == "qwen2" else [*EDGES, "not in NFC: e\u0301"]:
            assert runtime.tokenize(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_the_types_of_the_tensors_are_those_of_llama_cpps_q4_0(tmp_path):
    folder = tiny_model(tmp_path / "model", hidden_size=256, num_attention_heads=4, intermediate_size=512)
    written = write_gguf(folder, tmp_path / "m.gguf", "q4_0", name="a student", license="mit", metadata={"x": "y"})
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["output.weight"].tensor_type.name == "Q6_K"
    assert tensors["token_embd.weight"].tensor_type.name == "Q4_0"
    assert tensors["blk.1.attn_norm.weight"].tensor_type.name == "F32"
    assert written.tensors == {"F32": 5, "Q4_0": 15, "Q6_K": 1}
    assert written.notes == ()
    assert written.size_bytes == (tmp_path / "m.gguf").stat().st_size
    weights = load_file(folder / "model.safetensors")
    for name, key in (("token_embd.weight", "model.embed_tokens.weight"), ("output.weight", "lm_head.weight")):
        restored = dequantize(tensors[name].data, tensors[name].tensor_type)
        step = np.abs(weights[key].numpy()).max() / 7
        assert np.abs(restored - weights[key].numpy()).max() <= step
    read = fields(tmp_path / "m.gguf")
    assert (read["general.name"], read["general.license"], read["po_distill.x"]) == ("a student", "mit", "y")
    assert (read["general.file_type"], read["general.quantization_version"]) == (2, 2)


@pytest.mark.parametrize(("hidden", "tied", "kind"), [(256, True, "Q6_K"), (64, True, "Q8_0"), (64, False, "Q8_0")])
def test_the_output_layer_is_q6_k_where_its_rows_allow_it_and_q8_0_elsewhere(tmp_path, hidden, tied, kind):
    folder = tiny_model(tmp_path / "model", hidden_size=hidden, tie_word_embeddings=tied)
    write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    tensors = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert tensors["token_embd.weight" if tied else "output.weight"] == kind
    assert ("output.weight" in tensors) is not tied


def test_without_libgguf_the_bytes_are_the_same_and_the_file_says_what_was_slower(tmp_path, monkeypatch):
    folder = tiny_model(tmp_path / "model", hidden_size=256)
    whole = write_gguf(folder, tmp_path / "whole.gguf", "q4_0")
    monkeypatch.setattr(gguf_quantization, "has_libgguf", lambda: False)
    written = write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert "Q6_K" in whole.tensors and whole.tensors == written.tensors
    assert not whole.notes and "libgguf is not installed" in written.notes[0]
    ours, theirs = (
        {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}
        for path in (tmp_path / "m.gguf", tmp_path / "whole.gguf")
    )
    assert ours == theirs


def test_quantizing_a_bf16_checkpoint_gives_the_bytes_of_quantizing_its_fp16_gguf(tmp_path):
    folder = tiny_model(tmp_path / "model", dtype="bfloat16")
    write_gguf(folder, tmp_path / "half.gguf", "f16")
    write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    half = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "half.gguf").tensors}
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        values = half[tensor.name].data.astype(np.float32)
        expected = values if tensor.tensor_type.name == "F32" else gguf.quants.quantize(values, tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes(), tensor.name


def test_embedding_rows_beyond_the_tokenizer_are_unused_tokens(tmp_path):
    folder = tiny_model(tmp_path / "model", vocab_size=600)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    read = fields(tmp_path / "m.gguf")
    known = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    assert len(read["tokenizer.ggml.tokens"]) == 600
    assert set(read["tokenizer.ggml.token_type"][known:]) == {5}
    assert greedy_agreement(tmp_path / "m.gguf", folder, [[1, 2, 3]], 10) >= 0.9


def test_a_template_that_speaks_of_tools_is_replaced_by_a_plain_one_that_renders_the_same(tmp_path):
    folder = tiny_model(tmp_path / "model")
    original = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{%- if tools %}{{ tools }}{%- endif %}" + original)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert "tools" not in fields(tmp_path / "m.gguf")["tokenizer.chat_template"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        for chat in CHATS:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            assert runtime.token_ids(chat) == ids


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel; supported: Llama"),
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, "quantized already"),
        ("config.json", {"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ("config.json", {"vocab_size": 100}, r"embedding has \d+ rows"),
        ("config.json", {"num_hidden_layers": 3}, r"lacks the tensor blk\.2"),
        ("config.json", {"num_hidden_layers": 1}, r"blk\.1"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace.*Known: .*smollm, qwen2, llama-bpe"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ],
)
def test_what_llama_cpp_would_run_otherwise_is_refused_by_name(tmp_path, file, change, words):
    folder = tiny_model(tmp_path / "model")
    edit(folder / file, lambda value: value.update(change))
    with pytest.raises(WeightsError, match=words):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()
    assert gc.isenabled()  # the collector rests while a tokenizer is read


def test_a_weight_that_is_not_finite_is_refused_by_name_and_leaves_no_file(tmp_path):
    folder = tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"layers\.1\.mlp\.up_proj\.weight holds values that are not finite"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_foreign_tensor_is_refused_by_name(tmp_path):
    folder = tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "score.weight": torch.ones(2, 64)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"score\.weight is none of"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
