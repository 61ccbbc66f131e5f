"""What a plugin author implements: Provider, Role, Launcher or JobLauncher.

A base model is data (`records.BaseModelSpec`) and needs no protocol. Each kind is registered by an
entry point: `po_distill.providers`, `po_distill.roles`, `po_distill.base_models`,
`po_distill.launchers`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import JsonValue

from po_distill.records import (
    Answer,
    Concept,
    Message,
    PromptContract,
    ProviderSettings,
    Request,
    Response,
    Score,
    TrainingJob,
    Violation,
)

Documents = Mapping[str, Mapping[str, Any]]
"""What a role writes: plain mappings by document name, such as {"product_vision": {...}}."""


async def _nobody_listens() -> None: ...


leaving: ContextVar[Callable[[], Awaitable[None]]] = ContextVar("leaving", default=_nobody_listens)
"""Awaited by a provider whose traits say so, as `await leaving.get()()`, right before a request goes to the network.

The caller writes the send down then, so a process that dies before holds nothing in doubt that never left. It may
raise: the request must not leave then.
"""


@runtime_checkable
class Provider(Protocol):
    """Something that answers requests: a model behind an API, a local runtime, recorded answers.

    The entry point names a class (or function) that is called as `Provider(settings, role)`. The
    caller (`calls.py`) owns the journal, the limits and the retries; a provider does one call. What it
    says of itself stands in a class attribute `traits` (`records.ProviderTraits`), which may be left out; so may a
    method `async def prepare(self) -> None`, which is awaited once before the first request: logins, clients.
    """

    def __init__(self, settings: ProviderSettings, role: Role) -> None: ...

    async def generate(self, request: Request) -> Response:
        """Answer one request. Raises ProviderError, with the fault that says what may help."""
        ...

    async def aclose(self) -> None:
        """Give back what the provider holds. Called once, after the last request."""
        ...


class Role(Protocol):
    """An agent role: how it is asked, read, written and scored, all through one PromptContract.

    The entry point names a class that is called as `Role(contract=NAME, prompt=SYSTEM_TEXT)`;
    both arguments are optional.
    """

    name: ClassVar[str]
    version_stem: ClassVar[str]  # begins the names of student versions: po_student
    labels: ClassVar[tuple[str, ...]]  # the classes an answer can be of, such as aligned
    contracts: ClassVar[tuple[str, ...]]  # the names of its contracts; the first is the default, `json` is structured

    # May be left out: a class attribute `watch` names concepts known to be hard, a teacher's run reports each; a method
    # `inspect(concept, text) -> Inspection` counts what the dataset doctor shows of answers; a class attribute
    # `violation_kinds` names what may be wrong with them, so that a count can be 0; a class attribute `short_name` (PO)
    # begins the variable that names the role's model (PO_MODEL), by default the initials of its name.
    # For the evaluation: `attribute(concept, text, *, score, finish, expected) -> tuple[Failure, ...]` says why an
    # answer failed, the gravest cause first (`expected` is the right class); `repair(text) -> str | None` makes an
    # unreadable answer readable, for the counterfactual; `coverage(concept, documents) -> float | None` is the share of
    # what was asked that the answer deals with.
    # For DSPy programs: a contract named `dspy`, in the form of `dspy_form`; `signature() -> type[dspy.Signature]` of
    # that program; `demonstrated` names the contracts whose prompts may show answered concepts;
    # `render_with(concept, demonstrations) -> messages` puts them in, each as (concept, target), under instructions
    # that the concept may decide; `knows_prompt(concept, prompt) -> bool` says whether a prompt is one of these, or any
    # other of the role's; `other_instructions` are texts that say the job in other words.
    # For guaranteed-valid answers: `decoding_schema(concept, max_tokens) -> dict` is what decoding about a concept is
    # held to, with a limit to every list and text, so that no answer has more than two characters for each token; by
    # default `json_schema()` with limits.

    def __init__(self, contract: str | None = None, prompt: str | None = None) -> None: ...

    @property
    def contract(self) -> PromptContract:
        """The contract that this instance asks and reads under."""
        ...

    def check(self, concept: Concept) -> None:
        """Raise InputError where the role cannot work on the concept."""
        ...

    def render(self, concept: Concept) -> tuple[Message, ...]:
        """The prompt: a system message where the contract has one, and a user message."""
        ...

    def read_prompt(self, prompt: str) -> Concept | None:
        """The concept that a prompt of production's or an earlier form is about, if it can be found."""
        ...

    def join_documents(self, row: Mapping[str, Any]) -> str | None:
        """One answer text out of a row with one YAML text per document; None where it has none."""
        ...

    def parse(self, text: str) -> Answer:
        """Read an answer in any of the role's contracts, forgiving what can be read in one way only."""
        ...

    def canonical(self, documents: Documents, *, stamp: str | None = None) -> str:
        """Write documents as the target that a student learns; `stamp` is the time put into them."""
        ...

    def score(self, concept: Concept, text: str) -> Score:
        """Score an answer as production would see it; `valid` says whether production can read it."""
        ...

    def advise(self, concept: Concept, text: str) -> tuple[str, ...]:
        """What would raise the metric of an answer, a sentence each, for the one who wrote it."""
        ...

    def metric_fields(self, concept: Concept, text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """An answer as a metric of DSPy's form takes it: the fields of the example, those of the prediction."""
        ...

    def violations(self, concept: Concept, documents: Documents) -> tuple[Violation, ...]:
        """What the gate holds against documents: schema, enum, unknown ids, contradictions."""
        ...

    def json_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of all documents in one object, for structured output."""
        ...

    def generate_concepts(self, count: int, seed: int) -> list[Concept]:
        """Concepts made offline, with planted labels; equal arguments give equal concepts."""
        ...

    def vary_concepts(
        self, concepts: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()
    ) -> list[Concept]:
        """`count` concepts: the given ones first, then variations of them under ids of their own.

        `labels` are the classes that the right answers to the variations shall be of, in turn; all of the role's
        where none are given. A planted label says what was reached.
        """
        ...

    def answer_by_rules(self, concept: Concept) -> str:
        """The answer of the role's embedded rules, in the contract's form: a stand-in for a teacher."""
        ...

    def self_test(self) -> None:
        """Raise PODistillError unless the metric tells a good answer from an empty one."""
        ...


class Launcher(Protocol):
    """Where a training run runs, on machines that see the files of this one.

    The entry point names a class that is called with the user's options by keyword; it may have none. What its
    `__init__` does not name is refused before, and so is what `pydantic.validate_call` on it refuses.
    """

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run the command to its end and return its exit status; its output goes to ours."""
        ...


@runtime_checkable
class JobLauncher(Protocol):
    """Where a training run runs, on machines that see no file of this one: it gets the run as a whole, not a command.

    It is registered, and opened, as a `Launcher` is.
    """

    def train(self, job: TrainingJob, folder: Path, environment: Mapping[str, str]) -> int:
        """Do the job there, to its end, and put the adapter's files into `folder`; the run's exit status.

        There the job has paths of its own, and `python -m po_distill.weights.lora_training JOB.json` does it, with
        `environment` on top of that machine's. What it wrote to its log goes to `job.log_path`, and `failure.json`,
        which it leaves under its `work_path`, to ours. Called again after a kill, it goes on with what it began.
        """
        ...

    def describe(self, job: TrainingJob) -> Mapping[str, JsonValue]:
        """What `train` would start, as data, for a dry run; nothing is asked, sent or paid for."""
        ...

    def estimate(self, job: TrainingJob) -> str:
        """What it would cost, in a sentence for people."""
        ...
