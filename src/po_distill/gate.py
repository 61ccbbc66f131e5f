"""What decides of one recorded answer whether a student may learn from it, and what is known of it either way.

Nothing here looks at more than one row; what rows are to each other is in `row_table`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from po_distill.artifacts import digest_value, jsonl_line
from po_distill.errors import InputError, PODistillError
from po_distill.example_rows import example_row
from po_distill.interfaces import Role
from po_distill.languages import language_of
from po_distill.metric import Metric
from po_distill.metric import score as score_by
from po_distill.near_text import normalised_words, signature
from po_distill.records import Answer, Concept, Example, Inspection, Message, Rejection, Score
from po_distill.row_files import RawRow
from po_distill.source_rows import Recorded, answer_in

MAX_CHARACTERS = 100_000
"""Of a concept with its requirements, and of an answer: more is no text for a role, and takes seconds to score."""

_FEWEST_WORDS = 50  # a shorter answer does not differ enough from others for its likeness to say anything

# What an answer is rejected for, the reason that says most first.
_GRAVEST = ("missing_", "unreadable_", "status_outside_enum", "wrong_type", "empty_text", "unknown_key")


def gravity(kind: str) -> int:
    """The rank of a violation's kind among the reasons of a rejection: the smallest says most."""
    return next((rank for rank, prefix in enumerate(_GRAVEST) if kind.startswith(prefix)), len(_GRAVEST))


class Asked(NamedTuple):
    """What a concept is known by. Digests are 64 bits."""

    prompt: int  # of concept, requirements and vision, spaces aside
    plain: int  # the same without case and punctuation
    group: int  # of what the concept shares with its variations, without case and punctuation
    near: bytes  # near_text.signature of concept, requirements and vision


class Seen(NamedTuple):
    """What is known of a row that holds a concept and an answer."""

    tier: str
    language: str
    asked: Asked
    row: int  # 64-bit digest of prompt and answer, spaces aside
    near_answer: bytes | None  # near_text.signature; None for answers of a few words
    as_is: AsItIs | None  # where the gate looks at answers as they stand


class AsItIs(NamedTuple):
    """What is known of an answer as it stands, before anything is made of it."""

    score: float
    stored_score: float | None
    label: str | None
    kinds: tuple[str, ...]  # of what is wrong with it
    contract: str | None  # whose form it has
    counts: Mapping[str, int]  # what the role counts in it
    values: Mapping[str, str]
    parts: tuple[int, ...]  # 64-bit digests
    foreign: bool  # the prompt that the row brings is not the role's


class Passed(NamedTuple):
    """A row that may be learned from."""

    example_id: int  # the first 64 bits of it
    score: float  # of the target
    label: str | None
    contract: str
    group: str  # what decides the split, and the share of a contract
    line: str  # the row of the dataset, as JSON
    rendered: Mapping[str, int]  # what the role counts in the target, where answers are looked at as they stand
    canonical: bool  # the answer was the target already
    chat: tuple[tuple[Message, ...], str] | None  # (prompt, answer) of the row itself, where they are looked at


class Look(NamedTuple):
    """What the gate says of a row: exactly one of `passed` and `reason` is there."""

    where: str
    reason: str | None
    detail: str
    score: float | None  # the metric, where the row got that far
    seen: Seen | None
    passed: Passed | None

    def rejection(self) -> Rejection:
        """The record of a row that was refused."""
        assert self.reason is not None
        return Rejection(where=self.where, reason=self.reason, detail=self.detail, score=self.score)


class Gate:
    """Looks at rows one by one. Goes to other processes as it is, where role and metric can.

    `shares` are the contracts that targets are rendered in, by name, in sum 1; a concept's group decides which.
    `stamp` (ISO 8601) is the time written into each target; without one it is the day of the answer, else `day`.
    `as_it_stands` looks at answers as they are, prompts and times included, for one who does not build of them.
    """

    def __init__(
        self,
        role: Role,
        *,
        metric: Metric | None,
        min_score: float,
        stamp: str | None = None,
        day: str | None = None,
        shares: Mapping[str, float] | None = None,
        as_it_stands: bool = False,
    ) -> None:
        self._role, self._metric, self._min_score, self._stamp, self._day = role, metric, min_score, stamp, day
        self._shares = dict(shares or {role.contract.name: 1.0})
        self._roles = {name: under_contract(role, name) for name in {role.contract.name, *self._shares}}
        self._as_it_stands = as_it_stands

    def look(self, item: RawRow | Recorded | Rejection) -> Look:
        """What is to be said of a row. Raises nothing that a row could cause."""
        if isinstance(item, RawRow):
            item = answer_in(item, self._role)
        if isinstance(item, Rejection):
            return Look(item.where, item.reason, item.detail, item.score, None, None)
        refused = _unfit_text(item)
        if refused is not None:
            return Look(item.where, *refused, None, None, None)
        return self._judged(item)

    def _judged(self, item: Recorded) -> Look:
        answer = self._role.parse(item.text)
        found = [*answer.violations, *self._role.violations(item.concept, answer.documents)]
        kinds = {violation.kind: violation.detail for violation in reversed(found)}
        raw = self._role.score(item.concept, item.text) if kinds or self._as_it_stands else None
        seen = self._seen(item, raw, tuple(kinds), answer.contract)

        def refused(reason: str, detail: str, score: float | None) -> Look:
            return Look(item.where, reason, detail, score, seen, None)

        if kinds:
            assert raw is not None
            reason = min((violation.kind for violation in found), key=gravity)
            others = sorted(set(kinds) - {reason})
            also = f" (also: {', '.join(others)})" if others else ""
            return refused(reason, kinds[reason] + also, raw.value)
        try:
            self._role.check(item.concept)
        except InputError as error:
            return refused("requirements_unusable", error.problem, raw.value if raw else None)
        role = self._role_of(item.concept, answer)
        stamp = None if self._as_it_stands else self._stamp or _day_of(item.created_at) or self._day
        try:
            target = role.canonical(answer.documents, stamp=stamp)
        except PODistillError as error:
            return refused("cannot_be_rendered", error.problem, raw.value if raw else None)
        score = raw
        if score is None or target != item.text or self._metric is not None or role is not self._role:
            score = score_by(role, self._metric, item.concept, target)
        if score.violations:
            first = score.violations[0]
            return refused(first.kind, f"after rendering: {first.detail}", score.value)
        if score.value < self._min_score:
            return refused("score_below_minimum", f"{score.value:.4f} < {self._min_score}", score.value)
        return Look(item.where, None, "", score.value, seen, self._passed(item, role, target, score))

    def _passed(self, item: Recorded, role: Role, target: str, score: Score) -> Passed:
        prompt = role.render(item.concept)
        identity = digest_value([[message.content for message in prompt], target])[7:23]
        example = Example(
            example_id=identity,
            prompt=prompt,
            completion=(Message(speaker="assistant", content=target),),
            concept=item.concept,
            label=score.label,
            score=score.value,
            raw=item.text if item.text != target else None,
        )
        as_is = self._as_it_stands
        return Passed(
            example_id=int(identity, 16),
            score=score.value,
            label=score.label,
            contract=role.contract.name,
            group=group_of(item.concept),
            line="" if as_is else jsonl_line(example_row(example)),
            rendered=self._inspected(item.concept, target).counts if as_is else {},
            canonical=target == item.text,
            chat=(item.prompt or prompt, item.text) if as_is else None,
        )

    def _seen(self, item: Recorded, raw: Score | None, kinds: tuple[str, ...], contract: str | None) -> Seen:
        asked, words = asked_of(item.concept), normalised_words(item.text)
        return Seen(
            tier=item.concept.tier,
            language=language_of(item.concept.concept),
            asked=asked,
            row=digest64(f"{asked.prompt}\n{squeezed(item.text)}"),
            near_answer=signature(words) if len(words) >= _FEWEST_WORDS else None,
            as_is=self._as_is(item, raw, kinds, contract) if raw is not None and self._as_it_stands else None,
        )

    def _as_is(self, item: Recorded, raw: Score, kinds: tuple[str, ...], contract: str | None) -> AsItIs:
        inspection = self._inspected(item.concept, item.text)
        return AsItIs(
            score=raw.value,
            stored_score=item.stored_score,
            label=raw.label,
            kinds=kinds,
            contract=contract,
            counts=inspection.counts,
            values=inspection.values,
            parts=tuple(digest64(" ".join(normalised_words(part))) for part in inspection.parts),
            foreign=item.prompt is not None and self._is_foreign(item.concept, item.prompt),
        )

    def _inspected(self, concept: Concept, text: str) -> Inspection:
        inspect: Any = getattr(self._role, "inspect", None)
        return inspect(concept, text) if inspect is not None else _NOTHING

    def _is_foreign(self, concept: Concept, prompt: tuple[Message, ...]) -> bool:
        knows: Any = getattr(self._role, "knows_prompt", None)
        if knows is not None:
            return not knows(concept, prompt)
        names = {self._role.contract.name, *self._role.contracts}
        return all(self._under(name).render(concept) != prompt for name in names)

    def _role_of(self, concept: Concept, answer: Answer) -> Role:
        """The role under the contract that a target is rendered in: the same for a concept and its variations.

        Where answers are looked at as they stand it is the contract whose form the answer has.
        """
        if self._as_it_stands:
            return self._under(answer.contract) if answer.contract in self._role.contracts else self._role
        if len(self._shares) == 1:
            return self._roles[next(iter(self._shares))]
        point = share_of(f"contract\n{group_of(concept)}")
        reached = itertools.accumulate(self._shares.values())
        names = (name for name, until in zip(self._shares, reached, strict=True) if point < until)
        return self._roles[next(names, next(reversed(self._shares)))]  # the sum may be a rounding under 1

    def _under(self, contract: str) -> Role:
        """The role under a contract, opened when a row first needs it: one may want a package that is not there."""
        if contract not in self._roles:
            self._roles[contract] = under_contract(self._role, contract)
        return self._roles[contract]


def under_contract(role: Role, name: str) -> Role:
    """The role under another of its contracts; a system text of the user's own is in each."""
    if name == role.contract.name:
        return role
    own = type(role)(contract=role.contract.name).contract.system
    return type(role)(contract=name, prompt=None if role.contract.system == own else role.contract.system)


def asked_of(concept: Concept) -> Asked:
    """What a concept is known by."""
    text = f"{concept.concept}\n{concept.requirements_yaml}\n{concept.existing_vision or ''}"
    words = normalised_words(text)
    return Asked(
        prompt=digest64(squeezed(text)),
        plain=digest64(" ".join(words)),
        group=digest64(group_of(concept)),
        near=signature(words),
    )


def group_of(concept: Concept) -> str:
    """What a concept shares with its variations, without case, punctuation and spacing."""
    group = str(concept.metadata.get("group", concept.concept))
    return " ".join(normalised_words(group)) or squeezed(group)


def share_of(text: str) -> float:
    """A number from 0 to 1 that a text decides: evenly spread over texts, and the same for equal ones."""
    return int(digest_value(text)[7:15], 16) / 0x1_0000_0000


def digest64(text: str) -> int:
    """64 bits that a text decides."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def squeezed(text: str) -> str:
    """A text with single spaces in place of any white space."""
    return " ".join(text.split())


def _unfit_text(item: Recorded) -> tuple[str, str] | None:
    """(reason, detail) for a row whose texts nobody should work on; None for the others."""
    concept = item.concept
    about = [concept.concept_id, concept.tier, concept.planted_label, concept.metadata]
    texts = {
        "the concept": f"{concept.concept}{concept.requirements_yaml}{concept.existing_vision or ''}",
        "the answer": item.text,
        "the prompt": "".join(message.content for message in item.prompt or ()),
        "what the row says beside them": json.dumps(about, ensure_ascii=False),
    }
    for what, text in texts.items():
        if len(text) > MAX_CHARACTERS:
            return "text_too_long", f"{what} has {len(text):,} characters, more than {MAX_CHARACTERS:,}"
    try:
        "".join(texts.values()).encode()
    except UnicodeEncodeError as error:
        return "broken_unicode", f"half of a character (a lone surrogate) at {error.start}"
    return None


def _day_of(time: str | None) -> str | None:
    """Midnight in UTC of the day of a time; None where it is none."""
    from datetime import UTC, datetime

    try:
        day = datetime.fromisoformat(time or "").astimezone(UTC).date()
    except (ValueError, OverflowError):
        return None
    return f"{day.isoformat()}T00:00:00Z"


_NOTHING = Inspection()
