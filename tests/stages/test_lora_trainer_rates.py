"""The learning rate over a run, and AdamW's memory of the gradients."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from tiny_models import tiny_model
from training_jobs import events, tiny_job, train_here, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.mark.parametrize(("scheduler", "held_up"), [("cosine", 1), ("linear", 1), ("wsd", 8), ("constant", 10)])
def test_the_rate_is_held_up_for_the_steps_that_the_scheduler_says(
    base: Path, tmp_path: Path, scheduler: str, held_up: int
) -> None:
    job = tiny_job(tmp_path, base, scheduler=scheduler, max_steps=10, epochs=2.0)
    train_here(job)
    assert job.log_path is not None
    rates = [event["learning_rate"] for event in events(job.log_path, "step")]
    assert len(rates) == 10
    assert rates[:held_up] == [job.learning_rate] * held_up
    falling = rates[held_up - 1 :]
    assert falling == sorted(set(falling), reverse=True)


def test_beta2_is_how_long_the_optimizer_remembers(base: Path, tmp_path: Path) -> None:
    rows = str(write_rows(tmp_path / "rows.jsonl"))
    own, short, again = (
        train_here(tiny_job(tmp_path / str(run), base, data_path=rows, **settings))
        for run, settings in enumerate([{}, {"beta2": 0.5}, {"beta2": 0.999}])
    )
    assert own is not None and short is not None and again is not None
    assert short.digest != own.digest == again.digest
