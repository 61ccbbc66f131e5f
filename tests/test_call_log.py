import json
from pathlib import Path

import pytest

from haiku import haiku_concept
from po_distill import journal as journal_module
from po_distill.call_log import CallLog
from po_distill.errors import ProviderError
from po_distill.journal import End, Journal
from po_distill.records import Response, Score, Usage

SECRET = "the answer itself"


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as opened:
        opened.run = "run-1"
        yield opened


@pytest.fixture
def clock(monkeypatch):
    """Sets the day that the journal writes down."""

    def at(day: str) -> None:
        monkeypatch.setattr(journal_module, "now", lambda: f"{day}T12:00:00+00:00")

    at("2026-11-25")
    return at


def send(journal, key="k", cost=30, attempt=0, **fields):
    number = journal.begin_send(
        key, concept_id=f"C-{key}", provider="p", model="m", attempt=attempt, reserved_nanousd=100
    )
    usage = Usage(prompt_tokens=7, completion_tokens=5, thinking_tokens=2, cached_tokens=1, latency_s=0.25)
    response = Response(text=SECRET, model="m-001", finish="stop", finish_reason="STOP", usage=usage, **fields)
    journal.record(key, number, response, End(None, cost, "m@2026-09-20", 0.25))


def judge(journal, key="k", verdict="accepted", again=False):
    score, contract = Score(value=1.0, valid=True), "sha256:" + "0" * 64
    journal.judge(key, haiku_concept(1), contract=contract, verdict=verdict, score=score, text=SECRET, again=again)


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.glob("calls*.log"))}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for text in files(folder).values() for line in text.splitlines()]


def rebuilt(journal, folder: Path) -> dict[str, str]:
    """The log that is made from nothing but the journal."""
    CallLog(journal, folder / "again" / "calls.log")
    return files(folder / "again")


def test_a_line_says_all_but_what_was_asked_and_answered(journal, tmp_path, clock):
    log = CallLog(journal, tmp_path / "calls.log")
    send(journal)
    judge(journal)
    log.flush()
    (line,) = lines(tmp_path)
    assert line == {
        "time": "2026-11-25T12:00:00+00:00",
        "run": "run-1",
        "key": "k",
        "concept_id": "C-k",
        "attempt": 0,
        "provider": "p",
        "model": "m",
        "served_model": "m-001",
        "status": "answered",
        "finish_reason": "STOP",
        "prompt_tokens": 7,
        "thinking_tokens": 2,
        "completion_tokens": 5,
        "cached_tokens": 1,
        "usd": 3e-8,
        "price": "m@2026-09-20",
        "cumulative_usd": 3e-8,
        "latency_s": 0.25,
        "verdict": "accepted",
    }
    assert SECRET not in files(tmp_path)["calls_20261125.log"]
    assert "Pond" not in files(tmp_path)["calls_20261125.log"]


def test_every_kind_of_end_has_a_line_and_the_sum_is_what_the_journal_is_charged(journal, tmp_path, clock):
    begin = {"provider": "p", "model": "m", "attempt": 0, "reserved_nanousd": 100}
    send(journal, "a", 30)
    journal.end_send(journal.begin_send("b", concept_id="B", **begin), End("rate_limited", 0, latency_s=0.1))
    journal.end_send(journal.begin_send("c", concept_id="C", **begin), End("timeout", None))
    error = ProviderError("No.", "Do.", fault="bad_answer")
    journal.record("d", journal.begin_send("d", concept_id="D", **begin), error, End("bad_answer", 0))
    journal.begin_send("e", concept_id="E", **begin)
    log = CallLog(journal, tmp_path / "calls.log")
    assert [line["status"] for line in lines(tmp_path)] == ["answered", "rate_limited", "timeout", "bad_answer"]
    journal.close_doubtful()
    log.flush()
    found = lines(tmp_path)
    assert [(line["status"], line["usd"], line.get("reserved_usd")) for line in found] == [
        ("answered", 3e-8, None),
        ("rate_limited", 0.0, None),
        ("timeout", None, 1e-7),
        ("bad_answer", 0.0, None),
        ("in_doubt", None, 1e-7),
    ]
    assert [line["cumulative_usd"] for line in found] == [3e-8, 3e-8, 1.3e-7, 1.3e-7, 2.3e-7]
    assert journal.charged_nanousd() == 230
    assert files(tmp_path) == rebuilt(journal, tmp_path)


def test_lines_are_written_every_so_many_ends_and_at_the_flush(journal, tmp_path, clock):
    log = CallLog(journal, tmp_path / "calls.log", every=3)
    for number in range(5):
        send(journal, str(number))
        log.note()
    assert len(lines(tmp_path)) == 3
    log.flush()
    assert len(lines(tmp_path)) == 5
    log.flush()
    assert len(lines(tmp_path)) == 5
    assert files(tmp_path) == rebuilt(journal, tmp_path)


def test_each_day_has_a_file_and_the_sum_goes_on(journal, tmp_path, clock):
    log = CallLog(journal, tmp_path / "calls.log")
    send(journal, "a", 30)
    log.flush()
    clock("2026-11-26")
    send(journal, "b", 20)
    send(journal, "c", 10)
    log.flush()
    assert sorted(files(tmp_path)) == ["calls_20261125.log", "calls_20261126.log"]
    assert [line["cumulative_usd"] for line in lines(tmp_path)] == [3e-8, 5e-8, 6e-8]
    assert files(tmp_path) == rebuilt(journal, tmp_path)


@pytest.mark.parametrize("damage", ["deleted", "truncated", "torn", "longer", "garbage"])
def test_a_log_that_was_damaged_is_rebuilt_byte_for_byte(journal, tmp_path, clock, damage):
    log = CallLog(journal, tmp_path / "calls.log")
    for number in range(6):
        send(journal, str(number))
    log.flush()
    whole = files(tmp_path)
    path = tmp_path / "calls_20261125.log"
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        damaged = {"truncated": b"", "torn": data[:-20], "longer": data + b"{}\n", "garbage": b"\xff\x00" + data}
        path.write_bytes(damaged[damage])
    assert CallLog(journal, tmp_path / "calls.log").rebuild() == []  # it was rebuilt on opening
    assert files(tmp_path) == whole


def test_a_log_that_is_right_is_not_written_again(journal, tmp_path, clock):
    send(journal)
    log = CallLog(journal, tmp_path / "calls.log")
    before = (tmp_path / "calls_20261125.log").stat().st_mtime_ns
    assert log.rebuild() == []
    assert (tmp_path / "calls_20261125.log").stat().st_mtime_ns == before
    send(journal, "b")
    assert log.rebuild() == [tmp_path / "calls_20261125.log"]
    log.flush()
    assert len(lines(tmp_path)) == 2


def test_a_call_that_is_found_again_rewrites_the_line_that_was_in_doubt(journal, tmp_path, clock):
    journal.begin_send("k", concept_id="C", provider="p", model="m", attempt=0, reserved_nanousd=100)
    journal.close_doubtful()
    log = CallLog(journal, tmp_path / "calls.log")
    assert lines(tmp_path)[0]["status"] == "in_doubt"
    clock("2026-11-26")
    send(journal, "k", 40, bought_before=True)
    log.flush()
    assert [(line["status"], line["usd"], line["cumulative_usd"]) for line in lines(tmp_path)] == [
        ("found_again", 4e-8, 4e-8),
        ("answered", 0.0, 4e-8),
    ]
    assert files(tmp_path) == rebuilt(journal, tmp_path)


def test_an_answer_that_is_judged_otherwise_later_is_so_in_the_log(journal, tmp_path, clock):
    """A second run with another minimum, or after a kill between answer and verdict, judges what is journalled."""
    send(journal)
    judge(journal, verdict="score_below_minimum")
    journal.write_verdicts()
    log = CallLog(journal, tmp_path / "calls.log")
    assert lines(tmp_path)[0]["verdict"] == "score_below_minimum"
    judge(journal, verdict="accepted", again=True)
    log.flush()
    assert lines(tmp_path)[0]["verdict"] == "accepted"
    assert files(tmp_path) == rebuilt(journal, tmp_path)
