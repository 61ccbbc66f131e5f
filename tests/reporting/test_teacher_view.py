import io
import sys

import pytest

from po_distill.records import TeacherSummary, Usage
from po_distill.reporting import teacher_view as view
from po_distill.reporting.teacher_view import teacher_view, view_lines

SUMMARY = TeacherSummary(
    asked=50,
    answered=48,
    failed={"blocked": 2},
    accepted=45,
    rejected={"blocked": 2, "score_below_minimum": 3},
    labels={"misaligned": 20, "aligned": 25},
    sends=60,
    usage=Usage(prompt_tokens=12_345, completion_tokens=6_789, thinking_tokens=1_000, cost_usd=0.5),
    charged_usd=0.75,
)
NO_SCORES = [0] * 10


def test_the_view_says_how_many_how_well_how_fast_and_how_dear() -> None:
    assert view_lines(SUMMARY, [0, 0, 0, 0, 0, 0, 0, 1, 4, 40], 17, 200, 5.0, 90.0) == {
        "concepts": "50 of 200, 1 min 30 s, about 4 min 30 s left",
        "accepted": "45 (25 aligned, 20 misaligned)",
        "rejected": "5 (2 blocked, 3 score_below_minimum)",
        "scores": "0 \u0020\u0020\u0020\u0020\u0020\u0020\u0020▁▁█ 1",
        "calls": "60 sent, 40 a minute, window 17",
        "tokens": "12,345 in, 6,789 out (1,000 thinking)",
        "cost": "$0.7500 of $5",
    }


def test_what_has_nothing_to_say_is_left_out() -> None:
    assert view_lines(TeacherSummary(asked=0, answered=0), NO_SCORES, 10, None, None, 0.0) == {
        "concepts": "0, 0 s",
        "accepted": "0",
        "calls": "0 sent, 0 a minute, window 10",
    }


def test_calls_from_the_journal_and_in_doubt_are_told() -> None:
    summary = TeacherSummary(asked=3, answered=3, from_journal=3, in_doubt=2)
    lines = view_lines(summary, NO_SCORES, 10, 3, 1.0, 4000.0)
    assert lines["concepts"] == "3 of 3, 1 h 06 min"  # nothing is left
    assert lines["calls"].endswith("3 from the journal")
    assert lines["in doubt"] == "2 calls of a killed run"
    assert lines["cost"] == "$0.0000 of $1"


def test_the_smallest_count_has_a_bar_and_the_tallest_the_whole_height() -> None:
    bars = view_lines(SUMMARY, [1, 0, 0, 0, 0, 0, 0, 0, 0, 10_000], 1, None, None, 1.0)["scores"][2:-2]
    assert bars == "▁        █"


def test_without_a_terminal_it_says_plain_lines_now_and_then_and_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PO_DISTILL_QUIET", raising=False)
    times = iter([0.0, 0.0, 1.0, 6.0, 6.0, 6.0, 7.0, 8.0, 9.0])
    monkeypatch.setattr(view.time, "monotonic", lambda: next(times))
    with teacher_view(100, None) as show:
        show(SUMMARY.model_copy(update={"asked": 10}), NO_SCORES, 5)  # after a second: not yet
        show(SUMMARY.model_copy(update={"asked": 20}), NO_SCORES, 5)
        show(SUMMARY.model_copy(update={"asked": 30}), NO_SCORES, 5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["Teacher: concepts 20", "Teacher: concepts 30"]
    assert "; accepted 45 (25 aligned, 20 misaligned); rejected 5" in lines[0]


def test_an_interrupted_run_still_says_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PO_DISTILL_QUIET", raising=False)
    with pytest.raises(KeyboardInterrupt), teacher_view(100, 2.0) as show:
        show(SUMMARY, NO_SCORES, 5)
        raise KeyboardInterrupt
    assert "concepts 50 of 100" in capsys.readouterr().err


def test_when_quiet_nothing_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PO_DISTILL_QUIET", "1")
    with teacher_view(100, None) as show:
        show(SUMMARY, NO_SCORES, 5)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_panel_that_ends_with_the_last_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("PO_DISTILL_QUIET", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with teacher_view(100, 2.0) as show:
        show(SUMMARY, [1] * 10, 5)
    shown = terminal.getvalue()
    assert "50 of 100" in shown
    assert "of $2" in shown
    assert "[" in shown  # a panel moves the cursor
