"""What a weight file or folder says of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from po_distill.records.record import Digest, Record


class InspectedFile(Record):
    """A file that was looked at."""

    name: str  # below the folder that was named
    size_bytes: int
    digest: Digest | None  # None where digests were not wanted


class InspectedTensor(Record):
    """One tensor, as the head of its file describes it."""

    name: str
    type: str  # in the file's words: BF16, Q4_0
    shape: tuple[int, ...]  # rows first, for a GGUF too
    parameters: int
    size_bytes: int
    file: str


class TensorGroup(Record):
    """Tensors that have something in common."""

    name: str  # the type, or the tensors' names with * for the number of a layer
    tensors: int
    parameters: int
    size_bytes: int


class AdapterScale(Record):
    """What some modules' updates are multiplied by."""

    rank: float
    alpha: float
    scale: float  # alpha / rank, or alpha / sqrt(rank) for rsLoRA
    modules: int


class InspectedAdapter(Record):
    """What adapter_config.json says of a LoRA adapter."""

    kind: str  # peft_type
    base_name: str | None
    rs_lora: bool
    dora: bool
    scales: tuple[AdapterScale, ...]  # those of most modules first
    target_modules: str | tuple[str, ...]
    modules_to_save: tuple[str, ...]


class InspectedTokenizer(Record):
    """What a tokenizer is."""

    kind: str  # BPE, Unigram; or what a GGUF calls it: gpt2, llama
    tokens: int | None  # of its vocabulary; None where the file does not say
    added_tokens: int | None  # tokens beside the vocabulary that tokenizer.json was trained with
    pre_tokenizer: str | None  # how text is split before


class WeightsInspection(Record):
    """What a weight file or folder is, without a look at the values in it."""

    path: str
    kind: Literal["safetensors", "checkpoint", "adapter", "gguf"]
    architecture: str | None
    parameters: int
    size_bytes: int  # of the tensors
    files: tuple[InspectedFile, ...]
    digest: Digest | None  # of a checkpoint, as an adapter records its base: over its weight files
    by_type: tuple[TensorGroup, ...]  # the largest first
    by_part: tuple[TensorGroup, ...]  # in the files' order
    adapter: InspectedAdapter | None = None
    tokenizer: InspectedTokenizer | None = None
    template_form: str | None = None  # the family of chat templates, by the marks in the text
    template: str | None = None  # the chat template
    ours: dict[str, JsonValue] = Field(default_factory=dict)  # what po_distill wrote down about it
    metadata: dict[str, JsonValue] = Field(default_factory=dict)  # the file's own: config.json, key-values
    notes: tuple[str, ...] = ()  # what is odd about it
    tensors: tuple[InspectedTensor, ...]
