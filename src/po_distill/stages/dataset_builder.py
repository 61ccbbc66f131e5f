"""Answers become a dataset: scored again, gated, rendered canonically, told from duplicates, split by concept.

Every input ends as a row of one split or as a Rejection with its reason; the counts add up. Rows go through once and
lie on the disk until it is known which of them stay: what is held of each is what `row_table` needs.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, get_args

from pydantic import JsonValue

from po_distill.artifacts import (
    atomic_file,
    digest_file,
    digest_value,
    jsonl_line,
    now,
    package_version,
    write_json,
    write_text,
)
from po_distill.dataset_export import check_shapes, write_shape
from po_distill.dataset_rules import NEAR_DUPLICATE
from po_distill.demonstrations import MOST, MOST_CHARACTERS, Shown, can_show, demonstrated
from po_distill.errors import InputError, SettingsError
from po_distill.gate import Gate, Look, share_of, under_contract
from po_distill.held_out import input_file, read_held_out
from po_distill.interfaces import Role
from po_distill.metric import Metric, load_metric
from po_distill.plugins import load
from po_distill.progress import progress
from po_distill.records import Completion, Dataset, InputFile, Rejection, Split
from po_distill.reporting.dataset_card import render_card
from po_distill.row_files import RawRow, raw_rows
from po_distill.row_stream import looked_at
from po_distill.source_rows import Recorded
from po_distill.topping_up import planned_classes

if TYPE_CHECKING:
    from po_distill.row_table import RowTable

SPLITS: tuple[Split, ...] = get_args(Split)
CARD_NAME = "dataset_card.md"


class DatasetBuilder:
    """Builds a dataset out of recorded answers, under one prompt contract of a role or several.

    `min_score` is the least metric of a canonical target, by the role's metric or by `metric` (a function, or its
    dotted path); `validation_share` and `test_share` are the expected shares of the concepts that are held out.
    `contracts` are the shares of the contracts that targets are rendered in, by name; without them it is the role's.
    `held_out` are files that no row may be in. `near` is the similarity from which two rows are duplicates (1: only
    equal ones are). `target` and `mix` say how many rows of each class are wanted; what is missing is said. `stamp`
    (ISO 8601) is the time written into each target; without one it is the day of the answer, else today. `shapes` are
    other forms that the same rows are written in: messages, prompt_completion, parquet. `workers` are processes.
    Under a contract whose prompts may show answered concepts, those of the train split show up to `demonstrations` rows
    of that split, in at most `demonstrated_characters` of prompt and target together.
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
        contracts: Mapping[str, float] | None = None,
        held_out: Sequence[Path | str] = (),
        near: float = NEAR_DUPLICATE,
        target: int | None = None,
        mix: Mapping[str, float] | None = None,
        stamp: str | None = None,
        shapes: Sequence[str] = (),
        workers: int | None = None,
        demonstrations: int = MOST,
        demonstrated_characters: int = MOST_CHARACTERS,
    ) -> None:
        self.role: Role = load("roles", role)(contract=contract, prompt=prompt) if isinstance(role, str) else role
        if validation_share < 0 or test_share < 0 or validation_share + test_share >= 1:
            raise InputError(
                f"The held-out shares {validation_share} and {test_share} leave nothing to train on.",
                "Keep their sum below 1.",
            )
        if not 0 < near <= 1:
            raise SettingsError(f"The similarity {near} is not between 0 and 1.", "Give 1 to keep all but equal rows.")
        check_shapes(shapes)
        self._shares = _contract_shares(self.role, contracts)
        self._wanted = planned_classes(self.role, target, mix) if target else {}
        self._metric = load_metric(metric) if isinstance(metric, str) else metric
        self._held_out, self._shapes, self._workers, self._stamp = tuple(held_out), tuple(shapes), workers, stamp
        self._near, self._min_score = near, min_score
        self._most_shown, self._most_characters = demonstrations, demonstrated_characters
        self._validation_share, self._test_share = validation_share, test_share
        self._said: dict[str, JsonValue] = {
            "min_score": min_score,
            "metric": metric if isinstance(metric, str) else getattr(metric, "__name__", None),
            "validation_share": validation_share,
            "test_share": test_share,
            "contracts": {**self._shares},
            "near": near,
            "target": target,
            "mix": {**mix} if mix else None,
            "stamp": stamp,
            "demonstrations": demonstrations,
            "demonstrated_characters": demonstrated_characters,
        }

    def build(self, completions: Iterable[Completion], output: Path | str) -> Dataset:
        """Write the dataset for these completions; `output` is the JSONL of the train split.

        Beside it: `.validation.jsonl`, `.test.jsonl`, `.rejected.jsonl` and `.manifest.json` (the returned record),
        and `dataset_card.md`. Raises InputError where no completion passes the gate, and says why.
        """
        recorded = (
            Recorded(f"concept {c.concept.concept_id}", c.concept, c.raw or c.text, c.model, c.created_at, None)
            for c in completions
        )
        return self._built(recorded, Path(output))

    def build_from(
        self, paths: Path | str | Sequence[Path | str], output: Path | str, *, most: int | None = None
    ) -> Dataset:
        """Write the dataset for the recorded answers of files, in any form that row_files and source_rows read.

        `most` reads only so many rows of each.
        """
        files = [paths] if isinstance(paths, (str, Path)) else list(paths)
        counted: Counter[str] = Counter()

        def rows() -> Iterator[RawRow]:
            for path in files:
                for row in raw_rows(path, most=most):
                    counted[str(path)] += 1
                    yield row

        return self._built(rows(), Path(output), lambda: tuple(input_file(path, counted[str(path)]) for path in files))

    def build_rows(self, rows: Iterable[Mapping[str, Any]], output: Path | str, *, name: str = "rows") -> Dataset:
        """Write the dataset for rows in memory or of a `datasets.Dataset`; `name` stands for their file in messages."""
        raw = (RawRow(f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))
        return self._built(raw, Path(output))

    def _built(
        self,
        rows: Iterable[RawRow | Recorded | Rejection],
        output: Path,
        sources: Callable[[], tuple[InputFile, ...]] = tuple,
    ) -> Dataset:
        held, held_files = read_held_out(self._held_out, self.role)
        gate = Gate(
            self.role,
            metric=self._metric,
            min_score=self._min_score,
            stamp=self._stamp,
            day=f"{now()[:10]}T00:00:00Z",
            shares=self._shares,
        )
        with _Heap(output) as heap, _Rejections(beside(output, "rejected.jsonl")) as rejections:
            inputs = 0
            with progress("Scoring answers", None, "answers") as advance:
                for look in looked_at(rows, gate.look, workers=self._workers):
                    inputs += 1
                    if look.passed is None:
                        rejections.add(look.rejection())
                    else:
                        heap.add(look)
                    advance()
            kept = self._settled(heap, held, rejections)
            assert inputs == len(kept) + rejections.counts.total()
            if inputs == 0:
                raise InputError("There are no answers to build a dataset of.", "Give at least one.")
            if kept:
                dataset = self._written(heap, kept, output, rejections, inputs)
                dataset = dataset.model_copy(update={"sources": sources(), "held_out": held_files})
        if not kept:
            raise InputError(
                f"None of {inputs} answers passes the gate: {_told(rejections.counts)}.",
                f"Look at the reasons in {rejections.path}; ask a better teacher, or lower --min-score.",
            )
        return self._finished(dataset, output)

    def _settled(self, heap: _Heap, held: RowTable, rejections: _Rejections) -> list[int]:
        """The numbers of the rows that stay, in the order of a dataset; the others are rejected."""
        from po_distill.row_table import KEPT, REASONS

        lost = heap.table.leaks(held) > 0
        fates = heap.table.fates(lost, self._near)
        for row in (fates.fate != KEPT).nonzero()[0]:
            reason = REASONS[int(fates.fate[row])]
            better = int(fates.instead[row])
            if better == row:
                detail = "it is in a held-out file"
            else:
                detail = (
                    f"{heap.wheres[better]} stays, with {heap.labels[better]}, {heap.scores[better]:.4f}; "
                    f"this is {heap.labels[row]}, {heap.scores[row]:.4f}"
                )
            rejections.add(Rejection(where=heap.wheres[row], reason=reason, detail=detail, score=heap.scores[row]))
        rows = (fates.fate == KEPT).nonzero()[0]
        return [int(row) for row in rows[heap.table.examples[rows].argsort(kind="stable")]]

    def _written(self, heap: _Heap, kept: Sequence[int], output: Path, rejections: _Rejections, inputs: int) -> Dataset:
        paths: dict[Split, str] = {
            name: str(output if name == "train" else beside(output, f"{name}.jsonl")) for name in SPLITS
        }
        of_split: dict[Split, list[int]] = {name: [] for name in SPLITS}
        for row in kept:
            of_split[self._split_of(heap.points[row])].append(row)
        with progress("Writing rows", len(kept), "rows") as advance:
            for name in SPLITS:
                shown = self._demonstrated(heap, of_split[name]) if name == "train" else {}
                with atomic_file(paths[name], "wb") as file:
                    for row in of_split[name]:
                        again = shown.get(heap.contracts[row])
                        file.write(next(again) if again else heap.line(row))
                        advance()
        labels = Counter(heap.labels[row] or "none" for row in kept)
        contracts = Counter(heap.contracts[row] for row in kept)
        most = max(contracts, key=lambda name: (self._shares[name], name))
        return Dataset(
            paths=paths,
            rejected_path=str(rejections.path),
            contract=under_contract(self.role, most).contract,
            counts={name: len(of_split[name]) for name in SPLITS},
            labels=dict(sorted(labels.items())),
            inputs=inputs,
            rejected=dict(sorted(rejections.counts.items())),
            digest=digest_value([digest_file(paths[name]) for name in SPLITS]),
            contracts=dict(sorted(contracts.items())),
            tiers=dict(sorted(Counter(heap.tiers[row] for row in kept).items())),
            languages=dict(sorted(Counter(heap.languages[row] for row in kept).items())),
            settings=self._said,
            missing={name: n for name, count in self._wanted.items() if (n := count - labels[name]) > 0},
            po_distill=package_version(),
        )

    def _demonstrated(self, heap: _Heap, rows: Sequence[int]) -> dict[str, Iterator[bytes]]:
        """The lines of the rows whose prompts show others of them, in their order, by contract."""
        found = {}
        for contract in dict.fromkeys(heap.contracts[row] for row in rows):
            role = under_contract(self.role, contract)
            if can_show(role):
                those = [Shown(row, heap.points[row]) for row in rows if heap.contracts[row] == contract]
                found[contract] = demonstrated(
                    those, heap.line, role, most=self._most_shown, most_characters=self._most_characters
                )
        return found

    def _finished(self, dataset: Dataset, output: Path) -> Dataset:
        """The dataset with its other shapes, card and manifest written."""
        also = {}
        for shape in self._shapes:
            for name in SPLITS:
                if dataset.counts[name]:
                    also[f"{shape}.{name}"] = str(write_shape(shape, dataset.paths[name]))
        dataset = dataset.model_copy(update={"also": also})
        write_text(output.parent / CARD_NAME, render_card(dataset, self.role.name))
        write_json(beside(output, "manifest.json"), dataset)
        return dataset

    def _split_of(self, point: float) -> Split:
        """The split that a concept falls into with its variations, whatever else is in the dataset."""
        if point < self._test_share:
            return "test"
        return "validation" if point < self._test_share + self._validation_share else "train"


class _Heap:
    """The accepted rows: their lines in a file without a name, and of each what has to be at hand."""

    def __init__(self, output: Path) -> None:
        from po_distill.row_table import RowTable, Whereabouts

        self._folder = output.parent
        self.table = RowTable()
        self.wheres = Whereabouts()
        self.points = array("d")  # where a concept's group falls between 0 and 1
        self.labels: list[str | None] = []
        self.tiers: list[str] = []
        self.languages: list[str] = []
        self.contracts: list[str] = []
        self.scores = array("d")
        self._ends = array("Q", [0])
        self._file: IO[bytes] | None = None
        self._names: dict[str, str] = {}

    def __enter__(self) -> _Heap:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def add(self, look: Look) -> None:
        """Keep an accepted row."""
        assert self._file is not None and look.seen is not None and look.passed is not None
        self.table.add(look.seen, look.passed)
        data = look.passed.line.encode()
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self.wheres.append(look.where)
        self.points.append(share_of(look.passed.group))
        self.labels.append(look.passed.label and self._one(look.passed.label))
        self.tiers.append(self._one(look.seen.tier))
        self.languages.append(self._one(look.seen.language))
        self.contracts.append(self._one(look.passed.contract))
        self.scores.append(look.passed.score)

    def line(self, row: int) -> bytes:
        """The line of a row, its end included."""
        assert self._file is not None
        self._file.seek(self._ends[row])
        return self._file.read(self._ends[row + 1] - self._ends[row])

    def _one(self, name: str) -> str:
        """One text in place of many equal ones."""
        return self._names.setdefault(name, name)


class _Rejections:
    """The rejected rows, written as they come; the file takes its name when the block ends well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self._opened = atomic_file(path)

    def __enter__(self) -> _Rejections:
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def add(self, rejection: Rejection) -> None:
        """Write a rejection."""
        self.counts[rejection.reason] += 1
        self._file.write(jsonl_line(rejection))


def beside(output: Path | str, ending: str) -> Path:
    """The file that lies beside a dataset: `x.jsonl` -> `x.<ending>`."""
    output = Path(output)
    stem = output.stem if output.suffix == ".jsonl" else output.name
    return output.with_name(f"{stem}.{ending}")


def _contract_shares(role: Role, shares: Mapping[str, float] | None) -> dict[str, float]:
    """The shares of contracts, in sum 1. Raises SettingsError."""
    if not shares:
        return {role.contract.name: 1.0}
    for name in shares:
        if name not in role.contracts:
            raise SettingsError(
                f"The role {role.name} has no prompt contract {name!r}.", f"It has {', '.join(role.contracts)}."
            )
    total = sum(shares.values())
    if not (all(share > 0 for share in shares.values()) and abs(total - 1.0) <= 0.001):
        raise SettingsError(f"The shares of the contracts sum to {total:g}, or one is 0.", "Give shares that sum to 1.")
    return {name: share / total for name, share in shares.items()}


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(counts).most_common())
