import re

import pytest

from po_distill import plugins

NAMES = ["mistral-7b-instruct", "qwen2.5-7b-instruct", "smollm2-135m-instruct"]


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_base_model_is_complete(name):
    spec = plugins.load("base_models", name)
    assert spec.name == name
    assert spec.stops and spec.license and spec.context_tokens >= 8192
    assert re.fullmatch(r"[\w-]+/[\w.-]+", spec.hub_id)


@pytest.mark.parametrize("name", NAMES)
def test_an_ollama_template_leaves_bos_to_the_runtime(name):
    template = plugins.load("base_models", name).ollama_template
    assert "<s>" not in template
    assert template.count("{{") == template.count("}}")
    opened = len(re.findall(r"\{\{-? ?(?:range|if) ", template))
    assert opened == len(re.findall(r"\{\{-? ?end ", template))


@pytest.mark.parametrize("name", NAMES)
def test_the_first_stop_ends_an_assistants_turn_in_the_template(name):
    spec = plugins.load("base_models", name)
    assert spec.stops[0] in spec.ollama_template
