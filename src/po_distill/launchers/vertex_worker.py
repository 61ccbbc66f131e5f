"""A training run inside a job on Vertex AI: `python -m po_distill.launchers.vertex_worker RUN_FOLDER`.

RUN_FOLDER is the run's folder of the staging bucket as it is mounted here. Everything is computed on the machine's own
disk: a mounted bucket is slow, and renames nothing in one step. Beside the run, what it has written so far is
copied into the folder: its output, its log, and checkpoints that are complete, from which a job that is
started again goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from po_distill.launchers.accelerate import AccelerateLauncher
from po_distill.records import Record, TrainingJob

RUN_NAME, CONSOLE_NAME, LOG_NAME, FAILURE_NAME = "run.json", "console.txt", "log.jsonl", "failure.json"
ADAPTER_NAME, WORK_NAME = "adapter", "work"
_COMPLETE = "complete.json"  # the last file of a checkpoint
_MIRROR_EVERY_S = 10.0


class RemoteRun(Record):
    """What the job is to train, and where this machine finds it."""

    job: TrainingJob  # with the paths of the machine that sent it
    environment: dict[str, str]
    data: str  # files, as they are mounted
    validation: str | None
    base: str | None  # a folder, as it is mounted; None: the hub's
    hub_base: str | None  # organisation/name, or organisation/name@revision
    processes: int


def main(arguments: Sequence[str]) -> int:
    """Train; the run's exit status."""
    folder = Path(arguments[0])
    run = RemoteRun.model_validate_json((folder / RUN_NAME).read_text(encoding="utf-8"))
    local = Path(tempfile.mkdtemp(prefix="po_distill_run_"))
    job = _localised(run, local)
    work = Path(job.work_path)
    work.mkdir()
    if (folder / WORK_NAME).is_dir():
        shutil.copytree(folder / WORK_NAME, work, dirs_exist_ok=True)
    (local / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    with _mirrored(local, folder):
        status = _trained(run, local)
    if status == 0:
        shutil.copytree(job.output_path, folder / ADAPTER_NAME, dirs_exist_ok=True)
    elif (work / FAILURE_NAME).exists():
        shutil.copyfile(work / FAILURE_NAME, folder / FAILURE_NAME)
    return status


def _localised(run: RemoteRun, local: Path) -> TrainingJob:
    """The job with paths of this machine, where its files are by then."""
    paths = {"output_path": local / ADAPTER_NAME, "work_path": local / WORK_NAME, "log_path": local / LOG_NAME}
    paths["data_path"] = local / "data.jsonl"
    shutil.copyfile(run.data, paths["data_path"])
    if run.validation:
        paths["validation_path"] = local / "validation.jsonl"
        shutil.copyfile(run.validation, paths["validation_path"])
    if run.base:
        paths["base_path"] = local / "base"
        shutil.copytree(run.base, paths["base_path"])
    else:
        assert run.hub_base is not None
        paths["base_path"] = _from_hub(run.hub_base)
    return run.job.model_copy(update={name: str(path) for name, path in paths.items()})


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    return Path(snapshot_download(repository, revision=revision or None))


def _trained(run: RemoteRun, local: Path) -> int:
    """Run the training, in as many processes as there are accelerators; what it prints goes to the console's file."""
    command = [sys.executable, "-m", "po_distill.weights.lora_training", str(local / "job.json")]
    with (local / CONSOLE_NAME).open("wb") as console, _output_to(console.fileno()):
        if run.processes > 1:
            return AccelerateLauncher(processes=run.processes).run(command, run.environment)
        return subprocess.run(command, env={**os.environ, **run.environment}, check=False).returncode


@contextlib.contextmanager
def _output_to(handle: int) -> Iterator[None]:
    """Within the block what this process and its children print goes to a file."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    for number, _ in kept:
        os.dup2(handle, number)
    try:
        yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


@contextlib.contextmanager
def _mirrored(local: Path, folder: Path) -> Iterator[None]:
    """Within the block, and at its end, what the run has written is copied into the bucket."""
    ended = threading.Event()

    def copy() -> None:
        while not ended.wait(_MIRROR_EVERY_S):
            _copy_written(local, folder)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _copy_written(local, folder)


def _copy_written(local: Path, folder: Path) -> None:
    for name in (CONSOLE_NAME, LOG_NAME):
        if (local / name).exists():
            shutil.copyfile(local / name, folder / name)
    work = local / WORK_NAME
    for plan in work.glob("*.json"):
        (folder / WORK_NAME).mkdir(exist_ok=True)
        if plan.name != FAILURE_NAME:
            shutil.copyfile(plan, folder / WORK_NAME / plan.name)
    for old in (folder / WORK_NAME).glob("*/*"):
        if not (work / old.relative_to(folder / WORK_NAME)).exists():
            shutil.rmtree(old, ignore_errors=True)
    for mark in work.glob(f"*/*/{_COMPLETE}"):
        target = folder / WORK_NAME / mark.parent.relative_to(work)
        if not (target / _COMPLETE).exists():
            # The mark goes last, so that a copy that was broken off is none.
            shutil.copytree(mark.parent, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_COMPLETE))
            shutil.copyfile(mark, target / _COMPLETE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
