"""Small training runs for tests: rows, and a job on a tiny model that trains within this process."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from po_distill.artifacts import read_record, write_jsonl
from po_distill.records import Adapter, LoRASettings, TrainingJob
from po_distill.weights.run_planning import PLAN_NAME
from po_distill.weights.training_plan import TrainingPlan

SMALL = LoRASettings(rank=4, alpha=8, dropout=0.0)


def write_rows(path: Path, rows: int = 24, words: int = 6, first: int = 0) -> Path:
    """Rows of {prompt, response} that a tiny model learns in some steps."""
    numbers = range(first, first + rows)
    write_jsonl(path, [{"prompt": f"Name product {n}.", "response": "The product vision. " * words} for n in numbers])
    return path


def tiny_job(folder: Path, base: Path, **settings: Any) -> TrainingJob:
    """A job of 6 steps that leaves its adapter in `folder`/v1/adapter; rows are written where none are named."""
    if "data_path" not in settings:
        settings["data_path"] = str(write_rows(folder / "rows.jsonl"))
    values: dict[str, Any] = {
        "base_path": str(base),
        "base_name": str(base),
        "output_path": str(folder / "v1/adapter"),
        "work_path": str(folder / "v1/.train"),
        "log_path": str(folder / "v1.log"),
        "lora": SMALL,
        "learning_rate": 5e-3,
        "max_seq_len": 256,
        "max_steps": 6,
    }
    return TrainingJob(**{**values, **settings})


def train_here(job: TrainingJob) -> Adapter | None:
    """Run a job in this process."""
    from po_distill.weights.lora_training import train

    return train(job, started_s=time.time())


def events(log: Path | str, event: str) -> list[dict[str, Any]]:
    """The events of one kind in a run's log."""
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()] if Path(log).exists() else []
    return [line for line in lines if line["event"] == event]


def plan_of(job: TrainingJob) -> TrainingPlan:
    """The plan that a run left."""
    return read_record(Path(job.work_path) / PLAN_NAME, TrainingPlan)


def stop_at(job: TrainingJob, step: int) -> None:
    """A run that ends in the middle, before its step `step` + 1, with its checkpoints left."""
    from po_distill.weights import answer_trainer

    class StoppedError(Exception):
        pass

    class Stopping(answer_trainer.AnswerTrainer):
        def training_step(self, *arguments: Any, **named: Any) -> Any:
            if self.state.global_step >= step:
                raise StoppedError
            return super().training_step(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_trainer, "AnswerTrainer", Stopping)
        with pytest.raises(StoppedError):
            train_here(job)
