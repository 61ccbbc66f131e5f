import json

import pytest

from haiku import HaikuRole, haiku, haiku_concept
from po_distill import journal as journal_module
from po_distill.artifacts import read_records
from po_distill.journal import End, Journal
from po_distill.journal_views import completion_of, cost_table, export_completions
from po_distill.records import Completion, Response, Usage

ROLE = HaikuRole()
CONTRACT = ROLE.contract.digest


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as opened:
        yield opened


def answer(journal, key, number, text, *, contract=CONTRACT, raw=None, model="m", **fields):
    concept = haiku_concept(number)
    send = journal.begin_send(
        key, concept_id=concept.concept_id, provider="p", model="m", attempt=0, reserved_nanousd=100
    )
    response = Response(text=raw or text, model=model, usage=Usage(prompt_tokens=3), **fields)
    journal.record(key, send, response, End(None, 40))
    score = ROLE.score(concept, text)
    journal.judge(key, concept, contract=contract, verdict="whatever", score=score, text=text)
    journal.write_verdicts()


def exported(journal, tmp_path):
    found = export_completions(journal, tmp_path / "out.jsonl")
    return found, list(read_records(tmp_path / "out.jsonl", Completion)) if found["completions"] else []


def test_the_best_answer_to_each_concept_is_exported_in_the_order_of_the_first_answers(journal, tmp_path):
    answer(journal, "b1", 2, haiku("spring", lines=1))
    answer(journal, "a1", 1, haiku("spring", lines=2))
    answer(journal, "b2", 2, haiku("spring", "better", lines=3))
    answer(journal, "a2", 1, haiku("winter", lines=3))  # invalid, with a violation
    answer(journal, "b3", 2, haiku("spring", "later", lines=3))
    found, completions = exported(journal, tmp_path)
    assert found == {"answers": 5, "completions": 2}
    assert [(c.concept.concept_id, c.text) for c in completions] == [
        ("H-00002", haiku("spring", "better", lines=3)),
        ("H-00001", haiku("spring", lines=2)),
    ]


def test_answers_under_two_contracts_are_two_completions(journal, tmp_path):
    other = HaikuRole(prompt="Another.").contract.digest
    answer(journal, "a", 1, haiku("spring"))
    answer(journal, "b", 1, haiku("spring", "x"), contract=other)
    _, completions = exported(journal, tmp_path)
    assert [c.contract_digest for c in completions] == [CONTRACT, other]


def test_a_completion_is_made_of_what_the_journal_holds(journal):
    answer(journal, "a", 1, haiku("spring"), raw='{"season": "spring"}', finish="other", finish_reason="RECITATION",
           stand_in=True, model="m-001")  # fmt: skip
    (row,) = journal.judged()
    made = completion_of(row)
    assert made.text == haiku("spring")
    assert made.raw == '{"season": "spring"}'
    assert (made.model, made.provider, made.finish, made.finish_reason) == ("m-001", "p", "other", "RECITATION")
    assert made.stand_in
    assert made.usage.prompt_tokens == 3
    assert made.score == ROLE.score(haiku_concept(1), haiku("spring"))
    assert made.created_at == row["recorded_at"]


def test_an_empty_journal_exports_an_empty_file(journal, tmp_path):
    assert exported(journal, tmp_path)[0] == {"answers": 0, "completions": 0}
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_costs_are_summed_by_model_by_day_and_by_end_and_each_table_has_them_all(journal, monkeypatch):
    def begin(provider, model, reserved=100):
        return journal.begin_send(
            "k", concept_id="C", provider=provider, model=model, attempt=0, reserved_nanousd=reserved
        )

    monkeypatch.setattr(journal_module, "now", lambda: "2026-11-24T23:59:59+00:00")
    journal.record("a", begin("p", "m"), Response(text="", model="m"), End(None, 40))
    journal.end_send(begin("p", "m"), End("timeout", None))
    monkeypatch.setattr(journal_module, "now", lambda: "2026-11-25T00:00:00+00:00")
    journal.end_send(begin("q", ""), End("rate_limited", 0))
    begin("p", "m2", 1000)
    found = cost_table(journal)
    assert json.loads(json.dumps(found)) == found
    assert {name: place["sends"] for name, place in found["by_model"].items()} == {"p m": 2, "p m2": 1, "q": 1}
    assert {name: place["sends"] for name, place in found["by_day"].items()} == {"2026-11-24": 2, "2026-11-25": 2}
    assert {name: place["sends"] for name, place in found["by_status"].items()} == {
        "answered": 1,
        "in_flight_or_doubt": 1,
        "rate_limited": 1,
        "timeout": 1,
    }
    assert found["by_status"]["timeout"] == {"sends": 1, "usd": 0.0, "doubtful": 1, "doubtful_usd": 1e-7}
    assert (found["sends"], found["usd"], found["doubtful"], found["doubtful_usd"]) == (4, 4e-8, 2, 1.1e-6)
    for table in ("by_model", "by_day", "by_status"):
        for figure in ("sends", "usd", "doubtful", "doubtful_usd"):
            assert sum(place[figure] for place in found[table].values()) == pytest.approx(found[figure])
    assert found["usd"] + found["doubtful_usd"] == pytest.approx(journal.charged_nanousd() / 1e9)
