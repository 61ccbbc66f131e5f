import json
import shutil

import pytest

torch = pytest.importorskip("torch")
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from adapters import CONTRACT, record  # noqa: E402
from po_distill.artifacts import digest_file, read_manifest, write_json  # noqa: E402
from po_distill.errors import ArtifactError, ContractMismatchError, InputError, WeightsError  # noqa: E402
from po_distill.records import MergedModel  # noqa: E402
from po_distill.stages.merger import Merger  # noqa: E402
from tiny_models import tiny_adapter, tiny_model  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    return tiny_adapter(base, tmp_path_factory.mktemp("trained") / "adapter")


@pytest.fixture
def version(trained, tmp_path):
    folder = tmp_path / "models" / "po_student_v1"
    shutil.copytree(trained, folder / "adapter")
    return folder


def test_the_version_folder_gets_the_checkpoint_beside_the_adapter(base, version):
    merged = Merger().merge(version, version)
    assert sorted(path.name for path in version.iterdir()) == [
        "adapter",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors.index.json",
        "po_student_v1.safetensors",
        "po_student_v1_lora.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (merged.dtype, merged.tensors, merged.merged_tensors) == ("float16", 21, 14)
    assert merged.base_name == str(base) and merged.contract is None
    lora, adapter = version / "po_student_v1_lora.safetensors", version / "adapter" / "adapter_model.safetensors"
    assert lora.read_bytes() == adapter.read_bytes()


def test_the_merged_folder_answers_in_transformers_as_base_and_adapter_do_in_peft(base, version):
    Merger().merge(version, version)
    ids = torch.arange(3, 40).unsqueeze(0)
    with_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), version / "adapter")
    with torch.no_grad():
        theirs = with_peft(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(version, dtype=torch.float32)(ids).logits
        without = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert (ours - theirs).abs().max() < 0.05 < (theirs - without).abs().max()
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() >= 0.95


def test_the_manifest_records_inputs_outputs_and_the_contract_by_digest(base, version):
    adapter = record(version, base)
    merged = Merger().merge(adapter, version)
    manifest = read_manifest(version)
    assert manifest.contract == merged.contract == CONTRACT
    assert manifest.inputs == {"base": adapter.base_digest, "adapter": adapter.digest}
    assert {name: digest_file(version / name) for name in manifest.outputs} == manifest.outputs
    assert MergedModel.model_validate(manifest.stages["merge"]) == merged


def test_a_finished_merge_of_the_same_adapter_is_returned_and_not_done_again(base, version):
    merged = Merger().merge(version, version)
    before = (version / "po_student_v1.safetensors").stat().st_mtime_ns
    assert Merger().merge(version / "adapter", version) == merged
    assert (version / "po_student_v1.safetensors").stat().st_mtime_ns == before


def test_a_finished_merge_is_never_overwritten_by_another_adapter(base, version, tmp_path):
    Merger().merge(version, version)
    other = tiny_adapter(base, tmp_path / "other", scale=0.1)
    with pytest.raises(ArtifactError, match="finished merge of another adapter"):
        Merger().merge(other, version)


def test_the_base_may_be_named_and_another_output_folder_gets_its_own_names(base, trained, tmp_path):
    merged = Merger(version_stem="named").merge(str(trained), tmp_path / "out", base=str(base))
    assert merged.weights_path == str(tmp_path / "out" / "named.safetensors")
    assert (tmp_path / "out" / "named_lora.safetensors").exists()


def test_another_base_than_the_one_trained_on_is_refused_by_digest(base, version, tmp_path):
    other = tiny_model(tmp_path / "other", initializer_range=0.1)
    record(version, base)
    with pytest.raises(WeightsError, match="was trained on the base"):
        Merger().merge(version, version, base=str(other))


def test_an_adapter_that_is_not_the_one_recorded_is_refused(base, version):
    record(version, base, digest="sha256:" + "0" * 64)
    with pytest.raises(WeightsError, match="was trained to the weights sha256:000"):
        Merger().merge(version, version)


def test_a_version_of_another_contract_is_refused(base, version):
    record(version, base)
    Merger().merge(version, version)
    manifest = read_manifest(version)
    write_json(version / "manifest.json", manifest.model_copy(update={"stages": {}}))
    record(version, base, contract=CONTRACT.model_copy(update={"system": "other"}))
    with pytest.raises(ContractMismatchError):
        Merger().merge(version, version)


def test_an_adapter_that_names_no_base_is_refused_with_the_option_that_names_it(version):
    path = version / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="--base"):
        Merger().merge(version, version)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no adapter"):
        Merger().merge(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="is no folder"):
        Merger().merge(tmp_path / "none", tmp_path / "out")


def test_the_bases_own_folder_is_never_written_to(base, version):
    with pytest.raises(ArtifactError, match="holds the base itself"):
        Merger().merge(version, base)
    with pytest.raises(ArtifactError, match="holds the adapter itself"):
        Merger().merge(version, version / "adapter")


def test_the_merged_weights_are_the_same_bytes_each_time(base, version, tmp_path):
    first = Merger().merge(version, tmp_path / "a" / "s_v1")
    second = Merger().merge(version, tmp_path / "b" / "s_v1")
    assert first.digest == second.digest
    assert load_file(first.weights_path).keys() == load_file(base / "model.safetensors").keys()
