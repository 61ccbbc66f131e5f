"""What a report recommends follows from its verdict, and from the gate that gave it."""

import pytest
from reports import completions, report_of

from po_distill.records import Cluster, Verdict
from po_distill.reporting.observations import recommendations

SOUND = {"student": completions("po-student-v1.gguf", {}, seconds=0.004)}


@pytest.mark.parametrize(
    ("gate", "asked"),
    [
        ("production", "po-distill promote"),
        ("our_rules.yaml", "po-distill promote"),
        ("basic", "po-distill evaluate --gate production"),
    ],
)
def test_only_a_student_that_passed_rules_for_production_is_to_be_promoted(gate, asked):
    report = report_of(SOUND, verdict=Verdict(passed=True, outcome="passed", reasons=(), gate=gate))
    assert asked in recommendations(report)[0]


def test_nothing_is_said_of_promotion_where_the_student_failed():
    report = report_of(SOUND, verdict=Verdict(passed=False, outcome="failed", reasons=(), gate="production"))
    assert not any("promote" in said for said in recommendations(report))


@pytest.mark.parametrize(
    ("cause", "says"),
    [("missing_stories", "lack it, or are cut before it"), ("truncated", "--max-tokens"), ("odd", "")],
)
def test_a_cause_that_is_known_has_its_advice_also_for_a_document_of_any_role(cause, says):
    report = report_of(SOUND)
    cluster = Cluster(cause=cause, level="format", n=3, concept_ids=("H-00001",), lost=0.1)
    judged = report.judged.model_copy(update={"clusters": (cluster,)})
    report = report.model_copy(update={"candidates": (judged,)})
    found = [said for said in recommendations(report) if f"({cause}: 3 of 7 answers)" in said]
    assert [says in said for said in found] == ([True] if says else [])
