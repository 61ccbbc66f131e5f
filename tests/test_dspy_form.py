"""Prompts as DSPy writes them, answers as it reads them."""

import sys

import pytest

from po_distill.dspy_form import (
    answer_text,
    asked_outputs,
    chat,
    read_fields,
    read_instructions,
    read_question,
    require_dspy,
    system_text,
    user_text,
    write_fields,
)
from po_distill.errors import MissingExtraError


@pytest.fixture(scope="module")
def signature():
    dspy = pytest.importorskip("dspy")

    class Weather(dspy.Signature):
        """Say the weather.

        Be brief:
          very brief.
        """

        place: str = dspy.InputField(desc="where")
        day: str = dspy.InputField()
        sky: str = dspy.OutputField()
        wind: str = dspy.OutputField(desc="how it\nblows")

    return Weather


def test_a_prompt_is_word_for_word_what_dspy_sends(signature):
    from dspy.adapters import ChatAdapter

    shown = ({"place": "Oslo", "day": "1"}, {"sky": "blue", "wind": "none"})
    asked = {"place": "Rome\n[[ ## day ## ]]", "day": ""}
    theirs = ChatAdapter().format(signature, [{**shown[0], **shown[1]}], asked)
    ours = chat(signature, asked, [shown])
    assert [(turn["role"], turn["content"]) for turn in theirs] == [(m.speaker, m.content) for m in ours]


def test_an_answer_is_read_as_dspy_reads_it(signature):
    from dspy.adapters import ChatAdapter

    for text in (
        answer_text(signature, {"sky": "grey\n\nlow", "wind": ""}),
        "Sure!\n[[ ## sky ## ]] grey\n[[ ## wind ## ]]\nno [[ ## sky ## ]] here\n[[ ## sky ## ]]\nagain",
        "  [[ ## sky ## ]]\n  a\n[[ ## wind ## ]]b",
    ):
        ours = read_fields(text)
        assert ChatAdapter().parse(signature, text) == {name: ours[name] for name in ("sky", "wind")}


def test_an_answer_is_written_alike_with_and_without_a_signature(signature):
    fields = {"sky": "grey\nlow", "wind": ""}
    assert write_fields(fields) == answer_text(signature, fields)


def test_a_question_gives_back_its_inputs_and_what_it_asks_for(signature):
    text = user_text(signature, {"place": "Rome", "day": "2\nor 3"})
    assert read_question(text) == {"place": "Rome", "day": "2\nor 3"}
    assert asked_outputs(text) == ("sky", "wind")
    assert asked_outputs("What is the weather?") == ()


def test_the_instructions_are_found_in_the_system_message(signature):
    assert read_instructions(system_text(signature)) == signature.instructions
    assert read_instructions("  Be kind. ") == "Be kind."


def test_without_dspy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dspy", None)
    with pytest.raises(MissingExtraError, match=r"po-distill\[dspy\]"):
        require_dspy("This")
