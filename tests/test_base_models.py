import pytest

from po_distill import plugins
from po_distill.testing import BaseModelContract


class TestMistral(BaseModelContract):
    base_model_name = "mistral-7b-instruct"


class TestQwen(BaseModelContract):
    base_model_name = "qwen2.5-7b-instruct"


class TestSmolLM2(BaseModelContract):
    base_model_name = "smollm2-135m-instruct"


@pytest.mark.parametrize("name", plugins.names("base_models"))
def test_ours_have_room_for_long_requirements_and_a_template_of_their_own(name):
    spec = plugins.load("base_models", name)
    assert spec.context_tokens >= 8192
    assert spec.stops[0] in (spec.ollama_template or "")
