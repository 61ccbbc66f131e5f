"""Typed settings of the whole road, one section per stage, read from YAML.

Every field has the plan's value as its default, so an empty file is a valid one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from po_distill import safe_yaml
from po_distill.artifacts import read_text
from po_distill.errors import SettingsError
from po_distill.plugins import nearest
from po_distill.records import Fraction, LoRASettings, Quantization
from po_distill.role_paths import CONCEPTS, DATASET, REPORT, of_role

if TYPE_CHECKING:
    from po_distill.interfaces import Role

Positive = Annotated[int, Field(gt=0)]
Level = Annotated[str, Field(pattern="^[A-Za-z]")]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ConceptSettings(_Section):
    """Which concepts are answered."""

    path: str = CONCEPTS  # JSONL; a file of your own is used as it is
    count: Positive = 228  # how many to make where `path` does not exist, or to vary `vary` to
    seed: int = 7
    vary: str | None = None  # JSONL of concepts to vary instead of generating


class TeacherSettings(_Section):
    """Who answers them."""

    provider: str = "offline"
    model: str | None = None
    base_url: str | None = None
    config: str | None = None  # the pipeline's config.yaml: project, location and address of providers.<provider>
    options: dict[str, JsonValue] = Field(default_factory=dict)
    batch_size: Positive = 20  # calls in flight at most
    min_score: Fraction = 0.85
    regenerate: Annotated[int, Field(ge=0)] = 2  # how often an answer that is not good enough is asked for again
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.4
    max_tokens: Positive = 8192  # of an answer, thinking included
    seed: int | None = None  # for providers that can repeat a sampled answer
    thinking: Annotated[int, Field(ge=0)] | Level | None = None
    structured: bool | None = None  # ask for JSON under the role's schema; null where provider and model can
    metric: str | None = None  # package.module:function in place of the role's own
    models_file: str | None = None  # YAML of models that come before the library's own
    budget_usd: PositiveNumber | None = None  # what all runs of the journal may cost together
    requests_per_minute: PositiveNumber | None = None
    tokens_per_minute: PositiveNumber | None = None
    in_doubt: Literal["resend", "skip"] = "resend"  # calls of a killed run that may have been paid for
    allow_models: list[str] = Field(default_factory=list)  # models that may answer in place of the one asked for
    target: Positive | None = None  # accepted answers to reach by varying the concepts
    mix: dict[str, Fraction] | None = None  # shares of the classes in the target; null is equal shares
    watch: list[str] | None = None  # concepts reported one by one; null takes those the role knows to be hard


class DatasetSettings(_Section):
    """What of the answers is trained on."""

    path: str = DATASET  # JSONL of the training rows; the other files of the dataset lie beside it
    validation_share: Fraction = 0.05
    test_share: Fraction = 0.1
    held_out: list[str] = Field(default_factory=list)  # files that no row may be in, exactly or nearly
    near: Annotated[float, Field(gt=0, le=1)] = 0.9  # similarity from which rows of one class are duplicates
    contracts: dict[str, Fraction] | None = None  # shares of the contracts that rows are rendered in; null is one
    demonstrations: Annotated[int, Field(ge=0)] = 2  # rows that a prompt of the contract dspy shows, at most
    demonstrated_characters: Positive = 6000  # of such a row, prompt and target together
    shapes: list[str] = Field(default_factory=list)  # also written as messages, prompt_completion, parquet


class TrainSettings(_Section):
    """How the student is trained."""

    base: str = "mistral-7b-instruct"
    lora: LoRASettings = LoRASettings()
    epochs: Annotated[float, Field(gt=0)] = 3.0
    batch: Positive = 4
    lr: Annotated[float, Field(gt=0)] = 1e-4
    max_seq_len: Positive = 2048
    max_samples: Positive | None = None
    max_steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    seed: int = 7
    order: Literal["shuffled", "given"] = "shuffled"  # of the rows in a pass: drawn, or the file's (a curriculum)
    quantization_aware: Literal["q4_0"] | None = None  # train against the weights rounded as they will be packaged
    scheduler: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # the learning rate after the warm-up
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999  # of AdamW: how long it remembers the squares of gradients
    warmup: Fraction = 0.03  # share of the steps over which the learning rate rises; runs under 20 steps have none
    weight_decay: Annotated[float, Field(ge=0)] = 0.0  # a LoRA of three passes is held back by its rank alone
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of base and arithmetic; the adapter's is float32
    quantize_base: Literal["nf4"] | None = None  # QLoRA: the base in 4 bits, on a CUDA GPU
    evaluate_every: Annotated[int, Field(ge=0)] | None = None  # steps between held-out losses; null is about ten a run
    generate_cases: Annotated[int, Field(ge=0)] | None = None  # held-out cases to answer; null is 4 on a GPU, else 0
    patience: Positive | None = None  # held-out losses without a better one until the run stops; null never stops
    save_every: Positive | None = None  # steps between checkpoints; null is about a minute's
    report_to: list[str] = Field(default_factory=list)  # tensorboard, wandb, mlflow
    launcher: str = "local"
    launcher_options: dict[str, JsonValue] = Field(default_factory=dict)  # its own, such as processes: 2
    allow: list[str] = Field(default_factory=list)  # rules of `dataset check` that the dataset may break

    def for_trainer(self) -> dict[str, Any]:
        """The settings by the names of LoRATrainer's arguments."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in ("lr", "allow")}
        return {**values, "learning_rate": self.lr}


class PackageSettings(_Section):
    """How the student is packaged. Without a name it is the version's, as po-student-v1."""

    name: str | None = None
    quantization: Quantization = "q4_0"


class EvaluateSettings(_Section):
    """How the student is judged."""

    subset: Positive | None = 50  # held-out cases, equally many of each verdict and tier; None takes all
    provider: str = "llama_cpp"  # the runtime of student and base
    base: bool = True  # judge the base model beside the student
    max_tokens: Positive | None = 4096  # longest answer; None is an eighth more than the longest of the training
    concurrency: Positive = 1  # calls at a time; seconds per call are honest at 1
    gate: str | None = None  # production, basic, or a YAML file of rules; null is production, where there is a teacher
    min_valid_share: Fraction | None = None  # least share of answers that production can read, in place of the gate's
    report: str = REPORT  # Markdown; `.html` and `.json` lie beside it


class Settings(_Section):
    """All settings of `po-distill run`. In paths `{role}` and `{stem}` stand for the role (`role_paths`)."""

    role: str = "product_owner"
    contract: str | None = None  # None is the role's default
    prompt: str | None = None  # a file with a system text in place of the role's own
    models: str = "artifacts/models"  # where versions are counted
    logs: str = "logs/distillation"
    concepts: ConceptSettings = ConceptSettings()
    teacher: TeacherSettings = TeacherSettings()
    dataset: DatasetSettings = DatasetSettings()
    train: TrainSettings = TrainSettings()
    package: PackageSettings = PackageSettings()
    evaluate: EvaluateSettings = EvaluateSettings()

    def prompt_text(self) -> str | None:
        """The system text of the file `prompt` names; None without one."""
        return read_text(self.prompt) if self.prompt else None

    def placed(self, role: Role) -> Settings:
        """These settings with the role in their paths."""
        sections = {
            "concepts": self.concepts.model_copy(update={"path": of_role(self.concepts.path, role)}),
            "dataset": self.dataset.model_copy(update={"path": of_role(self.dataset.path, role)}),
            "evaluate": self.evaluate.model_copy(update={"report": of_role(self.evaluate.report, role)}),
        }
        folders = {name: of_role(getattr(self, name), role) for name in ("models", "logs")}
        return self.model_copy(update={**sections, **folders})


_MINUTES_FOR_VERDICTS = 15.0  # two cores learn the form of the answers in less; from these on more cases are asked


def quickstart_settings(minutes: float, role: str = "product_owner") -> Settings:
    """The whole road on a bare machine: offline, on two cores, with `minutes` of training."""
    return Settings(
        role=role,
        concepts=ConceptSettings(count=400),
        dataset=DatasetSettings(validation_share=0.02, test_share=0.15),
        train=TrainSettings(
            base="smollm2-135m-instruct",
            lora=LoRASettings(dropout=0.0),
            epochs=1.0,
            lr=2e-3,
            batch=2,
            minutes=minutes,
            scheduler="wsd",  # most is learned in the second half
            beta2=0.95,
            evaluate_every=0,  # a run of minutes keeps them for its steps
        ),
        package=PackageSettings(quantization="q8_0"),  # so small a student loses much of what it knows to four bits
        evaluate=EvaluateSettings(subset=30 if minutes >= _MINUTES_FOR_VERDICTS else 12, max_tokens=None, gate="basic"),
    )


def teacher_settings(values: Mapping[str, Any], where: str) -> TeacherSettings:
    """The teacher's settings out of values by name. Raises SettingsError, with `where` and the name."""
    try:
        return TeacherSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{where}: {name}: {first['msg']} (got {first['input']!r}).", "Correct it.") from error


def read_settings(path: Path | str) -> Settings:
    """The settings of a YAML file. Raises SettingsError, with the key and the nearest known one."""
    value = safe_yaml.load(read_text(path), what=str(path))
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise SettingsError(f"{path} is a {type(value).__name__}, not a mapping.", f"Sections are {_keys(Settings)}.")
    try:
        return Settings.model_validate(value)
    except ValidationError as error:
        raise _settings_error(str(path), error) from error


def _settings_error(path: str, error: ValidationError) -> SettingsError:
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    section: Any = Settings
    for part in where[:-1]:
        section = section.model_fields[part].annotation
    known = list(section.model_fields) if hasattr(section, "model_fields") else []
    name = ".".join(where)
    if first["type"] == "extra_forbidden":
        near = nearest(where[-1], known)
        return SettingsError(
            f"{path}: there is no setting {name!r}.",
            (f"Did you mean {near}? " if near else "") + f"Known: {', '.join(known)}.",
        )
    return SettingsError(f"{path}: {name}: {first['msg']} (got {first['input']!r}).", "Correct that value.")


def _keys(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)
