import re
import subprocess
import sys
from html.parser import HTMLParser

from reports import HOSTILE, example_completions, hostile, report_of

from po_distill.reporting.html import render_html

_VOID = {"meta", "wbr", "br", "path", "use", "rect", "image", "line"}


class Outline(HTMLParser):
    """Tags and text of a page; fails on a tag that is closed out of turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
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
        self.text += data

    def ids(self):
        return [attrs["id"] for _, attrs in self.tags if "id" in attrs]


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere():
    given = example_completions()
    page = render_html(report_of(given), given)
    outline = Outline(page)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action"):
                assert value.startswith("#")
            assert not name.startswith("on")
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(outline.ids()) == len(set(outline.ids()))


def test_text_of_other_people_is_shown_as_it_is_and_does_nothing():
    report, given = hostile()
    outline = Outline(render_html(report, given))
    assert not {"script", "img", "a"} & {tag for tag, _ in outline.tags}
    assert outline.text.count(HOSTILE) >= 4
    assert "kind<img src=x onerror=y>|" in outline.text


def test_every_case_can_be_opened_and_read():
    given = example_completions()
    outline = Outline(render_html(report_of(given), given))
    assert [tag for tag, _ in outline.tags].count("details") == 7
    assert "Pond number 3" in outline.text
    assert "no fence" in outline.text
    without = Outline(render_html(report_of(given)))
    assert [tag for tag, _ in without.tags].count("details") == 7
    assert "no fence" not in without.text


def test_the_plots_name_themselves_to_a_screen_reader_and_follow_the_page_s_colours():
    outline = Outline(render_html(report_of(example_completions())))
    plots = [attrs for tag, attrs in outline.tags if tag == "svg"]
    assert len(plots) == 3
    ids = set(outline.ids())
    for plot in plots:
        assert plot["role"] == "img"
        assert set(plot["aria-labelledby"].split()) <= ids
        assert "viewbox" in plot
        assert "width" not in plot
    assert "student, spring: 3 of 4" in outline.text
    assert "student: median 0.016 s" in outline.text


def test_no_colour_of_a_plot_is_fixed():
    page = render_html(report_of(example_completions()))
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        texts = re.findall(r"<text[^>]*>", svg)
        assert texts
        assert all("currentColor" in text for text in texts)


def test_equal_reports_are_equal_pages():
    given = example_completions()
    assert render_html(report_of(given), given) == render_html(report_of(given), given)


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
