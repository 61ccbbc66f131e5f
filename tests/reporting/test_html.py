import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser

import pytest
from hypothesis import given as any_given
from hypothesis import settings
from hypothesis import strategies as st
from many_cases import many_cases
from markdown_it import MarkdownIt
from reports import HOSTILE, example_completions, hostile, report_of

from po_distill.records import ItemChange
from po_distill.reporting import case_data, case_list
from po_distill.reporting.html import render_html
from po_distill.reporting.markdown import render_markdown

_VOID = {"meta", "wbr", "br", "path", "use", "rect", "image", "line", "link", "input"}
WORST = "</script><script>alert(1)</script><!--<script> \u2028\u2029 \ud800 \x1b \u202e \"' &lt; ]]>"


class Outline(HTMLParser):
    """Tags and text of a page; fails on a tag that is closed out of turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.text += data

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]

    def data(self):
        """What the page embeds of its cases."""
        return {**json.loads(self.scripts[0]), "texts": json.loads(gzip.decompress(base64.b64decode(self.scripts[1])))}

    def code(self):
        """The page's own script."""
        return self.scripts[2]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return many_cases(tmp_path_factory.mktemp("many"), 30)


@pytest.fixture(scope="module")
def page(many):
    return render_html(*many)


@cache
def example_page():
    given = example_completions()
    return render_html(report_of(given), given)


# --- what the page needs, and what it lets others do ------------------------------------------------


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(page):
    for whole in (example_page(), page):
        outline = Outline(whole)
        assert not {"img", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in outline.tags}
        for tag, attributes in outline.tags:
            for name, value in attributes.items():
                if name in ("src", "href", "xlink:href", "action"):
                    assert value.startswith("#") or (tag, value) == ("link", "data:,")
                assert not name.startswith("on")
        assert not re.search(r"@import|url\((?!#)|\beval\(|innerHTML|fetch\(|XMLHttp|new Function", whole)
        assert len(outline.ids()) == len(set(outline.ids()))
        assert whole.encode()


def test_the_policy_forbids_the_network_and_every_script_but_the_page_s_own():
    page = example_page()
    outline = Outline(page)
    policy = next(attrs["content"] for _, attrs in outline.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';")
    assert "require-trusted-types-for 'script'" in policy
    kinds = [attrs.get("type") for tag, attrs in outline.tags if tag == "script"]
    assert kinds == ["application/json", "text/plain", None]
    digest = base64.b64encode(hashlib.sha256(outline.code().encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_text_of_other_people_is_shown_as_it_is_and_does_nothing():
    report, given = hostile()
    outline = Outline(render_html(report, given))
    assert not {"img"} & {tag for tag, _ in outline.tags}
    assert [tag for tag, _ in outline.tags].count("script") == 3
    shown = HOSTILE.replace("\n", " ").replace("\x1b", "\ufffd")
    assert outline.text.count(shown) >= 4
    assert "kind<img src=x onerror=y>|" in outline.text


def test_nothing_that_a_model_answers_ends_the_data_or_is_lost_in_it():
    given = example_completions()
    given["student"][0] = given["student"][0].model_copy(update={"text": WORST})
    page = render_html(report_of(given), given)
    outline = Outline(page)
    assert outline.code() == Outline(example_page()).code()
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", "".join(outline.scripts[:2]))
    data = outline.data()
    shown = data["texts"][data["cases"][[c["id"] for c in data["cases"]].index("H-00000")]["answers"][1]["text"]]
    assert shown == "</script><script>alert(1)</script><!--<script>    \ufffd \ufffd \ufffd \"' &lt; ]]>"


@settings(max_examples=30, deadline=None)
@any_given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_answer_leaves_the_page_well_formed(text):
    given = example_completions()
    given["student"][0] = given["student"][0].model_copy(update={"text": text, "finish": text or "stop"})
    cases = case_list.CaseList(report_of(given), given)
    outline = Outline(cases.render())
    assert case_data.visible(text) in outline.data()["texts"]
    assert [tag for tag, _ in outline.tags].count("details") == 7


# --- verdict and figures ----------------------------------------------------------------------------


def test_the_verdict_stands_on_top_in_words_with_every_rule_its_figure_threshold_and_n(many, page):
    report, _ = many
    text = Outline(page).text
    assert text.index("failed: The student is not accepted by the gate production.") < text.index("Candidates")
    rows = re.findall(r"<tr>.*?</tr>", page[page.index("rules-table") :].split("</table>")[0])[1:]
    assert len(rows) == len(report.verdict.rules) == 9
    for row, rule in zip(rows, report.verdict.rules, strict=True):
        assert f"</span> {rule.outcome}</b>" in row
        assert row.endswith(f"<td>{rule.n}</td></tr>")


def test_an_undecided_verdict_is_called_so():
    given = example_completions()
    report = report_of(given)
    verdict = report.verdict.model_copy(update={"outcome": "undecided", "passed": False})
    outline = Outline(render_html(report.model_copy(update={"verdict": verdict})))
    assert "undecided: The student is undecided: not accepted" in outline.text


def test_a_report_of_0_1_without_rules_shows_its_reasons():
    report = report_of(example_completions())
    verdict = report.verdict.model_copy(update={"rules": (), "reasons": ("failed: too <weak>",), "outcome": None})
    assert "failed: too &lt;weak&gt;" in render_html(report.model_copy(update={"verdict": verdict}))


def test_every_figure_of_the_markdown_s_tables_stands_in_the_page_too(many, page):
    markdown = re.sub(r"## Cases to read first.*?(?=\n## )", "", render_markdown(many[0]), flags=re.DOTALL)
    whole = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    tables = Outline("".join(re.findall(r"<table>.*?</table>", whole, re.DOTALL))).text
    figures = {cell.strip() for cell in tables.splitlines() if re.search(r"\d\.\d", cell)}
    said = re.sub(r"\s+", " ", Outline(page).text)
    assert len(figures) > 80
    assert [figure for figure in figures if figure not in said] == []


def test_every_plot_and_table_of_figures_says_n(page):
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert re.search(r"n = \d+|\d+/\d+", svg)
    outline = Outline(page)
    assert "n = 30 held-out cases" in outline.text
    assert "base n = 30" in outline.text


def test_the_confusion_is_shown_against_the_planted_truth_and_the_reference(page):
    text = Outline(page).text
    assert "Against the planted truth" in text
    assert "Against the teacher's verdicts" in text
    assert text.count("planted \\ answered") == 3
    assert text.count("teacher \\ answered") == 2


def test_the_digests_stand_at_the_foot(many):
    report, given = many
    digest = "sha256:" + "a" * 64
    report = report.model_copy(
        update={"student_digest": digest, "digests": {"gate": "sha256:" + "b" * 64, "cases": "sha256:" + "c" * 64}}
    )
    page = render_html(report, given)
    foot = page[page.index('<footer id="digests">') :]
    for told in (report.contract.digest, digest, "b" * 64, "c" * 64, "File of gate"):
        assert told in foot


# --- cases ------------------------------------------------------------------------------------------


def test_every_case_is_in_the_list_and_in_the_data_those_that_lost_most_first(page):
    outline = Outline(page)
    entries = [attrs["id"] for tag, attrs in outline.tags if tag == "details" and attrs.get("class") == "entry"]
    data = outline.data()
    assert entries == [f"case-{number}" for number in range(30)]
    assert len(data["cases"]) == 30
    lost = [case["answers"][data["judged"]]["lost"] for case in data["cases"]]
    assert lost == sorted(lost, reverse=True)
    assert lost[0] > 0.5
    assert data["candidates"] == ["teacher", "base", "student"]
    assert data["candidates"][data["reference"]] == "teacher"


def test_the_data_hold_each_item_s_change_and_every_answer_once(many, page):
    report, given = many
    data = Outline(page).data()
    case = data["cases"][-1]
    result = next(r for r in report.judged.results if r.concept_id == case["id"])
    kinds = ("same", "reworded", "missing", "added")
    read = [
        (
            data["paths"][path],
            kinds[kind],
            None if ours < 0 else data["texts"][ours],
            None if theirs < 0 else data["texts"][theirs],
        )
        for path, kind, ours, theirs in case["answers"][2]["changes"]
    ]
    assert read == [(c.path, c.change, c.reference, c.candidate) for c in result.changes]
    assert len(data["texts"]) == len(set(data["texts"]))
    answers = {one.text for found in given.values() for one in found}
    assert {case_data.visible(text) for text in answers} <= set(data["texts"])


def test_without_javascript_each_case_opens_and_says_why_it_failed_and_what_differs(many, page):
    report, given = many
    outline = Outline(page)
    result = next(case for case in report.judged.results if case.failure is not None)
    assert f"{result.failure.cause}: {result.failure.detail}" in outline.text
    assert given["student"][0].concept.concept in outline.text
    assert "− product_vision." in outline.text
    assert "~ product_vision." in outline.text
    controls = next(attrs for _, attrs in outline.tags if attrs.get("id") == "controls")
    assert "hidden" in controls  # what only a script could serve is not shown without one
    assert "noscript" in {tag for tag, _ in outline.tags}


def test_every_control_has_a_label_and_the_count_is_told_aloud(page):
    controls = page[page.index('id="controls"') : page.index('id="entries"')]
    fields = re.findall(r"<(?:input|select)\b", controls)
    assert len(fields) == 9
    labels = re.findall(r"<label.*?</label>", controls, re.DOTALL)
    assert sum(len(re.findall(r"<(?:input|select)\b", label)) for label in labels) == 9
    assert 'role="status" aria-live="polite"' in controls
    for name in ("tier:simple", "class:misaligned", "watch:"):
        assert f'value="{name}"' in controls


def test_concepts_that_show_a_finding_are_links_to_their_cases(page):
    links = re.findall(r'<a href="#case-(\d+)"[^>]*>(.*?)</a>', page)
    data = Outline(page).data()
    assert links
    for number, name in links:
        assert data["cases"][int(number)]["id"] == name.replace("<wbr>", "")
    assert re.search(r'data-candidate="2" data-cause="\w+">\d+</a> of 30', page)


def test_without_completions_there_are_figures_and_cases_but_no_answers():
    given = example_completions()
    outline = Outline(render_html(report_of(given)))
    assert [tag for tag, _ in outline.tags].count("details") == 7
    assert all("text" not in answer for case in outline.data()["cases"] for answer in case["answers"])
    assert "no fence" not in outline.text
    assert "Pond number 3" in Outline(example_page()).text


def test_a_report_too_long_for_a_page_says_which_cases_it_left_out(monkeypatch):
    monkeypatch.setattr(case_list, "MOST_CASES", 3)
    given = example_completions()
    outline = Outline(render_html(report_of(given), given))
    assert len(outline.data()["cases"]) == 3
    assert "These are 3 of 7 cases; the other 4 are in the report's data" in outline.text


def test_a_very_long_answer_is_cut_and_says_so():
    shown = case_data.visible("x" * 50_000)
    assert shown.endswith("\n… (10,000 characters more)")
    assert len(shown) < 40_100


def test_a_candidate_that_was_not_asked_a_case_has_a_place_for_it():
    given = example_completions()
    report = report_of({**given, "base": given["base"][:3]})
    data = Outline(render_html(report, given)).data()
    assert sum(case["answers"][0] is None for case in data["cases"]) == 4


def test_changes_that_a_role_s_documents_do_not_have_are_no_fault():
    given = example_completions()
    report = report_of(given)
    case = report.judged.results[0].model_copy(update={"changes": (ItemChange(path="a.b", change="added"),)})
    judged = report.judged.model_copy(update={"results": (case, *report.judged.results[1:])})
    report = report.model_copy(update={"candidates": (report.candidates[0], judged, report.candidates[2])})
    changes = [
        a["changes"] for c in Outline(render_html(report)).data()["cases"] for a in c["answers"] if "changes" in a
    ]
    assert changes == [[[0, 3, -1, -1]]]


# --- plots and size ---------------------------------------------------------------------------------


def test_the_plots_name_themselves_to_a_screen_reader_and_follow_the_page_s_colours(page):
    outline = Outline(page)
    plots = [attrs for tag, attrs in outline.tags if tag == "svg"]
    assert len(plots) == 6  # scores, two differences, slices, classes, time
    ids = set(outline.ids())
    for plot in plots:
        assert plot["role"] == "img"
        assert set(plot["aria-labelledby"].split()) <= ids
        assert "viewbox" in plot
        assert "width" not in plot
    assert re.search(r"student less teacher: mean -0\.\d+ \(the line\), 95 % interval", outline.text)
    small = Outline(example_page())
    assert "student, spring: 3 of 4" in small.text
    assert "student: median 0.016 s, 95 % within 0.0268 s (n = 7)" in small.text


def test_no_colour_of_a_plot_is_fixed(page):
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        texts = re.findall(r"<text[^>]*>", svg)
        assert texts
        assert all("currentColor" in text for text in texts)


def test_a_page_holds_little_beside_what_it_shows(many, page):
    answers = sum(len(one.text) for found in many[1].values() for one in found)
    assert len(page.encode()) < 250_000 + 2.2 * answers


def test_equal_reports_are_equal_pages(many, page):
    assert render_html(*many) == page


def test_without_matplotlib_the_page_says_how_to_get_the_plots():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from reports import example_completions, report_of\n"
        "from po_distill.reporting.html import render_html\n"
        "print(render_html(report_of(example_completions())))"
    )
    page = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True
    ).stdout
    assert "pip install &quot;po-distill[report]&quot;" in page
    assert "<svg" not in page
    assert "Verdict accuracy per class" in page


def test_reporting_loads_matplotlib_only_to_draw():
    code = "import sys, po_distill.stages.evaluator; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_style_and_script_are_in_the_package_and_small():
    from importlib.resources import files

    for name, most in (("report_page.js", 22_000), ("report_page.css", 12_000)):
        found = files("po_distill.reporting").joinpath(name).read_text(encoding="utf-8")
        assert "</" not in found
        assert 1_000 < len(found) < most
