import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from po_distill.artifacts import write_jsonl
from po_distill.errors import InputError
from po_distill.records import Rejection
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.source_rows import ConceptFile, Recorded, has_answers, read_answers, read_concepts

ROLE = ProductOwnerRole()
CONCEPT = ROLE.generate_concepts(1, seed=6)[0]
PLAIN = {"concept": CONCEPT.concept, "requirements_yaml": CONCEPT.requirements_yaml}
TEXT = ROLE.answer_by_rules(CONCEPT)
VISION, REVIEW = (part.split("\n", 1)[1] for part in TEXT.rstrip("`").split("```yaml ")[1:])
VISION = VISION.replace("```", "")


@pytest.mark.parametrize(
    "row",
    [
        CONCEPT.model_dump(mode="json"),
        PLAIN | {"concept_id": CONCEPT.concept_id, "tier": CONCEPT.tier},
        {"concept_id": CONCEPT.concept_id, "input": PLAIN, "metadata": {}},
        {"input": PLAIN | {"concept_id": CONCEPT.concept_id}},
    ],
)
def test_a_concept_is_read_in_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    write_jsonl(tmp_path / "c.jsonl", [row])
    (found,) = read_concepts(tmp_path / "c.jsonl", ROLE)
    assert (found.concept_id, found.concept, found.requirements_yaml) == (
        CONCEPT.concept_id,
        CONCEPT.concept,
        CONCEPT.requirements_yaml,
    )
    assert not has_answers(tmp_path / "c.jsonl", ROLE)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ROLE.render(CONCEPT)[-1].content, "response": TEXT},
        PLAIN | {"concept_id": "x", "response": TEXT},
        PLAIN | {"teacher_product_vision": VISION, "teacher_product_owner_review": REVIEW, "score": 0.9},
        {"input": PLAIN, "output": {"product_vision": VISION, "product_owner_review": REVIEW}, "score": 0.9},
        PLAIN | {"vision_yaml": VISION, "review_yaml": REVIEW},
        {
            "concept": CONCEPT.model_dump(mode="json"),
            "prompt": [],
            "completion": [{"role": "assistant", "content": TEXT}],
        },
    ],
)
def test_an_answer_is_read_in_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert has_answers(tmp_path / "a.jsonl", ROLE)
    (found,) = read_answers(tmp_path / "a.jsonl", ROLE)
    assert isinstance(found, Recorded)
    assert found.concept.concept == CONCEPT.concept
    assert ROLE.parse(found.text).documents == ROLE.parse(TEXT).documents


def test_rows_without_concept_or_answer_are_rejected_with_their_line(tmp_path: Path) -> None:
    rows = [PLAIN, {"prompt": "Hello", "response": "x"}, {"response": "x"}, PLAIN | {"response": TEXT}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    found = list(read_answers(tmp_path / "a.jsonl", ROLE))
    reasons = [(item.where[-1], item.reason) for item in found if isinstance(item, Rejection)]
    assert reasons == [("1", "no_answer"), ("2", "no_concept"), ("3", "no_concept")]
    assert len(list(read_answers(tmp_path / "a.jsonl", ROLE, most=2))) == 2


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"requirements_yaml": "a: 1"}, "line 1: 'concept' is missing"),
        ({"concept": "x", "requirements_yaml": 7}, "line 1: 'requirements_yaml' is missing, empty or not text"),
        ({"concept": "x", "requirements_yaml": "a: ["}, "line 1: the requirements of .* not YAML"),
        ({"concept": "x", "requirements_yaml": "[" * 99}, "nests deeper"),
    ],
)
def test_a_concept_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    write_jsonl(tmp_path / "c.jsonl", [row])
    with pytest.raises(InputError, match=says):
        read_concepts(tmp_path / "c.jsonl", ROLE)


def test_an_id_that_is_used_twice_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [CONCEPT, CONCEPT])
    with pytest.raises(InputError, match=r"line 2: .* used twice"):
        read_concepts(tmp_path / "c.jsonl", ROLE)
    assert len(ConceptFile(tmp_path / "c.jsonl", ROLE, most=1)) == 1


def test_concepts_that_are_to_be_kept_are_read_beyond_the_cut(tmp_path: Path) -> None:
    rows = [{**PLAIN, "concept_id": f"C-{n}"} for n in range(6)]
    write_jsonl(tmp_path / "c.jsonl", [*rows[:4], {"input": rows[4]}, {"concept_id": "C-9"}])
    concepts = ConceptFile(tmp_path / "c.jsonl", ROLE, most=2, keep={"C-1", "C-3", "C-4"})
    assert [concept.concept_id for concept in concepts] == ["C-0", "C-1", "C-3", "C-4"]
    assert len(concepts) == 4


def test_a_broken_line_is_refused_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps(PLAIN) + "\n{\n")
    with pytest.raises(InputError, match="line 2"):
        read_concepts(tmp_path / "c.jsonl", ROLE)


# --- files that are gone through row by row -----------------------------------------------------


def test_a_concept_file_is_gone_through_as_often_as_one_likes_and_knows_its_length(tmp_path: Path) -> None:
    concepts = ROLE.generate_concepts(12, seed=3)
    write_jsonl(tmp_path / "c.jsonl", concepts)
    opened = ConceptFile(tmp_path / "c.jsonl", ROLE)
    assert len(opened) == 12
    assert list(opened) == list(opened) == concepts == read_concepts(tmp_path / "c.jsonl", ROLE)
    first, second = iter(opened), iter(opened)
    assert [next(first), next(second)] == [concepts[0]] * 2


def test_a_concept_file_reads_only_so_many_and_no_row_behind_them(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n" + json.dumps(PLAIN) + "\n\n{broken\n")
    opened = ConceptFile(tmp_path / "c.jsonl", ROLE, most=1)
    assert len(opened) == len(list(opened)) == 1
    write_jsonl(tmp_path / "d.jsonl", ROLE.generate_concepts(3, seed=1))
    assert len(ConceptFile(tmp_path / "d.jsonl", ROLE, most=99)) == 3


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"concept": "x"}, "line 2: 'requirements_yaml' is missing"),
        ({"concept": "x", "requirements_yaml": "[a]"}, "line 2: the requirements of .* not a YAML mapping"),
        (PLAIN, r"line 2: the concept_id 'row-\w+' is used twice"),
    ],
)
def test_a_concept_file_is_checked_whole_before_its_first_row_is_used(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    write_jsonl(tmp_path / "c.jsonl", [PLAIN, row])
    with pytest.raises(InputError, match=says):
        ConceptFile(tmp_path / "c.jsonl", ROLE)


def test_a_concept_file_of_many_rows_holds_none_of_them(tmp_path: Path) -> None:
    text = CONCEPT.model_dump(mode="json")
    write_jsonl(
        tmp_path / "c.jsonl", (text | {"concept_id": f"C-{n}", "metadata": {"x": "y" * 2000}} for n in range(2000))
    )
    tracemalloc.start()
    try:
        opened = ConceptFile(tmp_path / "c.jsonl", ROLE)
        assert sum(1 for _ in opened) == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_500_000  # the file has over four million bytes
