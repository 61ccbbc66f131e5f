from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from po_distill.reporting.foreign_text import fenced, for_markdown, for_page, for_terminal, one_line


@given(st.text())
def test_text_for_a_terminal_is_one_line_of_printable_characters(text):
    assert for_terminal(text, longest=None).isprintable()


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("C", "Z"))))
def test_text_that_can_be_shown_is_not_changed(text):
    assert for_terminal(text, longest=None) == text


@given(st.text(), st.integers(1, 50))
def test_text_is_cut_to_the_length_that_was_asked_for(text, longest):
    assert len(one_line(text, longest)) <= longest


def test_what_cannot_be_printed_is_seen_to_be_there():
    assert for_terminal("a\x1b[31mb\u202ec") == "a?[31mb?c"
    assert for_page("a\x1bb<i>") == "a\ufffdb&lt;i&gt;"
    assert one_line("  two  spaces\nand a line ") == "two  spaces and a line"


@given(st.text(max_size=60))
def test_markdown_shows_the_text_and_nothing_of_it_acts(text):
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(f"x{for_markdown(text)}x")
    assert page.count("<") == 2  # the paragraph
    assert page.startswith("<p>x")


@given(st.text(alphabet="`~\n <>a\x1b\u2028", max_size=60))
def test_nothing_ends_a_code_block_but_its_own_fence(text):
    tokens = MarkdownIt("commonmark", {"html": True}).parse(f"{fenced(text, 'text')}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
