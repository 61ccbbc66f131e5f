"""What every base model says of itself."""

from __future__ import annotations

import re

import pytest

from po_distill.records import BaseModelSpec
from po_distill.testing.registered import load_once

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OPENED = re.compile(r"\{\{-?\s*(?:range|if|with|block|define)\b")
_ENDED = re.compile(r"\{\{-?\s*end\b")


class BaseModelContract:
    """The contract of a base model: subclass it, and name the model. Nothing is downloaded.

    class TestTiny(BaseModelContract):
        base_model_name = "tinyllama-1.1b-chat"
    """

    base_model_name: str  # under which it is registered

    @pytest.fixture
    def spec(self) -> BaseModelSpec:
        """The specification, as it is registered."""
        found = load_once("base_models", self.base_model_name)
        assert isinstance(found, BaseModelSpec)
        return found

    def test_its_name_is_that_of_its_entry_point(self, spec: BaseModelSpec) -> None:
        assert spec.name == self.base_model_name

    def test_it_says_where_it_is_from_and_under_which_licence(self, spec: BaseModelSpec) -> None:
        assert _HUB_ID.fullmatch(spec.hub_id), "organisation/name on the hub"
        assert spec.license.strip(), "an SPDX identifier, or LicenseRef-..."

    def test_its_context_has_room_for_a_prompt_and_an_answer(self, spec: BaseModelSpec) -> None:
        assert spec.context_tokens >= 1024

    def test_a_runtime_knows_where_its_answers_end(self, spec: BaseModelSpec) -> None:
        assert spec.stops and all(stop.strip() for stop in spec.stops)

    def test_an_adapter_has_layers_to_be_on(self, spec: BaseModelSpec) -> None:
        assert spec.target_modules and all(re.fullmatch(r"\w+", name) for name in spec.target_modules)

    def test_its_ollama_template_is_whole_and_ends_turns_as_the_model_does(self, spec: BaseModelSpec) -> None:
        if spec.ollama_template is None:
            pytest.skip("it has no Ollama template: ChatML and Mistral's form are known without one")
        template = spec.ollama_template
        assert template.count("{{") == template.count("}}")
        assert len(_OPENED.findall(template)) == len(_ENDED.findall(template)), "each range and if has its end"
        assert ".Messages" in template, "the turns of the chat"
        assert "<s>" not in template and "<|begin_of_text|>" not in template, "the runtime adds BOS itself"
        assert any(stop in template for stop in spec.stops), "a turn of the assistant ends with one of the stops"
