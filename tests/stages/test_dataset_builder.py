import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_distill import DatasetBuilder, __version__
from po_distill.artifacts import digest_bytes, digest_file, read_record, read_records, write_jsonl
from po_distill.dataset_diff import compare
from po_distill.errors import InputError, SettingsError
from po_distill.records import Completion, Concept, Dataset, Example, Rejection
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.dataset_builder import SPLITS, beside
from tiny_models import tiny_model

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


# --- duplicates, leaks, contracts ---------------------------------------------------------------


def answered(concept: Concept, text: str | None = None, **more: Any) -> dict[str, Any]:
    asked = {"concept_id": concept.concept_id, "concept": concept.concept}
    response = ROLE.answer_by_rules(concept) if text is None else text
    return {**asked, "requirements_yaml": concept.requirements_yaml, "response": response, **more}


def test_of_near_duplicates_of_one_class_the_best_stays(tmp_path: Path) -> None:
    first = CONCEPTS[0]
    near = first.model_copy(update={"concept_id": "near", "concept": first.concept + " Soon."})
    given_rows = [answered(concept) for concept in CONCEPTS] + [answered(near)]
    built = DatasetBuilder().build_rows(given_rows, tmp_path / "d.jsonl")
    assert built.rejected == {"near_duplicate_prompt": 1}
    kept = DatasetBuilder(near=1.0).build_rows(given_rows, tmp_path / "all.jsonl")
    assert kept.rejected == {} and sum(kept.counts.values()) == 61


def test_equal_answers_to_different_prompts_are_one_row_where_they_are_long(tmp_path: Path) -> None:
    aligned = [concept for concept in CONCEPTS if concept.planted_label == "aligned"]
    text = ROLE.answer_by_rules(aligned[0])
    others = [c.model_copy(update={"requirements_yaml": aligned[0].requirements_yaml}) for c in aligned[1:4]]
    given_rows = [answered(aligned[0], text), *(answered(concept, text) for concept in others)]
    built = DatasetBuilder(min_score=0.5).build_rows(given_rows, tmp_path / "d.jsonl")
    assert built.rejected == {"near_duplicate_answer": 3}


def test_a_row_of_a_held_out_file_is_rejected_as_a_leak(tmp_path: Path) -> None:
    held = CONCEPTS[0].model_copy(update={"concept": f"  {CONCEPTS[0].concept.upper()}", "requirements_yaml": "a: 1"})
    write_jsonl(tmp_path / "held.jsonl", [held])
    built = DatasetBuilder(held_out=[tmp_path / "held.jsonl"]).build(map(completion, CONCEPTS), tmp_path / "d.jsonl")
    assert built.rejected == {"held_out_leak": 1}
    assert [(file.rows, file.path) for file in built.held_out] == [(1, str(tmp_path / "held.jsonl"))]
    assert [r.where for r in read_records(built.rejected_path, Rejection)] == [f"concept {CONCEPTS[0].concept_id}"]


def test_rows_are_rendered_under_several_contracts_by_share(tmp_path: Path) -> None:
    builder = DatasetBuilder(contracts={"fenced": 0.6, "json": 0.4})
    built = builder.build(map(completion, CONCEPTS), tmp_path / "d.jsonl")
    assert set(built.contracts) == {"fenced", "json"} and sum(built.contracts.values()) == 60
    assert built.contract == ROLE.contract
    forms = Counter(example.completion[0].content[0] for path in built.paths.values() for example in rows(path))
    assert forms == {"`": built.contracts["fenced"], "{": built.contracts["json"]}
    fewer = builder.build(map(completion, CONCEPTS[:30]), tmp_path / "fewer.jsonl")
    for split in SPLITS:
        assert {e.example_id for e in rows(fewer.paths[split])} <= {e.example_id for e in rows(built.paths[split])}


@pytest.mark.parametrize("shares", [{"fenced": 0.5}, {"fenced": 0.5, "yaml": 0.5}, {"fenced": 1.5, "json": -0.5}])
def test_shares_of_contracts_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=r"contract"):
        DatasetBuilder(contracts=shares)


def test_what_a_target_lacks_is_in_the_record(tmp_path: Path) -> None:
    built = DatasetBuilder(target=90).build(map(completion, CONCEPTS), tmp_path / "d.jsonl")
    assert built.missing == {name: 30 - count for name, count in built.labels.items() if count < 30}


# --- what goes in and comes out -----------------------------------------------------------------


def test_parquet_and_saved_hugging_face_datasets_are_read_as_jsonl_is(tmp_path: Path) -> None:
    given_rows = [answered(concept) for concept in CONCEPTS]
    write_jsonl(tmp_path / "rows.jsonl", given_rows)
    table = datasets.Dataset.from_list(given_rows)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "dict"))
    builder = DatasetBuilder(stamp="2026-01-01T00:00:00Z")
    digests = {
        builder.build_from(tmp_path / name, tmp_path / f"out-{name}" / "d.jsonl").digest
        for name in ("rows.jsonl", "rows.parquet", "saved", "dict")
    }
    assert digests == {builder.build_rows(table, tmp_path / "memory" / "d.jsonl").digest}


def test_every_shape_loads_as_it_is_and_holds_the_same_rows(tmp_path: Path) -> None:
    builder = DatasetBuilder(shapes=["messages", "prompt_completion", "parquet"])
    mixed = [completion(concept) for concept in CONCEPTS[:30]]
    varied = [c.model_copy(update={"concept_id": f"{c.concept_id}+"}) for c in ROLE.vary_concepts(CONCEPTS[30:], 60, 1)]
    built = builder.build([*mixed, *map(completion, varied)], tmp_path / "d.jsonl")
    plain = load(tmp_path, "json", built.paths["train"])
    assert plain.num_rows == built.counts["train"]
    assert plain.features == load(tmp_path, "json", built.paths["test"]).features
    for shape in ("messages", "prompt_completion", "parquet"):
        other = load(tmp_path, "parquet" if shape == "parquet" else "json", built.also[f"{shape}.train"])
        assert other.num_rows == plain.num_rows
    assert load(tmp_path, "parquet", built.also["parquet.train"]).to_list() == plain.to_list()


def load(folder: Path, kind: str, path: str) -> Any:
    return datasets.load_dataset(kind, data_files=path, split="train", cache_dir=str(folder / "cache"))


def test_trl_trains_on_each_shape_without_any_mapping(tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    base = tiny_model(tmp_path / "base", "llama")
    built = DatasetBuilder(shapes=["messages", "prompt_completion", "parquet"], contracts={"fenced": 0.5, "json": 0.5})
    made = built.build(map(completion, CONCEPTS), tmp_path / "d.jsonl")
    for path in (made.paths["train"], *(made.also[f"{s}.train"] for s in ("messages", "prompt_completion", "parquet"))):
        rows_of = load(tmp_path, "parquet" if path.endswith(".parquet") else "json", path)
        arguments = SFTConfig(
            str(tmp_path / "sft"), max_steps=1, report_to=[], use_cpu=True, max_length=4096, save_strategy="no",
            per_device_train_batch_size=1, bf16=False,
        )  # fmt: skip
        trainer = SFTTrainer(
            str(base), arguments, train_dataset=rows_of, processing_class=AutoTokenizer.from_pretrained(base)
        )
        assert trainer.train().training_loss > 0


def test_the_manifest_says_what_the_dataset_was_made_of(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [answered(concept) for concept in CONCEPTS])
    built = DatasetBuilder(min_score=0.8, target=60).build_from(tmp_path / "rows.jsonl", tmp_path / "d.jsonl")
    assert read_record(tmp_path / "d.manifest.json", Dataset) == built
    (source,) = built.sources
    assert (source.path, source.rows) == (str(tmp_path / "rows.jsonl"), 60)
    assert source.digest == digest_file(tmp_path / "rows.jsonl")
    assert (built.settings["min_score"], built.settings["target"], built.po_distill) == (0.8, 60, __version__)
    card = (tmp_path / "dataset_card.md").read_text()
    assert source.digest in card and ROLE.contract.digest in card


def test_what_no_gate_passes_leaves_the_reasons_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 missing_vision") as caught:
        DatasetBuilder().build_rows([answered(CONCEPTS[0], "no")], tmp_path / "d.jsonl")
    assert "d.rejected.jsonl" in caught.value.fix
    assert [r.reason for r in read_records(tmp_path / "d.rejected.jsonl", Rejection)] == ["missing_vision"]
    assert not (tmp_path / "d.jsonl").exists()


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_the_rows_of_a_dataset_do_not_depend_on_the_order_and_stay_in_their_split(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("order")
    other = ROLE.answer_by_rules(CONCEPTS[0]).replace("Weekly", "Daily")
    pool = [answered(c) for c in ROLE.vary_concepts(CONCEPTS[:6], 14, 2)] + [answered(CONCEPTS[0], other)]
    pool += [answered(CONCEPTS[1], "no"), answered(CONCEPTS[2])]
    builder = DatasetBuilder(test_share=0.3, validation_share=0.2, stamp="2026-01-01T00:00:00Z")
    whole = builder.build_rows(pool, folder / "1.jsonl")
    shuffled = builder.build_rows(data.draw(st.permutations(pool)), folder / "2.jsonl")
    assert whole.digest == shuffled.digest
    assert whole.inputs == len(pool) == sum(whole.counts.values()) + sum(whole.rejected.values())
    some = data.draw(st.lists(st.sampled_from(pool[:14]), min_size=1, unique_by=lambda row: row["concept_id"]))
    part = builder.build_rows(some, folder / "3.jsonl")
    of_prompt = {row.prompt[-1].content: split for split in SPLITS for row in rows(whole.paths[split])}
    for split in SPLITS:
        for example in rows(part.paths[split]):
            assert of_prompt.get(example.prompt[-1].content, split) == split


# --- what changed -------------------------------------------------------------------------------


def test_two_datasets_are_told_apart_row_by_row(tmp_path: Path) -> None:
    builder = DatasetBuilder(stamp="2026-01-01T00:00:00Z")
    first = builder.build(map(completion, CONCEPTS[:40]), tmp_path / "v1" / "d.jsonl")
    changed = ROLE.answer_by_rules(CONCEPTS[5]).replace("Weekly", "Daily")
    second = [completion(c, changed if c is CONCEPTS[5] else None) for c in CONCEPTS[3:50]]
    builder.build(second, tmp_path / "v2" / "d.jsonl")
    change = compare(tmp_path / "v1", tmp_path / "v2" / "d.jsonl")
    assert (change.added, change.removed, change.changed, change.moved, change.kept) == (10, 3, 1, 0, 36)
    assert change.rows_before == 40 == sum(first.counts.values()) and change.rows_after == 47
    assert change.examples["changed"] == (CONCEPTS[5].concept_id,)
    assert change.settings == {} and not change.contract_changed
    same = compare(tmp_path / "v1", tmp_path / "v1" / "d.manifest.json")
    assert (same.kept, same.added, same.removed, same.changed) == (40, 0, 0, 0)


def test_a_dataset_that_was_moved_is_still_compared(tmp_path: Path) -> None:
    DatasetBuilder().build(map(completion, CONCEPTS), tmp_path / "v1" / "d.jsonl")
    (tmp_path / "v1").rename(tmp_path / "elsewhere")
    assert compare(tmp_path / "elsewhere", tmp_path / "elsewhere").kept == 60


def test_what_is_no_dataset_is_not_compared(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "x.jsonl"):
        with pytest.raises(InputError):
            compare(place, place)
