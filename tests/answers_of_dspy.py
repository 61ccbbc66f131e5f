"""What the tests of DSPy's door share: concepts, what a good program says of them, runtimes that say it."""

from __future__ import annotations

from pathlib import Path

import dspy

from fakes.scripted_gguf import write_scripted_gguf
from po_distill.errors import ProviderError
from po_distill.records import Response
from po_distill.roles.product_owner.role import ProductOwnerRole

ROLE = ProductOwnerRole("dspy")
CONCEPTS = ROLE.generate_concepts(12, seed=5)
GOOD = ROLE.answer_by_rules(CONCEPTS[0])


def example(concept, *, labeled: bool = True) -> dspy.Example:
    inputs, outputs = ROLE.metric_fields(concept, ROLE.answer_by_rules(concept))
    return dspy.Example(**inputs, **(outputs if labeled else {})).with_inputs(*inputs)


def inputs_of(concept) -> dict[str, str]:
    return dict(ROLE.metric_fields(concept, "")[0])


def saying(path: Path, text: str, context_tokens: int = 8192) -> Path:
    """A GGUF that llama.cpp runs and that always says `text`."""
    half = len(text) // 2
    return write_scripted_gguf(path, [text[:half], text[half:]], context_tokens=context_tokens)


class Prepared:
    """A provider that has to log in; the first time nobody answers it."""

    logins = 0

    def __init__(self, settings, role):
        self.ready = False

    async def prepare(self):
        type(self).logins += 1
        if self.logins == 1:
            raise ProviderError("Nobody is there.", "Wait.", fault="refused")
        self.ready = True

    async def generate(self, request):
        assert self.ready
        return Response(text="yes", model="m")

    async def aclose(self): ...
