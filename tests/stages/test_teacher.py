import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from haiku import SCRIPTED, HaikuRole, ScriptedProvider, haiku, haiku_concept
from po_distill.artifacts import read_records
from po_distill.calls import Retries
from po_distill.errors import InputError, PODistillError, ProviderError, SettingsError
from po_distill.records import Completion, Concept, GenerationSettings, Rejection
from po_distill.stages.teacher import Teacher, _Answering

NO_WAIT = Retries(sends=3, first_wait_s=0.0)


@pytest.fixture
def teacher(tmp_path):
    def make(role=None, **settings):
        options = settings.pop("options", {})
        return Teacher(
            role or HaikuRole(),
            provider=settings.pop("provider", SCRIPTED),
            options=options,
            journal_path=tmp_path / "journal.sqlite",
            log_path=tmp_path / "calls.jsonl",
            retries=NO_WAIT,
            **settings,
        )

    return make


CONCEPTS = [haiku_concept(number, "autumn" if number % 3 else "spring") for number in range(12)]


def test_every_concept_is_answered_in_order_and_scored(teacher):
    completions = teacher(batch_size=5).answer(iter(CONCEPTS))
    assert [c.concept for c in completions] == CONCEPTS
    assert {c.score.value for c in completions} == {1.0}
    assert [c.score.label for c in completions] == [c.planted_label for c in CONCEPTS]
    assert {c.contract_digest for c in completions} == {HaikuRole().contract.digest}
    assert {(c.provider, c.model, c.finish) for c in completions} == {(SCRIPTED, "scripted", "stop")}
    assert all(c.created_at for c in completions)


def test_an_answer_below_the_minimum_is_asked_again_and_the_best_is_kept(teacher):
    weak, better, good = (haiku("spring", lines=n) for n in (1, 2, 3))
    options = {"answers": {"H-00000": [better, weak, haiku("spring", "x", 1)], "H-00001": [weak, good, better]}}
    made = teacher(options=options, attempts=3)
    completions = made.answer(CONCEPTS[:3])
    assert [c.text for c in completions[:2]] == [better, good]
    assert [round(c.score.value, 3) for c in completions] == [0.667, 1.0, 1.0]
    assert made.summary.sends == 3 + 2 + 1
    assert made.summary.below_minimum == 1
    assert made.summary.usage.cost_usd == pytest.approx(0.006)


def test_an_unreadable_answer_loses_to_a_readable_one_whatever_its_score(teacher):
    options = {"answers": {"H-00000": [haiku("winter"), haiku("spring", lines=1)]}}
    completion = teacher(options=options, attempts=2).answer(CONCEPTS[:1])[0]
    assert (completion.score.label, completion.score.valid) == ("spring", True)


def test_a_teacher_that_repeats_itself_is_not_asked_a_third_time(teacher):
    made = teacher(options={"answers": {"H-00000": [haiku("spring", lines=1)]}}, attempts=5)
    made.answer(CONCEPTS[:1])
    assert made.summary.sends == 2


def test_the_score_is_that_of_the_canonical_form(teacher):
    sloppy = "Sure!\n```haiku\nseason: spring\nlines:\n- a\n- b\n- c\n```\nEnjoy."
    bare = "season: spring\nlines: [a, b, c]"
    options = {"answers": {"H-00000": [sloppy], "H-00001": [bare], "H-00002": ["no: [yaml"]}}
    completions = teacher(options=options).answer(CONCEPTS[:3])
    assert [c.text for c in completions] == [sloppy, bare, "no: [yaml"]
    assert [(c.score.value, c.score.valid) for c in completions] == [(1.0, True), (1.0, True), (0.0, False)]
    assert completions[2].score.violations[0].kind == "unreadable"


def test_the_counts_add_up(teacher, tmp_path):
    faults = {"H-00001": ["blocked"], "H-00002": ["bad_answer"], "H-00003": ["timeout"] * 9, "H-00004": ["unavailable"]}
    broken = Concept(concept_id="B-1", concept="x", requirements_yaml="- a list")
    made = teacher(options={"faults": faults}, attempts=1)
    completions = made.answer([*CONCEPTS, broken, CONCEPTS[0]])
    summary = made.summary
    assert summary.failed == {
        "bad_answer": 1,
        "blocked": 1,
        "duplicate_concept_id": 1,
        "timeout": 1,
        "unusable_concept": 1,
    }
    assert (summary.asked, summary.answered) == (14, 9)
    assert summary.asked == summary.answered + sum(summary.failed.values())
    assert len(completions) == summary.answered
    assert [r.where for r in made.rejections] == ["H-00001", "H-00002", "H-00003", "B-1", "H-00000"]
    log = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(log) == summary.sends == 12 + 2 + 1  # two more for the timeouts, one for what was unavailable
    assert sum(line["cost_usd"] for line in log) == pytest.approx(summary.usage.cost_usd)


def test_a_later_attempt_that_fails_leaves_the_answer_before_it(teacher):
    weak = haiku("spring", lines=1)
    made = teacher(options={"answers": {"H-00000": [weak]}, "faults": {"H-00000": [None, "blocked"]}})
    assert [c.text for c in made.answer(CONCEPTS[:1])] == [weak]
    assert (made.summary.sends, made.summary.failed, made.summary.below_minimum) == (2, {}, 1)


def test_a_second_run_asks_nothing_and_says_the_same(teacher, tmp_path):
    options = {"ledger": str(tmp_path / "ledger")}
    first = teacher(options=options).answer(CONCEPTS)
    made = teacher(options=options)
    assert made.answer(CONCEPTS) == first
    assert (made.summary.sends, made.summary.from_journal) == (0, 12)
    assert len((tmp_path / "ledger").read_text().split()) == 12


def test_a_stand_in_says_so_in_its_completions(teacher):
    assert teacher(options={"stand_in": True}).answer(CONCEPTS[:1])[0].stand_in
    assert not teacher(options={"stand_in": False}).answer(CONCEPTS[:1])[0].stand_in


def test_a_seed_moves_with_the_attempt(teacher):
    made = teacher(generation=GenerationSettings(seed=7))
    answering = _Answering(made.role, None, "p", GenerationSettings(seed=7), 0.85, 3)
    assert [answering._generation_for(attempt).seed for attempt in range(3)] == [7, 8, 9]


def test_the_stream_gives_completions_and_rejections_as_they_come(teacher):
    made = teacher(options={"faults": {"H-00001": ["blocked"]}})
    with closing(made.stream(CONCEPTS)) as results:
        kinds = [type(result) for result in results]
    assert sorted(kinds, key=str) == [Completion] * 11 + [Rejection]


def test_completions_and_rejections_are_written_in_the_order_of_the_concepts(teacher, tmp_path):
    made = teacher(options={"faults": {"H-00001": ["blocked"]}, "delay_s": 0.001})
    summary = made.write(iter(CONCEPTS), tmp_path / "out" / "answers.jsonl")
    written = list(read_records(tmp_path / "out" / "answers.jsonl", Completion))
    assert [c.concept.concept_id for c in written] == [c.concept_id for c in CONCEPTS if c.concept_id != "H-00001"]
    rejected = list(read_records(tmp_path / "out" / "answers.rejected.jsonl", Rejection))
    assert [(r.where, r.reason) for r in rejected] == [("H-00001", "blocked")]
    assert summary.answered == 11
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["answers.jsonl", "answers.rejected.jsonl"]


def test_where_nothing_is_answered_nothing_is_written(teacher, tmp_path):
    made = teacher(options={"faults": {c.concept_id: ["blocked"] for c in CONCEPTS}})
    with pytest.raises(ProviderError, match=r"None of 12 concepts was answered \(12 blocked\)"):
        made.write(CONCEPTS, tmp_path / "out" / "answers.jsonl")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_refusal_stops_the_run_and_writes_nothing(teacher, tmp_path):
    made = teacher(options={"faults": {"H-00007": ["refused"]}}, batch_size=2)
    with pytest.raises(ProviderError) as caught:
        made.write(CONCEPTS, tmp_path / "out" / "answers.jsonl")
    assert caught.value.fault == "refused"
    assert list((tmp_path / "out").iterdir()) == []
    assert teacher().answer(CONCEPTS)[:3]


def test_no_call_is_made_where_the_metric_fails_its_self_test(teacher, tmp_path):
    class Broken(HaikuRole):
        def self_test(self):
            raise PODistillError("The metric is broken.", "Mend it.")

    with pytest.raises(PODistillError, match="metric is broken"):
        teacher(Broken(), options={"ledger": str(tmp_path / "ledger")}).answer(CONCEPTS)
    assert not (tmp_path / "ledger").exists()


def test_settings_that_make_no_sense_are_refused(teacher):
    for wrong in ({"batch_size": 0}, {"attempts": 0}, {"min_score": 85.0}, {"contract": "fenced"}):
        with pytest.raises(SettingsError):
            teacher(**wrong)
    with pytest.raises(InputError, match="no concepts"):
        teacher().answer([])


def test_the_provider_is_closed_at_the_end(teacher):
    before = ScriptedProvider.open_now
    teacher().answer(CONCEPTS)
    with closing(teacher(options={"delay_s": 0.001}).stream(CONCEPTS)) as results:
        next(results)
    assert ScriptedProvider.open_now == before


def test_the_offline_product_owner_is_a_stand_in_above_the_minimum(teacher):
    made = teacher("product_owner", provider="offline")
    concepts = made.role.generate_concepts(6, seed=3)
    completions = made.answer(concepts)
    assert [c.concept for c in completions] == concepts
    assert all(c.stand_in and c.score.value >= 0.85 and c.score.valid for c in completions)


def test_a_product_owner_answer_that_lacks_its_review_is_scored_and_kept_as_weak(teacher):
    made = teacher("product_owner", attempts=1)
    concept = made.role.generate_concepts(1, seed=3)[0]
    text = made.role.answer_by_rules(concept).split("```yaml REVIEW")[0]
    made = teacher("product_owner", attempts=1, options={"answers": {concept.concept_id: [text]}})
    completion = made.answer([concept])[0]
    assert completion.score.value < 0.85
    assert completion.score.violations


_CHILD = """
import sys, json
from haiku import HaikuRole, haiku_concept
from po_distill.stages.teacher import Teacher
folder, options = sys.argv[1], json.loads(sys.argv[2])
teacher = Teacher(HaikuRole(), provider="haiku:ScriptedProvider", options=options, batch_size=3,
                  journal_path=folder + "/j.sqlite", log_path=folder + "/calls.jsonl")
summary = teacher.write([haiku_concept(n) for n in range(20)], folder + "/answers.jsonl")
print(summary.model_dump_json())
"""


def test_killed_in_the_middle_it_asks_no_journalled_call_again(tmp_path):
    ledger = tmp_path / "ledger"

    def run(**options):
        options = json.dumps({"ledger": str(ledger), "delay_s": 0.01, **options})
        return subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path), options],
            env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )

    # The options are part of what a call is, so the run that is killed and the next have the same.
    marker = tmp_path / "killed-once"
    first = run(kill_at="H-00011", kill_once=str(marker))
    assert first.returncode == -9
    assert not (tmp_path / "answers.jsonl").exists()
    before = ledger.read_text().split()
    second = run(kill_at="H-00011", kill_once=str(marker))
    assert second.returncode == 0, second.stderr
    again = ledger.read_text().split()[len(before) :]
    summary = json.loads(second.stdout)
    assert summary["answered"] == 20
    assert summary["sends"] == len(again)
    assert set(before) & set(again) <= {"H-00010", "H-00011", "H-00012", "H-00013"}
    assert len(set(before) & set(again)) == summary["in_doubt"] <= 3
    assert len(list(read_records(tmp_path / "answers.jsonl", Completion))) == 20
