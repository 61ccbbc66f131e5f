import os
import re
from pathlib import Path

from markdown_it import MarkdownIt
from reports import example_completions, hostile, report_of

from po_distill.reporting.markdown import render_markdown, worst_cases

SNAPSHOT = Path(__file__).parent / "snapshots" / "report.md"


def html_of(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def test_the_report_is_as_it_was():
    """After a wanted change: PO_DISTILL_UPDATE_SNAPSHOTS=1 pytest, and read the difference."""
    text = render_markdown(report_of(example_completions()))
    if os.environ.get("PO_DISTILL_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")


def test_every_table_is_one_for_a_markdown_reader_too():
    markdown = render_markdown(report_of(example_completions()))
    tables = len(re.findall(r"^\| -", markdown, re.MULTILINE))
    assert html_of(markdown).count("<table>") == tables == 11


def test_text_of_other_people_is_shown_as_it_is_and_does_nothing():
    report, _ = hostile()
    page = html_of(render_markdown(report))
    assert "<script" not in page
    assert "<img" not in page
    assert "<a " not in page
    assert "<strong>b" not in page
    assert "<code>" not in page
    assert page.count("<h1>") == 1
    assert "\x1b" not in page
    assert "alert(1)" in page
    plain = html_of(render_markdown(report_of(example_completions())))
    assert page.count("<table>") == plain.count("<table>")
    for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL):
        assert row.count("</t") - 1 in range(2, 9)


def test_a_stand_in_is_called_one():
    text = render_markdown(report_of(example_completions()))
    assert "teacher (stand-in)" in text
    assert "rules answered in place of a model (teacher)" in text


def test_the_cases_to_read_first_are_invalid_then_of_the_wrong_class_then_weak():
    candidate, cases = worst_cases(report_of(example_completions()))
    assert candidate.name == "student"
    assert [case.concept_id for case in cases[:4]] == ["H-00005", "H-00001", "H-00002", "H-00000"]


def test_without_planted_classes_there_are_no_tables_about_them():
    blind = {
        name: [c.model_copy(update={"concept": c.concept.model_copy(update={"planted_label": None})}) for c in found]
        for name, found in example_completions().items()
    }
    text = render_markdown(report_of(blind, artifacts={}, labels={"not planted": 7}))
    assert "per class" not in text
    assert "| Verdict balanced accuracy | – | – | – |" in text
    assert "## Artifacts" not in text
    assert "| not judged |" in text
