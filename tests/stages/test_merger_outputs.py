"""What a merge can write besides one FP16 file, several adapters at once, and the comparison on prompts."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
from click.testing import CliRunner  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from adapters import CONTRACT, assert_equal_within_a_rounding, record  # noqa: E402
from po_distill.artifacts import read_manifest, write_jsonl  # noqa: E402
from po_distill.cli import cli  # noqa: E402
from po_distill.errors import ArtifactError, ContractMismatchError, SettingsError, WeightsError  # noqa: E402
from po_distill.records import MergedModel  # noqa: E402
from po_distill.stages.merger import Merger  # noqa: E402
from po_distill.stages.packager import Packager  # noqa: E402
from tiny_models import tiny_adapter, tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return [tiny_adapter(base, folder / "first"), tiny_adapter(base, folder / "second", scale=0.2, r=2)]


@pytest.fixture
def version(trained, tmp_path):
    folder = tmp_path / "models" / "po_student_v1"
    shutil.copytree(trained[0], folder / "adapter")
    return folder


def test_several_adapters_are_added_up_by_their_weights(base, trained, tmp_path):
    merged = Merger().merge([(trained[0], 0.7), (trained[1], 0.3)], tmp_path / "po_student_v3")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    for folder, weight in zip(trained, (0.7, 0.3), strict=True):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        adapted = PeftModel.from_pretrained(model, folder).merge_and_unload()
        after = adapted.state_dict()
        model.load_state_dict({name: value + weight * (after[name] - value) for name, value in before.items()})
    assert_equal_within_a_rounding(
        load_file(merged.weights_path), {name: value.half() for name, value in model.state_dict().items()}
    )
    assert [adapter.weight for adapter in merged.adapters] == [0.7, 0.3]
    assert merged.proof.adapter_keys == sum(len(load_file(folder / "adapter_model.safetensors")) for folder in trained)
    names = {path.name for path in (tmp_path / "po_student_v3").glob("*_lora_*.safetensors")}
    assert names == {"po_student_v3_lora_1.safetensors", "po_student_v3_lora_2.safetensors"}
    assert Merger().merge([(trained[0], 0.7), (trained[1], 0.3)], tmp_path / "po_student_v3") == merged
    with pytest.raises(ArtifactError, match="finished merge of another adapter"):
        Merger().merge([(trained[0], 0.3), (trained[1], 0.7)], tmp_path / "po_student_v3")


def test_adapters_that_cannot_be_added_up_are_refused_by_name(base, trained, tmp_path):
    whole = tiny_adapter(base, tmp_path / "whole", modules_to_save=["lm_head"], target_modules=["o_proj"])
    for wanted, words in (
        ([(whole, 0.5)], "replaces lm_head.weight as a whole .*, which has the weight 0.5"),
        ([(whole, 1.0), (tiny_adapter(base, tmp_path / "head", target_modules=["lm_head"]), 1.0)], "changes it too"),
        ([(trained[0], 1.0), (trained[0], 0.5)], "is named twice"),
        ([(trained[0], 0.0)], "has the weight 0"),
        ([(trained[0], float("nan"))], "has the weight nan"),
    ):
        with pytest.raises(WeightsError, match=words):
            Merger().merge(wanted, tmp_path / "out")


def test_adapters_of_two_contracts_are_refused(base, version, tmp_path):
    record(version, base)
    other = tmp_path / "other"
    shutil.copytree(version, other)
    record(other, base, contract=CONTRACT.model_copy(update={"system": "another"}))
    with pytest.raises(ContractMismatchError, match="trained under the prompt contract"):
        Merger().merge([(version, 0.5), (other, 0.5)], tmp_path / "out")


def test_the_package_takes_the_gguf_of_the_merge_as_it_stands(version):
    merged = Merger(gguf="q4_0").merge(version, version)
    path = version / "po-student-v1.Q4_0.gguf"
    written = path.stat().st_mtime_ns
    package = Packager("po-student-v1").package(merged)
    assert package.gguf == merged.gguf and path.stat().st_mtime_ns == written
    path.unlink()
    shutil.rmtree(version.parent / "again", ignore_errors=True)
    again = Merger().merge(version / "adapter", version.parent / "again" / "po_student_v1")
    assert Packager("po-student-v1").package(again).gguf.digest == merged.gguf.digest


def test_a_finished_merge_gets_the_gguf_that_it_lacks(version):
    plain = Merger().merge(version, version)
    with_gguf = Merger(gguf="q8_0").merge(version, version)
    assert plain.gguf is None and with_gguf.gguf.quantization == "q8_0"
    assert with_gguf.digest == plain.digest
    assert MergedModel.model_validate(read_manifest(version).stages["merge"]) == with_gguf
    assert Merger(gguf="q8_0").merge(version, version) == with_gguf


def test_a_gguf_alone_can_be_packaged(version, trained):
    merged = Merger(gguf="q4_0", checkpoint=False).merge(version, version)
    assert merged.weights_path is None and merged.digest == merged.gguf.digest
    assert {path.suffix for path in version.glob("po*")} == {".gguf", ".safetensors"}  # the latter is the adapter's
    assert Packager("po-student-v1").package(merged).gguf == merged.gguf
    with pytest.raises(SettingsError, match="writes nothing"):
        Merger(checkpoint=False)


def test_another_dtype_goes_to_another_folder(version):
    Merger().merge(version, version)
    with pytest.raises(ArtifactError, match="finished merge in float16"):
        Merger(dtype="bfloat16").merge(version, version)


def rows(path):
    answer = "status: aligned\nsummary: the vision and the requirements say the same\n" * 2
    prompts = ["Review this vision.", "It's 2026: what is missing?", "Größe, naïve", "A plan for teams that ship"]
    write_jsonl(path, [{"prompt": prompt, "response": answer} for prompt in prompts])
    return path


def test_the_forms_of_a_merge_answer_alike_and_a_broken_one_does_not(base, version, trained, tmp_path, capfd):
    wanted = [(version, 0.8), (trained[1], 0.4)]
    merged = Merger(gguf="f16").merge(wanted, tmp_path / "out", verify=rows(tmp_path / "rows.jsonl"))
    said = capfd.readouterr().err
    assert "Comparing" in said and "Loading weights" not in said and "Warning" not in said
    merge, runtime, rounding = merged.parity
    assert (merge.first, merge.second) == ("base + adapter", "merged")
    assert merge.positions == 4 * 32 and merge.same_top >= 0.98 and merge.mean_logprob_difference < 0.01
    assert runtime.same_top >= 0.98 and runtime.mean_logprob_difference < 0.01
    assert rounding.positions == 4 * 32 and rounding.same_top >= 0.98
    assert MergedModel.model_validate(read_manifest(tmp_path / "out").stages["merge"]).parity == merged.parity
    # The same folder with the base's weights in the checkpoint's place: the comparison is one that can fail.
    shutil.copy(base / "model.safetensors", merged.weights_path)
    broken = Merger(gguf="f16").merge(wanted, tmp_path / "out", verify=rows(tmp_path / "rows.jsonl"))
    assert broken.parity[0].same_top < 0.9 and broken.parity[2].same_top < 0.9


def test_the_command_says_what_it_wrote_and_how_it_was_proven(version, trained, tmp_path):
    done = CliRunner().invoke(cli, ["merge", "--adapter", str(version), "--gguf", "q4_0", "--shard-gb", "0.0001"])
    assert done.exit_code == 0, done.output
    assert "14 of 21 tensors changed, in float16" in done.stdout and "all of them used" in done.stdout
    assert "po_student_v1-00001-of-0000" in done.stdout and "po-student-v1.Q4_0.gguf (0.00 GB)" in done.stdout
    two = ["merge", "--adapter", f"{trained[0]}:0.7", "--adapter", f"{trained[1]}:0.3"]
    refused = CliRunner().invoke(cli, two)
    assert refused.exit_code == 2 and "--output FOLDER" in refused.stderr
    done = CliRunner().invoke(cli, [*two, "--output", str(tmp_path / "both"), "--json"])
    assert [adapter["weight"] for adapter in json.loads(done.stdout)["adapters"]] == [0.7, 0.3]
