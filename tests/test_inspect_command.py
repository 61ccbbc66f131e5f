import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostile_gguf import good_gguf
from hostile_weights import write_adapter, write_base
from po_distill.cli import cli
from po_distill.records import WeightsInspection


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "w.gguf"
    path.write_bytes(bytes(good_gguf()))
    return path


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["inspect", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_gives_everything_and_nothing_else(gguf: Path) -> None:
    found = WeightsInspection.model_validate_json(run(gguf, "--json"))
    assert len(found.tensors) == 3 and found.files[0].digest is not None
    assert found.metadata["tokenizer.chat_template"] == found.template == "{{ '<|im_start|>' }}"


def test_each_kind_is_told_to_people(tmp_path: Path, gguf: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    assert "LlamaForCausalLM" in run(tmp_path / "base")
    assert "2 = alpha 4 / r, r 2, for 3 modules" in run(tmp_path / "adapter")
    assert "po-student-v1" in run(gguf)
    assert "model.layers.1.self_attn.q_proj.weight" in run(tmp_path / "base", "--tensors")


def test_no_digest_computes_none(gguf: Path) -> None:
    assert "sha256" in run(gguf)
    assert "sha256" not in run(gguf, "--no-digest")


def test_template_prints_the_template_and_nothing_else(gguf: Path) -> None:
    assert run(gguf, "--template") == "{{ '<|im_start|>' }}\n"


def test_a_broken_file_ends_with_1_and_says_what_is_wrong(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes()[:-9])
    command = [sys.executable, "-m", "po_distill", "inspect", str(gguf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert f"Error: {gguf} cannot be read as GGUF: it ends within output_norm.weight" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_without_a_template_says_so_where_it_is_asked_for(tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path), "--template"])
    assert done.exit_code == 1 and "has no chat template" in str(done.exception)
