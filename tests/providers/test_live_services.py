"""The real services, where the environment names them; off by default, as each costs money or needs a server.

PO_DISTILL_LIVE_VERTEX=PROJECT[/LOCATION], PO_DISTILL_LIVE_VERTEX_MODEL, PO_DISTILL_LIVE_OPENAI=BASE_URL and
PO_DISTILL_LIVE_OPENAI_MODEL, PO_DISTILL_LIVE_OLLAMA_MODEL (on the server that OLLAMA_HOST names).
"""

import os

import pytest

from po_distill.calls import Limits
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.teacher import Teacher

pytestmark = pytest.mark.live


def named(*variables: str) -> list[str]:
    missing = [name for name in variables if not os.environ.get(name)]
    if missing:
        pytest.skip(f"a real service is asked only where {', '.join(missing)} names it")
    return [os.environ[name] for name in variables]


def answers(tmp_path, **settings) -> None:
    role = ProductOwnerRole()
    teacher = Teacher(role, journal_path=tmp_path / "j.sqlite", log_path=tmp_path / "calls.log", **settings)
    (completion,) = teacher.answer(role.generate_concepts(1, seed=1))
    assert completion.score is not None
    assert completion.score.valid
    assert completion.usage.completion_tokens > 0


@pytest.mark.parametrize("provider", ["vertex_sdk", "vertex_cli"])
def test_gemini_answers_a_concept(tmp_path, provider) -> None:
    place, model = named("PO_DISTILL_LIVE_VERTEX", "PO_DISTILL_LIVE_VERTEX_MODEL")
    project, _, location = place.partition("/")
    options = {"project": project, **({"location": location} if location else {})}
    answers(tmp_path, provider=provider, model=model, options=options, limits=Limits(budget_usd=1.0))


def test_an_openai_compatible_server_answers_a_concept(tmp_path) -> None:
    base_url, model = named("PO_DISTILL_LIVE_OPENAI", "PO_DISTILL_LIVE_OPENAI_MODEL")
    answers(tmp_path, provider="openai_compatible", model=model, base_url=base_url)


def test_ollama_answers_a_concept(tmp_path) -> None:
    (model,) = named("PO_DISTILL_LIVE_OLLAMA_MODEL")
    answers(tmp_path, provider="ollama", model=model)
