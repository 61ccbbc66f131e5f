import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku import HaikuRole, haiku, haiku_concept
from po_distill import DatasetBuilder
from po_distill.artifacts import write_jsonl
from po_distill.cli import cli
from po_distill.dataset_rules import RULES
from po_distill.errors import InputError, SettingsError
from po_distill.records import Checkup, Concept
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.dataset_doctor import DatasetDoctor, require_fit
from tiny_models import CHATML, byte_level_tokenizer

ROLE = ProductOwnerRole()
CONCEPTS = ROLE.generate_concepts(60, seed=9)
FIELD_ROWS = Path(
    os.environ.get("PO_DISTILL_FIELD_ROWS", Path(__file__).parents[3] / "shared/data/po_teacher_supervised.jsonl")
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and its chat template, and nothing else of a model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level_tokenizer("smollm").save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def row(concept: Concept, text: str | None = None, **more: Any) -> dict[str, Any]:
    answer = ROLE.answer_by_rules(concept) if text is None else text
    asked = {"concept_id": concept.concept_id, "concept": concept.concept}
    return {**asked, "requirements_yaml": concept.requirements_yaml, "response": answer, **more}


def check(folder: Path, rows: list[Any], **wanted: Any) -> Checkup:
    write_jsonl(folder / "rows.jsonl", rows)
    return DatasetDoctor(ROLE, **wanted).check(folder / "rows.jsonl")


def broken(checkup: Checkup) -> set[str]:
    return {rule.rule for rule in checkup.rules if not rule.kept}


# --- the rules ----------------------------------------------------------------------------------


def test_a_dataset_that_the_builder_wrote_is_fit(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row(concept) for concept in CONCEPTS])
    built = DatasetBuilder(ROLE).build_from(tmp_path / "rows.jsonl", tmp_path / "d.jsonl")
    for path, count in zip(built.paths.values(), built.counts.values(), strict=True):
        if count:
            checkup = DatasetDoctor(ROLE, allow=["rare_class"]).check(path)
            assert checkup.fit, checkup.rules
            assert checkup.rows == checkup.accepted == checkup.left == count
            assert broken(checkup) <= {"rare_class"}


def test_each_rule_that_is_broken_is_named_with_its_rows(tmp_path: Path) -> None:
    first, second, third, *rest = CONCEPTS[:40]
    rows = [
        *(row(concept) for concept in rest),
        row(first),
        row(first),
        row(first, ROLE.answer_by_rules(second)),
        row(second, ROLE.answer_by_rules(second).replace("Weekly", "Daily")),
        row(second),
        row(third, "nothing"),
        {"no": "concept"},
    ]
    checkup = check(tmp_path, rows)
    assert checkup.rows == len(rows) == checkup.accepted + sum(checkup.rejected.values())
    assert {"readable_rows", "gate", "duplicate_prompts"} <= broken(checkup)
    named = {rule.rule: rule for rule in checkup.rules}
    assert named["readable_rows"].where == (f"{tmp_path / 'rows.jsonl'}, line {len(rows)}",)
    assert named["duplicate_prompts"].rows == 2 == checkup.repeated_prompts
    assert checkup.exact_duplicate_rows == 1
    assert not checkup.fit
    assert all(rule.fix and rule.detail for rule in checkup.rules)


def test_contradictory_answers_to_one_prompt_are_reported_as_such(tmp_path: Path) -> None:
    aligned = next(concept for concept in CONCEPTS if concept.planted_label == "aligned")
    sound = ROLE.answer_by_rules(aligned)
    other = sound.replace('status: "aligned"', 'status: "needs_adjustment"').replace(
        "  gaps: []", '  gaps:\n    - "Nothing on exports"'
    )
    rows = [row(concept) for concept in CONCEPTS] + [row(aligned, other)]
    checkup = check(tmp_path, rows)
    assert checkup.contradictory_prompts == 1
    assert "contradictory_prompts" in broken(checkup)
    built = DatasetBuilder(ROLE).build_from(tmp_path / "rows.jsonl", tmp_path / "d.jsonl")
    assert built.rejected == {"contradictory_prompt": 1}


def test_a_class_under_a_tenth_makes_a_set_unfit_unless_it_is_allowed(tmp_path: Path) -> None:
    rows = [row(concept) for concept in CONCEPTS if concept.planted_label != "misaligned"]
    checkup = check(tmp_path, rows)
    rare = next(rule for rule in checkup.rules if rule.rule == "rare_class")
    assert (rare.rows, rare.kept) == (1, False) and "misaligned 0.0%" in rare.detail
    assert check(tmp_path, rows, allow=[rule.rule for rule in checkup.rules if not rule.kept]).fit


def test_a_stored_score_is_compared_and_never_trusted(tmp_path: Path) -> None:
    rows = [row(CONCEPTS[0], score=0.2), row(CONCEPTS[1], score=None), row(CONCEPTS[2], "nothing", score=0.9)]
    rows.append(row(CONCEPTS[3], score=ROLE.score(CONCEPTS[3], ROLE.answer_by_rules(CONCEPTS[3])).value))
    checkup = check(tmp_path, rows)
    assert (checkup.stored_scores, checkup.stored_wrong) == (3, 2)
    assert checkup.stored_worst > 0.5
    assert checkup.rejected == {"missing_vision": 1}


def test_rows_of_a_held_out_file_are_leaks(tmp_path: Path) -> None:
    held, *_ = CONCEPTS
    near = held.model_copy(update={"concept": held.concept + " Soon."})
    other_case = held.model_copy(update={"concept": held.concept.upper(), "requirements_yaml": "title: x"})
    write_jsonl(tmp_path / "held.jsonl", [{"input": {"concept": c.concept, "requirements_yaml": c.requirements_yaml}}
                                          for c in (held, other_case)])  # fmt: skip
    rows = [row(concept) for concept in CONCEPTS] + [row(near)]
    checkup = check(tmp_path, rows, held_out=[tmp_path / "held.jsonl"])
    assert (checkup.leaked_rows, checkup.leaked_exact, checkup.leaked_near) == (2, 1, 1)
    assert "leaked_rows" in broken(checkup)
    assert checkup.held_out[0].rows == 2
    assert "leaked_rows" not in {rule.rule for rule in check(tmp_path, rows).rules}


def test_a_prompt_that_production_never_asks_and_an_answer_in_another_form_are_seen(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row(concept) for concept in CONCEPTS])
    built = DatasetBuilder(ROLE).build_from(tmp_path / "rows.jsonl", tmp_path / "d.jsonl")
    rows = [json.loads(line) for line in Path(built.paths["train"]).read_text().splitlines()]
    rows[0]["prompt"][0]["content"] = "You are somebody else."
    rows[1]["completion"][0]["content"] = rows[1]["completion"][0]["content"].replace('"aligned"', "aligned")
    rows[2]["completion"][0]["content"] += "\n"
    checkup = check(tmp_path, rows)
    assert checkup.foreign_prompts == 1
    assert checkup.not_canonical >= 1
    assert {"foreign_prompts", "canonical_answers"} <= broken(checkup)


def test_lengths_are_those_that_training_counts(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = [row(concept) for concept in CONCEPTS[:20]]
    checkup = check(tmp_path, rows, base=str(tokenizer_folder), max_seq_len=10)
    lengths = checkup.lengths
    assert lengths is not None and lengths.rows == 20
    assert lengths.cut[10] == 20 and lengths.cut.get(lengths.longest, 0) == 0
    assert sum(lengths.histogram.values()) == 20
    assert lengths.shortest <= lengths.median <= lengths.p95 <= lengths.longest
    assert "cut_rows" in broken(checkup)
    assert "cut_rows" not in broken(check(tmp_path, rows, base=str(tokenizer_folder), max_seq_len=lengths.longest))
    assert check(tmp_path, rows).lengths is None


def test_what_a_target_lacks_is_said_with_the_command_that_gets_it(tmp_path: Path) -> None:
    rows = [row(concept) for concept in CONCEPTS]
    mix = {"aligned": 0.5, "needs_adjustment": 0.3, "misaligned": 0.2}
    checkup = check(tmp_path, rows, target=200, mix=mix)
    have = checkup.accepted_labels
    assert checkup.missing == {"aligned": 100 - have["aligned"], "needs_adjustment": 60 - have["needs_adjustment"],
                               "misaligned": 40 - have["misaligned"]}  # fmt: skip
    assert checkup.missing_command is not None and "--target 200 --mix aligned=0.5" in checkup.missing_command
    assert check(tmp_path, rows, target=3).missing_command is None


def test_an_unfit_dataset_is_refused_with_every_rule_and_how_to_allow_it(tmp_path: Path) -> None:
    checkup = check(tmp_path, [row(CONCEPTS[0]), row(CONCEPTS[0])])
    with pytest.raises(InputError, match="not fit for training") as caught:
        require_fit(checkup)
    for rule in broken(checkup):
        assert f"--allow {rule}" in caught.value.fix
    require_fit(check(tmp_path, [row(CONCEPTS[0]), row(CONCEPTS[0])], allow=broken(checkup)))


def test_a_rule_that_does_not_exist_cannot_be_allowed() -> None:
    with pytest.raises(SettingsError, match="rare_clas") as caught:
        DatasetDoctor(ROLE, allow=["rare_clas"])
    assert "rare_class" in caught.value.fix


def test_an_empty_file_and_a_missing_one_are_errors(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    for name in ("rows.jsonl", "nothing.jsonl"):
        with pytest.raises(InputError):
            DatasetDoctor(ROLE).check(tmp_path / name)


def test_another_role_is_checked_by_its_own_rules(tmp_path: Path) -> None:
    concepts = [haiku_concept(n, "spring" if n % 2 else "autumn") for n in range(12)]
    rows = [
        {
            "concept": c.concept,
            "requirements_yaml": c.requirements_yaml,
            "response": haiku(c.planted_label or "", c.concept),
        }
        for c in concepts
    ]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, {**rows[0], "response": haiku("winter")}])
    checkup = DatasetDoctor(HaikuRole()).check(tmp_path / "rows.jsonl")
    assert checkup.accepted_labels == {"autumn": 6, "spring": 6}
    assert checkup.rejected == {"season_outside_enum": 1}
    assert checkup.facts == ()


# --- counts and order ---------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_order_of_the_rows_changes_no_figure(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("order")
    pool = [row(concept) for concept in CONCEPTS[:12]]
    pool += [row(CONCEPTS[0]), row(CONCEPTS[1], ROLE.answer_by_rules(CONCEPTS[2])), row(CONCEPTS[3], "no")]
    one = check(folder, pool)
    other = check(folder, data.draw(st.permutations(pool)))
    left_out = {"lowest", "rules", "duration_s", "digest"}
    assert one.model_dump(exclude=left_out) == {**other.model_dump(exclude=left_out), "score_mean": one.score_mean}
    assert one.score_mean == pytest.approx(other.score_mean)
    assert one.rows == one.accepted + sum(one.rejected.values()) == sum(one.scores) + one.rejected.get("no_concept", 0)


# --- the command --------------------------------------------------------------------------------


def test_the_command_says_fit_or_not_by_its_exit_status(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row(concept) for concept in CONCEPTS])
    page = tmp_path / "page.html"
    run = CliRunner().invoke(
        cli, ["dataset", "check", str(tmp_path / "rows.jsonl"), "--json", "--html", str(page)], catch_exceptions=False
    )
    found = json.loads(run.stdout)
    assert run.exit_code == 0 and found["fit"] is True, run.output
    assert {"rows", "distinct_prompts", "alignment_items", "leaked_rows", "contradictory_prompts"} <= set(found)
    assert found["status_outside_enum"] == found["too_few_actions"] == 0
    assert page.read_text().startswith("<!doctype html>")
    write_jsonl(tmp_path / "rows.jsonl", [row(CONCEPTS[0], "no")])
    assert CliRunner().invoke(cli, ["dataset", "check", str(tmp_path / "rows.jsonl")]).exit_code == 3


def test_training_refuses_an_unfit_dataset_before_it_looks_for_the_base(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row(CONCEPTS[0])])
    run = CliRunner().invoke(cli, ["train", "--data", str(tmp_path / "rows.jsonl"), "--base", "mistral-7b-instruct"])
    assert isinstance(run.exception, InputError)
    assert "--allow rare_class" in str(run.exception)


@pytest.mark.skipif(not FIELD_ROWS.exists(), reason="the field team's rows are not beside the project")
def test_the_field_teams_defects_are_found_in_their_number() -> None:
    checkup = DatasetDoctor(ROLE).check(FIELD_ROWS)
    facts = {fact.name: (fact.count, fact.rendered) for fact in checkup.facts}
    assert (checkup.rows, checkup.distinct_prompts, checkup.exact_duplicate_rows) == (359, 177, 2)
    assert (checkup.contradictory_prompts, checkup.violations["status_outside_enum"]) == (51, 10)
    assert {noted.reason for noted in checkup.lowest} == {"status_outside_enum"} and len(checkup.lowest) == 10
    assert checkup.violations["too_few_actions"] == 118
    assert (facts["alignment_items"][0], facts["alignment_items_as_mappings"][0]) == (2744, 1729)
    assert facts["timestamps_not_text"] == (357, 0)
    assert checkup.values["last_updated"]["2023-10-27"] == 244
    assert checkup.labels["misaligned"] == 0
    assert (checkup.parts, checkup.distinct_parts) == (1521, 73)
    assert (checkup.accepted, checkup.left, checkup.fit) == (205, 128, False)
    assert set(RULES) - {rule.rule for rule in checkup.rules} == {"leaked_rows", "cut_rows"}
