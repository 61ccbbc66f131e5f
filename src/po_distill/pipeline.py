"""The whole road: concepts -> answers -> dataset -> adapter -> merged model -> GGUF -> report.

Each stage is done once for its inputs (`run_state`). A run that was killed goes on where it was; a
run whose training inputs changed begins a new version.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import JsonValue

from po_distill import artifacts
from po_distill.artifacts import digest_file
from po_distill.errors import InputError, NotAskedError
from po_distill.interfaces import Role
from po_distill.plugins import load
from po_distill.progress import say
from po_distill.records import (
    Adapter,
    Dataset,
    EvaluationReport,
    GenerationSettings,
    MergedModel,
    OllamaPackage,
    ProviderSettings,
    Record,
)
from po_distill.run_state import RunState
from po_distill.settings import Settings, TeacherSettings

if TYPE_CHECKING:
    from po_distill.stages.teacher import Teacher

_R = TypeVar("_R", bound=Record)


class DoneStage(Record):
    """The record of a stage whose outputs say all."""


class DistillResult(Record):
    """What `distill` made."""

    version: str
    folder: str  # the version's folder
    report: EvaluationReport
    artifacts: dict[str, str]  # name -> path
    stages: dict[str, str]  # stage -> "done" or "kept", where an earlier run had finished it
    duration_s: float


def distill(settings: Settings | None = None, *, fresh: bool = False) -> DistillResult:
    """Walk the whole road, from where an earlier run with the same settings left it.

    `fresh` forgets the earlier run: everything is made again, the student as a new version. Paths
    in the settings are relative to the current folder. Raises PODistillError, with what is finished
    kept.
    """
    return _Road(settings or Settings(), fresh=fresh).walk()


class _Road:
    """One run over the stages."""

    def __init__(self, settings: Settings, *, fresh: bool) -> None:
        self.role: Role = load("roles", settings.role)(contract=settings.contract, prompt=settings.prompt_text())
        self.settings = settings.placed(self.role)
        self.models = Path(self.settings.models)
        self.run = RunState(self.models, self.role.version_stem, fresh=fresh)

    def walk(self) -> DistillResult:
        started = time.monotonic()
        concepts = self._concepts()
        completions = self._teacher(concepts)
        dataset = self._dataset(completions)
        adapter = self._train(dataset)
        merged = self._merge(adapter)
        package = self._package(merged)
        base_gguf = self._base_gguf() if self.settings.evaluate.base else None
        report = self._evaluate(dataset, completions, adapter, package, base_gguf)
        return DistillResult(
            version=self.run.version,
            folder=str(self.folder),
            report=report,
            artifacts={**self.run.outputs(), "logs": self.settings.logs},
            stages=self.run.told,
            duration_s=time.monotonic() - started,
        )

    @property
    def folder(self) -> Path:
        return self.models / self.run.version

    # --- the stages -------------------------------------------------------------------------

    def _concepts(self) -> Path:
        from po_distill.source_rows import read_concepts, vary_all

        wanted = self.settings.concepts
        path = Path(wanted.path)
        if path.exists() and not self.run.is_our_concepts_file(path):
            say(f"concepts: {path} is there, used as it is")
            return path

        def work() -> DoneStage:
            if wanted.vary:
                made = vary_all(self.role, read_concepts(wanted.vary, self.role), wanted.count, wanted.seed)
            else:
                made = self.role.generate_concepts(wanted.count, wanted.seed)
            artifacts.write_jsonl(path, made)
            self.run.note_concepts_file(path)
            return DoneStage()

        depends_on = {
            "settings": wanted.model_dump(),
            "role": self.role.name,
            "vary": digest_file(wanted.vary) if wanted.vary else None,
        }
        self.run.stage("concepts", depends_on, {"concepts": path}, work, DoneStage)
        return path

    def _teacher(self, concepts_path: Path) -> Path:
        from po_distill.source_rows import read_concepts
        from po_distill.stages.dataset_builder import beside

        wanted = self.settings.teacher
        path = beside(self.settings.dataset.path, "completions.jsonl")
        logs = Path(self.settings.logs)
        concepts = read_concepts(concepts_path, self.role)

        def work() -> Record:
            summary = open_teacher(self.role, wanted, logs).write(
                concepts, path, target=wanted.target, mix=wanted.mix, seed=self.settings.concepts.seed
            )
            if summary.stopped:
                raise NotAskedError(
                    f"The teacher stopped at the budget of ${wanted.budget_usd:g}: {summary.accepted} of "
                    f"{summary.asked} concepts have an accepted answer.",
                    "Raise teacher.budget_usd and run again: it goes on where this stopped.",
                    reason="budget_reached",
                )
            return summary

        depends_on = {
            "concepts": digest_file(concepts_path),
            "settings": wanted.model_dump(mode="json"),
            "contract": self.role.contract.digest,
            # A provider that answers from a file answers otherwise when the file changed.
            "model": digest_file(wanted.model) if wanted.model and Path(wanted.model).is_file() else None,
        }
        self.run.stage("teacher", depends_on, {"completions": path}, work, DoneStage)
        return path

    def _dataset(self, completions_path: Path) -> Dataset:
        from po_distill.records import Completion
        from po_distill.stages.dataset_builder import DatasetBuilder, beside

        wanted = self.settings.dataset
        path = Path(wanted.path)

        def work() -> Dataset:
            builder = DatasetBuilder(
                self.role,
                min_score=self.settings.teacher.min_score,
                metric=self.settings.teacher.metric,
                validation_share=wanted.validation_share,
                test_share=wanted.test_share,
                held_out=wanted.held_out,
                near=wanted.near,
                contracts=wanted.contracts,
                demonstrations=wanted.demonstrations,
                demonstrated_characters=wanted.demonstrated_characters,
                shapes=wanted.shapes,
            )
            return builder.build(artifacts.read_records(completions_path, Completion), path)

        depends_on = {
            "completions": digest_file(completions_path),
            "held_out": [digest_file(path) for path in wanted.held_out],
            "settings": wanted.model_dump(mode="json"),
            "min_score": self.settings.teacher.min_score,
            "metric": self.settings.teacher.metric,
            "contract": self.role.contract.digest,
        }
        manifest = beside(path, "manifest.json")
        outputs = {"dataset": path, "dataset_manifest": manifest}
        return self.run.stage("dataset", depends_on, outputs, work, lambda: artifacts.read_record(manifest, Dataset))

    def _train(self, dataset: Dataset) -> Adapter:
        from po_distill.stages.lora_trainer import LoRATrainer

        wanted = self.settings.train
        depends_on = {"dataset": dataset.digest, "settings": wanted.model_dump(mode="json")}
        self.run.begin_version(depends_on)
        adapter_path = self.folder / "adapter"
        record_path = adapter_path / "po_distill.json"

        def work() -> Adapter:
            manifest = artifacts.read_manifest(self.folder)
            if manifest and "train" in manifest.stages:  # killed between the trainer's note and ours
                return artifacts.read_record(record_path, Adapter)
            self._require_fit(dataset)
            trainer = LoRATrainer(**wanted.for_trainer())
            log_path = Path(self.settings.logs) / f"{self.run.version}.log"
            return trainer.train(dataset, self.folder, log_path=log_path)

        outputs = {"adapter": adapter_path}
        return self.run.stage("train", depends_on, outputs, work, lambda: artifacts.read_record(record_path, Adapter))

    def _require_fit(self, dataset: Dataset) -> None:
        """Raise InputError where the train split breaks a rule that the settings do not allow to be broken."""
        from po_distill.stages.dataset_doctor import DatasetDoctor, require_fit

        wanted = self.settings
        doctor = DatasetDoctor(
            self.role,
            min_score=wanted.teacher.min_score,
            metric=wanted.teacher.metric,
            held_out=wanted.dataset.held_out,
            allow=wanted.train.allow,
        )
        require_fit(doctor.check(dataset.paths["train"]))

    def _merge(self, adapter: Adapter) -> MergedModel:
        from po_distill.stages.merger import Merger

        outputs = {
            "lora": self.folder / f"{self.run.version}_lora.safetensors",
            "merged": self.folder / f"{self.run.version}.safetensors",
        }

        def work() -> MergedModel:
            return Merger(gguf=self.settings.package.quantization).merge(
                adapter, self.folder, base=self.settings.train.base
            )

        return self.run.stage(
            "merge", {"adapter": adapter.digest}, outputs, work, lambda: self._recorded("merge", MergedModel)
        )

    def _package(self, merged: MergedModel) -> OllamaPackage:
        from po_distill.stages.packager import Packager

        wanted = self.settings.package
        name = wanted.name or self.run.version.replace("_", "-")
        outputs = {
            "gguf": self.folder / f"{name}.{wanted.quantization.upper()}.gguf",
            "modelfile": self.folder / "Modelfile",
        }

        def work() -> OllamaPackage:
            return Packager(name=name, quantization=wanted.quantization).package(merged)

        depends_on = {"merged": merged.digest, "settings": wanted.model_dump(mode="json")}
        return self.run.stage("package", depends_on, outputs, work, lambda: self._recorded("package", OllamaPackage))

    def _recorded(self, stage: str, kind: type[_R]) -> _R:
        """The record that a finished stage left in the version's manifest."""
        manifest = artifacts.read_manifest(self.folder)
        if manifest is None or stage not in manifest.stages:
            raise InputError(
                f"{self.folder / artifacts.MANIFEST_NAME} lacks the stage {stage!r}.",
                "It was deleted or edited; run with --fresh to make a new version.",
            )
        return artifacts.parse_record(manifest.stages[stage], kind, f"{self.folder}, stage {stage}")

    def _base_gguf(self) -> Path:
        """The base model in the student's quantization: what the student is held against."""
        from po_distill.weights.checkpoint import locate
        from po_distill.weights.gguf import write_gguf

        base = locate(self.settings.train.base)
        quantization = self.settings.package.quantization
        stem = base.name.replace("/", "--")
        path = self.models / "base" / f"{stem}.{quantization.upper()}.gguf"
        depends_on = {"base": base.digest, "quantization": quantization}

        def work() -> Record:
            path.unlink(missing_ok=True)
            return write_gguf(base.path, path, quantization)

        self.run.stage("base_gguf", depends_on, {"base_gguf": path}, work, DoneStage)
        return path

    def _evaluate(
        self, dataset: Dataset, completions: Path, adapter: Adapter, package: OllamaPackage, base_gguf: Path | None
    ) -> EvaluationReport:
        wanted = self.settings.evaluate
        record_path = self.folder / "evaluation.json"

        def work() -> EvaluationReport:
            report = evaluate_models(
                self.role,
                dataset.paths["test"],
                student=package.gguf.path,
                base=str(base_gguf) if base_gguf else None,
                teacher_path=completions,
                train_path=dataset.paths["train"],
                subset=wanted.subset,
                provider=wanted.provider,
                max_tokens=wanted.max_tokens or room_for_answers(dataset.paths["train"], adapter.path),
                concurrency=wanted.concurrency,
                gate=wanted.gate,
                min_valid_share=wanted.min_valid_share,
                folder=self.folder / "evaluation",
                report_path=wanted.report,
            )
            artifacts.write_json(record_path, report)
            return report

        depends_on = {
            "package": package.gguf.digest,
            "dataset": dataset.digest,
            "settings": wanted.model_dump(mode="json"),
        }
        outputs = {"report": Path(wanted.report), "evaluation": record_path}
        return self.run.stage(
            "evaluate", depends_on, outputs, work, lambda: artifacts.read_record(record_path, EvaluationReport)
        )


def room_for_answers(data_path: Path | str, tokenizer_path: Path | str) -> int:
    """Tokens that an answer should fit into: an eighth more than the longest of the training rows."""
    from po_distill.weights.tokenization import load_tokenizer, tokenize_file

    rows = tokenize_file(data_path, load_tokenizer(Path(tokenizer_path)), max_seq_len=sys.maxsize)
    return math.ceil(1.125 * max(row.answer_tokens for row in rows))


def open_teacher(role: Role, wanted: TeacherSettings, logs: Path) -> Teacher:
    """The teacher that the settings describe, with its journal and cost log in the folder `logs`."""
    from po_distill.calls import Limits
    from po_distill.pipeline_config import ConfiguredProvider, configured_provider
    from po_distill.stages.teacher import Teacher

    found = ConfiguredProvider(wanted.provider, None, {})
    if wanted.config:
        found = configured_provider(wanted.config, wanted.provider)
    return Teacher(
        role,
        provider=found.provider,
        model=wanted.model,
        base_url=wanted.base_url or found.base_url,
        options={**found.options, **wanted.options},
        batch_size=wanted.batch_size,
        min_score=wanted.min_score,
        generation=GenerationSettings(
            temperature=wanted.temperature, max_tokens=wanted.max_tokens, seed=wanted.seed, thinking=wanted.thinking
        ),
        regenerate=wanted.regenerate,
        structured=wanted.structured,
        metric=wanted.metric,
        model_table=wanted.models_file,
        watch=wanted.watch,
        journal_path=logs / "teacher_journal.sqlite",
        log_path=logs / "teacher_calls.log",
        limits=Limits(
            budget_usd=wanted.budget_usd,
            requests_per_minute=wanted.requests_per_minute,
            tokens_per_minute=wanted.tokens_per_minute,
            in_doubt=wanted.in_doubt,
            served_models=tuple(wanted.allow_models),
        ),
    )


def evaluate_models(
    role: Role,
    data: Path | str | None,
    *,
    student: str | None = None,
    base: str | None = None,
    teacher_path: Path | str | None = None,
    recorded: Mapping[str, Path | str] | None = None,
    reference: str | None = None,
    production: str | None = None,
    provider: str = "llama_cpp",
    max_tokens: int = 4096,
    concurrency: int = 1,
    folder: Path | str | None = None,
    report_path: Path | str | None = None,
    **settings: Any,
) -> EvaluationReport:
    """Hold a student's GGUF and recorded answers against each other and a teacher's; GGUFs by one runtime.

    `student` may be a version folder that holds one GGUF. `recorded` are files of answers by the candidate's name.
    Without `data` the cases are those that the reference was asked. `settings` are the Evaluator's own.
    """
    from po_distill.candidates import Candidate
    from po_distill.stages.evaluator import Evaluator

    student_path = None
    if student is not None:
        student_path = _only_gguf(Path(student)) if Path(student).is_dir() else Path(student)

    def runtime(model: Path | str) -> ProviderSettings:
        options: dict[str, JsonValue] = {"n_parallel": concurrency} if concurrency > 1 else {}
        return ProviderSettings(provider=provider, model=str(model), options=options)

    candidates: dict[str, Candidate] = {
        **({"base": runtime(base)} if base else {}),
        **({"student": runtime(student_path)} if student_path else {}),
        **(recorded or {}),
        **({"teacher": Path(teacher_path)} if teacher_path else {}),
    }
    beside = student_path.parent / "evaluation" if student_path else Path("artifacts/evaluation")
    evaluator = Evaluator(
        role,
        generation=GenerationSettings(temperature=0.0, max_tokens=max_tokens),
        concurrency=concurrency,
        folder=folder or beside,
        report_path=report_path,
        **settings,
    )
    return evaluator.evaluate(data, candidates, reference=reference, production=production)


def _only_gguf(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} GGUF files.",
            "Name the one to evaluate, or run `po-distill package` where there is none.",
        )
    return found[0]
