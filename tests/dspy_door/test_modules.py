"""Evaluator over DSPy programs."""

from __future__ import annotations

import asyncio

import dspy
import pytest
from dspy.utils import DummyLM

from answers_of_dspy import CONCEPTS, GOOD, ROLE, inputs_of
from po_distill import Evaluator
from po_distill.dspy import ModuleProvider, ProductOwner, student_lm
from po_distill.errors import ProviderError, SettingsError
from po_distill.records import ProviderSettings, Request
from po_distill.roles.product_owner.role import ProductOwnerRole

ANSWER = dict(ROLE.metric_fields(CONCEPTS[0], GOOD)[1])
PROGRAM = ProductOwner()  # found by its dotted path


def program_with(lm):
    program = ProductOwner()
    program.set_lm(lm)
    return program


def test_the_evaluator_judges_a_program_as_it_judges_a_model(tmp_path):
    good, poor = program_with(student_lm("offline")), program_with(DummyLM([ANSWER] * 10))
    report = Evaluator(folder=tmp_path / "answers", report_path=None, log_path=None, workers=1).evaluate(
        CONCEPTS[:6], {"student": ModuleProvider.of(good), "old": ModuleProvider.of(poor)}
    )
    found = {one.name: one for one in report.candidates}
    assert (found["student"].valid_share, found["old"].valid_share) == (1.0, 1.0)
    assert found["student"].score_mean > 0.95 > found["old"].score_mean


def answered(program, concept=CONCEPTS[0], role=None):
    provider = ModuleProvider(ModuleProvider.of(program), role or ProductOwnerRole())
    return asyncio.run(provider.generate(Request(messages=ProductOwnerRole().render(concept), concept=concept)))


def test_an_answer_comes_in_the_form_of_the_roles_contract():
    for name in ("fenced", "dspy"):
        role = ProductOwnerRole(name)
        response = answered(program_with(student_lm("offline")), role=role)
        assert role.score(CONCEPTS[0], response.text).valid


def test_an_answer_that_the_program_cannot_read_is_an_answer_that_production_cannot_read():
    response = answered(program_with(DummyLM([{"product_vision": "a: b"}] * 3)))
    assert not ProductOwnerRole().score(CONCEPTS[0], response.text).valid
    assert "product_vision" in response.text


def test_a_call_is_made_though_the_cache_knows_its_answer():
    lm = DummyLM([ANSWER] * 3)
    with dspy.context(lm=lm):
        ProductOwner()(**inputs_of(CONCEPTS[0]))
    assert answered(program_with(lm)).usage.latency_s > 0


def test_a_model_that_fails_is_a_providers_failure():
    lm = student_lm("offline", role="product_owner")
    broken = dspy.Predict("a -> b")
    broken.set_lm(lm)
    with pytest.raises(ProviderError, match="names none"):
        answered(broken)


def test_the_name_of_a_candidate_changes_with_the_program():
    first, second = (ModuleProvider.of(program_with(DummyLM([ANSWER]))) for _ in range(2))
    assert first == second
    changed = program_with(DummyLM([ANSWER]))
    changed.write.demos = [dspy.Example(concept="a")]
    assert ModuleProvider.of(changed) != first


def test_a_program_can_be_named_by_its_path():
    settings = ProviderSettings(provider="x", model="dspy_door.test_modules:PROGRAM")
    ModuleProvider(settings, ProductOwnerRole())
    for name in ("no.such:program", "dspy_door.test_modules:ANSWER", "program"):
        with pytest.raises(SettingsError):
            ModuleProvider(ProviderSettings(provider="x", model=name), ProductOwnerRole())
