"""Progress as people see it."""

import re

import pytest

from po_distill import progress as module
from po_distill.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; every advance is shown."""
    now = [100.0]
    monkeypatch.delenv("PO_DISTILL_QUIET", raising=False)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_PLAIN_INTERVAL_S", 0.0)
    return now


def test_a_line_says_how_far_it_is_and_what_is_left(clock, capsys):
    with progress("Counting", 10, "rows") as advance:
        clock[0] += 4
        advance(2, note="fast")
    assert capsys.readouterr().err.splitlines()[0] == "Counting: 2/10 rows (4 s, 16 s left)  fast"


def test_what_an_earlier_run_did_counts_but_does_not_shorten_what_is_left(clock, capsys):
    with progress("training", 100, "steps", done=60) as advance:
        advance(0)
        clock[0] += 20
        advance(10)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "training: 60/100 steps (0 s)"
    assert second == "training: 70/100 steps (20 s, 60 s left)"


def test_a_bar_begins_where_an_earlier_run_ended(clock, monkeypatch, capsys):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    with progress("training", 100, "steps", done=60) as advance:
        advance(10)
    assert re.search(r"70(\.0)?/100", capsys.readouterr().err)


def test_quiet_shows_nothing(clock, monkeypatch, capsys):
    monkeypatch.setenv("PO_DISTILL_QUIET", "1")
    with progress("Counting", 10, "rows") as advance:
        advance(2)
    assert capsys.readouterr().err == ""
