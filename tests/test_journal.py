import sqlite3

import pytest

from haiku import haiku_concept
from po_distill.errors import ArtifactError, ProviderError
from po_distill.journal import End, Journal
from po_distill.records import Concept, Response, Score, Usage


def begin(journal, key="k"):
    return journal.begin_send(key, concept_id="C-1", provider="p", model="m", attempt=0)


def test_a_recorded_answer_is_read_back_as_it_was(tmp_path):
    response = Response(
        text="línea\x00\n¿?", model="m-7", finish="length", usage=Usage(prompt_tokens=3, cost_usd=0.1), stand_in=True
    )
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", begin(journal), response, End(None))
    with Journal(tmp_path / "j.sqlite") as journal:
        found = journal.result("k")
        assert found is not None
        assert found.outcome == response
        assert journal.result("other") is None


def test_a_recorded_error_is_read_back_with_its_fault(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", begin(journal), ProviderError("No.", "Do.", fault="blocked"), End("blocked"))
        found = journal.result("k")
    assert isinstance(found.outcome, ProviderError)
    assert (found.outcome.problem, found.outcome.fix, found.outcome.fault) == ("No.", "Do.", "blocked")


def test_a_send_without_an_end_is_in_doubt_until_its_call_has_a_result(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        begin(journal, "lost")
        journal.end_send(begin(journal, "failed"), End("timeout"))
    with Journal(tmp_path / "j.sqlite") as journal:
        assert [send.key for send in journal.in_doubt()] == ["lost"]
        journal.record("lost", begin(journal, "lost"), Response(text="", model="m"), End(None))
        assert journal.in_doubt() == []
        assert [(send["key"], send["fault"], send["ended_at"] is None) for send in journal.sends()] == [
            ("lost", None, True),
            ("failed", "timeout", False),
            ("lost", None, False),
        ]


def test_a_second_run_cannot_open_a_journal_that_is_in_use(tmp_path):
    with Journal(tmp_path / "j.sqlite"), pytest.raises(ArtifactError, match="in use by another run"):
        Journal(tmp_path / "j.sqlite")
    Journal(tmp_path / "j.sqlite").close()


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no database " * 100)
    with pytest.raises(ArtifactError, match="cannot be read as a journal"):
        Journal(text)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE things (name)")
    database.close()
    with pytest.raises(ArtifactError, match="no journal that this version reads"):
        Journal(other)
    with pytest.raises(ArtifactError, match="cannot be"):
        Journal(text / "below" / "j.sqlite")


def test_the_journal_is_in_wal_mode_with_full_synchronisation(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        execute = journal._database.execute
        assert execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert execute("PRAGMA synchronous").fetchone() == (2,)


# --- money and time -----------------------------------------------------------------------------


def reserve(journal, key="k", reserved=100, attempt=0):
    return journal.begin_send(
        key, concept_id="C-1", provider="p", model="m", attempt=attempt, reserved_nanousd=reserved
    )


def answer(**fields):
    return Response(text="t", model="m", **fields)


def send_of(journal, number):
    return {send["send_id"]: send for send in journal.sends()}[number]


def test_a_send_is_charged_its_cost_or_else_its_reservation(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("a", reserve(journal, "a"), answer(), End(None, 30, "m@2026"))
        journal.end_send(reserve(journal, "b"), End("rate_limited", 0))
        journal.end_send(reserve(journal, "c", 7), End("timeout", None))
        reserve(journal, "d", 1000)  # in flight
        assert journal.charged_nanousd() == 30 + 0 + 7 + 1000
        assert send_of(journal, 1)["price"] == "m@2026"
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.charged_nanousd() == 1037
        journal.close_doubtful()
        assert journal.charged_nanousd() == 1037


def test_what_is_left_open_is_closed_as_in_doubt_and_known_by_its_call(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        reserve(journal, "lost", 50)
        reserve(journal, "found", 50)
        journal.record("found", reserve(journal, "found"), answer(), End(None, 5))
    with Journal(tmp_path / "j.sqlite") as journal:
        assert [(send.key, send.reserved_nanousd) for send in journal.in_doubt()] == [("lost", 50)]
        journal.close_doubtful()
        assert journal.in_doubt() == []
        assert journal.doubtful_keys() == {"lost"}
        assert [(send["fault"], send["cost_nanousd"]) for send in journal.sends()] == [
            ("in_doubt", None),
            ("in_doubt", None),
            (None, 5),
        ]
        assert journal.integrity() == []
        journal.record("lost", reserve(journal, "lost"), answer(), End(None, 5))
        assert journal.doubtful_keys() == set()


def test_a_call_that_is_found_again_is_paid_for_where_it_was_bought(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        reserve(journal, "k", 100)
        reserve(journal, "k", 100)
        reserve(journal, "other", 100)
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.close_doubtful()
        before = [send["ended_at"] for send in journal.sends()]
        again = reserve(journal, "k", 100)
        journal.record("k", again, answer(bought_before=True), End(None, 40, "m@2026", 1.5))
        assert [(s["fault"], s["cost_nanousd"]) for s in journal.sends()] == [
            ("found_again", 0),
            ("found_again", 40),
            ("in_doubt", None),
            (None, 0),
        ]
        assert [send["ended_at"] for send in journal.sends()][:3] == before
        assert [row["send_id"] for row in journal.ended_sends()] == [1, 2, 3, 4]
        assert journal.rewritten
        assert journal.charged_nanousd() == 40 + 100
        assert journal.integrity() == []


def test_a_call_that_says_it_was_bought_before_is_paid_for_where_nothing_was_in_doubt(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", reserve(journal), answer(bought_before=True), End(None, 40))
        assert journal.charged_nanousd() == 40
        assert not journal.rewritten


def test_the_mean_of_the_answers_is_that_of_the_newest_thousand(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.mean_completion_tokens() is None
        journal._database.execute("PRAGMA synchronous = OFF")
        journal.record("e", reserve(journal, "e"), ProviderError("No.", "", fault="blocked"), End("blocked"))
        assert journal.mean_completion_tokens() is None
        for number in range(1010):
            tokens = 5000 if number < 10 else 100 + number % 2
            journal.record(
                str(number), reserve(journal, str(number)), answer(usage=Usage(completion_tokens=tokens)), End(None)
            )
        assert journal.mean_completion_tokens() == 100


# --- verdicts -----------------------------------------------------------------------------------


def concept(number=1, **fields):
    return haiku_concept(number).model_copy(update=fields)


def judge(journal, key="k", verdict="accepted", about=None, value=1.0):
    journal.judge(
        key,
        about or concept(),
        contract="sha256:" + "0" * 64,
        verdict=verdict,
        score=Score(value=value, valid=True, label="spring"),
        text="the answer",
    )


def verdicts(path):
    with sqlite3.connect(path) as database:
        found = database.execute("SELECT key, verdict FROM verdicts ORDER BY key").fetchall()
    database.close()
    return found


def test_a_verdict_is_written_with_the_next_commit_or_at_the_close(tmp_path):
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal.record("k", reserve(journal), answer(), End(None))
        judge(journal)
        assert [row["verdict"] for row in journal.judged()] == []
        reserve(journal, "other")
        assert [row["verdict"] for row in journal.judged()] == ["accepted"]
        journal.record("l", reserve(journal, "l"), answer(), End(None))
        judge(journal, "l", "score_below_minimum")
    assert verdicts(path) == [("k", "accepted"), ("l", "score_below_minimum")]


def test_many_verdicts_without_a_commit_are_written_all_the_same(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        for number in range(300):
            judge(journal, f"k{number:03d}")
        assert journal._one("SELECT count(*) FROM verdicts") == 256
        assert journal._one("SELECT count(*) FROM concepts") == 1


def test_verdicts_survive_a_commit_that_fails(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        judge(journal)
        with pytest.raises(ArtifactError):
            journal.begin_send(None, concept_id="C", provider="p", model="m", attempt=0)  # NOT NULL refuses it
    assert verdicts(tmp_path / "j.sqlite") == [("k", "accepted")]


def test_an_answer_that_is_judged_again_has_its_newest_verdict(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", reserve(journal), answer(), End(None))
        judge(journal, verdict="score_below_minimum", value=0.5)
        judge(journal, verdict="accepted", value=0.9)
        journal.write_verdicts()
        (row,) = journal.judged()
        assert (row["verdict"], Score.model_validate_json(row["score"]).value) == ("accepted", 0.9)
        (row,) = journal.ended_sends()
        assert row["verdict"] == "accepted"


def test_two_concepts_that_share_a_call_have_a_verdict_each(tmp_path):
    """Two rows of a file with the same text are one call, and two completions."""
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", reserve(journal), answer(), End(None))
        judge(journal, about=concept(concept_id="one"))
        judge(journal, about=concept(concept_id="two"))
        journal.write_verdicts()
        found = [Concept.model_validate_json(row["concept_json"]).concept_id for row in journal.judged()]
        assert sorted(found) == ["one", "two"]
        assert len(list(journal.ended_sends())) == 1


# --- the first version --------------------------------------------------------------------------

_VERSION_1 = """
CREATE TABLE sends (send_id INTEGER PRIMARY KEY, key TEXT NOT NULL, concept_id TEXT NOT NULL, provider TEXT NOT NULL,
  model TEXT NOT NULL, attempt INTEGER NOT NULL, sent_at TEXT NOT NULL, ended_at TEXT, fault TEXT);
CREATE TABLE results (key TEXT PRIMARY KEY, send_id INTEGER NOT NULL REFERENCES sends, recorded_at TEXT NOT NULL,
  response TEXT, fault TEXT, problem TEXT, fix TEXT) WITHOUT ROWID;
CREATE INDEX sends_by_key ON sends (key);
PRAGMA user_version = 1;
INSERT INTO sends VALUES (1, 'a', 'C-1', 'offline', '', 0, '2026-11-01T10:00:00+00:00', '2026-11-01T10:00:01+00:00', NULL);
INSERT INTO sends VALUES (2, 'b', 'C-2', 'offline', '', 0, '2026-11-01T10:00:00+00:00', '2026-11-01T10:00:02+00:00', 'timeout');
INSERT INTO sends VALUES (3, 'b', 'C-2', 'offline', '', 0, '2026-11-01T10:00:03+00:00', NULL, NULL);
INSERT INTO sends VALUES (4, 'c', 'C-3', 'offline', '', 0, '2026-11-01T10:00:04+00:00', '2026-11-01T10:00:05+00:00', 'blocked');
INSERT INTO results VALUES ('c', 4, '2026-11-01T10:00:05+00:00', NULL, 'blocked', 'No.', 'Do.');
"""  # noqa: E501 - rows as they are


def version_1(path, **usage):
    response = answer(usage=Usage(prompt_tokens=3, completion_tokens=4, **usage))
    with sqlite3.connect(path) as database:
        database.executescript(_VERSION_1)
        database.execute(
            "INSERT INTO results VALUES ('a', 1, '2026-11-01T10:00:01+00:00', ?, NULL, NULL, NULL)",
            (response.model_dump_json(exclude={"finish_reason", "price_factor", "bought_before"}),),
        )
    database.close()
    return response


def schema(path):
    with sqlite3.connect(path) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        columns = {
            table: [tuple(row[1:]) for row in database.execute(f"PRAGMA table_info({table})")] for table in tables
        }
        indexes = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
        version = database.execute("PRAGMA user_version").fetchone()[0]
    database.close()
    return columns, indexes, version


def test_a_journal_of_the_first_version_is_read_and_becomes_one_of_this_version(tmp_path):
    path = tmp_path / "j.sqlite"
    response = version_1(path)
    with Journal(path) as journal:
        found = journal.result("a")
        assert found is not None and found.outcome == response
        assert found.recorded_at == "2026-11-01T10:00:01+00:00"
        blocked = journal.result("c")
        assert blocked is not None and blocked.outcome.fault == "blocked"
        assert [send.key for send in journal.in_doubt()] == ["b"]
        assert journal.integrity() == []
        assert journal.mean_completion_tokens() == 4
        assert [row["send_id"] for row in journal.ended_sends()] == [1, 2, 4]
        assert journal.charged_nanousd() == 0
        journal.close_doubtful()
        journal.record("b", reserve(journal, "b"), answer(), End(None, 1))
        assert [row["send_id"] for row in journal.ended_sends()] == [1, 2, 4, 3, 5]
    Journal(tmp_path / "new.sqlite").close()
    assert schema(path) == schema(tmp_path / "new.sqlite")


def test_what_a_journal_of_the_first_version_says_that_it_cost_is_still_charged(tmp_path):
    path = tmp_path / "j.sqlite"
    version_1(path, cost_usd=0.25)
    with Journal(path) as journal:
        assert journal.charged_nanousd() == 250_000_000


def test_a_journal_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "j.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ArtifactError, match="version 9"):
        Journal(path)


def test_a_journal_that_has_to_be_there_is_not_made(tmp_path):
    with pytest.raises(ArtifactError, match="There is no journal"):
        Journal(tmp_path / "none.sqlite", reading=True)
    assert list(tmp_path.iterdir()) == []


# --- soundness ----------------------------------------------------------------------------------


def sound(path):
    with Journal(path) as journal:
        journal.record("a", reserve(journal, "a"), answer(), End(None, 30))
        journal.end_send(reserve(journal, "b"), End("timeout", None))
        judge(journal, "a")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("UPDATE results SET send_id = 99", "1 results whose send is missing"),
        ("UPDATE sends SET ended_at = NULL WHERE send_id = 1", "1 results whose send has no end"),
        ("UPDATE verdicts SET key = 'gone'", "1 verdicts about calls without an answer"),
        ("UPDATE results SET response = NULL, fault = 'blocked'", "1 verdicts about calls without an answer"),
        ("DELETE FROM concepts", "1 verdicts about concepts that are missing"),
        ("UPDATE sends SET cost_nanousd = 101 WHERE send_id = 1", "1 sends that cost more than was reserved for them"),
        (
            "INSERT INTO sends (key, concept_id, provider, model, attempt, sent_at) VALUES ('a', '', 'p', 'm', 0, '')",
            "1 sends after the result of their call",
        ),
    ],
)
def test_each_fault_that_is_planted_is_found(tmp_path, fault, says):
    path = tmp_path / "j.sqlite"
    sound(path)
    with Journal(path) as journal:
        assert journal.integrity() == []
        journal._database.execute(fault)
    with Journal(path) as journal:
        assert says in journal.integrity()


def test_a_page_that_was_overwritten_is_found(tmp_path):
    path = tmp_path / "j.sqlite"
    with Journal(path) as journal:
        journal._database.execute("PRAGMA synchronous = OFF")
        for number in range(200):
            journal.record(str(number), reserve(journal, str(number)), answer(), End(None))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = b"\x5a" * 4096
    path.write_bytes(data)
    try:
        with Journal(path) as journal:
            assert journal.integrity()
    except ArtifactError as error:
        assert str(path) in error.problem
