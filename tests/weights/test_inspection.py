import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hostile_gguf import good_gguf, text
from hostile_weights import (
    ADAPTER_CONFIG,
    ADAPTER_SHAPES,
    BASE_SHAPES,
    good_header,
    safetensors_bytes,
    write_adapter,
    write_base,
)
from po_distill.artifacts import digest_file
from po_distill.errors import InputError, PODistillError, WeightsError
from po_distill.weights.checkpoint import digest_checkpoint
from po_distill.weights.inspection import inspect_weights


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def gguf(folder: Path, name: str = "w.gguf", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(bytes(replace(good_gguf(), **changes)))
    return folder / name


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- each kind ------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_is_told_with_its_parts_types_tokenizer_and_template(base: Path) -> None:
    found = inspect_weights(base)
    assert (found.kind, found.architecture, found.parameters, found.size_bytes) == (
        *("checkpoint", "LlamaForCausalLM", 112, 448),
    )
    assert {tensor.name: tensor.shape for tensor in found.tensors} == BASE_SHAPES
    assert {tensor.file for tensor in found.tensors} == {file.name for file in found.files[:2]}
    assert [(group.name, group.tensors, group.parameters) for group in found.by_part] == [
        ("model.embed_tokens.weight", 1, 24),
        ("lm_head.weight", 1, 24),
        ("model.layers.*.self_attn.q_proj.weight", 2, 32),
        ("model.layers.*.self_attn.v_proj.weight", 2, 32),
    ]
    assert [(group.name, group.size_bytes) for group in found.by_type] == [("F32", 448)]
    assert found.tokenizer is not None and (found.tokenizer.kind, found.tokenizer.tokens) == ("BPE", 2)
    assert (found.template, found.template_form) == ("{{ '[INST]' }}", "Mistral / Llama 2")
    assert found.metadata["hidden_size"] == 4


def test_the_digests_are_those_of_the_files_and_the_one_that_adapters_record(base: Path) -> None:
    found = inspect_weights(base)
    assert {file.name: file.digest for file in found.files} == {path.name: digest_file(path) for path in base.iterdir()}
    assert found.digest == digest_checkpoint(base)
    without = inspect_weights(base, digests=False)
    assert without.digest is None and {file.digest for file in without.files} == {None}


def test_an_adapter_is_told_with_its_scales_and_target_modules(adapter: Path) -> None:
    found = inspect_weights(adapter)
    assert found.kind == "adapter" and found.adapter is not None
    assert [(s.rank, s.alpha, s.scale, s.modules) for s in found.adapter.scales] == [(2, 4, 2.0, 3), (2, 8, 4.0, 1)]
    assert found.adapter.target_modules == ("q_proj", "v_proj") and found.adapter.base_name == "base"
    assert found.by_part[0].name == "model.layers.*.self_attn.q_proj.lora_A.weight"
    assert found.notes == ()


def test_the_scale_of_rslora_is_alpha_by_the_root_of_r(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", use_rslora=True, alpha_pattern={})
    found = inspect_weights(adapter).adapter
    assert found is not None and found.rs_lora
    assert [round(scale.scale, 9) for scale in found.scales] == [round(4 / 2**0.5, 9)]


def test_a_rank_that_the_tensors_do_not_have_is_noted(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", r=8)
    (note,) = inspect_weights(adapter).notes
    assert note.startswith("4 tensors have another rank than adapter_config.json says, base_model.model.model.layers.0")


def test_what_the_trainer_wrote_down_is_told_and_held_against_the_weights(adapter: Path) -> None:
    record = {"digest": digest_file(adapter / "adapter_model.safetensors"), "base_name": "b", "contract": {"name": "c"}}
    (adapter / "po_distill.json").write_text(json.dumps(record))
    assert (inspect_weights(adapter).ours, inspect_weights(adapter).notes) == (record, ())
    edit(adapter / "po_distill.json", digest="sha256:" + "0" * 64)
    assert "not the file that po_distill.json was written for" in inspect_weights(adapter).notes[0]


def test_a_gguf_is_told_with_its_key_values_and_long_arrays_as_counts(tmp_path: Path) -> None:
    found = inspect_weights(gguf(tmp_path))
    assert (found.kind, found.architecture, found.parameters, found.size_bytes) == ("gguf", "llama", 448, 656)
    assert [(group.name, group.size_bytes) for group in found.by_type] == [("F16", 256), ("F32", 256), ("Q4_0", 144)]
    assert found.metadata["tokenizer.ggml.tokens"] == {"array": "string", "count": 100}
    assert found.ours == {"package": "po-student-v1"}
    assert found.tokenizer is not None and (found.tokenizer.kind, found.tokenizer.tokens) == ("gpt2", 100)
    assert found.template_form == "ChatML"
    json.loads(found.model_dump_json(), parse_constant=pytest.fail)


def test_a_key_value_that_is_not_finite_is_a_word(tmp_path: Path) -> None:
    keys = ((text("a"), 6, b"\0\0\xc0\x7f"), (text("b"), 6, b"\0\0\x80\xff"))
    assert inspect_weights(gguf(tmp_path, keys=keys)).metadata == {"gguf.version": 3, "a": "nan", "b": "-inf"}


def test_a_safetensors_file_of_8_bit_floats_is_told_though_no_merge_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    header = {"w": {"dtype": "F8_E4M3", "shape": [2, 3], "data_offsets": [0, 6]}, "__metadata__": {"made": "here"}}
    path.write_bytes(safetensors_bytes(header, b"\0" * 6))
    found = inspect_weights(path)
    assert (found.kind, found.by_type[0].name, found.metadata) == ("safetensors", "F8_E4M3", {"made": "here"})


# --- what a path stands for -----------------------------------------------------------------------


def test_a_folder_stands_for_the_one_gguf_in_it_and_a_version_folder_for_its_adapter(
    tmp_path: Path, adapter: Path
) -> None:
    assert inspect_weights(gguf(tmp_path / "package").parent).kind == "gguf"
    (tmp_path / "version").mkdir()
    adapter.rename(tmp_path / "version" / "adapter")
    assert inspect_weights(tmp_path / "version").kind == "adapter"


def test_a_gguf_is_known_by_its_first_bytes_whatever_its_name(tmp_path: Path) -> None:
    assert inspect_weights(gguf(tmp_path, "sha256-0a1b")).kind == "gguf"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "MODEL.PTH", "last.ckpt", "a.pkl"])
def test_a_pickle_file_is_refused_by_its_name_without_being_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)  # to open it would wait for ever
    for path in (tmp_path / name, tmp_path):
        with pytest.raises((WeightsError, InputError), match=r"pickle|holds no weights") as caught:
            inspect_weights(path)
        assert str(path) in caught.value.problem


def test_an_adapter_whose_weights_are_a_pickle_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"pickle file \(adapter_model.bin\)"):
        inspect_weights(adapter)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder, "holds no weights"),
        (lambda folder: folder / "nothing", "does not exist"),
        (
            lambda folder: [gguf(folder, name) for name in ("a.gguf", "b.gguf")][1].parent,
            "2 gguf files.*a.gguf, b.gguf",
        ),
        (lambda folder: [(folder / "a.txt").write_text("x"), folder / "a.txt"][1], "neither a GGUF nor"),
        (lambda folder: [(folder / "a.gguf").write_text("xxxx"), folder / "a.gguf"][1], "begins with b'xxxx'"),
        (lambda folder: [(folder / "config.json").write_text("{}"), folder][1], "no safetensors weights"),
    ],
)
def test_a_path_that_stands_for_no_weights_is_refused_with_the_reason(make: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(PODistillError, match=words) as caught:
        inspect_weights(make(tmp_path))
    assert str(tmp_path) in caught.value.problem


def test_an_index_that_places_a_tensor_in_another_shard_is_refused(base: Path) -> None:
    index = base / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**places, "lm_head.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(WeightsError, match=r"lm_head.weight is in model-00002-of-00002.*it is in model-00001"):
        inspect_weights(base)


# --- what it needs --------------------------------------------------------------------------------


def test_nothing_but_the_base_install_is_needed(base: Path, adapter: Path, tmp_path: Path) -> None:
    code = """
import sys
for name in "torch transformers safetensors gguf libgguf jinja2 peft tokenizers huggingface_hub".split():
    sys.modules[name] = None
from click.testing import CliRunner
from po_distill.cli import cli
for path in sys.argv[1:]:
    done = CliRunner().invoke(cli, ["inspect", path], catch_exceptions=False)
    assert done.exit_code == 0, done.output
"""
    paths = [base, adapter, gguf(tmp_path), base / "model-00001-of-00002.safetensors"]
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True)


def test_without_digests_a_file_of_14_gb_is_told_at_once_and_nothing_but_its_head_is_read(tmp_path: Path) -> None:
    rows = 14_000_000_000 // 4 // 4096
    header, _ = good_header({"small": (1,)})
    header["large"] = {"dtype": "F32", "shape": [rows, 4096], "data_offsets": [4, 4 + rows * 4096 * 4]}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(header, b"\0" * 4))
    try:
        os.truncate(path, path.stat().st_size + rows * 4096 * 4)
    except OSError:
        pytest.skip("no sparse files here")
    before = _read_bytes()
    found = inspect_weights(tmp_path, digests=False)
    assert found.size_bytes > 13_900_000_000
    assert _read_bytes() - before < 1_000_000
    path.unlink()


def _read_bytes() -> int:
    """What this process has read so far; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


def test_the_names_of_the_made_adapter_are_those_that_it_declares(adapter: Path) -> None:
    assert {tensor.name for tensor in inspect_weights(adapter).tensors} == ADAPTER_SHAPES.keys()
    assert json.loads((adapter / "adapter_config.json").read_text()) == ADAPTER_CONFIG
