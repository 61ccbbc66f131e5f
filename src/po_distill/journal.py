"""The journal of calls: what was sent and what came back, on the disk before anything looks at it.

One SQLite file (WAL, synchronous=FULL: a commit that returned survives a power cut). A *send* is written before
the request leaves, with the most that it can cost; its end when an answer or an error came, with what it did cost. A
*result* is final: its call is never made again. A *verdict* says what became of an answer. A send without an end was in
flight when a run was killed: it is in doubt, and counts at its full reservation until its call has been found again.

Everything else (completions, cost log, progress) is derived from here; see `journal_views`.
One process at a time: the file is locked until it is closed, also by a process that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

from po_distill.artifacts import digest_bytes, now
from po_distill.departures import Departures
from po_distill.errors import ArtifactError, ProviderError, ProviderFault
from po_distill.journal_tables import FROM_1, RULES, TABLES, VERSION
from po_distill.records import Concept, Response, Score

_TOGETHER_S = 0.004  # what is written within so long shares a commit: a commit keeps the event loop waiting


@dataclass(frozen=True)
class Result:
    """How a call ended for good: an answer, or an error that asking again would not change."""

    outcome: Response | ProviderError
    recorded_at: str
    end: End | None = None  # of the send that brought it, where it was brought just now
    resettled_nanousd: int = 0  # by how much earlier sends of the call are charged otherwise than before


@dataclass(frozen=True)
class End:
    """How a send ended. `cost_nanousd` None means not known: the reservation counts."""

    fault: str | None  # None: answered
    cost_nanousd: int | None = 0
    price: str | None = None
    latency_s: float = 0.0


@dataclass(frozen=True)
class DoubtfulSend:
    """A request that left, and whose end was never seen."""

    key: str
    concept_id: str
    sent_at: str
    reserved_nanousd: int = 0


class Journal:
    """A journal file, opened and locked; made where there is none.

    Raises ArtifactError where another run holds it, where it is no journal of this version, and where
    it cannot be written. `reading` opens one that has to be there.
    """

    def __init__(self, path: Path | str, *, reading: bool = False) -> None:
        self.path = Path(path)
        if reading and not self.path.exists():
            raise ArtifactError(f"There is no journal {self.path}.", "Name the one that a run wrote: --journal FILE.")
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One thread at a time uses it: the one that runs the event loop.
            self._database = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise
        self._departures = Departures(self.path)
        self.run: str | None = None  # written into the sends of this run
        self.rewritten = False  # an end that was written down before has changed
        self._late_verdicts: list[tuple[str, ...]] = []
        self._is_open = False  # a transaction waits for its commit
        self._commit: asyncio.Future[None] | None = None
        self._ends = self._one("SELECT coalesce(max(end_number), 0) FROM sends")

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        version = execute("PRAGMA user_version").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            # executescript commits by itself, so the version stands in the same script.
            self._database.executescript(f"BEGIN EXCLUSIVE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version == 1:
            self._database.executescript(f"BEGIN EXCLUSIVE; {FROM_1} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise ArtifactError(
                f"{self.path} is no journal that this version reads (version {version}, not {VERSION}).",
                "Name another journal file, or go on with the version of po_distill that wrote it.",
            )

    def close(self) -> None:
        """Write what waits, close the file and give the lock back."""
        try:
            self.write_verdicts()
        finally:
            self._departures.close()
            self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- calls ----------------------------------------------------------------------------------

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

    def begin_send(
        self,
        key: str,
        *,
        concept_id: str,
        provider: str,
        model: str,
        attempt: int,
        reserved_nanousd: int = 0,
        later: bool = False,
    ) -> int:
        """Write down that a request leaves now; the number of the send.

        With `later` it is on the disk only after `durable`; `departs` is to be called then.
        """
        with self._translated(), self._transaction(later=later):
            cursor = self._database.execute(
                "INSERT INTO sends (key, concept_id, provider, model, attempt, sent_at, run, reserved_nanousd,"
                " cost_nanousd) VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (key, concept_id, provider, model, attempt, now(), self.run, reserved_nanousd),
            )
        send_id = int(cursor.lastrowid or 0)
        if not later:
            self.departs(send_id)
        return send_id

    def departs(self, send_id: int) -> None:
        """Note that a send that is written down leaves in this step; see `departures`."""
        with self._translated():
            self._departures.note(send_id)

    def end_send(self, send_id: int, end: End, *, later: bool = False) -> None:
        """Write down that a send failed in a way that leaves the call open; with `later`, see `durable`."""
        with self._translated(), self._transaction(later=later):
            self._end(send_id, end, now())

    def record(
        self, key: str, send_id: int, outcome: Response | ProviderError, end: End, *, later: bool = False
    ) -> Result:
        """Write down the final result of a call, and the end of its send, in one commit.

        With `later` it is on the disk only after `durable`, in one commit with what others write meanwhile.

        Where an earlier send of the call is what is billed (`Response.bought_before`), the sends of it that are in
        doubt take the cost, and this one costs nothing.
        """
        recorded_at = now()
        response = outcome.model_dump_json() if isinstance(outcome, Response) else None
        error = (outcome.fault, outcome.problem, outcome.fix) if isinstance(outcome, ProviderError) else (None,) * 3
        with self._translated(), self._transaction(later=later):
            resettled = 0
            if isinstance(outcome, Response) and outcome.bought_before:
                end, resettled = self._settle_doubtful(key, send_id, end, recorded_at)
            self._database.execute(
                "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, send_id, recorded_at, response, *error),
            )
            self._end(send_id, end, recorded_at)
        return Result(outcome, recorded_at, end, resettled)

    def _settle_doubtful(self, key: str, send_id: int, end: End, ended_at: str) -> tuple[End, int]:
        """(how the new send ends, by how much the doubtful ones are charged otherwise)."""
        doubtful = self._database.execute(
            "SELECT send_id, reserved_nanousd FROM sends WHERE key = ? AND send_id <> ? AND cost_nanousd IS NULL"
            " ORDER BY send_id DESC",
            (key, send_id),
        ).fetchall()
        if not doubtful:
            return end, 0
        self.rewritten = True
        for number, (earlier, _) in enumerate(doubtful):
            self._end(earlier, End("found_again", end.cost_nanousd if number == 0 else 0, end.price), ended_at)
        resettled = (end.cost_nanousd or 0) - sum(reserved for _, reserved in doubtful)
        return End(end.fault, 0, end.price, end.latency_s), resettled

    def _end(self, send_id: int, end: End, ended_at: str) -> None:
        self._ends += 1
        # A send that is found again ended once already: it keeps its time and its place in the order.
        self._database.execute(
            "UPDATE sends SET ended_at = coalesce(ended_at, ?), fault = ?, cost_nanousd = ?, price = ?, latency_s = ?,"
            " end_number = coalesce(end_number, ?) WHERE send_id = ?",
            (ended_at, end.fault, end.cost_nanousd, end.price, end.latency_s, self._ends, send_id),
        )

    # --- answers --------------------------------------------------------------------------------

    def judge(
        self,
        key: str,
        concept: Concept,
        *,
        contract: str,
        verdict: str,
        score: Score,
        text: str,
        again: bool = False,
    ) -> None:
        """Write down what became of an answer, with the next commit: it can be judged again from what is kept.

        `again` says that the answer came from the journal: an earlier verdict may stand in the cost log.
        """
        if again and not self.rewritten:
            with self._translated():
                known = self._database.execute(
                    "SELECT verdict FROM verdicts WHERE key = ? AND concept_id = ?", (key, concept.concept_id)
                ).fetchone()
            self.rewritten = known is None or known[0] != verdict
        data = concept.model_dump_json()
        digest = digest_bytes(data.encode())
        row = (key, digest, concept.concept_id, contract, verdict, score.model_dump_json(), text)
        self._late_verdicts.append((digest, data, *row))
        if len(self._late_verdicts) >= 256:
            self.write_verdicts()

    def _write_late_verdicts(self) -> None:
        waiting, self._late_verdicts = self._late_verdicts, []
        for digest, concept, *verdict in waiting:
            self._database.execute("INSERT OR IGNORE INTO concepts VALUES (?, ?)", (digest, concept))
            self._database.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?)", verdict)

    # --- what is left open, and what was spent --------------------------------------------------

    def in_doubt(self) -> list[DoubtfulSend]:
        """The sends of earlier runs that left, never ended, and whose calls have no result since."""
        with self._translated():
            rows = self._database.execute(
                "SELECT send_id, key, concept_id, sent_at, reserved_nanousd FROM sends WHERE ended_at IS NULL"
                " AND key NOT IN (SELECT key FROM results) ORDER BY send_id"
            ).fetchall()
        return [DoubtfulSend(*row) for send_id, *row in rows if self._departures.may_have_left(send_id)]

    def close_doubtful(self) -> None:
        """End what earlier runs left without an end: as `in_doubt`, its cost not known, its reservation counting.

        What never left ends as that, and costs nothing.
        """
        with self._translated():
            rows = self._database.execute("SELECT send_id FROM sends WHERE ended_at IS NULL").fetchall()
        if rows:
            with self._translated(), self._transaction():
                for (number,) in rows:
                    left = self._departures.may_have_left(number)
                    self._end(number, End("in_doubt", None) if left else End("never_left", 0), now())
        with self._translated():
            self._departures.begin()

    def doubtful_keys(self) -> set[str]:
        """The calls without a result of which a send was closed as in doubt."""
        with self._translated():
            rows = self._database.execute(
                "SELECT DISTINCT key FROM sends"
                " WHERE (fault = 'in_doubt' OR ended_at IS NOT NULL AND cost_nanousd IS NULL)"
                " AND key NOT IN (SELECT key FROM results)"
            ).fetchall()
        return {key for (key,) in rows}

    def charged_nanousd(self) -> int:
        """What all sends together cost at most: the cost where it is known, the reservation where it is not."""
        return self._one("SELECT coalesce(sum(coalesce(cost_nanousd, reserved_nanousd)), 0) FROM sends")

    def mean_completion_tokens(self) -> int | None:
        """The mean length of the newest thousand answers; None without any."""
        with self._translated():
            (mean,) = self._database.execute(
                "SELECT avg(tokens) FROM (SELECT json_extract(response, '$.usage.completion_tokens') AS tokens"
                " FROM results WHERE response IS NOT NULL ORDER BY send_id DESC LIMIT 1000)"
            ).fetchone()
        return None if not mean else round(mean)

    def sends(self, *, since: int = 0) -> Iterator[dict[str, Any]]:
        """Every send after the number `since`, in order, as a mapping by column."""
        return self._mappings("SELECT * FROM sends WHERE send_id > ? ORDER BY send_id", (since,))

    def ended_sends(self, *, since: int = 0) -> Iterator[dict[str, Any]]:
        """Every send whose `end_number` is over `since`, by that number, with its `response` and its `verdict`."""
        return self._mappings(
            "SELECT sends.*, results.response, coalesce("
            "(SELECT verdict FROM verdicts WHERE key = results.key AND concept_id = sends.concept_id LIMIT 1),"
            "(SELECT verdict FROM verdicts WHERE key = results.key LIMIT 1)) AS verdict FROM sends"
            " LEFT JOIN results ON results.key = sends.key AND results.send_id = sends.send_id"
            " WHERE sends.end_number > ? ORDER BY sends.end_number",
            (since,),
        )

    def write_verdicts(self) -> None:
        """Write down the verdicts that wait for the next commit."""
        if self._late_verdicts or self._is_open:
            with self._translated(), self._transaction():
                pass

    def judged(self) -> Iterator[dict[str, Any]]:
        """Every judged answer with its concept, its response and when it came, in the order of the sends."""
        return self._mappings(
            "SELECT verdicts.*, concepts.concept AS concept_json, results.response, results.recorded_at,"
            " sends.provider FROM verdicts JOIN concepts ON concepts.digest = verdicts.concept"
            " JOIN results ON results.key = verdicts.key JOIN sends ON sends.send_id = results.send_id"
            " ORDER BY results.send_id, verdicts.rowid"
        )

    def integrity(self) -> list[str]:
        """What is wrong with the file, by SQLite's own check and by the rules of this module."""
        found = [str(row["integrity_check"]) for row in self._mappings("PRAGMA integrity_check")]
        problems = [line for line in found if line != "ok"]
        for rule, query in RULES.items():
            if count := self._one(query):
                problems.append(f"{count} {rule}")
        return problems

    def _mappings(self, query: str, values: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
        with self._translated():
            cursor = self._database.execute(query, values)
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(columns, row, strict=True))

    def _one(self, query: str) -> int:
        with self._translated():
            return int(self._database.execute(query).fetchone()[0])

    async def durable(self) -> None:
        """Wait until what was written so far is on the disk, in one commit with what comes within a moment."""
        if not self._is_open:
            return
        if self._commit is None:
            loop = asyncio.get_running_loop()
            self._commit = loop.create_future()
            loop.call_later(_TOGETHER_S, self._commit_together)
        await asyncio.shield(self._commit)

    def _commit_together(self) -> None:
        # Those who wait are told of an error.
        with contextlib.suppress(ArtifactError), self._translated(), self._transaction():
            pass

    @contextlib.contextmanager
    def _transaction(self, *, later: bool = False) -> Iterator[None]:
        """Write in a transaction; with `later` it stays open for what follows, until a commit or `durable`."""
        if not self._is_open:
            self._database.execute("BEGIN IMMEDIATE")
            self._is_open = True
        try:
            yield
            if later:
                return
            if self._late_verdicts:
                self._write_late_verdicts()
            self._database.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            self._ended(error)
            raise
        self._ended(None)

    def _ended(self, error: BaseException | None) -> None:
        self._is_open = False
        commit, self._commit = self._commit, None
        if commit is not None and not commit.done():
            if error is None:
                commit.set_result(None)
            else:
                commit.set_exception(
                    ArtifactError(
                        f"The journal {self.path} cannot be written: {error}.",
                        "Free some space; then run the same command again.",
                    )
                )

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
