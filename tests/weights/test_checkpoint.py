import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from po_distill.errors import InputError, WeightsError
from po_distill.weights import checkpoint
from po_distill.weights.checkpoint import locate


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"eos_token_id": 1, "max_position_embeddings": 77}))
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 1, "content": "<end>"}]}))
    save_file({"a": np.ones((2, 3), np.float16)}, path / "model.safetensors")
    return path


def shard(folder, names):
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def test_a_local_folder_is_a_checkpoint_with_its_own_stops(folder):
    found = locate(str(folder))
    assert (found.path, found.spec, found.stops, found.context_tokens) == (folder, None, ("<end>",), 77)


def test_smollm2_out_of_its_package_is_a_checkpoint_that_speaks_chatml():
    transformers = pytest.importorskip("transformers")
    found = locate("smollm2-135m-instruct")
    assert found.spec is not None and found.license == "Apache-2.0"
    assert found == locate("smollm2-135m-instruct")
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.path)
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer("2026", add_special_tokens=False)["input_ids"]) == 4  # each digit is a token
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_the_hub_id_of_a_packaged_model_is_the_same_checkpoint_as_its_name():
    by_name, by_id = locate("smollm2-135m-instruct"), locate("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert (by_id.path, by_id.digest, by_id.spec) == (by_name.path, by_name.digest, by_name.spec)


def test_the_digest_follows_the_weights_even_within_one_tick_of_the_clock(folder):
    before = locate(str(folder)).digest
    save_file({"a": np.zeros((2, 3), np.float16)}, folder / "model.safetensors")
    assert locate(str(folder)).digest != before


def test_a_kept_digest_is_used_only_while_size_and_time_of_the_file_stay(folder, monkeypatch, tmp_path):
    import os

    monkeypatch.setenv("PO_DISTILL_CACHE", str(tmp_path / "cache"))
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(10**18, 10**18))
    before = locate(str(folder)).digest
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    assert json.loads(kept.read_text())["stamp"][1] == 10**18
    save_file({"a": np.zeros((2, 3), np.float16)}, weights)
    os.utime(weights, ns=(10**18 + 1, 10**18 + 1))
    assert locate(str(folder)).digest != before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "the key a stands twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "[" * 9_999, "nested too deeply"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_config_that_readers_could_take_differently_is_refused_by_name(folder, text, words):
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=words) as caught:
        locate(str(folder))
    assert str(folder / "config.json") in caught.value.problem


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_needed_file_is_refused_by_the_files_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        locate(str(folder))


def test_tokenizer_model_alone_is_refused(folder):
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(WeightsError, match=r"tokenizer\.model alone is not enough"):
        locate(str(folder))


def test_an_adapter_folder_is_refused_with_the_advice_to_merge(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(WeightsError, match="Merge it first"):
        locate(str(folder))


def test_pickle_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pickle files \(pytorch_model\.bin\)"):
        locate(str(folder))


@pytest.mark.parametrize(
    "name",
    [
        *("../model.safetensors", "/etc/model.safetensors", "sub/a.safetensors", "a.bin", "..", "", 7, None),
        *("..\\a.safetensors", "C:a.safetensors", "a.safetensors:b.safetensors", "\0.safetensors", "\x1b.safetensors"),
        "a" * 300 + ".safetensors",
    ],
)
def test_an_index_that_names_a_file_outside_the_folder_is_refused(folder, name):
    shard(folder, {"a": name})
    with pytest.raises(WeightsError, match="no safetensors file of this folder"):
        locate(str(folder))


def test_a_missing_shard_is_named(folder):
    shard(folder, {"a": "model-00001-of-00002.safetensors"})
    with pytest.raises(WeightsError, match="lacks the shard model-00001"):
        locate(str(folder))


def test_a_tensor_that_the_index_promises_and_no_shard_holds_is_named(folder):
    save_file({"a": np.ones(2, np.float16)}, folder / "x.safetensors")
    shard(folder, {"a": "x.safetensors", "b": "x.safetensors"})
    with pytest.raises(WeightsError, match="names b, which no shard holds"):
        checkpoint.read_tensor_infos(folder)


def test_an_index_that_says_another_shard_than_holds_a_tensor_is_refused(folder):
    save_file({"a": np.ones(2, np.float16)}, folder / "x.safetensors")
    save_file({"b": np.ones(2, np.float16)}, folder / "y.safetensors")
    shard(folder, {"a": "y.safetensors", "b": "y.safetensors", "c": "x.safetensors"})
    with pytest.raises(WeightsError, match=r"says that a is in y\.safetensors; it is in x\.safetensors"):
        checkpoint.read_tensor_infos(folder)


def test_an_unknown_name_is_refused_with_the_nearest_registered_one():
    with pytest.raises(InputError, match="Did you mean 'smollm2-135m-instruct'"):
        locate("smollm-135m-instruct")


def test_a_hub_id_that_cannot_be_had_is_refused_with_the_way_to_get_it(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="hf download nobody/nothing"):
        locate("nobody/nothing")
