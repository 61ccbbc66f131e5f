"""`dspy.BootstrapFinetune` on our road: builder, doctor, trainer, merger and runtime."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat

from po_distill import artifacts, plugins
from po_distill.dspy.program_role import ProgramRole, row_of_call
from po_distill.dspy.students import StudentLM, student_lm
from po_distill.errors import InputError, SettingsError
from po_distill.interfaces import Role
from po_distill.plugins import nearest
from po_distill.progress import say
from po_distill.records import Dataset, OllamaPackage, Quantization
from po_distill.stages.dataset_builder import DatasetBuilder
from po_distill.stages.dataset_doctor import DatasetDoctor, require_fit
from po_distill.stages.lora_trainer import LoRATrainer
from po_distill.stages.merger import Merger
from po_distill.stages.packager import Packager

_TRAINER_SETTINGS = tuple(inspect.signature(LoRATrainer).parameters.keys() - {"base"})
_training = threading.Lock()  # one at a time: each wants the whole machine


class DistillJob(TrainingJob):  # type: ignore[misc]
    """A run of the road. Its result is the student as an LM, whatever LM was fine-tuned."""

    stage: str = "waiting"
    student: StudentLM | None = None

    def status(self) -> str:
        """The stage that it is at."""
        return self.stage

    def set_result(self, result: Any) -> None:
        """Called by DSPy with the LM that was fine-tuned, under its new name, or with an error."""
        if self.student is not None and isinstance(result, dspy.LM):
            self.student.provider, self.student.finetuning_model = result.provider, result.finetuning_model
            result = self.student
        super().set_result(result)


class DistillProvider(Provider):  # type: ignore[misc]
    """Fine-tunes for DSPy: `dspy.LM(..., provider=DistillProvider(), finetuning_model="smollm2-135m-instruct")`.

    Each run is a version below `models`, with its dataset, adapter, merged model, GGUF and manifest. `role` gates and
    renders the calls by a role's own rules, as `po-distill dataset` does; without one the calls of any program are kept
    word for word. `contracts` are the shares of the role's contracts. `parallel`, `num_ctx` are those of the runtime
    that answers afterwards. `train_kwargs` of BootstrapFinetune are the settings of `LoRATrainer`.
    """

    def __init__(
        self,
        *,
        models: Path | str = "artifacts/models",
        role: str | Role | None = None,
        contracts: Mapping[str, float] | None = None,
        min_score: float = 0.85,
        quantization: Quantization = "q4_0",
        allow: Sequence[str] = (),
        num_ctx: int | None = None,
        parallel: int = 1,
    ) -> None:
        super().__init__()
        self.finetunable, self.TrainingJob = True, DistillJob
        self._models, self._quantization, self._allow = Path(models), quantization, tuple(allow)
        self._role = _open(role)
        self._contracts, self._min_score = contracts, min_score
        self._num_ctx, self._parallel = num_ctx, parallel

    def finetune(
        self,
        job: DistillJob,
        model: str,
        train_data: Sequence[Mapping[str, Any]],
        train_data_format: TrainDataFormat | str | None,
        train_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Walk the road with these calls; the name of the student. Raises PODistillError, which DSPy passes on."""
        settings = _checked(train_kwargs or {})
        if train_data_format not in (TrainDataFormat.CHAT, TrainDataFormat.CHAT.value):
            raise SettingsError(f"The calls come as {train_data_format}, not as chats.", "Use dspy.ChatAdapter.")
        if not train_data:
            raise InputError(
                "There is not one demonstration to learn from: the metric refused every answer of the teacher.",
                "Look at the teacher's answers (dspy.inspect_history) and at the metric's threshold.",
            )
        with _training:
            folder = self._new_version()
            say(f"{folder.name}: {len(train_data)} calls of the program")
            job.stage = "dataset"
            dataset = self._dataset(train_data, folder / "data" / "calls.jsonl")
            job.stage = "training"
            trainer = LoRATrainer(base=model, **settings)
            # Where calls are kept word for word they have no contract of a role's, whose system text would be packaged.
            plain = dataset.model_copy(update={"contract": None}) if isinstance(self._role, ProgramRole) else dataset
            adapter = trainer.train(plain, folder, log_path=folder / "train.jsonl")
            job.stage = "merging"
            merged = Merger(gguf=self._quantization).merge(adapter, folder, base=model)
            name = folder.name.replace("_", "-")
            package: OllamaPackage = Packager(name, self._quantization).package(merged)
        job.stage = "loading"
        job.student = student_lm(package.path, num_ctx=self._num_ctx, parallel=self._parallel)
        job.stage = "done"
        return str(job.student.model)

    def _dataset(self, calls: Sequence[Mapping[str, Any]], path: Path) -> Dataset:
        """The rows to train on, all in one split: what is held out is the program's to say."""
        kept = isinstance(self._role, ProgramRole)
        rows = [_row(call, f"call {number}", kept) for number, call in enumerate(calls, start=1)]
        near = 1.0 if kept else 0.9  # programs ask what is nearly the same and answer otherwise
        builder = DatasetBuilder(
            self._role,
            min_score=self._min_score,
            validation_share=0.0,
            test_share=0.0,
            contracts=self._contracts,
            near=near,
        )
        dataset = builder.build_rows(rows, path, name="calls")
        doctor = DatasetDoctor(self._role, min_score=self._min_score, near=near, allow=self._allow)
        require_fit(doctor.check(dataset.paths["train"]))
        return dataset

    def _new_version(self) -> Path:
        version = artifacts.next_version(self._models, self._role.version_stem)
        folder = self._models / version
        folder.mkdir(parents=True)
        return folder


def _open(role: str | Role | None) -> Role:
    if role is None:
        return ProgramRole()
    if not isinstance(role, str):
        return role
    opened: Role = plugins.load("roles", role)(contract="dspy")
    return opened


def _row(call: Mapping[str, Any], where: str, word_for_word: bool) -> dict[str, Any]:
    messages = call.get("messages")
    if not isinstance(messages, list):
        raise InputError(f"{where} of the training data has no messages.", "Use dspy.ChatAdapter.")
    return row_of_call(messages, where) if word_for_word else dict(call)


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [name for name in settings if name not in _TRAINER_SETTINGS]
    if unknown:
        near = nearest(unknown[0], _TRAINER_SETTINGS)
        raise SettingsError(
            f"train_kwargs has {unknown[0]!r}, which is no setting of LoRATrainer.",
            (f"Did you mean {near}? " if near else "") + f"Known: {', '.join(_TRAINER_SETTINGS)}.",
        )
    return dict(settings)
