import json
import shutil

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

from po_distill.artifacts import digest_file  # noqa: E402
from po_distill.errors import ArtifactError, WeightsError  # noqa: E402
from po_distill.weights import summed_weights, weight_stream  # noqa: E402
from po_distill.weights.gguf import GGUFWish, write_gguf  # noqa: E402
from po_distill.weights.lora_merge import merge_lora  # noqa: E402
from po_distill.weights.summed_weights import SummedWeights  # noqa: E402
from tiny_models import tiny_adapter, tiny_family, tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "llama", dtype="bfloat16")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return tiny_adapter(base, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few rows, in pieces of a row or two, so that every tensor takes many of them."""
    monkeypatch.setattr(weight_stream, "BLOCK_ELEMENTS", 1024)
    monkeypatch.setattr(summed_weights, "_PIECE_ELEMENTS", 200)
    monkeypatch.setattr("po_distill.weights.gguf._PIECE_ELEMENTS", 300)


def both(base, adapter, folder, **settings):
    wish = GGUFWish(folder / "m.gguf", settings.pop("quantization", "q4_0"), "m")
    return merge_lora(base, adapter, folder / "m.safetensors", gguf=wish, **settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantization", ["q4_0", "q8_0", "f16"])
def test_one_pass_for_both_gives_the_bytes_of_a_merge_and_a_gguf_made_of_it(
    base, adapter, tmp_path, quantization, dtype
):
    result = both(base, adapter, tmp_path / "both", quantization=quantization, dtype=dtype)
    merge_lora(base, adapter, tmp_path / "alone" / "m.safetensors", dtype=dtype)
    chained = write_gguf(tmp_path / "alone", tmp_path / "alone" / "m.gguf", quantization, name="m")
    for name in ("m.safetensors", "m.gguf"):
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert result.weights == {"m.safetensors": digest_file(tmp_path / "both" / "m.safetensors")}
    assert result.gguf is not None and result.gguf.digest == chained.digest == digest_file(tmp_path / "both" / "m.gguf")
    assert next(iter(load_file(tmp_path / "both" / "m.safetensors").values())).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_the_one_pass_of_every_family_is_its_chain_and_shows_the_adapter(tmp_path, family):
    base = tiny_family(tmp_path / "base", family, dtype="bfloat16")
    adapter = tiny_adapter(base, tmp_path / "adapter")
    both(base, adapter, tmp_path / "both")
    merge_lora(base, adapter, tmp_path / "alone" / "m.safetensors")
    write_gguf(tmp_path / "alone", tmp_path / "alone" / "m.gguf", "q4_0", name="m")
    write_gguf(base, tmp_path / "base.gguf", "q4_0", name="m")
    whole = (tmp_path / "both" / "m.gguf").read_bytes()
    assert whole == (tmp_path / "alone" / "m.gguf").read_bytes() != (tmp_path / "base.gguf").read_bytes()


def test_a_gguf_alone_is_that_of_both_and_the_adapter_shows_in_it(base, adapter, tmp_path):
    both(base, adapter, tmp_path / "both")
    merge_lora(base, adapter, None, gguf=GGUFWish(tmp_path / "alone" / "m.gguf", "q4_0", "m"))
    write_gguf(base, tmp_path / "base.gguf", "q4_0", name="m")
    alone = (tmp_path / "alone" / "m.gguf").read_bytes()
    assert alone == (tmp_path / "both" / "m.gguf").read_bytes() != (tmp_path / "base.gguf").read_bytes()
    assert not list((tmp_path / "alone").glob("*.safetensors"))


@pytest.mark.parametrize("tied", [False, True])
def test_the_slow_output_layer_is_begun_between_the_others_and_no_byte_changes(tmp_path, monkeypatch, tied):
    wide = tiny_model(tmp_path / "wide", dtype="bfloat16", hidden_size=256, tie_word_embeddings=tied)
    adapter = tiny_adapter(wide, tmp_path / "adapter")
    slow = "model.embed_tokens.weight" if tied else "lm_head.weight"
    filled: list[str] = []
    real = SummedWeights.fill

    def fill(self, block, memory):
        filled.append(block.source.name)
        real(self, block, memory)

    monkeypatch.setattr(SummedWeights, "fill", fill)
    early = both(wide, adapter, tmp_path / "early")
    last_other = max(number for number, name in enumerate(filled) if name != slow)
    assert slow in filled[:last_other]
    filled.clear()
    monkeypatch.setattr(weight_stream, "_MOST_EARLY_BYTES", 0)
    late = both(wide, adapter, tmp_path / "late")
    assert early.gguf is not None and late.gguf is not None and early.gguf.tensors["Q6_K"] == 1
    assert (early.weights, early.gguf.digest) == (late.weights, late.gguf.digest)
    blocks = filled.count(slow)
    monkeypatch.setattr(weight_stream, "_MOST_EARLY_BYTES", 2 * 4 * 210)  # two blocks of four rows
    filled.clear()
    both(wide, adapter, tmp_path / "two")
    assert filled.count(slow) == blocks + 2


def test_shards_hold_together_what_one_file_holds(base, adapter, tmp_path):
    whole = merge_lora(base, adapter, tmp_path / "whole" / "m.safetensors")
    result = merge_lora(base, adapter, tmp_path / "shards" / "m.safetensors", most_shard_bytes=40_000)
    assert len(result.weights) > 3 and list(result.weights) == [
        f"m-{number:05}-of-{len(result.weights):05}.safetensors" for number in range(1, len(result.weights) + 1)
    ]
    tensors = {}
    for name, digest in result.weights.items():
        shard = load_file(tmp_path / "shards" / name)
        assert digest_file(tmp_path / "shards" / name) == digest
        assert len(shard) == 1 or sum(2 * value.numel() for value in shard.values()) <= 40_000
        tensors |= shard
    expected = load_file(tmp_path / "whole" / "m.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    assert (result.merged_tensors, result.size_bytes) == (whole.merged_tensors, whole.size_bytes)


class Killed(BaseException):
    """As a kill: nothing cleans up after it."""


def kill_after(monkeypatch, blocks):
    count = 0
    real = SummedWeights.fill

    def fill(self, block, memory):
        nonlocal count
        count += 1
        if count > blocks:
            raise Killed
        real(self, block, memory)

    monkeypatch.setattr(SummedWeights, "fill", fill)


@pytest.mark.parametrize("blocks", [1, 40, 90, 120])
@pytest.mark.parametrize("shard", [None, 40_000])
def test_a_killed_merge_leaves_no_finished_name_and_goes_on_to_the_same_bytes(
    base, adapter, tmp_path, monkeypatch, blocks, shard
):
    monkeypatch.setattr(weight_stream, "_NOTE_BYTES", 5000)
    monkeypatch.setattr("po_distill.weights.weight_stream.WRITE_BYTES", 4096)
    expected = both(base, adapter, tmp_path / "unbroken", most_shard_bytes=shard)
    with monkeypatch.context() as patch:
        kill_after(patch, blocks)
        with pytest.raises(Killed):
            both(base, adapter, tmp_path / "killed", most_shard_bytes=shard)
    assert all(name.startswith(".") for name in names(tmp_path / "killed"))
    found = both(base, adapter, tmp_path / "killed", most_shard_bytes=shard)
    assert found.resumed is (blocks > 1)
    assert found.weights == expected.weights and found.merged_tensors == expected.merged_tensors
    assert found.gguf is not None and expected.gguf is not None and found.gguf.digest == expected.gguf.digest
    assert names(tmp_path / "killed") == names(tmp_path / "unbroken")


def test_a_killed_merge_of_another_adapter_is_not_gone_on_with(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_stream, "_NOTE_BYTES", 5000)
    monkeypatch.setattr("po_distill.weights.weight_stream.WRITE_BYTES", 4096)
    other = tiny_adapter(base, tmp_path / "other", scale=0.2)
    with monkeypatch.context() as patch:
        kill_after(patch, 90)
        with pytest.raises(Killed):
            both(base, adapter, tmp_path / "out")
    found = both(base, other, tmp_path / "out")
    assert not found.resumed and found.weights == both(base, other, tmp_path / "alone").weights


def test_a_refused_weight_leaves_nothing_behind(base, adapter, tmp_path):
    large = tiny_adapter(base, tmp_path / "large", scale=1e6)
    with pytest.raises(WeightsError, match=r"with the adapter holds .*, beyond float16's 65504"):
        both(base, large, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_too_little_space_is_told_before_the_first_byte(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ArtifactError, match=r"has 0\.0 GB free, 0\.0 GB are needed"):
        both(base, adapter, tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_two_merges_into_one_folder_do_not_mix(base, adapter, tmp_path):
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    held = FileLock(tmp_path / "out" / ".m.safetensors.progress.lock")
    with held, pytest.raises(ArtifactError, match="Another run is writing into"):
        both(base, adapter, tmp_path / "out")
