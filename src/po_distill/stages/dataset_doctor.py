"""A file of rows is looked at whole: is it fit to be trained on, and if not, by which rule.

Every row goes through the gate that the dataset builder uses. Stored scores are compared and never trusted.
"""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from po_distill.dataset_rules import NEAR_DUPLICATE, check_allowed, findings, rare_classes
from po_distill.errors import InputError
from po_distill.gate import AsItIs, Gate, Look, Seen
from po_distill.held_out import input_file, read_held_out
from po_distill.interfaces import Role
from po_distill.metric import Metric, load_metric
from po_distill.plugins import load
from po_distill.progress import progress
from po_distill.records import Checkup, InputFile, Lengths, NotedScore, RowFact
from po_distill.row_files import raw_rows
from po_distill.row_stream import looked_at
from po_distill.topping_up import planned_classes

if TYPE_CHECKING:
    from po_distill.row_table import RowTable

_NAMED = 10  # rows named for a rule
_LOWEST = 10
_VALUES = 5  # most frequent values that are shown
_MOST_VALUES = 10_000  # different ones that are counted
_BINS = 20
_SAME_SCORE = 0.001


class DatasetDoctor:
    """Looks at files of rows: examples, completions, {prompt, response}, or any that source_rows reads.

    `min_score` is the least metric of a canonical target, by the role's metric or by `metric` (a function, or its
    dotted path). `near` is the similarity from which rows of one class are duplicates. `base` names a base model whose
    tokenizer counts lengths; `max_seq_len` is what rows must not pass. `held_out` are files that no row may be in.
    `target` and `mix` say how many rows of each class are wanted. `allow` names rules that may be broken. `workers`
    are processes; by default as many as there are processors.
    """

    def __init__(
        self,
        role: str | Role = "product_owner",
        *,
        contract: str | None = None,
        prompt: str | None = None,
        min_score: float = 0.85,
        metric: str | Metric | None = None,
        near: float = NEAR_DUPLICATE,
        base: str | None = None,
        max_seq_len: int = 2048,
        held_out: Sequence[Path | str] = (),
        target: int | None = None,
        mix: Mapping[str, float] | None = None,
        allow: Collection[str] = (),
        workers: int | None = None,
    ) -> None:
        self.role: Role = load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        check_allowed(allow)
        self.wanted = planned_classes(self.role, target, mix) if target else {}
        self.min_score = min_score
        self._metric = load_metric(metric) if isinstance(metric, str) else metric
        self._near = near
        self._base, self._max_seq_len, self._held_out = base, max_seq_len, tuple(held_out)
        self._target, self._mix, self._allow, self._workers = target, mix, tuple(allow), workers

    def check(self, path: Path | str, *, most: int | None = None) -> Checkup:
        """What is to be said of a file. `most` reads only so many rows. Raises InputError where it holds none."""
        started = time.monotonic()
        held, held_files = read_held_out(self._held_out, self.role)
        gate = Gate(
            self.role,
            metric=self._metric,
            min_score=self.min_score,
            as_it_stands=True,
        )
        ruler = _open_ruler(self._base)
        chart = _Chart()
        with progress("Looking at rows", None, "rows") as advance:
            for look in looked_at(raw_rows(path, most=most), gate.look, workers=self._workers):
                chart.add(look)
                if ruler is not None and look.passed is not None and look.passed.chat is not None:
                    ruler.measure(*look.passed.chat)
                advance()
        return self._written(Path(path), chart, ruler, held, held_files, time.monotonic() - started)

    def _written(
        self, path: Path, chart: _Chart, ruler: Any, held: RowTable, held_files: tuple[InputFile, ...], took_s: float
    ) -> Checkup:
        from po_distill.row_table import KEPT

        found = _related(chart.every, held, self._near)
        fates = chart.passed.fates(chart.passed.leaks(held) > 0, self._near)
        left = int((fates.fate == KEPT).sum())
        lengths: Lengths | None = ruler.lengths(self._max_seq_len) if ruler is not None else None
        missing = {name: n for name, count in self.wanted.items() if (n := count - chart.accepted_labels[name]) > 0}
        command = _missing_command(self._target, self._mix) if missing else None
        broken = self._broken(chart, found, lengths)
        for rule, rows in (("leaked_rows", found.leaked), ("contradictory_prompts", found.contradicting)):
            chart.name_rows(rule, [chart.wheres[row] for row in rows[:_NAMED]])
        rules = tuple(findings(str(path), broken, chart.named(), self._allow, command))
        scores = chart.score_bins
        return Checkup(
            path=str(path),
            digest=input_file(path, chart.rows).digest,
            role=self.role.name,
            contract=self.role.contract,
            rows=chart.rows,
            accepted=chart.accepted,
            left=left,
            rejected=dict(chart.rejected.most_common()),
            violations=_by_count(chart.violations, getattr(self.role, "violation_kinds", ())),
            distinct_prompts=chart.distinct_prompts,
            repeated_prompts=found.repeated,
            exact_duplicate_rows=found.exact,
            contradictory_prompts=found.contradictory,
            near_duplicate_rows=found.near,
            leaked_rows=len(found.leaked),
            leaked_exact=found.leaks[1],
            leaked_normalised=found.leaks[2],
            leaked_near=found.leaks[3],
            foreign_prompts=chart.counts["foreign_prompts"],
            not_canonical=chart.counts["not_canonical"],
            labels=_by_name(chart.labels, self.role.labels),
            accepted_labels=_by_name(chart.accepted_labels, self.role.labels),
            tiers=_by_name(chart.tiers),
            languages=_by_name(chart.languages),
            contracts=_by_name(chart.contracts),
            parts=chart.parts,
            distinct_parts=len(chart.distinct_parts),
            facts=chart.facts(),
            values={name: dict(counts.most_common(_VALUES)) for name, counts in sorted(chart.values.items())},
            score_mean=chart.score_sum / chart.readable if chart.readable else None,
            scores=tuple(scores),
            lowest=tuple(chart.lowest),
            stored_scores=chart.counts["stored_scores"],
            stored_wrong=chart.counts["stored_wrong"],
            stored_worst=chart.stored_worst,
            lengths=lengths,
            lengths_missing=None if lengths else _why_no_lengths(self._base, chart.accepted),
            target=self._target,
            missing=missing,
            missing_command=command,
            held_out=held_files,
            rules=rules,
            fit=all(rule.kept or rule.allowed for rule in rules),
            duration_s=took_s,
        )

    def _broken(self, chart: _Chart, found: _Related, lengths: Lengths | None) -> dict[str, tuple[int, str]]:
        """(how many, detail) of each rule that was looked at."""
        refused = chart.readable - chart.accepted
        rare = rare_classes(self.role.labels, chart.accepted_labels)
        told = ", ".join(f"{name} {share:.1%}" for name, share in rare.items())
        foreign, other = chart.counts["foreign_prompts"], chart.counts["not_canonical"]
        broken = {
            "readable_rows": (chart.rows - chart.readable, f"{chart.rows - chart.readable} rows hold none"),
            "gate": (refused, f"{refused} rows are refused: {_told(chart.refused)}"),
            "duplicate_prompts": (found.repeated, f"{found.repeated} prompts have several rows"),
            "contradictory_prompts": (
                found.contradictory,
                f"{found.contradictory} prompts are answered in several classes",
            ),
            "near_duplicates": (found.near, f"{found.near} rows are nearly another"),
            "rare_class": (len(rare), f"{told or 'none'} of the accepted rows"),
            "foreign_prompts": (foreign, f"{foreign} rows bring a prompt that production never asks"),
            "canonical_answers": (other, f"{other} accepted answers are written another way"),
        }
        if self._held_out:
            leaked = len(found.leaked)
            broken["leaked_rows"] = (leaked, f"{leaked} rows are held out in {', '.join(map(str, self._held_out))}")
        if lengths is not None:
            cut = lengths.cut.get(self._max_seq_len, 0)
            broken["cut_rows"] = (cut, f"{cut} rows are longer than {self._max_seq_len} tokens")
        if chart.accepted == 0:
            broken["gate"] = (max(refused, 1), f"no row is accepted: {_told(chart.refused) or 'none is readable'}")
        return {rule: (count, detail if count else "kept") for rule, (count, detail) in broken.items()}


class _Related(NamedTuple):
    """What the rows are to each other, and to those that are held out."""

    repeated: int  # prompts
    exact: int  # rows
    contradictory: int  # prompts
    near: int  # rows
    leaks: tuple[int, int, int, int]  # rows that are none, that leak exactly, but for case, nearly
    leaked: list[int]  # their numbers
    contradicting: list[int]  # the numbers of rows whose prompt has another class as well


def _related(table: RowTable, held: RowTable, near: float) -> _Related:
    leaks = table.leaks(held)
    contradictory = table.contradictory_prompts()
    return _Related(
        repeated=table.repeated(),
        exact=table.exact_duplicates(),
        contradictory=len(contradictory),
        near=table.near_duplicates(near),
        leaks=(*(int((leaks == kind).sum()) for kind in range(4)),),  # type: ignore[arg-type]
        leaked=leaks.nonzero()[0].tolist(),
        contradicting=table.rows_about(contradictory),
    )


class _Chart:
    """What is counted while rows go by."""

    def __init__(self) -> None:
        from po_distill.row_table import Distinct, RowTable, Whereabouts

        self.every = RowTable()
        self.passed = RowTable(within=self.every)
        self.rows = self.readable = self.accepted = self.parts = 0
        self.rejected: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()  # by the gate: the rejected without the unreadable
        self.violations: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.accepted_labels: Counter[str] = Counter()
        self.tiers: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.contracts: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.values: dict[str, Counter[str]] = {}
        self.distinct_parts = Distinct()
        self.score_bins = [0] * _BINS
        self.score_sum = self.stored_worst = 0.0
        self.lowest: list[NotedScore] = []
        self.wheres = Whereabouts()
        self._prompts: set[int] = set()
        self._facts: dict[str, list[int]] = {}  # name -> [in the answers as they are, rendered]
        self._named: dict[str, list[str]] = {}

    @property
    def distinct_prompts(self) -> int:
        return len(self._prompts)

    def add(self, look: Look) -> None:
        self.rows += 1
        if look.reason is not None:
            self.rejected[look.reason] += 1
            self.name_rows("gate" if look.seen else "readable_rows", [look.where])
        if look.seen is None:
            return
        self.readable += 1
        if look.reason is not None:
            self.refused[look.reason] += 1
        self._see(look.where, look.seen, look.reason)
        self.every.add(look.seen)
        self.wheres.append(look.where)
        if look.passed is not None:
            self.accepted += 1
            self.passed.add(look.seen, look.passed)
            self.accepted_labels[look.passed.label or "none"] += 1
            for name, count in look.passed.rendered.items():
                self._facts.setdefault(name, [0, 0])[1] += count
            if not look.passed.canonical:
                self.counts["not_canonical"] += 1
                self.name_rows("canonical_answers", [look.where])

    def _see(self, where: str, seen: Seen, reason: str | None) -> None:
        as_is = seen.as_is
        assert as_is is not None
        self.labels[as_is.label or "none"] += 1
        self.tiers[seen.tier] += 1
        self.languages[seen.language] += 1
        self.contracts[as_is.contract or "none"] += 1
        self.violations.update(as_is.kinds)
        for name, count in as_is.counts.items():
            self._facts.setdefault(name, [0, 0])[0] += count
        for name, value in as_is.values.items():
            counted = self.values.setdefault(name, Counter())
            if value in counted or len(counted) < _MOST_VALUES:
                counted[value] += 1
        if seen.asked.prompt not in self._prompts:
            self._prompts.add(seen.asked.prompt)
            self.parts += len(as_is.parts)
            self.distinct_parts.update(as_is.parts)
        else:
            self.name_rows("duplicate_prompts", [where])
        if as_is.foreign:
            self.counts["foreign_prompts"] += 1
            self.name_rows("foreign_prompts", [where])
        self._note_score(where, as_is, reason)

    def _note_score(self, where: str, seen: AsItIs, reason: str | None) -> None:
        self.score_sum += seen.score
        self.score_bins[min(int(seen.score * _BINS), _BINS - 1)] += 1
        if len(self.lowest) < _LOWEST or seen.score < self.lowest[-1].score:
            self.lowest.append(NotedScore(where=where, score=seen.score, reason=reason))
            self.lowest.sort(key=lambda noted: (noted.score, noted.where))
            del self.lowest[_LOWEST:]
        if seen.stored_score is not None:
            off = abs(seen.stored_score - seen.score)
            self.counts["stored_scores"] += 1
            self.counts["stored_wrong"] += not off <= _SAME_SCORE  # what is no number is off too
            self.stored_worst = max(self.stored_worst, off if math.isfinite(off) else 0.0)

    def name_rows(self, rule: str, wheres: Sequence[str]) -> None:
        named = self._named.setdefault(rule, [])
        named += wheres[: _NAMED - len(named)]

    def named(self) -> dict[str, tuple[str, ...]]:
        return {rule: tuple(wheres) for rule, wheres in self._named.items()}

    def facts(self) -> tuple[RowFact, ...]:
        return tuple(
            RowFact(name=name, count=count, rendered=rendered if self.accepted else None)
            for name, (count, rendered) in sorted(self._facts.items())
        )


def require_fit(checkup: Checkup) -> None:
    """Raise InputError, with each broken rule and how to allow it, where a dataset is not fit for training."""
    if checkup.fit:
        return
    broken = [rule for rule in checkup.rules if not (rule.kept or rule.allowed)]
    told = "; ".join(f"{rule.rule} ({rule.detail})" for rule in broken)
    flags = " ".join(f"--allow {rule.rule}" for rule in broken)
    raise InputError(
        f"{checkup.path} is not fit for training: {told}.",
        f"{broken[0].fix}\n  Or train on it as it is: {flags}\n  The whole picture: po-distill dataset check "
        f"{shlex.quote(checkup.path)}",
    )


def _open_ruler(base: str | None) -> Any:
    """What counts tokens; None without a base model."""
    if base is None:
        return None
    from po_distill.weights.row_lengths import RowRuler

    return RowRuler(base)


def _why_no_lengths(base: str | None, accepted: int) -> str | None:
    if base is None:
        return "no base model was named: --base mistral-7b-instruct counts tokens with its tokenizer"
    return None if accepted else "no row was accepted"


def _missing_command(target: int | None, mix: Mapping[str, float] | None) -> str:
    shares = f" --mix {','.join(f'{name}={share:g}' for name, share in mix.items())}" if mix else ""
    return f"po-distill dataset --input CONCEPTS --provider vertex_sdk --target {target}{shares}"


def _by_name(counts: Counter[str], expected: Sequence[str] = ()) -> dict[str, int]:
    """Counts by name; what is expected and was not met counts 0."""
    return {name: counts[name] for name in sorted({*counts, *expected})}


def _by_count(counts: Counter[str], expected: Sequence[str]) -> dict[str, int]:
    """The most frequent first; what is expected and was not met counts 0."""
    return {**dict(counts.most_common()), **{name: 0 for name in expected if name not in counts}}


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
