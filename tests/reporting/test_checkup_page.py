import re
import subprocess
import sys
from pathlib import Path

from checkups import HOSTILE, hostile, sound, unfit
from hypothesis import given, settings
from hypothesis import strategies as st
from test_html import Outline

from po_distill.records import RuleFinding
from po_distill.reporting.checkup_page import render_checkup


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere():
    for page in (render_checkup(unfit()), render_checkup(sound())):
        outline = Outline(page)
        assert not {"script", "link", "img", "iframe", "a"} & {tag for tag, _ in outline.tags}
        for _, attributes in outline.tags:
            for name, value in attributes.items():
                if name in ("src", "href", "xlink:href", "action"):
                    assert value.startswith("#")
                assert not name.startswith("on")
        assert not re.search(r"@import|url\((?!#)", page)
        assert len(outline.ids()) == len(set(outline.ids()))


def test_text_of_other_people_is_shown_as_it_is_and_does_nothing():
    page = render_checkup(hostile(), min_score=0.85)
    outline = Outline(page)
    assert not {"script", "img", "a"} & {tag for tag, _ in outline.tags}
    shown = HOSTILE.replace("\n", " ").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert outline.text.count(shown) >= 12
    assert "<title>Checkup of a&lt;b</title>" in render_checkup(sound(path="x/a<b"))
    assert page.encode("utf-8")  # half a character could not be written
    assert "\x1b" not in page


@settings(max_examples=12, deadline=None)
@given(st.text(max_size=40))
def test_any_text_leaves_the_page_well_formed(text):
    rule = RuleFinding(rule=text, rows=1, detail=text, fix=text, where=(text,))
    found = unfit(rules=(rule,), path=text, accepted_labels={text: 205}, lengths=None, lengths_missing=f"no {text}")
    outline = Outline(render_checkup(found))
    tags = [tag for tag, _ in outline.tags]
    assert tags.count("li") == 1
    assert tags.count("h2") == 10


def test_the_verdict_stands_first_with_the_rules_that_are_broken():
    outline = Outline(render_checkup(unfit()))
    beginning = outline.text[outline.text.index("Checkup of a dataset") :][:300]
    assert "The dataset is not fit for training: 2 rules are broken (rare_class, leaked_rows)." in beginning
    assert "359 rows = 205 accepted + 154 rejected." in beginning
    states = re.findall(r'<li class="(\w+)"><b class="([\w-]+)">(\w+)</b>', render_checkup(unfit()))
    assert states == [
        ("broken", "failed", "broken"),
        ("broken", "failed", "broken"),
        ("allowed", "not-judged", "allowed"),
        ("kept", "passed", "kept"),
        ("kept", "passed", "kept"),
    ]


def test_what_to_do_is_said_once_for_all_rules_that_it_mends():
    rule = unfit().rules[3]
    page = render_checkup(unfit(rules=(rule, rule.model_copy(update={"rule": "gate"}))))
    assert "<dt>leaked_<wbr>rows, gate</dt><dd>Build with --held-out data/validation.jsonl" in page
    assert page.count("Build with --held-out") == 1
    assert "What to do" not in render_checkup(sound())


def test_bad_news_has_a_word_beside_its_colour():
    page = render_checkup(unfit())
    assert page.count('<b class="failed">Mind:</b>') == 6
    assert '<b class="failed">rare</b>' in page
    assert "Mind:" not in render_checkup(sound())


def test_the_plots_name_themselves_to_a_screen_reader_with_all_their_figures():
    outline = Outline(render_checkup(unfit()))
    plots = [attrs for tag, attrs in outline.tags if tag == "svg"]
    assert len(plots) == 4
    ids = set(outline.ids())
    for plot in plots:
        assert plot["role"] == "img"
        assert set(plot["aria-labelledby"].split()) <= ids
    assert "accepted: 205 of 359; rejected: too_few_actions: 113 of 359" in outline.text
    assert "misaligned: 0 of 205" in outline.text
    assert "mean 0.900; 0.60 to 0.65: 2" in outline.text
    assert "768 cuts 355 of 359 rows" in outline.text


def test_the_minimum_is_marked_where_it_is_known():
    assert "minimum 0.85" in render_checkup(unfit(), min_score=0.85)
    assert "minimum 0" not in Outline(render_checkup(unfit())).text


def test_no_colour_of_a_plot_is_fixed():
    for svg in re.findall(r"<svg.*?</svg>", render_checkup(unfit(), min_score=0.9), re.DOTALL):
        assert not re.findall(r"#[0-9a-f]{6}\b", svg)
        assert all("currentColor" in text for text in re.findall(r"<text[^>]*>", svg))


def test_equal_checkups_are_equal_pages():
    assert render_checkup(unfit()) == render_checkup(unfit())


def test_every_table_scrolls_in_a_box_of_its_own():
    page = render_checkup(unfit())
    assert page.count("<table") == page.count('<div class="scroll" tabindex="0"><table') == 5


def test_a_plot_of_very_long_rows_and_of_many_reasons_stays_small():
    lengths = unfit().lengths.model_copy(
        update={"histogram": {tokens * 64: 1 for tokens in range(0, 4000, 3)}, "longest": 256_000, "shortest": 10}
    )
    page = render_checkup(unfit(lengths=lengths, rejected={f"reason_{n}": 1 for n in range(154)}))
    assert "rejected: 144 other reasons: 144 of 359" in page
    assert len(page) < 120_000


def test_without_anything_to_draw_there_are_no_plots():
    page = render_checkup(sound(rows=0, accepted=0, labels={}, accepted_labels={}, scores=(), score_mean=None))
    assert "<svg" not in page
    assert "<h2>Classes</h2>" not in page


def test_glyphs_that_the_plot_s_own_font_lacks_are_no_warning(recwarn):
    render_checkup(unfit(accepted_labels={"整合": 205}))
    assert not [str(warning.message) for warning in recwarn]


def test_without_matplotlib_the_page_says_how_to_get_the_plots():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from checkups import unfit\n"
        "from po_distill.reporting.checkup_page import render_checkup\n"
        "print(render_checkup(unfit()))"
    )
    paths = [*sys.path, str(Path(__file__).parent)]
    page = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": ":".join(paths)}, capture_output=True, text=True, check=True
    ).stdout
    assert "pip install &quot;po-distill[report]&quot;" in page
    assert "<svg" not in page
    assert "too_<wbr>few_<wbr>actions" in page


def test_telling_and_rendering_load_matplotlib_only_to_draw():
    code = (
        "import sys, po_distill.reporting.checkup_page, po_distill.reporting.checkup_text\n"
        "sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
