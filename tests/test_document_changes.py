from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from po_distill.document_changes import all_text, item_changes, likeness

TEXTS = st.text(alphabet="ab c", max_size=8)
DOCUMENTS = st.dictionaries(
    st.sampled_from(["vision", "review"]),
    st.dictionaries(
        st.sampled_from(["summary", "items"]), st.one_of(TEXTS, st.lists(TEXTS, max_size=5), st.integers())
    ),
)


def said(reference, candidate) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for change in item_changes({"d": reference}, {"d": candidate}):
        found.setdefault(change.change, []).append(
            f"{change.path}: {change.reference or ''} -> {change.candidate or ''}"
        )
    return found


def test_items_are_paired_by_what_they_say_wherever_they_stand():
    found = said(
        {"actions": ["Add a requirement for map views", "Remove FR002", "Ask the sponsor"]},
        {"actions": ["Remove FR002", "Add one requirement for map views", "Buy a boat"]},
    )
    assert found == {
        "reworded": ["d.actions: Add a requirement for map views -> Add one requirement for map views"],
        "same": ["d.actions: Remove FR002 -> "],
        "missing": ["d.actions: Ask the sponsor -> "],
        "added": ["d.actions:  -> Buy a boat"],
    }


def test_a_lone_text_that_is_another_one_is_reworded_and_a_time_says_nothing():
    found = said(
        {"status": "aligned", "at": "2026-01-01T00:00:00Z", "list": {"gaps": []}},
        {"status": "misaligned", "at": "2025-01-01T00:00:00Z", "list": {"gaps": ["x"]}},
    )
    assert found == {"reworded": ["d.status: aligned -> misaligned"], "added": ["d.list.gaps:  -> x"]}


def test_the_same_item_twice_is_missing_once_where_it_is_said_once():
    assert said({"a": ["x y", "x y"]}, {"a": ["x y"]}) == {"same": ["d.a: x y -> "], "missing": ["d.a: x y -> "]}


@given(DOCUMENTS)
def test_a_document_is_the_same_as_itself(document):
    assert {change.change for change in item_changes(document, document)} <= {"same"}


@given(DOCUMENTS, DOCUMENTS)
def test_every_item_of_either_document_is_told_once(ours, theirs):
    changes = item_changes(ours, theirs)
    counts = Counter(change.change for change in changes)
    held = [len([line for line in all_text(document).split("\n") if line]) for document in (ours, theirs)]
    assert counts["same"] + counts["reworded"] + counts["missing"] == held[0]
    assert counts["same"] + counts["reworded"] + counts["added"] == held[1]


@given(TEXTS, TEXTS)
def test_likeness_is_the_same_either_way_and_whole_for_equal_texts(one, other):
    assert likeness(one, other) == likeness(other, one)
    assert 0.0 <= likeness(one, other) <= 1.0
    assert likeness(one, one) == 1.0
