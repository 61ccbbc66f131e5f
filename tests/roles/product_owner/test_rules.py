"""The evidence of the embedded rules: a small student learns to judge from it, so it has to lead to the verdict."""

import re

from po_distill.records import Concept
from po_distill.roles.product_owner.documents import REVIEW
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.roles.product_owner.rules import write_documents

ROLE = ProductOwnerRole()
WORDS = (
    "Portal for clinics. It needs price alerts, weekly reports and online booking. Out of scope: map views, job boards."
)


def evidence(*requirements: str, concept: str = WORDS) -> list[str]:
    listed = "".join(
        f"\n- id: FR00{number}\n  description: {text}" for number, text in enumerate(requirements, start=1)
    )
    text = f"title: Portal\nfunctional_requirements:{listed or ' []'}\n"
    summary = write_documents(Concept(concept_id="c", concept=concept, requirements_yaml=text))[REVIEW]["summary"]
    assert isinstance(summary, list)
    return summary


def test_what_is_needed_is_counted_down_and_what_is_left_is_named() -> None:
    assert evidence("Show weekly reports", "Support map views", "Answer at once", "Offer price alerts") == [
        "Scope: price alerts need 1, weekly reports need 2, online booking need 3, map views out of scope, "
        "job boards out of scope",
        "Asked for: left 3 conflicts 0, FR001 weekly reports covered left 2 conflicts 0, "
        "FR002 map views out of scope left 2 conflicts 1, FR003 other left 2 conflicts 1, "
        "FR004 price alerts covered left 1 conflicts 1",
        "Gaps 1 online booking, conflicts 1 map views FR002",
    ]


def test_a_need_that_is_asked_for_twice_is_counted_once() -> None:
    _, asked, last = evidence("Show weekly reports", "Mail weekly reports")
    assert asked == (
        "Asked for: left 3 conflicts 0, FR001 weekly reports covered left 2 conflicts 0, "
        "FR002 weekly reports covered left 2 conflicts 0"
    )
    assert last == "Gaps 2 price alerts, online booking, conflicts 0"


def test_a_requirement_about_two_things_is_counted_for_both() -> None:
    _, asked, last = evidence("Support map views with price alerts")
    assert asked == (
        "Asked for: left 3 conflicts 0, FR001 map views out of scope left 3 conflicts 1, "
        "FR001 price alerts covered left 2 conflicts 1"
    )
    assert last == "Gaps 2 weekly reports, online booking, conflicts 1 map views FR001"


def test_where_nothing_is_wanted_or_asked_for_the_evidence_says_so() -> None:
    assert evidence(concept="A portal.") == ["Scope: none", "Asked for: left 0 conflicts 0", "Gaps 0, conflicts 0"]


def test_the_counts_decide_the_verdict() -> None:
    for concept in ROLE.generate_concepts(90, seed=5):
        summary = write_documents(concept)[REVIEW]["summary"]
        assert isinstance(summary, list)
        left, conflicts = (int(count) for count in re.findall(r"(?:Gaps|conflicts) (\d+)", str(summary[2])))
        last = re.findall(r"left (\d+) conflicts (\d+)", str(summary[1]))[-1]
        verdict = "misaligned" if conflicts else "needs_adjustment" if left else "aligned"
        assert (verdict, last) == (concept.planted_label, (str(left), str(conflicts)))


def test_every_requirement_is_gone_through_once_in_its_order() -> None:
    for concept in ROLE.generate_concepts(30, seed=6):
        summary = write_documents(concept)[REVIEW]["summary"]
        assert isinstance(summary, list)
        identifiers = re.findall(r"\b(?:FR|NFR|C)\d+", concept.requirements_yaml)
        assert re.findall(r"\b(?:FR|NFR|C)\d+", str(summary[1])) == identifiers
