"""A complete role that is no Product Owner, and providers that do what a test tells them.

Nothing in po_distill but a role knows what its documents say; these tests would fail if something did.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import JsonValue

from po_distill import safe_yaml
from po_distill.errors import InputError, PODistillError, ProviderError, SettingsError, UnreadableYAMLError
from po_distill.interfaces import Documents, Role
from po_distill.records import (
    Answer,
    Concept,
    Message,
    ModelCapabilities,
    Price,
    PromptContract,
    ProviderSettings,
    ProviderTraits,
    Request,
    Response,
    Score,
    Usage,
    Violation,
)


class HaikuRole:
    """Writes a haiku about a concept, in the season that its requirements ask for."""

    name: ClassVar[str] = "haiku"
    version_stem: ClassVar[str] = "haiku_student"
    labels: ClassVar[tuple[str, ...]] = ("spring", "autumn")
    contracts: ClassVar[tuple[str, ...]] = ("fenced",)

    def __init__(self, contract: str | None = None, prompt: str | None = None) -> None:
        if contract not in (None, *self.contracts):
            raise SettingsError(f"The role haiku has no contract {contract!r}.", "Its first is fenced.")
        self.contract = PromptContract(
            role=self.name,
            name=contract or "fenced",
            system=prompt or "Write a haiku.",
            template="ABOUT:\n{concept}\nWANTED:\n{requirements_yaml}",
            output_format="haiku-1",
        )

    def check(self, concept: Concept) -> None:
        if not isinstance(safe_yaml.load(concept.requirements_yaml), dict):
            raise InputError(f"{concept.concept_id}: a mapping is wanted.", "Write one.")

    def render(self, concept: Concept) -> tuple[Message, ...]:
        text = f"ABOUT:\n{concept.concept}\nWANTED:\n{concept.requirements_yaml}"
        return (Message(speaker="system", content=self.contract.system), Message(speaker="user", content=text))

    def read_prompt(self, prompt: str) -> Concept | None:
        found = re.search(r"ABOUT:\n(.+)\nWANTED:\n(.+)", prompt, re.DOTALL)
        return Concept(concept_id="read", concept=found[1], requirements_yaml=found[2]) if found else None

    def join_documents(self, row: Mapping[str, Any]) -> str | None:
        text = row.get("teacher_haiku", row.get("haiku"))
        return f"```haiku\n{text}\n```" if isinstance(text, str) else None

    def parse(self, text: str) -> Answer:
        fenced = re.search(r"```haiku\n(.*?)\n```", text, re.DOTALL)
        try:
            document = safe_yaml.load(fenced[1] if fenced else text)
        except UnreadableYAMLError as error:
            return Answer(violations=(Violation(kind="unreadable", detail=error.problem),))
        if not isinstance(document, dict):
            return Answer(violations=(Violation(kind="unreadable", detail="no mapping"),))
        return Answer(documents={"haiku": document}, contract="fenced" if fenced else None)

    def canonical(self, documents: Documents, *, stamp: str | None = None) -> str:
        return f"```haiku\n{json.dumps(documents['haiku'], ensure_ascii=False)}\n```"

    def score(self, concept: Concept, text: str) -> Score:
        answer = self.parse(text)
        haiku = answer.documents.get("haiku", {})
        lines = haiku.get("lines")
        parts = {"lines": min(len(lines), 3) / 3 if isinstance(lines, list) else 0.0}
        season = haiku.get("season")
        found = (*answer.violations, *self.violations(concept, answer.documents))
        return Score(
            value=parts["lines"],
            parts=parts,
            violations=found,
            label=season if season in self.labels else None,
            valid=answer.contract is not None and season in self.labels,
        )

    def violations(self, concept: Concept, documents: Documents) -> tuple[Violation, ...]:
        season = documents.get("haiku", {}).get("season")
        if season in self.labels:
            return ()
        return (Violation(kind="season_outside_enum", detail=f"season is {season!r}"),)

    def json_schema(self) -> dict[str, JsonValue]:
        return {"type": "object"}

    def generate_concepts(self, count: int, seed: int) -> list[Concept]:
        return [haiku_concept(number, self.labels[(number + seed) % 2]) for number in range(count)]

    def advise(self, concept: Concept, text: str) -> tuple[str, ...]:
        return ("A haiku has three lines.",) if self.score(concept, text).value < 1.0 else ()

    def metric_fields(self, concept: Concept, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"wanted": concept.requirements_yaml}, {"haiku": self.parse(text).documents.get("haiku", {})}

    def vary_concepts(
        self, concepts: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()
    ) -> list[Concept]:
        wanted = labels or ("spring",)
        more = [haiku_concept(1000 + number, wanted[number % len(wanted)]) for number in range(count - len(concepts))]
        return [*concepts, *more][:count]

    def answer_by_rules(self, concept: Concept) -> str:
        wanted = safe_yaml.load(concept.requirements_yaml)
        return haiku(wanted["season"], concept.concept)

    def self_test(self) -> None:
        concept = haiku_concept(0, "spring")
        if self.score(concept, haiku("spring")).value < 0.9:
            raise PODistillError("The haiku metric is broken.", "Mend it.")


def haiku(season: str, first: str = "old pond", lines: int = 3) -> str:
    """An answer with so many lines."""
    return f"```haiku\n{json.dumps({'season': season, 'lines': [first, 'a frog', 'water'][:lines]})}\n```"


def haiku_concept(number: int, season: str = "spring") -> Concept:
    return Concept(
        concept_id=f"H-{number:05d}",
        concept=f"Pond number {number}",
        requirements_yaml=f"season: {season}\n",
        planted_label=season,
    )


class JsonHaikuRole(HaikuRole):
    """The same role with a second contract, for providers that hold an answer to a JSON schema."""

    contracts: ClassVar[tuple[str, ...]] = ("fenced", "json")

    def __init__(self, contract: str | None = None, prompt: str | None = None) -> None:
        super().__init__(contract, prompt or ("Answer in JSON." if contract == "json" else None))


class ScriptedProvider:
    """Answers by the role's rules, but for what its options say.

    `answers` and `faults`: lists by concept id, used up in turn (the last answer stays). `ledger`: a file that
    takes one line per request that came, flushed before the answer. `delay_s`: how long an answer takes; `delays`:
    the same by concept id, lists used up in turn.
    `kill_at`: the concept at which the process dies, unless the file `kill_once` says that it did.
    `finishes`: lists by concept id of `finish` (or "finish/REASON"), used up in turn, then `stop`. `served`: the model
    that answers. `tokens`: [prompt, completion] of every answer. `cost_usd`: what the provider itself says that it
    cost. `retry_after_s`: what a fault asks to wait. `bought_before`: concepts whose answer an earlier send bought.
    `doubtful`: whether faults are. Every request that comes is noted in `requests`, for tests in the same process.
    """

    requests: ClassVar[list[Request]] = []

    open_now: ClassVar[int] = 0
    most_open: ClassVar[int] = 0
    busiest: ClassVar[int] = 0
    own_cost_usd: ClassVar[float] = 0.001

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self._options: dict[str, Any] = dict(settings.options)
        self._model, self._role = settings.model or "scripted", role
        self._asked: Counter[str] = Counter()
        self._busy = 0
        type(self).open_now += 1
        type(self).most_open = max(self.most_open, self.open_now)

    async def generate(self, request: Request) -> Response:
        assert request.concept is not None
        concept_id = request.concept.concept_id
        type(self).requests.append(request)
        turn = self._asked[concept_id]
        self._asked[concept_id] += 1
        if ledger := self._options.get("ledger"):
            with Path(ledger).open("a") as file:
                file.write(f"{concept_id}\n")
        self._busy += 1
        type(self).busiest = max(self.busiest, self._busy)
        try:
            delays = self._options.get("delays", {}).get(concept_id, [])
            await asyncio.sleep(delays[turn] if turn < len(delays) else self._options.get("delay_s", 0.0))
        finally:
            self._busy -= 1
        faults = self._options.get("faults", {}).get(concept_id, [])
        if turn < len(faults) and faults[turn]:
            raise ProviderError(
                f"{concept_id} failed.",
                "Wait.",
                fault=faults[turn],
                retry_after_s=self._options.get("retry_after_s"),
                doubtful=bool(self._options.get("doubtful")),
            )
        if concept_id == self._options.get("kill_at") and not Path(self._options["kill_once"]).exists():
            Path(self._options["kill_once"]).touch()
            os.kill(os.getpid(), 9)
        if concept_id == self._options.get("break_at"):
            raise KeyError("a bug")
        answers = self._options.get("answers", {}).get(concept_id) or [self._role.answer_by_rules(request.concept)]
        prompt_tokens, completion_tokens = self._options.get("tokens", [10, 5])
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cost_usd=self._options.get("cost_usd", self.own_cost_usd),
            latency_s=self._options.get("latency_s", 0.5),
        )
        finishes = self._options.get("finishes", {}).get(concept_id, [])
        finish, _, reason = (finishes[turn] if turn < len(finishes) else "stop").partition("/")
        return Response(
            text="" if finish == "blocked" else answers[min(turn, len(answers) - 1)],
            model=self._options.get("served", self._model),
            finish=finish,
            finish_reason=reason or None,
            usage=usage,
            stand_in=bool(self._options.get("stand_in")),
            bought_before=concept_id in self._options.get("bought_before", ()),
        )

    async def aclose(self) -> None:
        type(self).open_now -= 1


SCRIPTED = "haiku:ScriptedProvider"


_OPTIONS = (
    *("answers", "faults", "ledger", "delay_s", "delays", "kill_at", "kill_once", "finishes", "served", "tokens"),
    *("cost_usd", "retry_after_s", "bought_before", "doubtful", "latency_s", "stand_in", "break_at"),
)


class PaidProvider(ScriptedProvider):
    """The same as a service that is paid for: priced by the library, its options no part of what a call is."""

    own_cost_usd: ClassVar[float] = 0.0
    traits: ClassVar[ProviderTraits] = ProviderTraits(
        family="paid", paid=True, structured_output=True, names_served_model=True, transport_options=_OPTIONS
    )


PAID = "haiku:PaidProvider"

CHEAP = ModelCapabilities(
    model="cheap-1",
    context_tokens=100_000,
    output_cap_tokens=4096,
    structured_output="json_schema",
    prices=(Price(input_usd=1.0, output_usd=10.0, seen_on="2026-09-20", source="a test"),),
)
"""A model of round prices: a prompt token is 1,000 nano-dollars, a token of the answer 10,000."""
