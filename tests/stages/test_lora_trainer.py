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
from po_distill.artifacts import digest_file, read_manifest
from po_distill.errors import ArtifactError, InputError, PluginError, PODistillError, TrainingError
from tiny_models import tiny_model
from training_jobs import SMALL, events, tiny_job, train_here, write_rows


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "base")


def data(folder: Path, words: int = 6) -> Path:
    return write_rows(folder / "rows.jsonl", words=words)


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
    assert len(events(log, "step")) == 24
    model = AutoModelForCausalLM.from_pretrained(base)
    tuned = PeftModel.from_pretrained(model, tmp_path / "po_student_v1" / "adapter")
    assert any(weight.any() for name, weight in tuned.named_parameters() if "lora_B" in name)
    folder = tmp_path / "po_student_v1/adapter"
    card = (folder / "README.md").read_text()
    assert f"| rows.jsonl | `{digest_file(tmp_path / 'rows.jsonl')}` |" in card
    assert str(tmp_path) not in card
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((folder / "trainer_state.json").read_text())["log_history"]) >= 24
    assert summary.peak_memory_bytes and summary.estimated_memory_bytes and summary.device
    config = json.loads((tmp_path / "po_student_v1/adapter/adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)
    manifest = read_manifest(tmp_path / "po_student_v1")
    assert manifest is not None
    assert "train" in manifest.stages
    assert not (tmp_path / "po_student_v1/.train").exists()
    with pytest.raises(ArtifactError, match="already") as caught:
        trainer.train(data(tmp_path), tmp_path / "po_student_v1")
    assert "po_student_v2" in caught.value.fix


def test_the_run_of_a_killed_process_ends_by_itself_and_the_next_one_goes_on(base: Path, tmp_path: Path) -> None:
    rows, log = data(tmp_path), tmp_path / "log.jsonl"
    settings = "epochs=200.0, batch=4, learning_rate=1e-3, max_seq_len=256, max_steps=60, save_every=5"
    code = (
        "from po_distill import LoRATrainer\nfrom po_distill.records import LoRASettings\n"
        f"LoRATrainer(base={str(base)!r}, lora=LoRASettings(rank=4, alpha=8, dropout=0.0), {settings})"
        f".train({str(rows)!r}, {str(tmp_path / 'broken')!r}, log_path={str(log)!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(events(log, "checkpoint")) < 2:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    job = tmp_path / "broken/.train/job.json"
    assert job.exists()
    time.sleep(1.5)  # the child of the killed process ends by itself
    running = subprocess.run(["pgrep", "-f", str(job)], capture_output=True, text=True, check=False).stdout.split()
    assert running == []
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    (resumed,) = events(log, "resume")
    assert resumed["step"] >= 10
    assert (tmp_path / "broken/adapter/adapter_model.safetensors").exists()


def test_rows_that_are_too_long_stop_the_run_with_their_lines(base: Path, tmp_path: Path) -> None:
    trainer = LoRATrainer(base=str(base), lora=SMALL, max_seq_len=64)
    with pytest.raises(InputError, match="24 of 24 rows are longer than 64 tokens"):
        trainer.train(data(tmp_path, words=60), tmp_path / "v1")
    assert not (tmp_path / "v1/adapter").exists()


def test_an_adapter_trained_against_q4_0_differs_and_is_an_ordinary_one(base: Path, tmp_path: Path) -> None:
    held_out = str(write_rows(tmp_path / "held_out.jsonl", rows=2, first=90))
    for name, aware in (("plain", None), ("aware", "q4_0")):
        job = tiny_job(tmp_path / name, base, max_steps=3, quantization_aware=aware, validation_path=held_out)
        assert train_here(job) is not None
    plain, aware_weights = weights(tmp_path / "plain/v1"), weights(tmp_path / "aware/v1")
    assert plain.keys() == aware_weights.keys()
    assert any(not torch.equal(plain[name], aware_weights[name]) for name in plain)


def test_an_unknown_launcher_or_a_base_that_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no launcher named 'lokal'"):
        LoRATrainer(base=str(base), launcher="lokal").train(data(tmp_path), tmp_path / "v1")
    (base / "tokenizer.json").unlink()
    with pytest.raises(PODistillError, match=r"tokenizer\.json"):
        LoRATrainer(base=str(base)).train(data(tmp_path), tmp_path / "v1")


def test_a_dry_run_tells_the_plan_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    trainer = LoRATrainer(base=str(base), lora=SMALL, epochs=3, batch=4, max_seq_len=256)
    plan = trainer.plan(data(tmp_path), tmp_path / "v1", validation=write_rows(tmp_path / "held_out.jsonl", rows=3))
    assert (plan.rows, plan.steps, plan.heldout_rows, plan.evaluate_every > 0) == (24, 18, 3, True)
    assert plan.step_s > 0
    assert plan.memory.total > 4 * 127_296  # the tiny base alone
    assert not (tmp_path / "v1").exists()


@pytest.mark.slow
def test_losses_are_reported_to_tensorboard_beside_the_log(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    trainer = LoRATrainer(base=str(base), lora=SMALL, max_steps=2, max_seq_len=256, report_to=["tensorboard"])
    trainer.train(data(tmp_path), tmp_path / "v1", log_path=tmp_path / "logs/v1.log")
    (written,) = (tmp_path / "logs/tensorboard/v1").rglob("events.out.*")
    assert b"train/loss" in written.read_bytes()


def test_a_report_that_nothing_can_write_is_refused(base: Path, tmp_path: Path) -> None:
    trainer = LoRATrainer(base=str(base), report_to=["no_such_tracker"])
    with pytest.raises(TrainingError, match="needs the package 'no_such_tracker'"):
        trainer.train(data(tmp_path), tmp_path / "v1")
