"""A training run killed with -9 at random steps: PO_DISTILL_TRAIN_KILLS says how often (10 for the full number)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
from po_distill.artifacts import digest_file, write_json
from po_distill.records import LoRASettings
from tiny_models import tiny_model
from training_jobs import events, tiny_job, write_rows

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("PO_DISTILL_TRAIN_KILLS", "3"))
STEPS = 60
# One process that has everything imported, and forks a run for each job that it reads the path of.
FORKING = """
import os, sys
from po_distill.weights import answer_trainer, loaded_run, lora_training

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(lora_training.main([line.strip()]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_run_killed_at_random_steps_ends_with_the_bytes_of_an_unbroken_one(tmp_path):
    base = tiny_model(tmp_path / "base")
    settings = {
        "data_path": str(write_rows(tmp_path / "rows.jsonl")),
        "validation_path": str(write_rows(tmp_path / "held_out.jsonl", rows=4, first=90)),
        "lora": LoRASettings(rank=4, alpha=8, dropout=0.1),  # whose masks are part of what is resumed
        "epochs": 50,
        "max_steps": STEPS,
        "save_every": 4,
        "evaluate_every": 7,
    }
    jobs = {name: tiny_job(tmp_path / name, base, **settings) for name in ("whole", "broken")}
    chance = random.Random(5)
    environment = {
        **os.environ,
        "PO_DISTILL_QUIET": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",  # a tiny model's products are slower on several
    }
    with subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        bufsize=1,
    ) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "ready\n"

        def run(name, killed_at=None):
            job = jobs[name]
            path = tmp_path / f"{name}.json"
            write_json(path, job)
            process.stdin.write(f"{path}\n")
            child = int(process.stdout.readline())
            if killed_at is not None:
                deadline = time.monotonic() + 60
                while last_step(job) < killed_at and time.monotonic() < deadline:
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.05))
                os.kill(child, signal.SIGKILL)
            return int(process.stdout.readline())

        def last_step(job):
            return max((entry["step"] for entry in events(job.log_path, "step")), default=0)

        assert run("whole") == 0
        moments = sorted(chance.sample(range(2, STEPS - 2), KILLS))
        for moment in moments:
            assert run("broken", killed_at=moment) == -signal.SIGKILL
        assert run("broken") == 0
        process.stdin.close()
    assert len(events(jobs["broken"].log_path, "resume")) >= KILLS - 1  # a kill before the first checkpoint begins anew
    assert all(entry["step"] % 4 == 0 or entry["step"] % 7 == 0 for entry in events(jobs["broken"].log_path, "resume"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        paths = [f"{job.output_path}/{name}" for job in jobs.values()]
        assert digest_file(paths[0]) == digest_file(paths[1])
    whole, broken = (history(job) for job in jobs.values())
    assert whole == broken
    assert len(whole) == STEPS


def history(job):
    """(step, loss, learning rate) of every step in the Trainer's own record."""
    entries = json.loads(Path(job.output_path, "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"], entry["learning_rate"]) for entry in entries if "step_s" in entry]
