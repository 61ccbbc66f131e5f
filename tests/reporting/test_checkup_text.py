import io
import os
from pathlib import Path

import pytest
from checkups import change, hostile, sound, unfit
from rich.console import Console

from po_distill.records import RuleFinding
from po_distill.reporting.checkup_lines import class_rows, headline, length_rows, percent, reasons, shown_place
from po_distill.reporting.checkup_text import tell_change, tell_checkup

SNAPSHOT = Path(__file__).parent / "snapshots" / "checkup.txt"


def told(found, tell=tell_checkup, **settings) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, force_terminal=bool(settings), **settings)
    tell(found, console)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def test_a_checkup_is_told_as_it_was():
    """After a wanted change: PO_DISTILL_UPDATE_SNAPSHOTS=1 pytest, and read the difference."""
    text = told(unfit())
    if os.environ.get("PO_DISTILL_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")


def test_it_goes_to_standard_output_where_no_console_is_given(capsys: pytest.CaptureFixture[str]):
    tell_checkup(sound())
    assert capsys.readouterr().out.startswith("The dataset is fit for training: every rule is kept.\n")


def test_the_verdict_stands_first_and_last():
    lines = told(unfit()).splitlines()
    assert lines[0].startswith("The dataset is not fit for training: 2 rules are broken")
    assert any(line.startswith("The dataset is not fit") for line in lines[-2:])


def test_every_line_but_those_to_copy_fits_into_80_columns():
    assert {line[:8] for line in told(unfit()).splitlines() if len(line) > 80} == {"Next: po", "    Buil"}


def test_what_to_do_is_said_once_for_all_rules_that_it_mends():
    rule = unfit().rules[3]
    rules = (rule, rule.model_copy(update={"rule": "gate"}))
    text = told(unfit(rules=rules))
    assert text.count("Build with --held-out") == 1
    assert "leaked_rows, gate:\n    Build with --held-out" in text


def test_colours_say_what_is_good_and_what_is_bad():
    bad = told(unfit(), color_system="standard", no_color=False)
    assert "\x1b[1;31mnot fit" in bad
    assert "\x1b[31mbroken" in bad
    assert "\x1b[33mallowed" in bad
    good = told(sound(), color_system="standard", no_color=False)
    assert "\x1b[1;32mfit for training" in good
    assert "\x1b[31mbroken" not in good


def test_bad_news_is_marked_for_those_who_see_no_colour():
    lines = [line.split("  ")[1] for line in told(unfit()).splitlines() if line.startswith("  ! ")]
    assert lines == [
        "! misaligned (rare)",
        "! Contradictions",
        "! Leaks",
        "! Foreign prompts",
        "! Values of last_updated",
        "! Stored scores",
        "! Missing",
    ]
    assert "! misaligned (rare)" in told(unfit())


def test_what_is_well_takes_little_room():
    assert len(told(sound()).splitlines()) < 35
    assert "Duplicates" not in told(sound())
    assert "Contradictions" not in told(sound())
    assert "(rare)" not in told(sound())


def test_that_leaks_were_not_looked_for_is_said():
    assert "Leaks    not looked for: no held-out file was given" in told(sound())
    assert "Leaks    no row is in a held-out file" in told(sound(held_out=unfit().held_out))


def test_why_tokens_were_not_counted_is_said():
    assert "Not counted  mistral-7b-instruct has no tokenizer" in told(sound())
    assert "Tokens" not in told(sound(lengths_missing=None))


def test_the_command_for_what_is_missing_can_be_copied():
    command = unfit().missing_command
    assert f"Next: {command}\n" in told(unfit())
    assert "Next:" not in told(unfit(missing={"aligned": 0}))


def test_no_name_is_cut_to_fit():
    lengths = unfit().lengths.model_copy(update={"cut": {2048: 0}})
    found = unfit(rejected={}, violations={"verdict_contradicts_lists": 3}, lengths=lengths)
    assert "…" not in told(found)
    assert "…" not in told(sound(labels={"x" * 100: 300}))


def test_text_of_other_people_cannot_break_the_terminal():
    text = told(hostile())
    assert "\x1b" not in text
    assert "\ud800" not in text
    assert "alert(1)" in text
    assert "[red]x[/red]" in told(unfit(labels={"[red]x[/red]": 3}))


def test_a_terminal_without_blocks_gets_bars_of_signs():
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    tell_checkup(sound(), Console(file=written, width=80))
    written.flush()
    assert "300  " + "#" * 30 in written.buffer.getvalue().decode("ascii")


def test_rejections_add_up_whatever_else_the_rows_show():
    found = reasons(unfit())
    assert sum(refused for _, refused, _ in found) == 359 - 205
    assert found[0] == ("too_few_actions", 113, 118)
    assert found[-1] == ("wrong_type", 0, 7)
    assert reasons(sound(rejected={"duplicate": 4})) == [("duplicate", 4, 4)]


def test_a_class_is_rare_under_a_tenth_of_the_accepted_rows_and_no_class_is_what_no_answer_may_be():
    rare = {row.label: row.rare for row in class_rows(unfit())}
    assert rare == {"aligned": False, "needs_adjustment": False, "conflicts": False, "misaligned": True}
    at_the_limit = class_rows(sound(accepted=100, accepted_labels={"aligned": 90, "misaligned": 10}))
    assert not any(row.rare for row in at_the_limit)


def test_the_lengths_end_with_the_smallest_that_cuts_none_and_the_usual_one_above():
    assert length_rows(unfit().lengths) == [(512, 359), (768, 355), (1024, 260), (1432, 0), (1536, 0)]
    exact = unfit().lengths.model_copy(update={"longest": 1024, "cut": {512: 2, 1024: 0}})
    assert length_rows(exact) == [(512, 2), (1024, 0)]


def test_the_headline_counts_what_is_broken_and_says_what_was_allowed():
    rule = RuleFinding(rule="leaked_rows", rows=3, detail="d", fix="f")
    assert headline(sound(rules=(rule,), fit=False)) == "not fit for training: 1 rule is broken (leaked_rows)"
    allowed = sound(rules=(rule.model_copy(update={"allowed": True}),))
    assert headline(allowed) == "fit for training, as you allow it: 1 rule is broken (leaked_rows)"


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 5, "0.0 %"),
        (5, 5, "100.0 %"),
        (1, 3, "33.3 %"),
        (1, 100_000, "< 0.1 %"),
        (99_999, 100_000, "> 99.9 %"),
        (0, 0, "–"),
    ],
)
def test_a_share_never_hides_that_something_is_there_or_lacking(part, whole, shown):
    assert percent(part, whole) == shown


def test_places_are_told_without_the_path_of_the_file_that_was_checked():
    assert shown_place("a.jsonl, line 3", "a.jsonl") == "line 3"
    assert shown_place("b.jsonl, line 3", "a.jsonl") == "b.jsonl, line 3"
    assert shown_place("a.jsonl", "a.jsonl") == "a.jsonl"


def test_a_change_says_what_is_new_gone_and_different():
    text = told(change(), tell_change)
    assert "113 rows before, 162 after, 100 in both" in text
    assert "added    50 rows about new prompts: PO-7-00003, PO-7-00009" in text
    assert "removed  1 row about prompts that are gone: PO-7-00001" in text
    assert "misaligned             0     50         +50" in text
    assert "min_score  0.85 -> 0.9" in text
    assert " moved " not in text


def test_a_moved_prompt_and_another_contract_are_bad_news():
    text = told(change(moved=2, contract_changed=True, examples={"moved": ("PO-1",)}), tell_change)
    assert "! moved  2 prompts in another split: PO-1" in text
    assert "! prompt contract" in text


def test_no_change_is_said_in_one_line():
    same = dict.fromkeys(("added", "removed", "changed", "moved"), 0)
    text = told(change(**same, rows_after=113, kept=113, settings={}, labels={}, splits={}, examples={}), tell_change)
    assert text == "v1/po.jsonl -> v2/po.jsonl\nNo difference: 113 rows in both.\n"
