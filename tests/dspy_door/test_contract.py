"""Packager, install, evaluator and smoke test under the contract `dspy`."""

from __future__ import annotations

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("ollama")
from answers_of_dspy import CONCEPTS, GOOD, ROLE, saying
from fakes.ollama_server import FakeOllama
from po_distill import Evaluator
from po_distill.records import ProviderSettings
from po_distill.role_model import RoleModel
from po_distill.smoke import ask_as_production
from po_distill.stages.packager import Packager
from scripted_student import scripted_student


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return saying(tmp_path_factory.mktemp("gguf") / "student.gguf", GOOD)


def test_a_package_is_proven_on_a_server_by_an_answer_in_dspys_form(tmp_path):
    student = scripted_student(tmp_path / "po_student_v1", GOOD, contract=ROLE.contract)
    package = Packager().package(student)
    assert package.system == ROLE.contract.system
    with FakeOllama(tmp_path / "models") as server:
        assert Packager().install(package, server.base_url).answer_tokens > 0


def test_the_evaluator_asks_and_reads_under_it(gguf, tmp_path):
    report = Evaluator(contract="dspy", folder=tmp_path, report_path=None, log_path=None, workers=1).evaluate(
        CONCEPTS[:2], {"student": ProviderSettings(provider="llama_cpp", model=str(gguf))}
    )
    assert report.contract == ROLE.contract
    assert report.candidates[0].valid_share == 1.0


def test_the_smoke_test_does_too(gguf):
    model = RoleModel("llama_cpp", str(gguf), None, 0.0, 2048, "here")
    found = ask_as_production(ROLE, model, CONCEPTS[0])
    assert found.passed
    assert found.documents == {"product_vision": True, "product_owner_review": True}
