"""The journal of calls: what was sent and what came back, on the disk before anything looks at it.

One SQLite file per run (WAL, synchronous=FULL: a commit that returned survives a power cut). A *send* is
written before the request leaves, its end when an answer or an error came. A *result* is final: its call
is never made again. A send without an end was in flight when a run was killed: it may have been paid for.

One process at a time: the file is locked until it is closed, also by a process that dies.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from po_distill.artifacts import now
from po_distill.errors import ArtifactError, ProviderError, ProviderFault
from po_distill.records import Response

_VERSION = 1  # PRAGMA user_version
_TABLES = """
CREATE TABLE sends (
    send_id    INTEGER PRIMARY KEY,
    key        TEXT NOT NULL,      -- digest of the call's content
    concept_id TEXT NOT NULL,
    provider   TEXT NOT NULL,
    model      TEXT NOT NULL,      -- as asked for
    attempt    INTEGER NOT NULL,   -- which ask of the same request, from 0
    sent_at    TEXT NOT NULL,
    ended_at   TEXT,               -- NULL: in flight, or in doubt
    fault      TEXT                -- NULL: answered
);
CREATE TABLE results (
    key         TEXT PRIMARY KEY,
    send_id     INTEGER NOT NULL REFERENCES sends,
    recorded_at TEXT NOT NULL,
    response    TEXT,              -- records.Response as JSON
    fault       TEXT,              -- a ProviderError that is final for the call
    problem     TEXT,
    fix         TEXT
) WITHOUT ROWID;
CREATE INDEX sends_by_key ON sends (key);
"""


@dataclass(frozen=True)
class Result:
    """How a call ended for good: an answer, or an error that asking again would not change."""

    outcome: Response | ProviderError
    recorded_at: str


@dataclass(frozen=True)
class DoubtfulSend:
    """A request that left, and whose end was never seen."""

    key: str
    concept_id: str
    sent_at: str


class Journal:
    """A journal file, opened and locked; made where there is none.

    Raises ArtifactError where another run holds it, where it is no journal of this version, and where
    it cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One thread at a time uses it: the one that runs the event loop.
            self._database = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        version = execute("PRAGMA user_version").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            # executescript commits by itself, so the version stands in the same script.
            self._database.executescript(f"BEGIN EXCLUSIVE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise ArtifactError(
                f"{self.path} is no journal that this version reads (version {version}, not {_VERSION}).",
                "Name another journal file, or go on with the version of po_distill that wrote it.",
            )

    def close(self) -> None:
        """Close the file and give the lock back."""
        self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def result(self, key: str) -> Result | None:
        """The final result of a call; None where it has none yet."""
        with self._translated():
            row = self._database.execute(
                "SELECT response, fault, problem, fix, recorded_at FROM results WHERE key = ?", (key,)
            ).fetchone()
        if row is None:
            return None
        response, fault, problem, fix, recorded_at = row
        if response is not None:
            return Result(Response.model_validate_json(response), recorded_at)
        return Result(ProviderError(problem, fix, fault=_fault(fault)), recorded_at)

    def begin_send(self, key: str, *, concept_id: str, provider: str, model: str, attempt: int) -> int:
        """Write down that a request is about to leave; the number of the send."""
        with self._translated():
            cursor = self._database.execute(
                "INSERT INTO sends (key, concept_id, provider, model, attempt, sent_at) VALUES (?, ?, ?, ?, ?, ?)",
                (key, concept_id, provider, model, attempt, now()),
            )
        return int(cursor.lastrowid or 0)

    def end_send(self, send_id: int, fault: str) -> None:
        """Write down that a send failed in a way that leaves the call open."""
        with self._translated():
            self._database.execute(
                "UPDATE sends SET ended_at = ?, fault = ? WHERE send_id = ?", (now(), fault, send_id)
            )

    def record(self, key: str, send_id: int, outcome: Response | ProviderError) -> Result:
        """Write down the final result of a call, and the end of its send, in one commit."""
        recorded_at = now()
        response = outcome.model_dump_json() if isinstance(outcome, Response) else None
        error = (outcome.fault, outcome.problem, outcome.fix) if isinstance(outcome, ProviderError) else (None,) * 3
        with self._translated(), self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, send_id, recorded_at, response, *error),
            )
            self._database.execute(
                "UPDATE sends SET ended_at = ?, fault = ? WHERE send_id = ?", (recorded_at, error[0], send_id)
            )
        return Result(outcome, recorded_at)

    def in_doubt(self) -> list[DoubtfulSend]:
        """The sends of earlier runs that never ended and whose calls have no result since."""
        with self._translated():
            rows = self._database.execute(
                "SELECT key, concept_id, sent_at FROM sends WHERE ended_at IS NULL"
                " AND key NOT IN (SELECT key FROM results) ORDER BY send_id"
            ).fetchall()
        return [DoubtfulSend(*row) for row in rows]

    def sends(self) -> Iterator[dict[str, Any]]:
        """Every send, in order, as a mapping by column."""
        with self._translated():
            cursor = self._database.execute("SELECT * FROM sends ORDER BY send_id")
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(columns, row, strict=True))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ArtifactError(
                    f"The journal {self.path} is in use by another run.",
                    "Wait for that run to end, or name another journal.",
                ) from error
            raise ArtifactError(
                f"The journal {self.path} cannot be written: {error}.",
                "Free some space or name a journal that you may write; then run the same command again.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise ArtifactError(
                f"{self.path} cannot be read as a journal: {error}.", "Move it away, or name another journal."
            ) from error
        except OSError as error:
            raise ArtifactError(
                f"The journal {self.path} cannot be made: {error.strerror or error}.",
                "Name a journal that you may write.",
            ) from error


def _fault(text: str) -> ProviderFault:
    for known in get_args(ProviderFault):
        if known == text:
            return known  # type: ignore[no-any-return]
    raise ArtifactError(f"The journal holds the unknown fault {text!r}.", "Move it away, or name another journal.")
