"""Concepts, prompts, what was answered to them, and what a teacher's run did."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator

from po_distill.records.record import Digest, Fraction, Record, none_for_no_text


class Concept(Record):
    """One case for the role: what a product should be, and the requirements written for it."""

    concept_id: str = Field(min_length=1)  # unique within a file
    concept: str = Field(min_length=1)  # the product concept, plain text
    requirements_yaml: str = Field(min_length=1)  # the requirements document, YAML text
    existing_vision: str | None = None  # YAML text of the vision there is: an earlier one, or the one to work from
    tier: str = "medium"  # how involved the case is: simple, medium, complex
    planted_label: str | None = None  # the class of the right answer, where the generator planted it
    metadata: dict[str, JsonValue] = Field(default_factory=dict)  # anything else the source said

    _no_text = field_validator("existing_vision", "planted_label", mode="before")(none_for_no_text)

    @field_validator("metadata", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """JSON text, as the rows of a dataset hold it, is read."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


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


class Inspection(Record):
    """What a role counts and reads in one answer, beyond its score: for the dataset doctor."""

    counts: dict[str, int] = Field(default_factory=dict)  # a stable name, such as alignment_items -> how many
    values: dict[str, str] = Field(default_factory=dict)  # a stable name, such as last_updated -> what stands there
    parts: tuple[str, ...] = ()  # what the concept is made of, whose variety is looked at: requirement sentences


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
