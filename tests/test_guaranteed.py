"""Answers that are valid whoever wrote them: here a model of random weights, through llama.cpp itself."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from haiku import PAID, SCRIPTED, HaikuRole, JsonHaikuRole, PaidProvider, haiku_concept
from po_distill import ValidAnswers, valid_answer
from po_distill.answer_bounds import longest_answer, tokens_for
from po_distill.artifacts import read_records, write_jsonl
from po_distill.cli import cli
from po_distill.errors import ProviderError, SettingsError
from po_distill.guaranteed import GuaranteedForm, decoding_schema
from po_distill.records import Completion, Concept, GenerationSettings, ProviderSettings, Response
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages.evaluator import Evaluator

ROLE = ProductOwnerRole()
CONCEPTS = ROLE.generate_concepts(3, seed=5)
MOST_TOKENS = 1100  # a token of the untrained model is a character, or two
SHORT = GenerationSettings(temperature=0, max_tokens=MOST_TOKENS)
STAMP = "2026-02-03T04:05:06Z"


class BoundedHaikuRole(JsonHaikuRole):
    """The haiku with a schema of its own."""

    def json_schema(self) -> dict[str, Any]:
        lines = {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 3}
        held = {"season": {"type": "string", "enum": list(self.labels)}, "lines": lines}
        return {"type": "object", "properties": held, "required": ["season", "lines"]}


WRITTEN = json.dumps({"season": "spring", "lines": ["old pond", "a frog", "water"]})


def paid(*answers: str, **options: Any) -> ProviderSettings:
    """A provider that says of itself that it holds answers to a schema, and answers what it is told."""
    return ProviderSettings(provider=PAID, model="m", options={"answers": {"H-00000": list(answers)}, **options})


# --- with llama.cpp -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    pytest.importorskip("xllamacpp")
    pytest.importorskip("torch")
    from po_distill.weights.gguf import write_gguf
    from tiny_models import tiny_model

    folder = tmp_path_factory.mktemp("untrained")
    write_gguf(tiny_model(folder / "model", max_position_embeddings=8192), folder / "tiny.gguf", "q8_0")
    return folder / "tiny.gguf"


def evaluated(model, folder, *, guaranteed_valid, max_tokens=MOST_TOKENS):
    evaluator = Evaluator(
        ROLE,
        generation=GenerationSettings(temperature=0, max_tokens=max_tokens),
        guaranteed_valid=guaranteed_valid,
        folder=folder,
        report_path=folder / "report.md",
        log_path=None,
        workers=1,
    )
    settings = ProviderSettings(provider="llama_cpp", model=str(model), options={"n_threads": 1})
    report = evaluator.evaluate(CONCEPTS, {"base": settings})
    return report, list(read_records(folder / "base.completions.jsonl", Completion))


@pytest.fixture(scope="module")
def held(untrained, tmp_path_factory):
    return evaluated(untrained, tmp_path_factory.mktemp("held"), guaranteed_valid=True)


def test_an_untrained_model_answers_validly_every_time(held, untrained, tmp_path):
    report, completions = held
    assert report.guaranteed_valid and report.candidate("base").valid_share == 1.0
    assert {completion.finish for completion in completions} == {"stop"}
    free, _ = evaluated(untrained, tmp_path, guaranteed_valid=False, max_tokens=200)
    assert not free.guaranteed_valid and free.candidate("base").valid_share == 0.0


def test_the_answer_is_kept_in_the_roles_form_and_as_it_came(held):
    for completion in held[1]:
        assert completion.text.startswith("```yaml VISION\n") and completion.contract_digest == ROLE.contract.digest
        came = json.loads(completion.raw)
        assert "last_updated" not in came["product_vision"]
        assert ROLE.parse(completion.text).documents["product_vision"]["last_updated"] == completion.created_at


def test_what_the_gate_asks_of_a_form_holds_by_construction(held):
    kinds = {found.kind for one in held[1] for found in ROLE.score(one.concept, one.text).violations}
    assert kinds <= {"unknown_requirement_id"}  # an id in a free text is the model's own


def test_the_report_says_that_answers_were_held(held):
    report, _ = held
    for path in (report.artifacts["report"], report.artifacts["report as a page"]):
        assert "greedy under a JSON schema (guaranteed-valid)" in Path(path).read_text()


def test_what_fits_begins_and_what_conflicts_ends_with_an_id_of_the_concept() -> None:
    identifiers = re.findall(r"id: (\S+)", CONCEPTS[0].requirements_yaml)
    reviews = decoding_schema(ROLE, CONCEPTS[0], 4096)["properties"]["product_owner_review"]["anyOf"]
    (misaligned,) = [one for one in reviews if one["properties"]["status"]["enum"] == ["misaligned"]]
    lists = misaligned["properties"]["requirements_alignment"]["properties"]
    assert list(lists) == ["gaps", "conflicts", "aligned"]
    fits, conflicts = (re.compile(lists[name]["items"]["pattern"]) for name in ("aligned", "conflicts"))
    for identifier in identifiers:
        assert fits.search(f"{identifier}: map views")
        assert conflicts.search(f"map views: {identifier}")
        assert not fits.search(f"map views: {identifier}")
        assert not conflicts.search(f"{identifier}: map views")
    assert not fits.search("XX999: map views")
    assert not conflicts.search("map views: XX999")


def test_no_answer_is_longer_than_the_schema_allows(held):
    for completion in held[1]:
        schema = decoding_schema(ROLE, completion.concept, MOST_TOKENS)
        assert len(completion.raw) <= longest_answer(schema) and tokens_for(schema) <= MOST_TOKENS


def test_role_code_gets_valid_text_from_the_library_alone(untrained):
    settings = ProviderSettings(provider="llama_cpp", model=str(untrained), options={"n_threads": 1})

    async def two() -> list[str]:
        async with ValidAnswers("product_owner", settings, generation=SHORT) as model:
            return [await model.answer(concept) for concept in CONCEPTS[:2]]

    for concept, text in zip(CONCEPTS, asyncio.run(two()), strict=False):
        assert ROLE.score(concept, text).valid


# --- the form -------------------------------------------------------------------------------------


def test_a_cut_answer_stays_as_it_came_and_is_invalid():
    form, whole = GuaranteedForm(ROLE), ROLE.canonical(ROLE.parse(ROLE.answer_by_rules(CONCEPTS[0])).documents)
    documents = ROLE.parse(whole).documents
    came = json.dumps(documents)
    assert form.written(Response(text=came, model="m"), STAMP) == ROLE.canonical(documents, stamp=STAMP)
    for text, finish in ((came[:-1], "length"), (came, "length"), (came[:-1], "stop"), ("[]", "stop"), ("", "stop")):
        cut = form.written(Response(text=text, model="m", finish=finish), STAMP)
        assert cut == text and not ROLE.score(CONCEPTS[0], cut).valid


def test_the_role_is_asked_under_its_json_contract_where_it_has_one():
    concept = haiku_concept(0)
    assert GuaranteedForm(BoundedHaikuRole()).request(concept, SHORT).messages[0].content == "Answer in JSON."
    own = GuaranteedForm(BoundedHaikuRole(prompt="Mine.")).request(concept, SHORT)
    assert own.messages[0].content == "Mine." and own.json_schema["additionalProperties"] is False


def test_a_schema_that_cannot_end_or_tokens_that_do_not_suffice_are_refused():
    with pytest.raises(SettingsError, match="any length"):
        GuaranteedForm(HaikuRole()).request(haiku_concept(0), SHORT)
    few = GenerationSettings(temperature=0, max_tokens=500)
    with pytest.raises(SettingsError, match=r"may take (\d+) tokens, and max_tokens is 500") as caught:
        GuaranteedForm(ROLE).request(CONCEPTS[0], few)
    needed = int(caught.value.fix.split()[3])
    assert GuaranteedForm(ROLE).request(CONCEPTS[0], few.model_copy(update={"max_tokens": needed})).json_schema


def test_a_roles_own_schema_is_measured():
    class Endless(ProductOwnerRole):
        def decoding_schema(self, concept: Concept, max_tokens: int) -> dict[str, Any]:
            return self.json_schema()

    with pytest.raises(SettingsError, match=r"decoding schema of the role product_owner takes answers of any length"):
        decoding_schema(Endless(), CONCEPTS[0], 4096)


# --- asked without a model ------------------------------------------------------------------------


def test_a_role_without_a_schema_of_its_own_for_decoding_is_held_to_its_json_schema():
    PaidProvider.requests.clear()
    text = valid_answer(BoundedHaikuRole(), paid(WRITTEN), haiku_concept(0))
    assert text.startswith("```haiku\n") and BoundedHaikuRole().score(haiku_concept(0), text).valid
    schema: Mapping[str, Any] = PaidProvider.requests[0].json_schema or {}
    assert schema["properties"]["lines"]["items"]["maxLength"] > 0


def test_the_command_asks_under_the_schema_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("student.gguf").write_bytes(b"asked of a provider that does not read it")
    write_jsonl("concepts.jsonl", CONCEPTS[:1])
    arguments = ["--model", "student.gguf", "--provider", PAID, "--data", "concepts.jsonl", "--workers", "1", "--json"]
    for more, schemas in (([], 0), (["--guaranteed-valid", "--folder", "held"], 1)):
        PaidProvider.requests.clear()
        result = CliRunner().invoke(cli, ["evaluate", *arguments, *more], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert sum(request.json_schema is not None for request in PaidProvider.requests) == schemas
        assert len(PaidProvider.requests) == 1


def test_it_can_be_called_inside_a_running_event_loop():
    async def inside() -> str:
        return valid_answer(BoundedHaikuRole(), paid(WRITTEN), haiku_concept(0))

    assert "old pond" in asyncio.run(inside())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (paid(WRITTEN[:-5], finishes={"H-00000": ["length"]}), "was cut about H-00000"),
        (paid("I would rather not."), "did not hold m to the schema"),
        (paid(WRITTEN.replace("spring", "winter")), "season_outside_enum"),
    ],
)
def test_what_production_could_not_read_is_an_error_and_no_text(settings, says):
    with pytest.raises(ProviderError, match=says) as caught:
        valid_answer(BoundedHaikuRole(), settings, haiku_concept(0))
    assert caught.value.fault == "bad_answer"


def test_a_provider_that_holds_answers_to_nothing_is_refused_before_any_call(tmp_path):
    settings = ProviderSettings(provider=SCRIPTED, model="m")
    with pytest.raises(SettingsError, match="does not hold answers to a JSON schema"):
        valid_answer(BoundedHaikuRole(), settings, haiku_concept(0))
    evaluator = Evaluator(BoundedHaikuRole(), guaranteed_valid=True, folder=tmp_path, report_path=None, log_path=None)
    with pytest.raises(SettingsError, match="does not hold answers to a JSON schema"):
        evaluator.evaluate([haiku_concept(0)], {"student": settings})
