"""The cost log: one JSON line per attempt, a file per day, derived from the journal and rebuilt from it.

No prompt, no answer, no credential is in it. A line stands in the log once its send has ended; what a kill kept out
of it is put there by the next run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from po_distill.artifacts import append_text, jsonl_line, write_text
from po_distill.journal import Journal
from po_distill.model_table import NANOUSD


class CallLog:
    """Keeps the daily files beside `path` true to a journal: `calls.log` names `calls_YYYYMMDD.log`.

    Lines are written `every` so many ends, and by `flush`.
    """

    def __init__(self, journal: Journal, path: Path | str, *, every: int = 20) -> None:
        self._journal, self._path, self._every = journal, Path(path), every
        self._written = 0  # the number of the last end that stands in the log
        self._charged_nanousd = 0
        self._waiting = 0
        self.rebuild()

    def note(self, unjudged: Collection[str] = ()) -> None:
        """Say that a send has ended, and which calls have an answer that is still being judged."""
        self._waiting += 1
        if self._waiting >= self._every:
            self.flush(unjudged)

    def flush(self, unjudged: Collection[str] = ()) -> None:
        """Write the lines of all sends that ended since, up to the first of a call that is still being judged."""
        self._journal.write_verdicts()
        self._waiting = 0
        if self._journal.rewritten:
            self._journal.rewritten = False
            self.rebuild()
            return
        for day, lines in _by_day(self._lines(self._written, unjudged)).items():
            append_text(self._file(day), "".join(lines))

    def rebuild(self) -> list[Path]:
        """Write the files of those days anew that are not what the journal says; their paths."""
        self._written = self._charged_nanousd = 0
        changed = []
        for day, lines in _by_day(self._lines(0)).items():
            path, text = self._file(day), "".join(lines)
            if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
                write_text(path, text)
                changed.append(path)
        return changed

    def _lines(self, since: int, unjudged: Collection[str] = ()) -> Iterator[tuple[str, str]]:
        """(day, line) of each send that ended after the end number `since`."""
        for row in self._journal.ended_sends(since=since):
            if row["key"] in unjudged and row["response"]:
                return
            self._written = row["end_number"]
            cost = row["cost_nanousd"]
            self._charged_nanousd += row["reserved_nanousd"] if cost is None else cost
            yield row["ended_at"][:10].replace("-", ""), jsonl_line(call_line(row, self._charged_nanousd))

    def _file(self, day: str) -> Path:
        return self._path.with_name(f"{self._path.stem}_{day}{self._path.suffix or '.log'}")


def call_line(row: Mapping[str, Any], charged_nanousd: int) -> dict[str, Any]:
    """What the log says of one row of `Journal.ended_sends`.

    `usd` is null where the cost is not known (the call is in doubt); `reserved_usd` is what counts in its place.
    `cumulative_usd` is the sum over all attempts of the journal so far, this one included.
    """
    response = json.loads(row["response"]) if row["response"] else {}
    usage = response.get("usage", {})
    cost = row["cost_nanousd"]
    return {
        "time": row["ended_at"],
        "run": row["run"],
        "key": row["key"],
        "concept_id": row["concept_id"],
        "attempt": row["attempt"],
        "provider": row["provider"],
        "model": row["model"],
        "served_model": response.get("model"),
        "status": row["fault"] or "answered",
        "finish_reason": response.get("finish_reason") or response.get("finish"),
        "prompt_tokens": usage.get("prompt_tokens", 0),
        "thinking_tokens": usage.get("thinking_tokens", 0),
        "completion_tokens": usage.get("completion_tokens", 0),
        "cached_tokens": usage.get("cached_tokens", 0),
        "usd": None if cost is None else cost / NANOUSD,
        **({"reserved_usd": row["reserved_nanousd"] / NANOUSD} if cost is None else {}),
        "price": row["price"],
        "cumulative_usd": charged_nanousd / NANOUSD,
        "latency_s": round(row["latency_s"] or 0.0, 4),
        "verdict": row["verdict"],
    }


def _by_day(lines: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    days: dict[str, list[str]] = {}
    for day, line in lines:
        days.setdefault(day, []).append(line)
    return days
