"""The whole road: concepts -> answers -> dataset -> adapter -> merged model -> GGUF -> report.

Each stage is done once for its inputs: what it depends on is digested into a key, kept in
`<models>/<stem>.run.json` with the stage's outputs, before the work begins and after it ended. A
run that was killed goes on where it was; a run whose training inputs changed begins a new version.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, JsonValue

from po_distill import artifacts
from po_distill.artifacts import digest_file, digest_value
from po_distill.errors import InputError
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
from po_distill.settings import Settings

_R = TypeVar("_R", bound=Record)


class StageState(Record):
    """What is known of one stage of the newest run."""

    key: str  # digest of all that the stage depends on
    finished: bool = False
    outputs: dict[str, str] = Field(default_factory=dict)  # name -> path
    duration_s: float = 0.0


class RunState(Record):
    """How far a run is."""

    version: str | None = None  # the student version that is being made, or was made last
    stages: dict[str, StageState] = Field(default_factory=dict)


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
        self.settings = settings
        self.role: Role = load("roles", settings.role)(contract=settings.contract, prompt=settings.prompt_text())
        self.models = Path(settings.models)
        self.state_path = self.models / f"{self.role.version_stem}.run.json"
        known = self.state_path.exists() and not fresh
        self.state = artifacts.read_record(self.state_path, RunState) if known else RunState()
        self.fresh = fresh
        self.told: dict[str, str] = {}

    def walk(self) -> DistillResult:
        started = time.monotonic()
        concepts = self._concepts()
        completions = self._teacher(concepts)
        dataset = self._dataset(completions)
        adapter = self._train(dataset)
        merged = self._merge(adapter)
        package = self._package(merged)
        base_gguf = self._base_gguf() if self.settings.evaluate.base else None
        report = self._evaluate(dataset, completions, package, base_gguf)
        assert self.state.version is not None
        found = {name: path for stage in self.state.stages.values() for name, path in stage.outputs.items()}
        return DistillResult(
            version=self.state.version,
            folder=str(self.folder),
            report=report,
            artifacts={**found, "logs": self.settings.logs},
            stages=self.told,
            duration_s=time.monotonic() - started,
        )

    @property
    def folder(self) -> Path:
        assert self.state.version is not None
        return self.models / self.state.version

    # --- what is done already ---------------------------------------------------------------

    def _stage(
        self,
        name: str,
        depends_on: Mapping[str, Any],
        outputs: Mapping[str, Path],
        work: Callable[[], _R],
        again: Callable[[], _R],
    ) -> _R:
        """The stage's record: by `work`, or by `again` where it was finished for the same inputs."""
        key = digest_value(dict(depends_on))
        before = self.state.stages.get(name)
        if before and before.finished and before.key == key and all(path.exists() for path in outputs.values()):
            say(f"{name}: finished before, kept")
            self.told[name] = "kept"
            return again()
        self._remember(name, StageState(key=key))
        started = time.monotonic()
        record = work()
        self._remember(
            name,
            StageState(
                key=key,
                finished=True,
                outputs={label: str(path) for label, path in outputs.items()},
                duration_s=round(time.monotonic() - started, 2),
            ),
        )
        self.told[name] = "done"
        return record

    def _remember(self, name: str, stage: StageState) -> None:
        self.state = self.state.model_copy(update={"stages": {**self.state.stages, name: stage}})
        artifacts.write_json(self.state_path, self.state)

    def _begun(self, name: str, depends_on: Mapping[str, Any]) -> bool:
        """Whether this run, or an earlier one with the same inputs, has begun the stage."""
        before = self.state.stages.get(name)
        return before is not None and before.key == digest_value(dict(depends_on))

    # --- the stages -------------------------------------------------------------------------

    def _concepts(self) -> Path:
        from po_distill.source_rows import read_concepts

        wanted = self.settings.concepts
        path = Path(wanted.path)
        depends_on = {"settings": wanted.model_dump(), "role": self.role.name, "vary": _digest_or_none(wanted.vary)}
        if path.exists() and "concepts" not in self.state.stages:
            # Somebody's own file is used as it is; ours would come out the same.
            say(f"concepts: {path} is there, used as it is")
            return path

        def work() -> RunState:
            given = read_concepts(wanted.vary, self.role) if wanted.vary else []
            made = (
                self.role.vary_concepts(given, wanted.count, wanted.seed)
                if given
                else self.role.generate_concepts(wanted.count, wanted.seed)
            )
            artifacts.write_jsonl(path, made)
            return self.state

        self._stage("concepts", depends_on, {"concepts": path}, work, lambda: self.state)
        return path

    def _teacher(self, concepts_path: Path) -> Path:
        from po_distill.source_rows import read_concepts
        from po_distill.stages.dataset_builder import beside
        from po_distill.stages.teacher import Teacher

        wanted = self.settings.teacher
        path = beside(self.settings.dataset.path, "completions.jsonl")
        logs = Path(self.settings.logs)
        concepts = read_concepts(concepts_path, self.role)

        def work() -> Record:
            teacher = Teacher(
                self.role,
                provider=wanted.provider,
                model=wanted.model,
                base_url=wanted.base_url,
                options=wanted.options,
                batch_size=wanted.batch_size,
                min_score=wanted.min_score,
                attempts=wanted.attempts,
                journal_path=logs / "teacher_journal.sqlite",
                log_path=logs / "teacher_calls.jsonl",
            )
            return teacher.write(concepts, path)

        depends_on = {
            "concepts": digest_file(concepts_path),
            "settings": wanted.model_dump(mode="json"),
            "contract": self.role.contract.digest,
        }
        self._stage("teacher", depends_on, {"completions": path}, work, lambda: self.state)
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
                validation_share=wanted.validation_share,
                test_share=wanted.test_share,
            )
            return builder.build(artifacts.read_records(completions_path, Completion), path)

        depends_on = {
            "completions": digest_file(completions_path),
            "settings": wanted.model_dump(mode="json"),
            "min_score": self.settings.teacher.min_score,
            "contract": self.role.contract.digest,
        }
        manifest = beside(path, "manifest.json")
        outputs = {"dataset": path, "dataset_manifest": manifest}
        return self._stage("dataset", depends_on, outputs, work, lambda: artifacts.read_record(manifest, Dataset))

    def _train(self, dataset: Dataset) -> Adapter:
        from po_distill.stages.lora_trainer import LoRATrainer

        wanted = self.settings.train
        depends_on = {"dataset": dataset.digest, "settings": wanted.model_dump(mode="json")}
        if self.state.version is None or not self._begun("train", depends_on):
            self._begin_version()
        adapter_path = self.folder / "adapter"
        record_path = adapter_path / "po_distill.json"

        def work() -> Adapter:
            if adapter_path.exists():  # killed between the adapter's last byte and our note of it
                return artifacts.read_record(record_path, Adapter)
            trainer = LoRATrainer(
                base=wanted.base,
                lora=wanted.lora,
                epochs=wanted.epochs,
                batch=wanted.batch,
                learning_rate=wanted.lr,
                max_seq_len=wanted.max_seq_len,
                max_samples=wanted.max_samples,
                max_steps=wanted.max_steps,
                minutes=wanted.minutes,
                seed=wanted.seed,
                launcher=wanted.launcher,
            )
            log_path = Path(self.settings.logs) / f"train_{self.state.version}.jsonl"
            return trainer.train(dataset, self.folder, log_path=log_path)

        outputs = {"adapter": adapter_path}
        return self._stage("train", depends_on, outputs, work, lambda: artifacts.read_record(record_path, Adapter))

    def _begin_version(self) -> None:
        """Count up to a version of our own; an unfinished one that holds no adapter is used again."""
        version = self.state.version
        if self.fresh or version is None or (self.models / version / "adapter").exists():
            version = artifacts.next_version(self.models, self.role.version_stem)
        (self.models / version).mkdir(parents=True, exist_ok=True)
        before_training = ("concepts", "teacher", "dataset", "base_gguf")
        kept = {name: stage for name, stage in self.state.stages.items() if name in before_training}
        self.state = RunState(version=version, stages=kept)
        artifacts.write_json(self.state_path, self.state)

    def _merge(self, adapter: Adapter) -> MergedModel:
        from po_distill.stages.merger import Merger

        assert self.state.version is not None
        outputs = {
            "lora": self.folder / f"{self.state.version}_lora.safetensors",
            "merged": self.folder / f"{self.state.version}.safetensors",
        }

        def work() -> MergedModel:
            return Merger().merge(adapter, self.folder, base=self.settings.train.base)

        return self._stage(
            "merge", {"adapter": adapter.digest}, outputs, work, lambda: self._recorded("merge", MergedModel)
        )

    def _package(self, merged: MergedModel) -> OllamaPackage:
        from po_distill.stages.packager import Packager

        wanted = self.settings.package
        name = wanted.name or str(self.state.version).replace("_", "-")
        outputs = {
            "gguf": self.folder / f"{name}.{wanted.quantization.upper()}.gguf",
            "modelfile": self.folder / "Modelfile",
        }

        def work() -> OllamaPackage:
            return Packager(name=name, quantization=wanted.quantization).package(merged)

        depends_on = {"merged": merged.digest, "settings": wanted.model_dump(mode="json")}
        return self._stage("package", depends_on, outputs, work, lambda: self._recorded("package", OllamaPackage))

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

        def work() -> RunState:
            path.unlink(missing_ok=True)
            write_gguf(base.path, path, quantization)
            return self.state

        self._stage("base_gguf", depends_on, {"base_gguf": path}, work, lambda: self.state)
        return path

    def _evaluate(
        self, dataset: Dataset, completions: Path, package: OllamaPackage, base_gguf: Path | None
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
                n_ctx=package.num_ctx,
                max_tokens=wanted.max_tokens,
                concurrency=wanted.concurrency,
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
        return self._stage(
            "evaluate", depends_on, outputs, work, lambda: artifacts.read_record(record_path, EvaluationReport)
        )


def evaluate_models(
    role: Role,
    data: Path | str,
    *,
    student: str,
    base: str | None = None,
    teacher_path: Path | str | None = None,
    train_path: Path | str | None = None,
    subset: int | None = None,
    provider: str = "llama_cpp",
    n_ctx: int | None = None,
    max_tokens: int = 4096,
    concurrency: int = 1,
    min_valid_share: float = 0.8,
    folder: Path | str | None = None,
    report_path: Path | str | None = None,
) -> EvaluationReport:
    """Hold a student's GGUF against its base's and a teacher's recorded answers, by one runtime.

    `student` may be a version folder that holds one GGUF. `n_ctx` is the context per answer in tokens;
    None leaves it to the provider.
    """
    from po_distill.stages.evaluator import Candidate, Evaluator

    student_path = _only_gguf(Path(student)) if Path(student).is_dir() else Path(student)

    def runtime(model: Path | str) -> ProviderSettings:
        context: dict[str, JsonValue] = {"n_ctx": n_ctx * concurrency} if n_ctx else {}
        return ProviderSettings(provider=provider, model=str(model), options={**context, "n_parallel": concurrency})

    candidates: dict[str, Candidate] = {
        **({"base": runtime(base)} if base else {}),
        "student": runtime(student_path),
        **({"teacher": Path(teacher_path)} if teacher_path else {}),
    }
    evaluator = Evaluator(
        role,
        subset=subset,
        generation=GenerationSettings(temperature=0.0, max_tokens=max_tokens),
        concurrency=concurrency,
        min_valid_share=min_valid_share,
        train_path=train_path,
        folder=folder or student_path.parent / "evaluation",
        report_path=report_path,
    )
    return evaluator.evaluate(data, candidates)


def _only_gguf(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise InputError(
            f"{folder} holds {len(found)} GGUF files.",
            "Name the one to evaluate, or run `po-distill package` where there is none.",
        )
    return found[0]


def _digest_or_none(path: str | None) -> str | None:
    return digest_file(path) if path else None
