import io

from reports import example_completions, hostile, report_of
from rich.console import Console

from po_distill.reporting.table import print_report


def printed(report, **settings) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=bool(settings), **settings)
    print_report(report, console)
    return console.file.getvalue()


def test_the_table_and_the_verdict_are_printed():
    text = printed(report_of(example_completions()))
    assert "haiku: 7 held-out cases" in text
    assert "0.86 (6 of 7)" in text
    assert "(stand-in)" in text
    assert "The student is accepted." in text
    assert "passed  the student's metric" in text


def test_colours_say_what_passed_and_what_failed():
    given = example_completions()
    coloured = printed(report_of(given), color_system="standard", no_color=False)
    assert "\x1b[32mpassed" in coloured
    assert "\x1b[31m" not in coloured
    given["base"], given["student"] = given["student"], given["base"]
    coloured = printed(report_of(given), color_system="standard", no_color=False)
    assert "\x1b[31mfailed" in coloured
    assert "\x1b[31m0.1" in coloured or "\x1b[31m 0.1" in coloured or "\x1b[31m         0.1" in coloured


def test_text_of_other_people_cannot_colour_or_break_the_terminal():
    report, _ = hostile()
    assert "\x1b" not in printed(report.model_copy(update={"role": "[red]x[/red]\x1b[2J"}))
