import json
import sqlite3
import subprocess
import sys
import tempfile
import types
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haiku import CHEAP, PAID, SCRIPTED, HaikuRole, JsonHaikuRole, PaidProvider, ScriptedProvider, haiku, haiku_concept
from po_distill.artifacts import read_records
from po_distill.calls import Limits, Retries
from po_distill.errors import InputError, PODistillError, ProviderError, SettingsError
from po_distill.journal import Journal
from po_distill.journal_views import export_completions
from po_distill.records import Completion, Concept, GenerationSettings, Rejection
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.teacher import Teacher

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
            log_path=tmp_path / "calls.log",
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
    made = teacher(options=options, regenerate=2)
    completions = made.answer(CONCEPTS[:3])
    assert [c.text for c in completions[:2]] == [better, good]
    assert [round(c.score.value, 3) for c in completions] == [0.667, 1.0, 1.0]
    assert made.summary.sends == 3 + 2 + 1
    assert made.summary.rejected == {"score_below_minimum": 1}
    assert made.summary.accepted == 2
    assert made.summary.usage.cost_usd == pytest.approx(0.006)


def test_an_unreadable_answer_loses_to_a_readable_one_whatever_its_score(teacher):
    options = {"answers": {"H-00000": [haiku("winter"), haiku("spring", lines=1)]}}
    completion = teacher(options=options, regenerate=1).answer(CONCEPTS[:1])[0]
    assert (completion.score.label, completion.score.valid) == ("spring", True)


def test_a_teacher_that_repeats_itself_is_not_asked_a_third_time(teacher):
    made = teacher(options={"answers": {"H-00000": [haiku("spring", lines=1)]}}, regenerate=4)
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
    made = teacher(options={"faults": faults}, regenerate=0)
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
    log = [json.loads(line) for line in next(tmp_path.glob("calls_*.log")).read_text().splitlines()]
    assert len(log) == summary.sends == 12 + 2 + 1  # two more for the timeouts, one for what was unavailable
    assert sum(line["usd"] for line in log) == pytest.approx(summary.usage.cost_usd)


def test_a_later_attempt_that_fails_leaves_the_answer_before_it(teacher):
    weak = haiku("spring", lines=1)
    made = teacher(options={"answers": {"H-00000": [weak]}, "faults": {"H-00000": [None, "blocked"]}})
    assert [c.text for c in made.answer(CONCEPTS[:1])] == [weak]
    assert (made.summary.sends, made.summary.failed) == (2, {})
    assert made.summary.rejected == {"score_below_minimum": 1}


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
    for wrong in ({"batch_size": 0}, {"regenerate": -1}, {"min_score": 85.0}, {"contract": "fenced"}):
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
    made = teacher("product_owner", regenerate=0)
    concept = made.role.generate_concepts(1, seed=3)[0]
    text = made.role.answer_by_rules(concept).split("```yaml REVIEW")[0]
    made = teacher("product_owner", regenerate=0, options={"answers": {concept.concept_id: [text]}})
    completion = made.answer([concept])[0]
    assert completion.score.value < 0.85
    assert completion.score.violations


_CHILD = """
import sys, json
from haiku import HaikuRole, haiku_concept
from po_distill.stages.teacher import Teacher
folder, options = sys.argv[1], json.loads(sys.argv[2])
teacher = Teacher(HaikuRole(), provider="haiku:ScriptedProvider", options=options, batch_size=3,
                  journal_path=folder + "/j.sqlite", log_path=folder + "/calls.log")
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
    with closing(sqlite3.connect(tmp_path / "j.sqlite")) as journal:
        open_sends = {row[0] for row in journal.execute("SELECT concept_id FROM sends WHERE ended_at IS NULL")}
    second = run(kill_at="H-00011", kill_once=str(marker))
    assert second.returncode == 0, second.stderr
    again = ledger.read_text().split()[len(before) :]
    summary = json.loads(second.stdout)
    assert summary["answered"] == 20
    assert summary["sends"] == len(again)
    assert set(before) & set(again) == set(before) & open_sends
    assert len(set(before) & set(again)) == summary["in_doubt"] <= 3
    assert len(list(read_records(tmp_path / "answers.jsonl", Completion))) == 20


# --- what a run adds up to ----------------------------------------------------------------------

PACED = Retries(sends=3, first_wait_s=0.0, slowed_wait_s=0.0)
EMPTY = haiku("winter", lines=0)


def paid(tmp_path, role=None, **settings):
    """A teacher who is paid for, by the row CHEAP of a table of its own."""
    table = tmp_path / "models.yaml"
    if not table.exists():
        table.write_text(f"- {json.dumps(CHEAP.model_dump(mode='json'))}\n")
    return Teacher(
        role or HaikuRole(),
        **{
            "provider": PAID,
            "model": "cheap-1",
            "model_table": table,
            "journal_path": tmp_path / "journal.sqlite",
            "log_path": tmp_path / "calls.log",
            "retries": PACED,
            "generation": GenerationSettings(max_tokens=100),
            **settings,
        },
    )


def adds_up(summary):
    assert summary.asked == summary.accepted + sum(summary.rejected.values())
    assert summary.asked == summary.answered + sum(summary.failed.values())
    assert sum(summary.labels.values()) == summary.accepted
    assert all(summary.rejected[reason] >= count for reason, count in summary.failed.items())


OUTCOMES = st.fixed_dictionaries(
    {},
    optional={
        "answers": st.lists(
            st.sampled_from([haiku("spring", lines=n) for n in range(4)] + [haiku("autumn"), EMPTY, "no: [yaml", ""]),
            min_size=1,
            max_size=3,
        ),
        "faults": st.lists(
            st.sampled_from(["rate_limited", "unavailable", "timeout", "bad_answer", "blocked", None]), max_size=4
        ),
        "finishes": st.lists(
            st.sampled_from(["stop", "length", "other/RECITATION", "blocked/SAFETY"]), max_size=4
        ),
    },
)  # fmt: skip


@given(
    outcomes=st.lists(OUTCOMES, min_size=1, max_size=8),
    twice=st.lists(st.integers(0, 7), max_size=3),
    broken=st.integers(0, 2),
    regenerate=st.integers(0, 2),
    calls=st.none() | st.integers(1, 12),
    width=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_back_the_counts_the_money_and_the_files_add_up(
    outcomes, twice, broken, regenerate, calls, width
):
    options = {
        kind: {f"H-{n:05d}": outcome[kind] for n, outcome in enumerate(outcomes) if kind in outcome}
        for kind in ("answers", "faults", "finishes")
    }
    concepts = [haiku_concept(n) for n in range(len(outcomes))]
    concepts += [haiku_concept(n % len(outcomes)) for n in twice]
    concepts += [Concept(concept_id=f"B-{n}", concept="x", requirements_yaml="- list") for n in range(broken)]
    limits = Limits(budget_usd=None if calls is None else calls * 1_150_000 / 1e9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        made = paid(path, options=options, regenerate=regenerate, batch_size=width, limits=limits)
        with closing(made.stream(concepts, in_order=True)) as results:
            found = list(results)
        summary = made.summary
        adds_up(summary)
        assert summary.asked == len(concepts) == len(found)
        assert summary.answered == sum(isinstance(one, Completion) for one in found)
        assert Counter(one.reason for one in found if isinstance(one, Rejection)) == summary.failed
        assert summary.stopped == "budget_reached" or "budget_reached" not in summary.failed
        with Journal(path / "journal.sqlite") as journal:
            assert journal.integrity() == []
            assert summary.charged_usd == journal.charged_nanousd() / 1e9
            sends = list(journal.sends())
        log = [json.loads(line) for file in sorted(path.glob("calls_*")) for line in file.read_text().splitlines()]
        assert len(log) == len(sends) == summary.sends
        charged = sum(line["usd"] if line["usd"] is not None else line["reserved_usd"] for line in log)
        assert charged == pytest.approx(summary.charged_usd)
        assert summary.usage.cost_usd == pytest.approx(sum(line["usd"] or 0.0 for line in log))
        if calls is not None:
            assert summary.charged_usd <= limits.budget_usd
        again = paid(path, options={}, regenerate=regenerate, batch_size=width)
        with closing(again.stream(concepts, in_order=True)) as results:
            for before, now in zip(found, results, strict=True):
                if isinstance(before, Completion) and before.finish == "stop" and before.score.value == 1.0:
                    assert now == before
        adds_up(again.summary)


def test_the_log_is_what_the_journal_says_after_a_second_run_with_another_minimum(teacher, tmp_path):
    options = {"answers": {"H-00000": [haiku("spring", lines=2)]}}
    teacher(options=options, regenerate=0).answer(CONCEPTS[:1])
    teacher(options=options, regenerate=0, min_score=0.5).answer(CONCEPTS[:1])
    (log,) = tmp_path.glob("calls_*")
    assert json.loads(log.read_text())["verdict"] == "accepted"


# --- targets ------------------------------------------------------------------------------------


def test_a_target_is_reached_by_variations_in_the_mix_that_is_wanted(teacher, tmp_path):
    made = teacher(batch_size=8)
    summary = made.write(CONCEPTS, tmp_path / "a.jsonl", target=40, mix={"spring": 0.75, "autumn": 0.25})
    adds_up(summary)
    assert summary.labels == {"spring": 30, "autumn": 10}
    assert summary.missing == {}
    written = list(read_records(tmp_path / "a.jsonl", Completion))
    assert [c.concept for c in written][:12] == CONCEPTS
    assert len({c.concept.concept_id for c in written}) == len(written) == summary.answered


def test_a_second_run_to_the_same_target_asks_nothing(teacher, tmp_path):
    options = {"answers": {"H-01003": [EMPTY, "x", "y"]}}
    first = teacher(options=options).write(CONCEPTS, tmp_path / "a.jsonl", target=30)
    second = teacher(options=options).write(CONCEPTS, tmp_path / "b.jsonl", target=30)
    assert first.accepted >= 30
    assert (second.sends, second.from_journal) == (0, first.sends)
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_what_a_target_lacks_at_the_end_is_said_by_class(teacher, tmp_path):
    class Barren(HaikuRole):
        def vary_concepts(self, concepts, count, seed, labels=()):
            made = super().vary_concepts(concepts, count, seed, labels)
            return [
                *made[: len(concepts)],
                *(c.model_copy(update={"requirements_yaml": "- no"}) for c in made[len(concepts) :]),
            ]

    summary = teacher(Barren()).write(CONCEPTS, tmp_path / "a.jsonl", target=30)
    adds_up(summary)
    assert summary.missing == {"spring": 11, "autumn": 7}
    assert summary.rejected["unusable_concept"] > 0


def test_a_target_that_the_given_concepts_reach_asks_for_no_more(teacher, tmp_path):
    summary = teacher().write(CONCEPTS, tmp_path / "a.jsonl", target=8)
    assert (summary.asked, summary.accepted, summary.missing) == (12, 12, {})


@pytest.mark.parametrize("mix", [{"winter": 1.0}, {"spring": 0.5}, {"spring": 1.5, "autumn": -0.5}])
def test_a_mix_that_cannot_be_is_refused_before_anything_is_asked(teacher, tmp_path, mix):
    with pytest.raises(SettingsError):
        teacher(options={"ledger": str(tmp_path / "ledger")}).write(CONCEPTS, tmp_path / "a.jsonl", target=20, mix=mix)
    assert not (tmp_path / "ledger").exists()


def test_the_budget_ends_a_target_too(tmp_path):
    made = paid(tmp_path, limits=Limits(budget_usd=20 * 110_000 / 1e9))
    summary = made.write(CONCEPTS, tmp_path / "a.jsonl", target=60)
    adds_up(summary)
    assert summary.stopped == "budget_reached"
    assert sum(summary.missing.values()) >= 60 - summary.accepted
    assert summary.charged_usd <= 20 * 110_000 / 1e9


# --- the watch list -----------------------------------------------------------------------------


def test_watched_concepts_are_marked_and_reported_and_never_dropped(teacher, tmp_path):
    options = {"faults": {"H-00001": ["blocked"]}, "answers": {"H-00002": [EMPTY]}}
    made = teacher(options=options, watch=["H-00001", "H-00002", "H-00003", "H-99999"])
    summary = made.write(CONCEPTS, tmp_path / "a.jsonl")
    assert summary.watched == {"H-00001": "blocked", "H-00002": "season_outside_enum", "H-00003": "accepted"}
    marked = {
        c.concept.concept_id: c.concept.metadata.get("watch") for c in read_records(tmp_path / "a.jsonl", Completion)
    }
    assert {name for name, mark in marked.items() if mark} == {"H-00002", "H-00003"}
    assert len(marked) == 11


def test_the_roles_own_watch_list_is_used_where_none_is_given(teacher):
    class Watching(HaikuRole):
        watch = ("H-00004",)

    made = teacher(Watching())
    made.answer(CONCEPTS)
    assert made.summary.watched == {"H-00004": "accepted"}
    made = teacher(Watching(), watch=[])
    made.answer(CONCEPTS)
    assert made.summary.watched == {}
    assert set(ProductOwnerRole.watch) == {"POCON-0004", "POCON-0009", "POCON-0012", "POCON-0115", "POCON-0191"}


def test_a_watched_concept_is_paid_for_once_whether_it_is_watched_or_not(teacher):
    teacher().answer(CONCEPTS)
    made = teacher(watch=["H-00001"])
    made.answer(CONCEPTS)
    assert made.summary.sends == 0


def test_a_second_row_of_a_watched_concept_does_not_hide_what_became_of_the_first(teacher):
    made = teacher(watch=["H-00001"])
    made.answer([*CONCEPTS, CONCEPTS[1]])
    assert made.summary.watched == {"H-00001": "accepted"}


# --- metrics ------------------------------------------------------------------------------------


def lines_metric(example, prediction, trace=None):
    return min(len(prediction.haiku.get("lines", [])), 2) / 2


def broken_metric(example, prediction, trace=None):
    return prediction.product_vision  # the field has another name


def generous_metric(example, prediction, trace=None):
    return 1.0


@pytest.fixture
def metrics(monkeypatch):
    made = types.ModuleType("metrics_of_a_user")
    made.lines, made.broken, made.generous = lines_metric, broken_metric, generous_metric
    monkeypatch.setitem(sys.modules, "metrics_of_a_user", made)


def test_a_metric_by_its_dotted_path_decides_what_is_accepted(teacher, metrics):
    options = {"answers": {"H-00000": [haiku("spring", lines=2)]}}
    made = teacher(options=options, metric="metrics_of_a_user:lines")
    assert made.answer(CONCEPTS[:1])[0].score.value == 1.0
    assert made.summary.accepted == 1


@pytest.mark.parametrize("name", ["broken", "generous"])
def test_a_metric_that_fails_its_self_test_stops_the_run_before_any_call(teacher, metrics, tmp_path, name):
    made = teacher(metric=f"metrics_of_a_user:{name}", options={"ledger": str(tmp_path / "ledger")})
    with pytest.raises(PODistillError, match="metric"):
        made.write(CONCEPTS, tmp_path / "a.jsonl")
    assert not (tmp_path / "ledger").exists()
    assert not (tmp_path / "journal.sqlite").exists()


def test_a_metric_that_is_not_there_is_refused_on_opening(teacher):
    with pytest.raises(SettingsError, match="does not load"):
        teacher(metric="metrics_of_nobody:metric")


# --- structured output --------------------------------------------------------------------------


def test_structured_output_is_asked_for_where_provider_model_and_role_can(tmp_path):
    assert paid(tmp_path, JsonHaikuRole())._structured
    assert not paid(tmp_path, JsonHaikuRole(), structured=False)._structured
    assert not paid(tmp_path)._structured  # the role has no such contract
    assert not paid(tmp_path, JsonHaikuRole(), provider=SCRIPTED)._structured
    free = tmp_path / "free.yaml"
    free.write_text("- {model: cheap-1, context_tokens: 1000, output_cap_tokens: 100}")
    assert not paid(tmp_path, JsonHaikuRole(), model_table=free)._structured
    with pytest.raises(SettingsError, match="no structured output"):
        paid(tmp_path, structured=True)


def test_a_product_owner_answer_comes_as_json_and_is_written_as_two_documents(tmp_path):
    role = ProductOwnerRole()
    concepts = role.generate_concepts(3, seed=3)
    asked = ProductOwnerRole("json")
    options = {"answers": {c.concept_id: [asked.answer_by_rules(c)] for c in concepts}}
    made = paid(tmp_path, role, options=options, generation=GenerationSettings(max_tokens=4096))
    completions = made.answer(concepts)
    for completion in completions:
        assert completion.text.startswith("```yaml VISION\n")
        assert "```yaml REVIEW\n" in completion.text
        assert completion.raw == options["answers"][completion.concept.concept_id][0]
        assert completion.score.valid
        assert role.parse(completion.text).documents["product_vision"]["last_updated"] == completion.created_at
    assert made.summary.accepted == 3


def test_a_review_that_is_missing_is_a_reason_and_is_asked_for_again(tmp_path):
    role = ProductOwnerRole()
    concept = role.generate_concepts(1, seed=3)[0]
    whole = ProductOwnerRole("json").answer_by_rules(concept)
    half = json.dumps({"product_vision": json.loads(whole)["product_vision"]})
    made = paid(
        tmp_path,
        role,
        options={"answers": {concept.concept_id: [half, whole]}},
        generation=GenerationSettings(max_tokens=4096),
    )
    made.answer([concept])
    assert (made.summary.accepted, made.summary.sends) == (1, 2)
    made = paid(
        tmp_path, role, regenerate=0, generation=GenerationSettings(max_tokens=4095),
        options={"answers": {concept.concept_id: [half]}},
    )  # fmt: skip
    made.answer([concept])
    assert made.summary.rejected == {"missing_review": 1}


# --- plans --------------------------------------------------------------------------------------


def test_a_plan_is_what_is_then_sent_and_sends_and_writes_nothing(tmp_path):
    concepts = [*CONCEPTS, Concept(concept_id="B", concept="x", requirements_yaml="- list")]
    PaidProvider.requests.clear()
    made = paid(tmp_path, JsonHaikuRole())
    plan = made.plan(concepts)
    assert PaidProvider.requests == []
    assert not (tmp_path / "journal.sqlite").exists()
    assert (plan.concepts, plan.to_ask, plan.answered, plan.unusable) == (13, 12, 0, 1)
    assert (plan.model, plan.prices, plan.charged_usd) == ("cheap-1", ("cheap-1@2026-09-20",), 0.0)
    made.answer(concepts[:5])
    plan = paid(tmp_path, JsonHaikuRole()).plan(concepts)
    assert (plan.concepts, plan.to_ask, plan.answered, plan.unusable) == (13, 7, 5, 1)
    assert plan.completion_tokens == 7 * 5  # as long as those that came
    assert plan.charged_usd == made.summary.charged_usd > 0
    made = paid(tmp_path, JsonHaikuRole())
    made.answer(concepts)
    assert made.summary.sends == plan.to_ask
    assert paid(tmp_path, JsonHaikuRole()).plan(concepts).to_ask == 0


@pytest.mark.parametrize("regenerate", [0, 2])
def test_a_run_costs_no_more_than_the_worst_of_its_plan(tmp_path, regenerate):
    """Every answer is as long as it may be, and every one is asked for again."""
    weak = [haiku("spring", name, 1) for name in ("a", "b", "c")]
    options = {"answers": {c.concept_id: weak for c in CONCEPTS}, "tokens": [100, 95]}
    made = paid(tmp_path, options=options, regenerate=regenerate)
    plan = made.plan(CONCEPTS)
    made.answer(CONCEPTS)
    assert made.summary.sends == 12 * (1 + regenerate)
    assert plan.cost_usd <= plan.worst_cost_usd
    assert made.summary.charged_usd <= plan.worst_cost_usd < 2 * made.summary.charged_usd


def test_a_plan_without_a_price_says_so_and_one_of_what_is_free_costs_nothing(tmp_path, teacher):
    plan = paid(tmp_path, model="unheard-of").plan(CONCEPTS)
    assert (plan.cost_usd, plan.worst_cost_usd, plan.prices) == (None, None, ())
    plan = teacher("product_owner", provider="offline").plan(ProductOwnerRole().generate_concepts(3, seed=1))
    assert (plan.cost_usd, plan.to_ask) == (0.0, 3)


# --- what the journal can make again ------------------------------------------------------------


def exported(tmp_path):
    with Journal(tmp_path / "journal.sqlite", reading=True) as journal:
        export_completions(journal, tmp_path / "exported.jsonl")
        assert journal.integrity() == []
    return (tmp_path / "exported.jsonl").read_bytes()


def test_an_export_is_byte_for_byte_what_was_written(teacher, tmp_path):
    weak = [haiku("spring", name, n) for n, name in ((2, "a"), (1, "b"), (2, "c"))]
    options = {
        "faults": {"H-00001": ["blocked"], "H-00004": ["timeout", None]},
        "answers": {"H-00002": weak, "H-00005": [EMPTY, haiku("spring")], "H-00006": ["no: [yaml"]},
        "finishes": {"H-00007": ["other/RECITATION"], "H-00008": ["length"]},
    }
    made = teacher(options=options, batch_size=1, watch=["H-00003"])
    made.write(CONCEPTS, tmp_path / "a.jsonl")
    assert sorted(exported(tmp_path).splitlines()) == sorted((tmp_path / "a.jsonl").read_bytes().splitlines())


def test_an_export_of_structured_answers_is_what_was_written_many_at_a_time(tmp_path):
    role = ProductOwnerRole()
    concepts = role.generate_concepts(8, seed=3)
    options = {
        "answers": {c.concept_id: [ProductOwnerRole("json").answer_by_rules(c)] for c in concepts},
        "delay_s": 0.001,
    }
    made = paid(tmp_path, role, options=options, generation=GenerationSettings(max_tokens=4096), batch_size=4)
    made.write(concepts, tmp_path / "a.jsonl")
    assert sorted(exported(tmp_path).splitlines()) == sorted((tmp_path / "a.jsonl").read_bytes().splitlines())


def test_an_answer_that_was_blocked_is_no_completion_in_an_export_either(teacher, tmp_path):
    made = teacher(options={"finishes": {"H-00001": ["blocked/SAFETY"]}}, batch_size=1)
    made.write(CONCEPTS, tmp_path / "a.jsonl")
    assert made.summary.failed == {"blocked": 1}
    assert sorted(exported(tmp_path).splitlines()) == sorted((tmp_path / "a.jsonl").read_bytes().splitlines())


def test_two_concepts_of_one_text_are_both_in_an_export(teacher, tmp_path):
    twin = CONCEPTS[0].model_copy(update={"concept_id": "twin"})
    made = teacher(batch_size=1)
    made.write([CONCEPTS[0], twin], tmp_path / "a.jsonl")
    assert (made.summary.answered, made.summary.sends) == (2, 1)
    assert sorted(exported(tmp_path).splitlines()) == sorted((tmp_path / "a.jsonl").read_bytes().splitlines())


def test_an_export_after_a_run_with_another_watch_list_is_what_that_run_wrote(teacher, tmp_path):
    teacher(batch_size=1).write(CONCEPTS, tmp_path / "a.jsonl")
    teacher(batch_size=1, watch=["H-00002"]).write(CONCEPTS, tmp_path / "b.jsonl")
    assert sorted(exported(tmp_path).splitlines()) == sorted((tmp_path / "b.jsonl").read_bytes().splitlines())


def test_a_model_that_is_not_the_one_that_was_asked_for_stops_the_teacher(tmp_path):
    with pytest.raises(ProviderError, match="'dear-9' answered"):
        paid(tmp_path, options={"served": "dear-9"}).answer(CONCEPTS[:1])
    made = paid(tmp_path, options={"served": "dear-9"}, limits=Limits(served_models=("dear-9",)))
    assert made.answer(CONCEPTS[:1])[0].model == "dear-9"
    assert made.summary.sends == 0


def test_the_thinking_of_the_models_row_is_used_where_none_is_given(tmp_path):
    table = tmp_path / "thinking.yaml"
    table.write_text(f"- {json.dumps(CHEAP.model_dump(mode='json') | {'thinking': 'budget', 'default_thinking': 64})}")
    PaidProvider.requests.clear()
    paid(tmp_path, model_table=table).answer(CONCEPTS[:1])
    paid(tmp_path, model_table=table, generation=GenerationSettings(max_tokens=100, thinking=0)).answer(CONCEPTS[:1])
    assert [r.generation.thinking for r in PaidProvider.requests] == [64, 0]
