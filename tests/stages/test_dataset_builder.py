import os
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill import DatasetBuilder
from po_distill.artifacts import digest_bytes, read_records
from po_distill.errors import InputError
from po_distill.records import Completion, Concept, Example, Rejection
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.dataset_builder import SPLITS, beside

ROLE = ProductOwnerRole()
CONCEPTS = ROLE.generate_concepts(60, seed=9)
FIELD_ROWS = Path(
    os.environ.get("PO_DISTILL_FIELD_ROWS", Path(__file__).parents[3] / "shared/data/po_teacher_supervised.jsonl")
)


def completion(concept: Concept, text: str | None = None) -> Completion:
    return Completion(
        concept=concept,
        text=ROLE.answer_by_rules(concept) if text is None else text,
        model="rules",
        provider="offline",
        contract_digest=digest_bytes(b""),
        created_at="2026-03-04T05:06:07+00:00",
    )


def rows(path: str) -> list[Example]:
    return list(read_records(path, Example)) if Path(path).stat().st_size else []


def test_every_input_is_a_row_or_a_rejection_with_its_reason(tmp_path: Path) -> None:
    first, second, third, fourth, *rest = CONCEPTS
    sound = ROLE.answer_by_rules
    given_completions = [
        completion(first, "nothing"),
        completion(second, sound(second).replace('status: "', 'status: "un')),
        completion(
            third,
            sound(third).replace('  - "Write acceptance', '  - "See FR777 and write').replace("yaml REVIEW", "yaml"),
        ),
        completion(fourth, sound(fourth)),
        completion(fourth.model_copy(update={"concept_id": "twin"}), sound(fourth).replace("Weekly", "Daily")),
        *(completion(concept) for concept in rest),
    ]
    built = DatasetBuilder(min_score=0.9).build(given_completions, tmp_path / "d.jsonl")
    assert built.inputs == 61 == sum(built.counts.values()) + sum(built.rejected.values())
    assert built.rejected == {"duplicate_prompt": 1, "missing_review": 1, "missing_vision": 1, "status_outside_enum": 1}
    assert sum(built.labels.values()) == sum(built.counts.values()) == 57
    rejections = list(read_records(built.rejected_path, Rejection))
    assert Counter(r.reason for r in rejections) == built.rejected
    assert all(r.where and r.detail for r in rejections)
    assert {name: len(rows(path)) for name, path in built.paths.items()} == built.counts


def test_an_answer_below_the_minimum_is_rejected_with_its_score(tmp_path: Path) -> None:
    poor = (
        ROLE.answer_by_rules(CONCEPTS[0]).split("narrative:")[0]
        + 'narrative: "short but there, so the schema holds"\n```'
    )
    builder = DatasetBuilder(min_score=0.99)
    with pytest.raises(InputError, match="1 score_below_minimum"):
        builder.build([completion(CONCEPTS[0], poor)], tmp_path / "d.jsonl")
    assert not (tmp_path / "d.jsonl").exists()


def test_targets_are_canonical_stamped_and_scored_as_they_stand(tmp_path: Path) -> None:
    built = DatasetBuilder().build(map(completion, CONCEPTS), tmp_path / "d.jsonl")
    examples = [example for path in built.paths.values() for example in rows(path)]
    for example in examples:
        assert example.concept is not None
        (target,) = example.completion
        assert 'last_updated: "2026-03-04T00:00:00Z"' in target.content
        assert ROLE.canonical(ROLE.parse(target.content).documents) == target.content
        assert ROLE.score(example.concept, target.content).value == example.score
        assert example.prompt == ROLE.render(example.concept)
        assert example.label == example.concept.planted_label


def test_the_rows_are_in_trls_conversational_form(tmp_path: Path) -> None:
    built = DatasetBuilder().build(map(completion, CONCEPTS), tmp_path / "d.jsonl")
    line = Path(built.paths["train"]).read_text().splitlines()[0]
    assert '"prompt": [{"role": "system"' in line
    assert '"completion": [{"role": "assistant"' in line


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(20, 59))
def test_order_changes_nothing_and_more_rows_move_none(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    given_completions = [completion(concept) for concept in CONCEPTS[:count]]
    shuffled = random.Random(seed).sample(given_completions, count)
    builder = DatasetBuilder(test_share=0.3)
    one, two = builder.build(given_completions, folder / "1.jsonl"), builder.build(shuffled, folder / "2.jsonl")
    assert one.digest == two.digest
    more = builder.build(map(completion, CONCEPTS), folder / "3.jsonl")
    for split in SPLITS:
        assert {e.example_id for e in rows(one.paths[split])} <= {e.example_id for e in rows(more.paths[split])}


def test_variations_stay_in_the_split_of_their_original(tmp_path: Path) -> None:
    varied = ROLE.vary_concepts(CONCEPTS[:20], 80, seed=3)
    built = DatasetBuilder(test_share=0.3).build(map(completion, varied), tmp_path / "d.jsonl")
    families = {
        split: {str(e.concept.metadata.get("varied_from", e.concept.concept_id)) for e in rows(path) if e.concept}
        for split, path in built.paths.items()
    }
    assert not families["train"] & families["test"]
    assert not families["train"] & families["validation"]
    assert families["test"]


def test_another_contract_gives_another_form_and_digest(tmp_path: Path) -> None:
    fenced = DatasetBuilder().build(map(completion, CONCEPTS), tmp_path / "f.jsonl")
    tagged = DatasetBuilder(contract="tagged").build(map(completion, CONCEPTS), tmp_path / "t.jsonl")
    assert rows(tagged.paths["train"])[0].completion[0].content.startswith("<VISION>\n")
    assert fenced.contract and tagged.contract and fenced.contract.digest != tagged.contract.digest


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="leave nothing"):
        DatasetBuilder(test_share=0.6, validation_share=0.4)


def test_the_files_beside_a_dataset_are_named_after_it() -> None:
    assert beside("a/x.jsonl", "manifest.json") == Path("a/x.manifest.json")
    assert beside("a/x.y", "test.jsonl") == Path("a/x.y.test.jsonl")


@pytest.mark.skipif(not FIELD_ROWS.exists(), reason="the field team's rows are not beside the project")
def test_the_field_teams_rows_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    built = DatasetBuilder().build_from(FIELD_ROWS, tmp_path / "d.jsonl")
    assert built.inputs == 359
    outside = [r for r in read_records(built.rejected_path, Rejection) if r.reason == "status_outside_enum"]
    assert len(outside) == built.rejected["status_outside_enum"] == 10
    assert {round(r.score or 0, 3) for r in outside} == {0.644, 0.669, 0.694, 0.719}
    assert all("'conflicts'" in r.detail for r in outside)
    assert sorted(int(r.where.rsplit(" ", 1)[1]) for r in outside) == [55, 67, 155, 172, 249, 261, 283, 321, 327, 335]
