import sqlite3

import pytest

from po_distill.errors import ArtifactError, ProviderError
from po_distill.journal import Journal
from po_distill.records import Response, Usage


def begin(journal, key="k"):
    return journal.begin_send(key, concept_id="C-1", provider="p", model="m", attempt=0)


def test_a_recorded_answer_is_read_back_as_it_was(tmp_path):
    response = Response(
        text="línea\x00\n¿?", model="m-7", finish="length", usage=Usage(prompt_tokens=3, cost_usd=0.1), stand_in=True
    )
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", begin(journal), response)
    with Journal(tmp_path / "j.sqlite") as journal:
        found = journal.result("k")
        assert found is not None
        assert found.outcome == response
        assert journal.result("other") is None


def test_a_recorded_error_is_read_back_with_its_fault(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.record("k", begin(journal), ProviderError("No.", "Do.", fault="blocked"))
        found = journal.result("k")
    assert isinstance(found.outcome, ProviderError)
    assert (found.outcome.problem, found.outcome.fix, found.outcome.fault) == ("No.", "Do.", "blocked")


def test_a_send_without_an_end_is_in_doubt_until_its_call_has_a_result(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        begin(journal, "lost")
        journal.end_send(begin(journal, "failed"), "timeout")
    with Journal(tmp_path / "j.sqlite") as journal:
        assert [send.key for send in journal.in_doubt()] == ["lost"]
        journal.record("lost", begin(journal, "lost"), Response(text="", model="m"))
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
