import asyncio
import json

import pytest

from haiku import HaikuRole, haiku, haiku_concept
from po_distill.errors import InputError, ProviderError
from po_distill.providers.replay import ReplayProvider
from po_distill.records import Completion, Concept, ProviderSettings, Request, Usage

ROLE = HaikuRole()
POND, LAKE = haiku_concept(1), haiku_concept(2)


@pytest.fixture
def replay(tmp_path):
    def make(*rows):
        path = tmp_path / "recorded.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        provider = ReplayProvider(ProviderSettings(provider="replay", model=str(path)), ROLE)

        def ask(concept):
            return asyncio.run(provider.generate(Request(messages=ROLE.render(concept), concept=concept)))

        return ask

    return make


def fields(concept: Concept, **more) -> dict:
    return {"concept": concept.concept, "requirements_yaml": concept.requirements_yaml, **more}


def test_a_completion_row_comes_back_whole(replay):
    completion = Completion(
        concept=POND,
        text=haiku("spring"),
        model="big-1",
        provider="p",
        contract_digest=ROLE.contract.digest,
        finish="length",
        usage=Usage(completion_tokens=9, latency_s=2.5),
        stand_in=True,
    )
    response = replay(completion.model_dump(mode="json"))(POND)
    assert (response.text, response.model, response.finish) == (completion.text, "big-1", "length")
    assert (response.usage, response.stand_in) == (completion.usage, True)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ROLE.render(POND)[-1].content, "response": "it"},
        fields(POND, response="it"),
        fields(POND, concept_id="another id", response="it"),
        {"concept_id": POND.concept_id, "response": "it"},
        {"input": fields(POND), "output": "it"},
        {"input": {**fields(POND), "concept_id": "x"}, "response": "it"},
    ],
)
def test_the_rows_of_other_tools_are_found_by_what_they_say(replay, row):
    assert replay(row)(POND).text == "it"


def test_one_text_per_document_is_joined_by_the_role(replay):
    assert replay(fields(POND, teacher_haiku="season: spring"))(POND).text == "```haiku\nseason: spring\n```"
    assert replay({"input": fields(POND), "output": {"haiku": "season: x"}})(POND).text == "```haiku\nseason: x\n```"


def test_spaces_and_line_ends_do_not_hide_a_concept(replay):
    row = {"concept": f"  {POND.concept}\r\n", "requirements_yaml": "season:   spring", "response": "it"}
    assert replay(row)(POND).text == "it"


def test_a_concept_without_a_record_is_named(replay):
    with pytest.raises(ProviderError, match="no completion for the concept 'H-00002'") as caught:
        replay(fields(POND, response="it"))(LAKE)
    assert caught.value.fault == "bad_answer"


def test_a_record_about_another_concept_under_the_same_id_is_not_used(replay):
    with pytest.raises(ProviderError, match=r"line 1 is about another concept under the id 'H-00002'"):
        replay(fields(POND, concept_id=LAKE.concept_id, response="it"))(LAKE)


def test_of_several_records_the_first_counts(replay):
    assert replay(fields(POND, response="first"), fields(POND, response="second"))(POND).text == "first"


def test_a_row_without_an_answer_fails_its_concept_alone(replay):
    ask = replay(fields(POND), fields(LAKE, response="it"), {"contract_digest": "x", **fields(haiku_concept(3))})
    assert ask(LAKE).text == "it"
    with pytest.raises(ProviderError, match=r"line 1 cannot be replayed: it holds no answer") as caught:
        ask(POND)
    assert caught.value.fault == "bad_answer"
    with pytest.raises(ProviderError, match=r"line 3 cannot be replayed: concept"):
        ask(haiku_concept(3))


def test_a_file_that_cannot_be_read_says_why(tmp_path, replay):
    for model in (None, str(tmp_path / "missing.jsonl"), str(tmp_path)):
        with pytest.raises(InputError):
            ReplayProvider(ProviderSettings(provider="replay", model=model), ROLE)
    with pytest.raises(InputError, match="line 2: not JSON"):
        replay({}, "{broken")
    with pytest.raises(InputError, match="line 1: a JSON object"):
        replay("[1]")
    (tmp_path / "latin.jsonl").write_bytes(b'{"concept": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        ReplayProvider(ProviderSettings(provider="replay", model=str(tmp_path / "latin.jsonl")), ROLE)
