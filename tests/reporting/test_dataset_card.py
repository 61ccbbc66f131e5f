import os
import re
from pathlib import Path

import yaml
from checkups import HOSTILE, dataset, digest, hostile_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from po_distill.records import InputFile
from po_distill.reporting.dataset_card import render_card

SNAPSHOT = Path(__file__).parent / "snapshots" / "dataset_card.md"


def parts(card: str) -> tuple[dict, str]:
    """Front matter and body, taken apart by the pattern that the Hub's own library uses."""
    found = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))", card)
    return yaml.safe_load(found[2]), card[found.end() :]


def html_of(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def test_the_card_is_as_it_was():
    """After a wanted change: PO_DISTILL_UPDATE_SNAPSHOTS=1 pytest, and read the difference."""
    card = render_card(dataset(), "product_owner")
    if os.environ.get("PO_DISTILL_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(card, encoding="utf-8")
    assert card == SNAPSHOT.read_text(encoding="utf-8")


def test_the_head_names_the_splits_from_the_card_s_folder():
    head, _ = parts(render_card(dataset(), "product_owner"))
    assert head["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": "po.jsonl"},
                {"split": "validation", "path": "po.validation.jsonl"},
                {"split": "test", "path": "po.test.jsonl"},
            ],
        }
    ]
    assert head["language"] == ["en"]
    assert head["license"] == "unknown"
    assert head["size_categories"] == ["n<1K"]


def test_a_language_that_is_not_known_is_not_in_the_head():
    head, body = parts(render_card(dataset(languages={"unknown": 113}), "r"))
    assert "language" not in head
    assert "| unknown | 113 | 100.0 % |" in body


def test_a_split_without_rows_is_not_in_the_head_and_the_card_says_so():
    card = render_card(dataset(counts={"train": 113, "validation": 0, "test": 0}), "r")
    head, body = parts(card)
    assert [file["split"] for file in head["configs"][0]["data_files"]] == ["train"]
    assert "Without rows, and so not in the head of this card: validation, test." in body
    assert "| validation | po.validation.jsonl | 0 |" in body


def test_a_path_is_no_pattern():
    card = render_card(dataset(paths={"train": "a/v[1]*.jsonl", "validation": "a/v.jsonl", "test": "a/t.jsonl"}), "r")
    assert parts(card)[0]["configs"][0]["data_files"][0]["path"] == "v[[]1][*].jsonl"
    assert '"train": "v[[]1][*].jsonl"' in card
    assert "po-distill train --data 'v[1]*.jsonl'" in card


def test_size_classes_are_the_hub_s():
    def size(rows: int) -> str:
        return parts(render_card(dataset(counts={"train": rows}), "r"))[0]["size_categories"][0]

    assert [size(n) for n in (999, 1_000, 99_999, 1_000_000, 10**9)] == [
        "n<1K",
        "1K<n<10K",
        "10K<n<100K",
        "1M<n<10M",
        "100M<n<1B",
    ]


def test_the_counts_add_up():
    rows = re.findall(
        r"^\| \w+ \| (\d+) \|$", render_card(dataset(missing={}), "r").split("## Inputs")[1], re.MULTILINE
    )
    assert sum(map(int, rows)) == 359


def test_what_is_not_known_is_left_out_or_said():
    bare = dataset(
        contract=None, contracts={}, tiers={}, languages={}, sources=(), held_out=(), settings={}, missing={}, also={}
    )
    _, body = parts(render_card(bare, "r"))
    assert "under which contract is not known" in body
    assert "canonical form" not in body
    headings = re.findall(r"^#+ (.*)", body, re.MULTILINE)
    assert headings == [
        "Dataset for the role r",
        "Rows",
        "By class of the answer",
        "Inputs",
        "Use",
        "Prompt contract",
        "Licence",
    ]


def test_text_of_other_people_is_shown_as_it_is_and_does_nothing():
    _, body = parts(render_card(hostile_dataset(), HOSTILE))
    page = html_of(body)
    plain = html_of(parts(render_card(dataset(), "r"))[1])
    for tag in ("<script", "<a ", "<img", "<strong", "<em>"):
        assert tag not in page
    for tag in ("<h1>", "<h2>", "<table>", "<details>", "</details>", "<pre>", "<hr"):
        assert page.count(tag) == plain.count(tag)
    assert page.count("alert(1)") > 10
    assert "\x1b" not in page


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_text_leaves_head_and_tables_whole(text):
    card = render_card(
        dataset(
            paths={"train": f"a/{text}", "validation": f"a/v{text}", "test": f"a/t{text}"},
            labels={text: 113},
            rejected={text: 246},
            settings={text: text},
            sources=(InputFile(path=text, digest=digest("a"), rows=1),),
            po_distill=text,
        ),
        text,
    )
    card.encode("utf-8")
    head, body = parts(card)
    assert [file["split"] for file in head["configs"][0]["data_files"]] == ["train", "validation", "test"]
    page = html_of(body)
    assert page.count("<h1>") == 1
    assert page.count("<table>") == html_of(parts(render_card(dataset(), "r"))[1]).count("<table>")
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        assert len({row.count("<t") for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)}) == 1
