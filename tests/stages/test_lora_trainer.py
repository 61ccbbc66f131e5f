import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from po_distill import LoRATrainer
from po_distill.artifacts import read_manifest, write_jsonl
from po_distill.errors import ArtifactError, InputError, PluginError, PODistillError, TrainingError
from po_distill.records import LoRASettings
from tiny_models import tiny_model

SMALL = LoRASettings(rank=4, alpha=8, dropout=0.0)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "base")


def data(folder: Path, rows: int = 24, words: int = 6) -> Path:
    path = folder / "rows.jsonl"
    write_jsonl(
        path, [{"prompt": f"Name product {n}.", "response": "The product vision. " * words} for n in range(rows)]
    )
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_a_run_learns_and_its_adapter_loads_in_plain_peft(base: Path, tmp_path: Path) -> None:
    trainer = LoRATrainer(base=str(base), lora=SMALL, epochs=4, batch=4, learning_rate=5e-3, max_seq_len=256)
    log = tmp_path / "log.jsonl"
    adapter = trainer.train(data(tmp_path), tmp_path / "po_student_v1", log_path=log)
    summary = adapter.training
    assert summary is not None
    assert (summary.steps, summary.rows, summary.epochs) == (24, 24, 4)
    assert summary.last_loss < summary.first_loss - 0.5
    assert len(log.read_text().splitlines()) == 24
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(model, tmp_path / "po_student_v1" / "adapter")
    assert any(weight.any() for name, weight in tuned.named_parameters() if "lora_B" in name)
    config = json.loads((tmp_path / "po_student_v1/adapter/adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)
    manifest = read_manifest(tmp_path / "po_student_v1")
    assert manifest is not None
    assert "train" in manifest.stages
    assert not (tmp_path / "po_student_v1/.train").exists()
    with pytest.raises(ArtifactError, match="already") as caught:
        trainer.train(data(tmp_path), tmp_path / "po_student_v1")
    assert "po_student_v2" in caught.value.fix


def test_a_killed_run_goes_on_to_the_same_adapter(base: Path, tmp_path: Path) -> None:
    settings = {"lora": SMALL, "epochs": 200.0, "batch": 4, "learning_rate": 1e-3, "max_seq_len": 256, "max_steps": 60}
    rows = data(tmp_path)
    LoRATrainer(base=str(base), **settings).train(rows, tmp_path / "whole")
    code = (
        "from po_distill import LoRATrainer\nfrom po_distill.records import LoRASettings\n"
        f"LoRATrainer(base={str(base)!r}, lora=LoRASettings(rank=4, alpha=8, dropout=0.0), epochs=200.0, batch=4, "
        f"learning_rate=1e-3, max_seq_len=256, max_steps=60).train({str(rows)!r}, {str(tmp_path / 'broken')!r}, "
        f"log_path={str(tmp_path / 'log.jsonl')!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    log, deadline = tmp_path / "log.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or len(log.read_text().splitlines()) < 10):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    job = tmp_path / "broken/.train/job.json"
    assert job.exists()
    time.sleep(1.5)  # the child of the killed process ends by itself
    running = subprocess.run(["pgrep", "-f", str(job)], capture_output=True, text=True, check=False).stdout.split()
    assert running == []
    LoRATrainer(base=str(base), **settings).train(rows, tmp_path / "broken")
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == broken.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(broken[name], weight, rtol=1e-4, atol=1e-6)


def test_rows_that_are_too_long_stop_the_run_with_their_lines(base: Path, tmp_path: Path) -> None:
    trainer = LoRATrainer(base=str(base), lora=SMALL, max_seq_len=64)
    with pytest.raises(InputError, match="24 of 24 rows are longer than 64 tokens"):
        trainer.train(data(tmp_path, words=60), tmp_path / "v1")
    assert not (tmp_path / "v1/adapter").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(base: Path, tmp_path: Path) -> None:
    trainer = LoRATrainer(base=str(base), lora=SMALL, learning_rate=1e30, epochs=3, max_seq_len=256)
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) at step \d+"):
        trainer.train(data(tmp_path), tmp_path / "v1")
    assert not (tmp_path / "v1/adapter").exists()


def test_an_adapter_trained_against_q4_0_differs_and_is_an_ordinary_one(base: Path, tmp_path: Path) -> None:
    settings = {"base": str(base), "lora": SMALL, "max_steps": 3, "learning_rate": 1e-3, "max_seq_len": 256}
    LoRATrainer(**settings).train(data(tmp_path), tmp_path / "plain")
    LoRATrainer(**settings, quantization_aware="q4_0").train(data(tmp_path), tmp_path / "aware")
    plain, aware = weights(tmp_path / "plain"), weights(tmp_path / "aware")
    assert plain.keys() == aware.keys()
    assert any(not torch.equal(plain[name], aware[name]) for name in plain)


def test_an_unknown_launcher_or_a_base_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no launcher named 'lokal'"):
        LoRATrainer(base=str(base), launcher="lokal").train(data(tmp_path), tmp_path / "v1")
    (base / "tokenizer.json").unlink()
    with pytest.raises(PODistillError, match=r"tokenizer\.json"):
        LoRATrainer(base=str(base)).train(data(tmp_path), tmp_path / "v1")
