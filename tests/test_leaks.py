"""What is held out is found again in rows that it was copied into, however it was dressed up."""

import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from po_distill.artifacts import read_jsonl, read_records, write_jsonl
from po_distill.near_text import normalised_words
from po_distill.records import Concept, Example, Rejection
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.scoring import list_requirements
from po_distill.source_rows import concept_of
from po_distill.stages.dataset_builder import DatasetBuilder
from po_distill.stages.dataset_doctor import DatasetDoctor

ROLE = ProductOwnerRole()
FIELD_ROWS = Path(
    os.environ.get("PO_DISTILL_FIELD_ROWS", Path(__file__).parents[2] / "shared/data/po_teacher_supervised.jsonl")
)
COPIES = 20

pytestmark = pytest.mark.skipif(not FIELD_ROWS.exists(), reason="the field team's rows are not beside the project")


def field_concepts() -> dict[str, list[int]]:
    """Each prompt, and the lines that it is in."""
    lines = defaultdict(list)
    for number, row in read_jsonl(FIELD_ROWS):
        lines[row["prompt"]].append(number)
    return lines


def dressed_up(chance: random.Random, concept: Concept) -> dict[str, Any]:
    """A copy with other spacing, other case and one requirement in other words."""
    requirement = chance.choice([text for _, text in list_requirements(concept.requirements_yaml)])
    lines = concept.requirements_yaml.split("\n")
    first = next(n for n, line in enumerate(lines) if line.strip().startswith(f"description: {requirement[:20]}"))
    last = next(n for n in range(first + 1, len(lines)) if lines[n].strip().startswith("priority:"))
    lines[first:last] = [lines[first].split(":")[0] + ": People can also set up all of this by themselves."]
    changed = "\n".join(line.replace(": ", ":   ") for line in lines)
    assert [text for _, text in list_requirements(changed)].count(requirement) == 0
    return {
        "concept_id": f"copy of {concept.concept_id}",
        "concept": "  " + concept.concept.swapcase().replace(" ", chance.choice(("  ", "\n", " \t "))),
        "requirements_yaml": changed,
    }


def field_copies(seed: int) -> tuple[list[dict[str, Any]], set[int]]:
    """Copies of some of the field team's concepts, and the lines that these are in."""
    chance, lines = random.Random(seed), field_concepts()
    concepts = {prompt: concept_of({"prompt": prompt}, "a row", ROLE) for prompt in lines}
    # Eight of 177 write their requirements in a form of their own.
    listed = [prompt for prompt, concept in concepts.items() if list_requirements(concept.requirements_yaml)]
    assert len(listed) == 169
    prompts = chance.sample(sorted(listed), COPIES)
    copies = [dressed_up(chance, concepts[prompt]) for prompt in prompts]
    return copies, {number for prompt in prompts for number in lines[prompt]}


def line_of(where: str) -> int:
    return int(where.rsplit(" ", 1)[1])


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The lines of the field team's rows that are refused where nothing is held out, with the reasons."""
    folder = tmp_path_factory.mktemp("nothing_held_out")
    built = DatasetBuilder(near=1).build_from(FIELD_ROWS, folder / "d.jsonl")
    return {line_of(r.where): r.reason for r in read_records(built.rejected_path, Rejection)}


@pytest.mark.parametrize("seed", range(2))
def test_all_copies_are_found_in_the_rows_and_leave_the_dataset(
    tmp_path: Path, refused: dict[int, str], seed: int
) -> None:
    copies, lines = field_copies(seed)
    write_jsonl(tmp_path / "held.jsonl", copies)
    checkup = DatasetDoctor(held_out=[tmp_path / "held.jsonl"]).check(FIELD_ROWS)
    (rule,) = [rule for rule in checkup.rules if rule.rule == "leaked_rows"]
    assert checkup.leaked_rows == checkup.leaked_normalised + checkup.leaked_near >= len(lines)
    assert checkup.leaked_exact == 0
    assert (rule.rows, rule.kept, checkup.fit) == (checkup.leaked_rows, False, False)

    built = DatasetBuilder(held_out=[tmp_path / "held.jsonl"]).build_from(FIELD_ROWS, tmp_path / "d.jsonl")
    gone = {line_of(r.where): r.reason for r in read_records(built.rejected_path, Rejection)}
    repeats = {"duplicate_prompt", "contradictory_prompt"}
    for number in lines:
        # A row that the gate refuses anyway has that reason; every other one is refused as a leak.
        gate = refused.get(number)
        assert gone[number] == (gate if gate and gate not in repeats else "held_out_leak")
    assert "held_out_leak" in gone.values()


@pytest.mark.parametrize("seed", range(4))
def test_all_twenty_copies_are_leaks_where_the_rows_are_held_out(tmp_path: Path, seed: int) -> None:
    copies, _ = field_copies(seed)
    rows = [{**copy, "response": ROLE.answer_by_rules(concept_of(copy, "a row", ROLE))} for copy in copies]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    checkup = DatasetDoctor(held_out=[FIELD_ROWS]).check(tmp_path / "rows.jsonl")
    assert (checkup.rows, checkup.leaked_rows) == (COPIES, COPIES)


def test_a_copy_whose_concept_says_something_else_is_found_by_its_requirements(tmp_path: Path) -> None:
    rows = []
    for prompt in sorted(field_concepts()):
        concept = concept_of({"prompt": prompt}, "a row", ROLE)
        if not list_requirements(concept.requirements_yaml):
            continue
        copy = {"concept": f"{concept.concept} Soon.", "requirements_yaml": concept.requirements_yaml}
        rows.append({**copy, "response": ROLE.answer_by_rules(concept_of(copy, "a row", ROLE))})
    write_jsonl(tmp_path / "rows.jsonl", rows)
    checkup = DatasetDoctor(held_out=[FIELD_ROWS]).check(tmp_path / "rows.jsonl")
    assert (checkup.leaked_near, checkup.leaked_rows) == (len(rows), len(rows))


def test_no_concept_is_in_two_splits(tmp_path: Path) -> None:
    built = DatasetBuilder(test_share=0.3, validation_share=0.2, near=1, min_score=0.0).build_from(
        FIELD_ROWS, tmp_path / "d.jsonl"
    )
    splits = defaultdict(set)
    for split, path in built.paths.items():
        for example in read_records(path, Example):
            assert example.concept is not None
            splits[" ".join(normalised_words(example.concept.concept))].add(split)
    assert min(built.counts.values()) > 0
    assert all(len(found) == 1 for found in splits.values())


def test_unlike_concepts_are_no_leaks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "held.jsonl", ROLE.generate_concepts(200, seed=3))
    assert DatasetDoctor(held_out=[tmp_path / "held.jsonl"]).check(FIELD_ROWS).leaked_rows == 0
