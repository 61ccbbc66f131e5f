import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("xllamacpp")
from click.testing import CliRunner
from transformers import AutoTokenizer

from po_distill.artifacts import digest_file, read_manifest
from po_distill.base_models import MISTRAL_7B_INSTRUCT, QWEN2_5_7B_INSTRUCT
from po_distill.cli import cli
from po_distill.errors import ArtifactError, InputError, WeightsError
from po_distill.modelfile import modelfile
from po_distill.records import OllamaPackage
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.merger import Merger
from po_distill.stages.packager import Packager
from po_distill.weights.checkpoint import locate
from runtime import Runtime, greedy_agreement
from scripted_student import scripted_student
from tiny_models import tiny_adapter, tiny_mistral, tiny_model

PARAMETERS = {"num_ctx": 8192, "num_predict": 4096, "temperature": 0.4}
MISTRAL_MODELFILE = '''\
FROM ./po-student-v1.Q4_0.gguf
TEMPLATE """{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}[INST] {{ if and (eq (len (slice $.Messages $index)) 1) (eq (index $.Messages 0).Role "system") }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }} {{ .Content }}</s>
{{- end }}
{{- end }}"""
SYSTEM """Keep one "vision".
Be brief."""
PARAMETER num_ctx 8192
PARAMETER num_predict 4096
PARAMETER temperature 0.4
PARAMETER stop "</s>"
PARAMETER stop "[INST]"
PARAMETER stop "[/INST]"
LICENSE "Apache-2.0"
'''  # noqa: E501
QWEN_MODELFILE = '''\
FROM ./po-student-v1.Q4_0.gguf
TEMPLATE """{{ range $index, $_ := .Messages }}{{ if and (eq $index 0) (ne .Role "system") }}<|im_start|>system
You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
{{ end }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
PARAMETER num_ctx 8192
PARAMETER num_predict 4096
PARAMETER temperature 0.4
PARAMETER stop "<|im_end|>"
PARAMETER stop "<|im_start|>"
PARAMETER stop "<|endoftext|>"
LICENSE "Apache-2.0"
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    return tiny_adapter(base, tmp_path_factory.mktemp("trained") / "adapter")


@pytest.fixture
def version(trained, tmp_path):
    folder = tmp_path / "po_student_v1"
    shutil.copytree(trained, folder / "adapter")
    return folder


@pytest.mark.parametrize(
    ("spec", "system", "text"),
    [
        (MISTRAL_7B_INSTRUCT, 'Keep one "vision".\nBe brief.', MISTRAL_MODELFILE),
        (QWEN2_5_7B_INSTRUCT, "", QWEN_MODELFILE),
    ],
    ids=["mistral_with_a_system_text", "qwen2"],
)
def test_the_modelfile_of_a_family_is_this(spec, system, text):
    made = modelfile(
        "po-student-v1.Q4_0.gguf", spec.ollama_template, spec.stops, PARAMETERS, spec.license, system=system
    )
    assert made == text


def test_the_package_is_a_gguf_that_answers_and_a_modelfile_that_names_it(version):
    merged = Merger().merge(version, version)
    package = Packager().package(merged)
    assert package.gguf.path == str(version / "po-student-v1.Q4_0.gguf")
    assert package.create_command == f"ollama create po-student-v1 -f {version}/Modelfile"
    assert (package.num_ctx, package.stops) == (512, ("<|im_end|>",))
    lines = (version / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./po-student-v1.Q4_0.gguf"
    assert "PARAMETER num_ctx 512" in lines and 'PARAMETER stop "<|im_end|>"' in lines
    manifest = read_manifest(version)
    assert set(manifest.stages) == {"merge", "package"}
    assert OllamaPackage.model_validate(manifest.stages["package"]) == package
    assert {name: digest_file(version / name) for name in manifest.outputs} == manifest.outputs
    with Runtime(version / "po-student-v1.Q4_0.gguf", n_ctx=128) as runtime:
        assert len(runtime.continue_greedily([1, 5, 9], 4)) == 4


def test_a_plain_checkpoint_folder_is_packaged_too_and_keeps_its_files(base, tmp_path):
    before = sorted(path.name for path in base.iterdir())
    package = Packager("team/po:v2", "q8_0", num_ctx=256).package(base, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "Modelfile", "manifest.json", "team-po-v2.Q8_0.gguf"
    ]  # fmt: skip
    assert package.num_ctx == 256
    assert sorted(path.name for path in base.iterdir()) == before


def test_a_mistral_checkpoint_gets_mistrals_template_without_bos(tmp_path):
    folder = tiny_mistral(tmp_path / "model")
    Packager(quantization="q8_0").package(folder, tmp_path / "out")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert MISTRAL_7B_INSTRUCT.ollama_template in text and "<s>" not in text


def test_the_same_package_is_returned_and_another_one_refused(version):
    package = Packager().package(Merger().merge(version, version))
    written = (version / "Modelfile").stat().st_mtime_ns
    assert Packager().package(version) == package
    assert (version / "Modelfile").stat().st_mtime_ns == written
    with pytest.raises(ArtifactError, match=r"finished package po-student-v1 \(q4_0\)"):
        Packager(quantization="f16").package(version)


@pytest.mark.parametrize("named", ["adapter", "."])
def test_an_adapter_is_merged_first_where_it_is_named_in_the_models_place(version, named):
    result = CliRunner().invoke(cli, ["package", "--adapter", str(version / named), "--quant", "f16", "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["name"], made["path"]) == ("po-student-v1", str(version))
    assert set(read_manifest(version).stages) == {"merge", "package"}


def test_other_settings_than_the_finished_packages_are_refused(tmp_path):
    folder = scripted_student(tmp_path / "s", "It is a vision.")
    Packager().package(folder)
    for settings in ({"num_ctx": 4096}, {"num_predict": 100}, {"temperature": 0.0}):
        with pytest.raises(ArtifactError, match=r"po-student-v1 \(num_ctx 8192, num_predict 4096, temperature 0\.4\)"):
            Packager(**settings).package(folder)


def test_a_package_that_an_earlier_version_made_is_made_again_with_what_it_did_not_note(tmp_path):
    folder = scripted_student(tmp_path / "s", "It is a vision.")
    package = Packager().package(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in ("template", "system", "license", "chat", "serve", "num_predict", "temperature"):
        del manifest["stages"]["package"][name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert Packager().package(folder) == package


# --- what it is created with ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longest", "settings", "num_ctx"),
    [
        (1700, {}, 6144),
        (2048, {}, 6144),
        (2049, {}, 7168),
        (1700, {"num_predict": 300}, 2048),
        (30000, {}, 32768),
        (None, {}, 8192),
        (1700, {"num_ctx": 3000}, 3000),
        (1700, {"num_ctx": 99999}, 32768),
    ],
)
def test_the_context_holds_the_longest_row_of_the_training_and_an_answer(tmp_path, longest, settings, num_ctx):
    folder = scripted_student(tmp_path / "s", "It is a vision.", longest=longest, context_tokens=32768)
    assert Packager(**settings).package(folder).num_ctx == num_ctx
    assert f"PARAMETER num_ctx {num_ctx}\n" in (folder / "Modelfile").read_text()


def test_the_contracts_system_text_is_the_packages(tmp_path):
    contract = ProductOwnerRole().contract
    folder = scripted_student(tmp_path / "s", "It is a vision.", contract=contract)
    assert Packager().package(folder).system == contract.system
    assert f'SYSTEM """{contract.system}"""' in (folder / "Modelfile").read_text()
    other = scripted_student(tmp_path / "t", "It is a vision.", contract=ProductOwnerRole(prompt="").contract)
    assert Packager().package(other).system == ""
    assert "SYSTEM" not in (other / "Modelfile").read_text()


def test_each_runtime_has_its_command_whatever_the_folder_is_called(tmp_path):
    folder = scripted_student(tmp_path / "two words; rm -rf", "It is a vision.")
    package = Packager(quantization="q8_0", num_predict=900).package(folder)
    words = {runtime: shlex.split(command) for runtime, command in package.serve.items()}
    assert words == {
        "ollama": ["ollama", "create", "po-student-v1", "-f", str(folder / "Modelfile")],
        "llama_cpp": ["llama-server", "-m", str(folder / "po-student-v1.Q8_0.gguf"), "-c", "8192", "--jinja", "--alias",
                      "po-student-v1", "--temp", "0.4", "-n", "900"],
        "vllm": ["vllm", "serve", str(folder), "--served-model-name", "po-student-v1", "--max-model-len", "8192"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["", "-a", "a b", "a/b/c/d", "a:b:c/d", "a" * 81, "po\nFROM evil", "../po", "po:", "po\n", 'po"', "/po"]
)
def test_a_name_that_ollama_does_not_take_is_refused(name):
    with pytest.raises(InputError, match="no name that Ollama takes"):
        Packager(name)


@pytest.mark.parametrize("name", ["po", "po-student-v1", "team/po", "host.example:11434/team/po:v1.2", "_x", "a" * 80])
def test_a_name_that_ollama_takes_is_taken(name):
    assert Packager(name).name == name


@pytest.mark.parametrize(
    "value", ['x"""\nFROM evil', 'line\nends with "', '"begins\nwith', "nbsp\u00a0", "zero\u200bwidth", "bell\a", '"']
)
def test_a_value_that_breaks_out_of_the_modelfiles_quotes_is_refused(value):
    with pytest.raises(InputError, match="TEMPLATE"):
        modelfile("a.gguf", value, ["x"], PARAMETERS, None)
    with pytest.raises(InputError, match="stop"):
        modelfile("a.gguf", "t", [value], PARAMETERS, None)


def test_a_chat_template_of_no_known_form_is_refused(tmp_path):
    folder = tiny_model(tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}### {{ m['content'] }}{% endfor %}")
    with pytest.raises(WeightsError, match="no form that is known here"):
        Packager().package(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# A child that kills itself the moment before its n-th rename, which is where a file gets its final name.
KILLED = """
import os, signal, sys
from pathlib import Path
from po_distill.stages.merger import Merger
from po_distill.stages.packager import Packager

left = int(sys.argv[3])

def count(event, arguments):
    global left
    if event == "os.rename" and str(arguments[1]).startswith(sys.argv[1]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
Packager().package(Merger().merge(Path(sys.argv[1]), Path(sys.argv[1]), base=sys.argv[2]))
"""


def files(folder):
    return {
        path.name: digest_file(path) for path in folder.iterdir() if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize("rename", [1, 9, 10, 12], ids=["weights", "merge_manifest", "gguf", "package_manifest"])
def test_killed_at_a_rename_nothing_is_half_written_and_a_second_run_ends_the_same(base, version, tmp_path, rename):
    whole = tmp_path / "whole" / "po_student_v1"
    shutil.copytree(version, whole)
    Packager().package(Merger().merge(whole, whole, base=str(base)))
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(version), str(base), str(rename)],
        env={**os.environ, "PO_DISTILL_QUIET": "1"},
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    visible = {name: digest for name, digest in files(version).items() if not name.startswith(".")}
    assert len(visible) == {1: 0, 9: 8, 10: 8, 12: 10}[rename]
    assert visible.items() <= files(whole).items()
    Packager().package(Merger().merge(version, version, base=str(base)))
    assert {name: digest for name, digest in files(version).items() if "manifest" not in name} == files(whole)


def test_smollm2_with_a_lora_answers_alike_merged_in_transformers_and_as_f16_gguf_in_llama_cpp(tmp_path):
    base = locate("smollm2-135m-instruct")
    adapter = tiny_adapter(
        base.path, tmp_path / "po_student_v1" / "adapter", scale=0.05, r=4, target_modules=["v_proj"]
    )
    merged = Merger().merge(adapter, tmp_path / "po_student_v1", base="smollm2-135m-instruct")
    package = Packager(quantization="f16").package(merged)
    assert package.stops == base.stops and package.num_ctx == 8192
    tokenizer = AutoTokenizer.from_pretrained(merged.path)
    chats = [
        [{"role": "user", "content": "Who are you, and what is 12 * 345?"}],
        [
            {"role": "system", "content": "Act as senior PO."},
            {"role": "user", "content": 'Don\'t say `x: "y"`!\n\n  - ü'},
        ],
    ]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    with Runtime(tmp_path / "po_student_v1" / "po-student-v1.F16.gguf", n_ctx=256, n_threads=2) as runtime:
        assert [runtime.token_ids(chat) for chat in chats] == prompts
    assert greedy_agreement(runtime.provider.path, tmp_path / "po_student_v1", prompts, 24, n_threads=2) >= 0.95
