"""Dataset -> Adapter: a training run planned, launched, watched and written down."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from po_distill import artifacts, errors, plugins
from po_distill.errors import ArtifactError, ContractMismatchError, MissingExtraError, PODistillError, TrainingError
from po_distill.interfaces import JobLauncher, Launcher
from po_distill.progress import say
from po_distill.records import Adapter, Dataset, LoRASettings, PromptContract, TrainingJob
from po_distill.weights.adapter_folder import HISTORY_NAME, RECORD_NAME, public_name
from po_distill.weights.checkpoint import BaseCheckpoint, locate
from po_distill.weights.lora_training import ENVIRONMENT, FAILURE_NAME, TrainingFailure
from po_distill.weights.run_planning import PLAN_NAME
from po_distill.weights.training_plan import TrainingPlan

_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets")
_WORK_NAME = ".train"
_CARD_NAME, _CURVE_NAME = "README.md", "loss_curve.png"


class LoRATrainer:
    """Trains LoRA adapters of one base model.

    `base` is a registered name, a folder or a hub id; `batch` the rows of an optimizer step;
    `minutes` plans the steps, from measured ones, to fit that time, never more than `epochs` passes;
    `quantization_aware` trains against the merged weights rounded as they will be packaged. The other
    settings are those of `records.TrainingJob`.
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
        order: Literal["shuffled", "given"] = "shuffled",
        quantization_aware: Literal["q4_0"] | None = None,
        scheduler: Literal["cosine", "linear", "constant", "wsd"] = "cosine",
        beta2: float = 0.999,
        warmup: float = 0.03,
        weight_decay: float = 0.0,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        quantize_base: Literal["nf4"] | None = None,
        evaluate_every: int | None = None,
        generate_cases: int | None = None,
        patience: int | None = None,
        save_every: int | None = None,
        report_to: Sequence[str] = (),
        launcher: str = "local",
        launcher_options: Mapping[str, JsonValue] | None = None,
    ) -> None:
        self.base = base
        self.launcher, self.launcher_options = launcher, dict(launcher_options or {})
        self._settings: dict[str, Any] = {
            "lora": lora or LoRASettings(),
            "epochs": epochs,
            "batch": batch,
            "learning_rate": learning_rate,
            "max_seq_len": max_seq_len,
            "max_samples": max_samples,
            "max_steps": max_steps,
            "minutes": minutes,
            "seed": seed,
            "order": order,
            "quantization_aware": quantization_aware,
            "scheduler": scheduler,
            "beta2": beta2,
            "warmup": warmup,
            "weight_decay": weight_decay,
            "precision": precision,
            "quantize_base": quantize_base,
            "evaluate_every": evaluate_every,
            "generate_cases": generate_cases,
            "patience": patience,
            "save_every": save_every,
            "report_to": tuple(report_to),
        }

    def train(
        self,
        data: Dataset | Path | str,
        output: Path | str,
        *,
        validation: Path | str | None = None,
        contract: PromptContract | None = None,
        log_path: Path | str | None = None,
    ) -> Adapter:
        """Train on a dataset's train split, or on a JSONL file, and write `adapter/` into the version folder.

        `output` is that folder, such as artifacts/models/po_student_v1; `validation` a JSONL file of held-out
        rows, by default the dataset's validation split; `log_path` gets a line per step. Killed and called
        again with the same arguments, it goes on where it was. Raises ArtifactError where the version has an
        adapter already, InputError for rows that cannot be used, TrainingError where the run fails, and what
        `locate` raises for the base.
        """
        output = Path(output)
        adapter_path = output / "adapter"
        self._check_packages()
        launcher = plugins.open_launcher(self.launcher, self.launcher_options)
        source = _source(data, validation, contract)
        base = locate(self.base)
        work = output / _WORK_NAME
        job = self._job(base, source, adapter_path, work, log_path)
        if not _left_unrecorded(adapter_path, work / "job.json", job):
            _refuse_finished(adapter_path)
            _launch(launcher, job, base)
        adapter = artifacts.read_record(adapter_path / RECORD_NAME, Adapter)
        data_digests = {path.name: artifacts.digest_file(path) for path in (source.train, source.validation) if path}
        _describe(adapter, job, base, data_digests, adapter_path)
        artifacts.record_stage(
            output,
            "train",
            adapter,
            inputs={**data_digests, base.name: base.digest},
            outputs={"adapter/adapter_model.safetensors": adapter.digest},
            contract=source.contract,
        )
        shutil.rmtree(work, ignore_errors=True)
        return adapter

    def plan(
        self,
        data: Dataset | Path | str,
        output: Path | str,
        *,
        validation: Path | str | None = None,
        contract: PromptContract | None = None,
    ) -> TrainingPlan:
        """What `train` would do, with a step measured on this machine; nothing of it is kept. Raises as `train`."""
        self._check_packages()
        adapter_path = Path(output) / "adapter"
        _refuse_finished(adapter_path)
        source = _source(data, validation, contract)
        with tempfile.TemporaryDirectory() as folder:
            base = locate(self.base)
            job = self._job(base, source, adapter_path, Path(folder), None)
            _launch(plugins.open_launcher("local", {}), job.model_copy(update={"dry_run": True}), base)
            return artifacts.read_record(Path(folder) / PLAN_NAME, TrainingPlan)

    def describe_job(
        self,
        data: Dataset | Path | str,
        output: Path | str,
        *,
        validation: Path | str | None = None,
        contract: PromptContract | None = None,
    ) -> dict[str, JsonValue] | None:
        """What `train` would start on machines that see no file of this one; None for a launcher that uses these."""
        launcher = plugins.open_launcher(self.launcher, self.launcher_options)
        if not isinstance(launcher, JobLauncher):
            return None
        self._check_packages()
        output = Path(output)
        _refuse_finished(output / "adapter")
        source = _source(data, validation, contract)
        job = self._job(locate(self.base), source, output / "adapter", output / _WORK_NAME, None)
        say(launcher.estimate(job))
        return dict(launcher.describe(job))

    def _check_packages(self) -> None:
        for package in _PACKAGES:
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(package, "train", "Training")
        for package in self._settings["report_to"]:
            if importlib.util.find_spec(package) is None:
                raise TrainingError(
                    f"--report-to {package} needs the package {package!r}, which is not installed.",
                    f"Run: pip install {package}",
                )

    def _job(
        self, base: BaseCheckpoint, source: _Source, adapter_path: Path, work: Path, log_path: Path | str | None
    ) -> TrainingJob:
        return artifacts.parse_record(
            {
                "data_path": str(source.train),
                "validation_path": str(source.validation) if source.validation else None,
                "base_path": str(base.path),
                "base_name": base.name,
                "output_path": str(adapter_path),
                "work_path": str(work),
                "log_path": str(log_path) if log_path else None,
                "contract": source.contract,
                **self._settings,
            },
            TrainingJob,
            "the training settings",
        )


def _launch(launcher: Launcher | JobLauncher, job: TrainingJob, base: BaseCheckpoint) -> None:
    if job.lora.dora:
        say("training: an adapter with DoRA cannot be merged or packaged here; peft's merge_and_unload merges it")
    work = Path(job.work_path)
    artifacts.write_json(work / "job.json", job)
    (work / FAILURE_NAME).unlink(missing_ok=True)
    environment = {**ENVIRONMENT, **_tensorboard(job)}
    if isinstance(launcher, JobLauncher):
        _have_trained(launcher, job, base, environment)
        return
    command = [sys.executable, "-m", "po_distill.weights.lora_training", str(work / "job.json")]
    status = launcher.run(command, environment)
    if status:
        raise _failure(work, status)


def _have_trained(
    launcher: JobLauncher, job: TrainingJob, base: BaseCheckpoint, environment: Mapping[str, str]
) -> None:
    """Have an adapter trained elsewhere, and check that what came back is what was trained, on this very base."""
    with artifacts.atomic_folder(job.output_path) as folder:
        status = launcher.train(job, folder, environment)
        if status:
            raise _failure(Path(job.work_path), status)
        adapter = artifacts.read_record(folder / RECORD_NAME, Adapter)
        if artifacts.digest_file(folder / "adapter_model.safetensors") != adapter.digest:
            raise ArtifactError("The adapter's weights came back damaged.", "Run the same command again.")
        if adapter.base_digest != base.digest:
            raise TrainingError(
                f"The adapter was trained on a base of the digest {adapter.base_digest[:19]}; {base.name} has "
                f"{base.digest[:19]} here.",
                "Have it trained on these very weights: the launcher's options say where it takes the base from.",
            )
        for record in folder.rglob(RECORD_NAME):
            place = Path(job.output_path) / record.parent.relative_to(folder)
            there = artifacts.read_record(record, Adapter)
            artifacts.write_json(record, there.model_copy(update={"path": str(place)}))


def _tensorboard(job: TrainingJob) -> dict[str, str]:
    """Where TensorBoard's files go: beside the log, unless the user's own variable says."""
    if "tensorboard" not in job.report_to or not job.log_path or "TENSORBOARD_LOGGING_DIR" in os.environ:
        return {}
    folder = Path(job.log_path).parent / "tensorboard" / Path(job.output_path).parent.name
    return {"TENSORBOARD_LOGGING_DIR": str(folder)}


def _describe(adapter: Adapter, job: TrainingJob, base: BaseCheckpoint, data: Mapping[str, str], folder: Path) -> None:
    """Put the model card, and where matplotlib is there the curve of the loss, into the adapter's folder."""
    from po_distill.reporting.loss_curve import draw_loss
    from po_distill.reporting.model_card import render_model_card

    history = json.loads(artifacts.read_text(folder / HISTORY_NAME))["log_history"]
    kept = adapter.training.step if adapter.training else None
    try:
        draw_loss(history, folder / _CURVE_NAME, kept_step=kept)
    except MissingExtraError as error:
        say(f"no picture of the loss: {error}")
    card = render_model_card(
        adapter,
        job,
        base_id=public_name(base.name),
        base_license=base.license,
        data=data,
        history=history,
        has_curve=(folder / _CURVE_NAME).exists(),
    )
    artifacts.write_text(folder / _CARD_NAME, card)


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


@dataclass(frozen=True)
class _Source:
    """The rows of a run."""

    train: Path
    validation: Path | None
    contract: PromptContract | None  # that the rows were made under, where that is known


def _source(data: Dataset | Path | str, validation: Path | str | None, contract: PromptContract | None) -> _Source:
    """The files to train on and to measure on. Raises ContractMismatchError where they are of another contract."""
    given = Path(validation) if validation else None
    if isinstance(data, Dataset):
        dataset, path = data, Path(data.paths["train"])
        own = Path(data.paths["validation"]) if "validation" in data.paths else None
    else:
        path = Path(data)
        beside = path.with_name(f"{path.stem}.manifest.json")  # where the dataset builder leaves its record
        if not beside.exists():
            return _Source(path, given, contract)
        dataset = artifacts.read_record(beside, Dataset)
        own = path.with_name(Path(dataset.paths["validation"]).name) if "validation" in dataset.paths else None
    if contract and dataset.contract and contract.digest != dataset.contract.digest:
        raise ContractMismatchError(
            f"The dataset was made under the prompt contract {dataset.contract.digest[:19]}, "
            f"not under {contract.digest[:19]}.",
            "Use the same --contract and --prompt for all stages, or build the dataset again.",
        )
    if given is None and own and dataset.counts.get("validation") and own.exists():
        given = own
    return _Source(path, given, contract or dataset.contract)


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
