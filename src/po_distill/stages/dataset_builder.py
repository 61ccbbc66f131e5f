"""Completions become a dataset: scored again, gated, rendered canonically, split by concept.

Every input ends as a row of one split or as a Rejection with its reason; the counts add up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, get_args

from po_distill.answering import gravity
from po_distill.artifacts import digest_file, digest_value, now, write_json, write_jsonl
from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.metric import Metric, load_metric
from po_distill.metric import score as score_by
from po_distill.plugins import load
from po_distill.progress import progress
from po_distill.records import Completion, Concept, Dataset, Example, Message, Rejection, Split
from po_distill.source_rows import Recorded, read_answers

SPLITS: tuple[Split, ...] = get_args(Split)


class _Row(NamedTuple):
    """An accepted answer on its way into a split."""

    where: str
    concept: Concept
    example: Example


class DatasetBuilder:
    """Builds a dataset out of completions, under one prompt contract of a role.

    `min_score` is the least metric of a canonical target, by the role's metric or by `metric` (a function, or its
    dotted path); `validation_share` and `test_share` are the
    expected shares of the concepts that are held out. `stamp` (ISO 8601) is the time written into
    each target; without one it is the day of the newest completion.
    """

    def __init__(
        self,
        role: str | Role = "product_owner",
        *,
        contract: str | None = None,
        prompt: str | None = None,
        min_score: float = 0.85,
        metric: str | Metric | None = None,
        validation_share: float = 0.05,
        test_share: float = 0.1,
        stamp: str | None = None,
    ) -> None:
        self.role: Role = load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
            raise InputError(
                f"The held-out shares {validation_share} and {test_share} leave nothing to train on.",
                "Keep their sum below 1.",
            )
        self.min_score = min_score
        self._metric = load_metric(metric) if isinstance(metric, str) else metric
        self.validation_share = validation_share
        self.test_share = test_share
        self.stamp = stamp

    def build(self, completions: Iterable[Completion], output: Path | str) -> Dataset:
        """Write the dataset for these completions; `output` is the JSONL of the train split.

        Beside it: `.validation.jsonl`, `.test.jsonl`, `.rejected.jsonl` and `.manifest.json` (the
        returned record). Raises InputError where no completion passes the gate, and says why.
        """
        recorded = (
            Recorded(f"concept {c.concept.concept_id}", c.concept, c.raw or c.text, c.model, c.created_at, None)
            for c in completions
        )
        return self.build_recorded(recorded, output)

    def build_from(self, path: Path | str, output: Path | str, *, most: int | None = None) -> Dataset:
        """Write the dataset for the recorded answers of a JSONL file, in any form that source_rows reads."""
        return self.build_recorded(read_answers(path, self.role, most=most), output)

    def build_recorded(self, recorded: Iterable[Recorded | Rejection], output: Path | str) -> Dataset:
        """Write the dataset for recorded answers; see `build`."""
        inputs = list(recorded)
        stamp = self.stamp or _newest_day(item.created_at for item in inputs if isinstance(item, Recorded))
        judged: list[_Row | Rejection] = []
        with progress("Scoring answers", len(inputs), "answers") as advance:
            for item in inputs:
                judged.append(item if isinstance(item, Rejection) else self._judge(item, stamp))
                advance()
        accepted, doubles = _without_doubles(row for row in judged if isinstance(row, _Row))
        rejected = sorted([r for r in judged if isinstance(r, Rejection)] + doubles, key=lambda r: (r.reason, r.where))
        assert len(inputs) == len(accepted) + len(rejected)
        if not accepted:
            raise InputError(f"None of {len(inputs)} answers passes the gate: {_told(rejected)}.", _EMPTY_FIX)
        return self._write(accepted, rejected, Path(output))

    def _judge(self, item: Recorded, stamp: str) -> _Row | Rejection:
        """Read, gate and re-render one answer. The score is that of the canonical target."""

        def rejection(reason: str, detail: str, score: float | None) -> Rejection:
            return Rejection(where=item.where, reason=reason, detail=detail, score=score)

        raw = self.role.score(item.concept, item.text)
        answer = self.role.parse(item.text)
        found = [*answer.violations, *self.role.violations(item.concept, answer.documents)]
        if found:
            kinds = {violation.kind: violation.detail for violation in reversed(found)}
            reason = min((violation.kind for violation in found), key=gravity)
            others = sorted(set(kinds) - {reason})
            detail = kinds[reason] + (f" (also: {', '.join(others)})" if others else "")
            return rejection(reason, detail, raw.value)
        try:
            self.role.check(item.concept)
        except InputError as error:
            return rejection("requirements_unusable", error.problem, raw.value)
        target = self.role.canonical(answer.documents, stamp=stamp)
        score = score_by(self.role, self._metric, item.concept, target)
        if score.violations:
            return rejection(score.violations[0].kind, f"after rendering: {score.violations[0].detail}", score.value)
        if score.value < self.min_score:
            return rejection("score_below_minimum", f"{score.value:.4f} < {self.min_score}", score.value)
        prompt = self.role.render(item.concept)
        example = Example(
            example_id=digest_value([[m.content for m in prompt], target])[7:23],
            prompt=prompt,
            completion=(Message(speaker="assistant", content=target),),
            concept=item.concept,
            label=score.label,
            score=score.value,
            raw=item.text if item.text != target else None,
        )
        return _Row(item.where, item.concept, example)

    def _split_of(self, concept: Concept) -> Split:
        """The split that a concept's text falls into, whatever else is in the dataset."""
        group = str(concept.metadata.get("group", concept.concept))
        point = int(digest_value(" ".join(group.lower().split()))[7:15], 16) / 0x1_0000_0000
        if point < self.test_share:
            return "test"
        return "validation" if point < self.test_share + self.validation_share else "train"

    def _write(self, accepted: list[_Row], rejected: list[Rejection], output: Path) -> Dataset:
        rows: dict[Split, list[Example]] = {name: [] for name in SPLITS}
        for row in accepted:
            rows[self._split_of(row.concept)].append(row.example)
        paths: dict[Split, str] = {
            name: str(output if name == "train" else beside(output, f"{name}.jsonl")) for name in SPLITS
        }
        rejected_path = beside(output, "rejected.jsonl")
        for name in SPLITS:
            write_jsonl(paths[name], _ordered(rows[name]))
        write_jsonl(rejected_path, rejected)
        dataset = Dataset(
            paths=paths,
            rejected_path=str(rejected_path),
            contract=self.role.contract,
            counts={name: len(rows[name]) for name in SPLITS},
            labels=dict(sorted(Counter(row.example.label or "none" for row in accepted).items())),
            inputs=len(accepted) + len(rejected),
            rejected=dict(sorted(Counter(r.reason for r in rejected).items())),
            digest=digest_value([digest_file(paths[name]) for name in SPLITS]),
        )
        write_json(beside(output, "manifest.json"), dataset)
        return dataset


def beside(output: Path | str, ending: str) -> Path:
    """The file that lies beside a dataset: `x.jsonl` -> `x.<ending>`."""
    output = Path(output)
    stem = output.stem if output.suffix == ".jsonl" else output.name
    return output.with_name(f"{stem}.{ending}")


def _without_doubles(rows: Iterable[_Row]) -> tuple[list[_Row], list[Rejection]]:
    """One answer per concept text and requirements: the best score, then the first digest."""
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.example.prompt[-1].content, []).append(row)
    accepted, doubles = [], []
    for group in groups.values():
        best, *others = sorted(group, key=lambda row: (-(row.example.score or 0.0), row.example.example_id, row.where))
        accepted.append(best)
        doubles += [
            Rejection(
                where=row.where,
                reason="duplicate_prompt",
                detail=f"{best.where} answers the same prompt with {best.example.label}, "
                f"{best.example.score:.4f}; this answers {row.example.label}, {row.example.score:.4f}",
                score=row.example.score,
            )
            for row in others
        ]
    return accepted, doubles


def _ordered(examples: Iterable[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: example.example_id)


def _newest_day(times: Iterable[str | None]) -> str:
    """The day of the newest time, as midnight in UTC; today where no time is known."""
    return f"{max(_days(times), default=now()[:10])}T00:00:00Z"


def _days(times: Iterable[str | None]) -> Iterator[str]:
    for time in times:
        try:
            yield datetime.fromisoformat(time or "").astimezone(UTC).date().isoformat()
        except ValueError:
            continue


def _told(rejected: Iterable[Rejection]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejected).most_common())


_EMPTY_FIX = "Look at the reasons; ask a better teacher, or lower --min-score."
