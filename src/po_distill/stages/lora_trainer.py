"""Dataset -> Adapter: a training run planned, launched, watched and written down."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Literal

from po_distill import artifacts, errors, plugins
from po_distill.errors import ArtifactError, ContractMismatchError, MissingExtraError, PODistillError, TrainingError
from po_distill.interfaces import Launcher
from po_distill.records import Adapter, Dataset, LoRASettings, PromptContract, TrainingJob
from po_distill.weights.checkpoint import BaseCheckpoint, locate
from po_distill.weights.lora_training import ENVIRONMENT, FAILURE_NAME, RECORD_NAME, TrainingFailure

_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets")
_WORK_NAME = ".train"


class LoRATrainer:
    """Trains LoRA adapters of one base model.

    `base` is a registered name, a folder or a hub id; `batch` the rows of an optimizer step;
    `minutes` plans the steps, from measured ones, to fit that time, never more than `epochs` passes;
    `quantization_aware` trains against the merged weights rounded as they will be packaged.
    """

    def __init__(
        self,
        *,
        base: str = "mistral-7b-instruct",
        lora: LoRASettings | None = None,
        epochs: float = 3.0,
        batch: int = 4,
        learning_rate: float = 1e-4,
        max_seq_len: int = 2048,
        max_samples: int | None = None,
        max_steps: int | None = None,
        minutes: float | None = None,
        seed: int = 7,
        quantization_aware: Literal["q4_0"] | None = None,
        launcher: str = "local",
    ) -> None:
        self.base = base
        self.launcher = launcher
        self._settings = {
            "lora": lora or LoRASettings(),
            "epochs": epochs,
            "batch": batch,
            "learning_rate": learning_rate,
            "max_seq_len": max_seq_len,
            "max_samples": max_samples,
            "max_steps": max_steps,
            "minutes": minutes,
            "seed": seed,
            "quantization_aware": quantization_aware,
        }

    def train(
        self,
        data: Dataset | Path | str,
        output: Path | str,
        *,
        contract: PromptContract | None = None,
        log_path: Path | str | None = None,
    ) -> Adapter:
        """Train on a dataset's train split, or on a JSONL file, and write `adapter/` into the version folder.

        `output` is that folder, such as artifacts/models/po_student_v1; `log_path` gets a line per
        step. Killed and called again with the same arguments, it goes on where it was. Raises
        ArtifactError where the version has an adapter already, InputError for rows that cannot be
        used, TrainingError where the run fails, and what `locate` raises for the base.
        """
        output = Path(output)
        adapter_path = output / "adapter"
        for package in _PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "train", "Training")
        launcher: Launcher = plugins.load("launchers", self.launcher)()
        data_path, contract = _source(data, contract)
        base = locate(self.base)
        work = output / _WORK_NAME
        job = self._job(base, data_path, contract, adapter_path, work, log_path)
        job_path = work / "job.json"
        if not _left_unrecorded(adapter_path, job_path, job):
            _refuse_finished(adapter_path)
            artifacts.write_json(job_path, job)
            command = [sys.executable, "-m", "po_distill.weights.lora_training", str(job_path)]
            status = launcher.run(command, ENVIRONMENT)
            if status:
                raise _failure(work, status)
        adapter = artifacts.read_record(adapter_path / RECORD_NAME, Adapter)
        artifacts.record_stage(
            output,
            "train",
            adapter,
            inputs={data_path.name: artifacts.digest_file(data_path), base.name: base.digest},
            outputs={"adapter/adapter_model.safetensors": adapter.digest},
            contract=contract,
        )
        shutil.rmtree(work, ignore_errors=True)
        return adapter

    def _job(
        self,
        base: BaseCheckpoint,
        data_path: Path,
        contract: PromptContract | None,
        adapter_path: Path,
        work: Path,
        log_path: Path | str | None,
    ) -> TrainingJob:
        return artifacts.parse_record(
            {
                "data_path": str(data_path),
                "base_path": str(base.path),
                "base_name": base.name,
                "output_path": str(adapter_path),
                "work_path": str(work),
                "log_path": str(log_path) if log_path else None,
                "contract": contract,
                **self._settings,
            },
            TrainingJob,
            "the training settings",
        )


def _left_unrecorded(adapter_path: Path, job_path: Path, job: TrainingJob) -> bool:
    """Whether an earlier run of this very job was killed between its adapter's last byte and our note of it."""
    return adapter_path.exists() and job_path.exists() and artifacts.read_record(job_path, TrainingJob) == job


def _refuse_finished(adapter_path: Path) -> None:
    if adapter_path.exists():
        version = adapter_path.parent
        stem = re.sub(r"_v\d+$", "", version.name)
        free = version.parent / artifacts.next_version(version.parent, stem)
        raise ArtifactError(
            f"{adapter_path} exists already; a finished adapter is never overwritten.",
            f"Train the next version: --output {free}",
        )


def _source(data: Dataset | Path | str, contract: PromptContract | None) -> tuple[Path, PromptContract | None]:
    """The file to train on, and the contract that its rows were made under, where that is known."""
    if not isinstance(data, Dataset):
        path = Path(data)
        beside = path.with_name(f"{path.stem}.manifest.json")  # where the dataset builder leaves its record
        if not beside.exists():
            return path, contract
        data = artifacts.read_record(beside, Dataset)
    else:
        path = Path(data.paths["train"])
    if contract and data.contract and contract.digest != data.contract.digest:
        raise ContractMismatchError(
            f"The dataset was made under the prompt contract {data.contract.digest[:19]}, "
            f"not under {contract.digest[:19]}.",
            "Use the same --contract and --prompt for all stages, or build the dataset again.",
        )
    return path, contract or data.contract


def _failure(work: Path, status: int) -> PODistillError:
    """What ended the run: the problem it left behind as it was, or how its process ended."""
    path = work / FAILURE_NAME
    if path.exists():
        failure = artifacts.read_record(path, TrainingFailure)
        kind = getattr(errors, failure.error, TrainingError)
        if kind in (errors.MissingExtraError, errors.ProviderError):  # which take more than a problem and a fix
            kind = TrainingError
        error: PODistillError = kind(failure.problem, failure.fix)
        return error
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return TrainingError(
            "The training process was killed from outside; where nobody did, the system was short of memory.",
            "Run the same command again to go on; with a smaller --batch or --max-seq-len it needs less memory.",
        )
    return TrainingError(
        f"The training process ended with status {status}.",
        "Read what it printed above, then run the same command again: it goes on from the last checkpoint.",
    )
