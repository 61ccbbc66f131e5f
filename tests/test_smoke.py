"""One concept through the model of a config, as production asks it: a real GGUF behind a fake of Ollama."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("aiohttp")
pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")

from fakes.ollama_calls import create
from fakes.ollama_server import FakeOllama, Fault
from fakes.scripted_gguf import write_scripted_gguf
from haiku import PAID, SCRIPTED, HaikuRole, ScriptedProvider, haiku_concept
from po_distill.commands.smoke import _concept, smoke
from po_distill.errors import ContractMismatchError, InputError, PluginError, ProviderError, SettingsError
from po_distill.records import Concept, SmokeResult
from po_distill.role_model import RoleModel, resolve_role_model
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.smoke import ask_as_production

ROLE = ProductOwnerRole()
CONCEPT = ROLE.generate_concepts(1, seed=1)[0]
REQUIREMENTS = CONCEPT.requirements_yaml.strip()
ANSWER = ROLE.answer_by_rules(CONCEPT)
UNREADABLE = ANSWER[: ANSWER.index("```yaml REVIEW")] + "The review is left out."
MODEL = "po-student-v1"
CHAT = "POST /api/chat"
PARAMETERS = {"num_ctx": 16384, "stop": ["<|im_end|>"]}
SEED = 1  # with some seeds "forgetful" says too many blanks where it is held to what it has no script for
CONFIG = """\
providers:
  ollama:
    type: ollama
    base_url: "{url}"
roles:
  product_owner:
    provider: ollama
    model: "{model}"
    temperature: 0.4
    max_tokens: {max_tokens}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeOllama]:
    """A server with the student, and with one that forgets the review."""
    folder = tmp_path_factory.mktemp("ollama")
    with FakeOllama(folder / "models") as fake:
        for name, answer in ((MODEL, ANSWER), ("forgetful", UNREADABLE)):
            gguf = write_scripted_gguf(folder / f"{name}.gguf", pieces(answer), context_tokens=16384)
            assert create(fake, name, gguf, parameters={**PARAMETERS, "seed": SEED})[0] == 200
        assert create(fake, "narrow", gguf, parameters={**PARAMETERS, "num_ctx": 256})[0] == 200
        yield fake


@pytest.fixture
def server(running: FakeOllama) -> Iterator[FakeOllama]:
    yield running
    running.knobs.latency_s = 0.0
    running.faults.clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with temporary files beside it, and no model in the environment."""
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("PO_MODEL", "PRODUCT_OWNER_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "here"


def pieces(text: str) -> list[str]:
    """The text in parts of two characters and more, no two of them alike."""
    found: list[str] = []
    start = 0
    while start < len(text):
        end = start + 24
        while text[start:end] in found or len(text) - end == 1:
            end += 1
        found.append(text[start:end])
        start = end
    return found


def write_config(place: Path, server: FakeOllama, model: str = MODEL, max_tokens: int = 4096) -> None:
    (place / "config.yaml").write_text(CONFIG.format(url=server.base_url, model=model, max_tokens=max_tokens))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(smoke, list(arguments))


def refused(kind: type[Exception], *arguments: str) -> Any:
    result = run(*arguments)
    assert isinstance(result.exception, kind), result.output
    return result.exception


def ask(provider: str = SCRIPTED, options: dict[str, Any] | None = None, **more: Any) -> SmokeResult:
    """A provider of the tests asked about a haiku."""
    model = RoleModel(provider, "m", None, more.pop("temperature", None), more.pop("max_tokens", None), "config.yaml")
    return ask_as_production(HaikuRole(), model, haiku_concept(1), options=options, **more)


# --- a student that works ---------------------------------------------------------------------------


def test_the_student_is_asked_as_production_asks_and_its_answer_is_read(place: Path, server: FakeOllama) -> None:
    write_config(place, server)
    server.seen.bodies.clear()
    result = run("--json")
    assert result.exit_code == 0, result.output
    found = SmokeResult.model_validate_json(result.stdout)
    [(route, body)] = server.seen.bodies
    assert route == CHAT
    assert (body["model"], body["options"]) == (MODEL, {"temperature": 0.4, "num_predict": 4096})
    system, user = body["messages"]
    assert system == {"role": "system", "content": ROLE.contract.system}
    blocks = ("CONCEPT", CONCEPT.concept), ("EXISTING_VISION", "(no existing vision)"), ("REQUIREMENTS", REQUIREMENTS)
    assert user == {"role": "user", "content": "\n\n".join(f"{label}:\n{text}" for label, text in blocks)}
    score = ROLE.score(CONCEPT, ANSWER)
    assert found.documents == {"product_vision": True, "product_owner_review": True}
    assert (found.passed, found.readable, found.problems) == (True, True, ())
    assert (found.score, found.label, found.expected_label) == (score.value, score.label, CONCEPT.planted_label)
    assert (found.finish, found.usage.completion_tokens) == ("stop", len(pieces(ANSWER)) + 1)
    assert found.usage.prompt_tokens > len(user["content"])
    assert found.usage.load_s is not None
    assert found.usage.first_token_s is not None
    assert found.usage.load_s < found.usage.first_token_s < found.usage.latency_s
    spent_s = found.usage.latency_s - found.usage.load_s
    assert found.tokens_per_s == pytest.approx(found.usage.completion_tokens / spent_s)
    assert (found.answer, found.findings) == (None, ())


def test_nothing_of_prompt_or_answer_is_shown_or_kept_unless_it_is_asked_for(place: Path, server: FakeOllama) -> None:
    write_config(place, server, "forgetful")
    for arguments in ((), ("--json",)):
        result = run(*arguments)
        assert "review is left out" not in result.output
        assert CONCEPT.concept[:30] not in result.output
    assert [path.name for path in place.iterdir()] == ["config.yaml"]
    assert list((place.parent / "temporary").iterdir()) == []
    shown = run("--show").stdout
    assert UNREADABLE in shown
    assert json.loads(run("--show", "--json").stdout)["answer"] == UNREADABLE


def test_people_read_what_was_asked_and_what_came(place: Path, server: FakeOllama) -> None:
    write_config(place, server)
    output = run().stdout
    rows = dict(line.split(maxsplit=1) for line in output.splitlines()[:-1])
    assert rows["model"] == f"{MODEL} of ollama, by config.yaml: roles.product_owner"
    assert rows["asked"].startswith(f"{CONCEPT.concept_id}, temperature 0.4, 4096 tokens at most")
    assert rows["product_vision"] == rows["product_owner_review"] == "read"
    assert rows["production"] == "can read it"
    assert rows["verdict"] == f"{CONCEPT.planted_label} (planted: {CONCEPT.planted_label})"
    assert rows["finish"] == "stop"
    assert "loading" in rows["seconds"]
    assert rows["tokens"].endswith(" a second")
    assert output.splitlines()[-1] == "Passed."


def test_the_environment_names_another_model(place: Path, server: FakeOllama, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(place, server, "gone")
    monkeypatch.setenv("PO_MODEL", f"ollama:{MODEL}")
    found = SmokeResult.model_validate_json(run("--json").stdout)
    assert (found.model, found.source, found.passed) == (MODEL, "PO_MODEL", True)


@pytest.mark.parametrize("form", ["jsonl", "json", "input"])
def test_a_concept_of_ones_own_is_asked(place: Path, server: FakeOllama, form: str) -> None:
    write_config(place, server)
    rows = [concept.model_dump(mode="json") for concept in ROLE.generate_concepts(2, seed=9)]
    texts = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps(rows[0], indent=2),
        "input": json.dumps({"input": rows[0]}),
    }
    Path("c.json").write_text(texts[form])
    server.seen.bodies.clear()
    found = SmokeResult.model_validate_json(run("--concept", "c.json", "--json").stdout)
    assert found.concept_id == rows[0]["concept_id"]
    assert rows[0]["concept"] in server.seen.bodies[0][1]["messages"][1]["content"]


def test_an_earlier_answer_is_never_taken_for_this_one(place: Path, server: FakeOllama) -> None:
    write_config(place, server)
    server.seen.requests.clear()
    assert [run().exit_code, run().exit_code] == [0, 0]
    assert server.seen.requests[CHAT] == 2


# --- one that does not ------------------------------------------------------------------------------


def test_an_answer_that_production_cannot_read_is_exit_status_three(place: Path, server: FakeOllama) -> None:
    write_config(place, server, "forgetful")
    result = run("--json")
    found = SmokeResult.model_validate_json(result.stdout)
    assert result.exit_code == 3
    assert found.documents == {"product_vision": True, "product_owner_review": False}
    assert (found.readable, found.label, found.finish) == (False, None, "stop")
    assert "missing_review" in found.violations
    assert found.problems == ("production cannot read the answer as it stands",)
    assert "Not passed: production cannot read the answer as it stands." in run().stdout


def test_a_model_that_leaves_a_document_out_is_readable_where_decoding_is_held(place: Path, server: FakeOllama) -> None:
    write_config(place, server, "forgetful")
    result = run("--guaranteed-valid", "--show", "--json")
    assert result.exit_code == 0, (result.exception, result.stderr)
    found = SmokeResult.model_validate_json(result.stdout)
    assert (result.exit_code, found.readable, found.finish) == (0, True, "stop")
    assert found.documents == {"product_vision": True, "product_owner_review": True}
    assert found.answer is not None and found.answer.startswith("```yaml VISION\n")


def test_a_provider_that_holds_answers_to_nothing_cannot_guarantee_any(place: Path) -> None:
    with pytest.raises(SettingsError, match="does not hold answers to a JSON schema"):
        ask_as_production(ROLE, RoleModel(SCRIPTED, "m", None, None, None, "a test"), CONCEPT, guaranteed_valid=True)


def test_a_cut_answer_is_exit_status_three(place: Path, server: FakeOllama) -> None:
    write_config(place, server, max_tokens=20)
    result = run("--json")
    assert result.exit_code == 3
    problems = json.loads(result.stdout)["problems"]
    assert problems[-1].startswith("the answer was cut after 20 tokens (max_tokens is 20")


@pytest.mark.parametrize(
    ("finish", "says"),
    [("length", "was cut after"), ("other/RECITATION", "did not end by itself: RECITATION"), ("blocked", "is empty")],
)
def test_a_readable_answer_that_did_not_stop_by_itself_does_not_pass(finish: str, says: str) -> None:
    found = ask(options={"finishes": {haiku_concept(1).concept_id: [finish]}})
    assert not found.passed
    assert any(says in problem for problem in found.problems)
    assert found.readable == (finish != "blocked")


def test_rules_that_answer_in_place_of_a_model_are_called_a_stand_in(place: Path) -> None:
    (place / "config.yaml").write_text("roles: {product_owner: {provider: offline, model: rules}}\n")
    result = run()
    assert result.exit_code == 0, result.output
    assert "A stand-in: rules answered in place of a model." in result.stdout
    assert ask(options={"stand_in": True}).stand_in


# --- no answer at all -------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_an_error_with_a_fix(place: Path, server: FakeOllama) -> None:
    write_config(place, server)
    text = (place / "config.yaml").read_text()
    (place / "config.yaml").write_text(text.replace(server.base_url, "http://127.0.0.1:9"))
    error = refused(ProviderError)
    assert "cannot be reached at http://127.0.0.1:9" in error.problem
    assert error.fix.startswith("Start it: ollama serve")


def test_a_model_that_is_not_there_is_an_error_with_a_fix(place: Path, server: FakeOllama) -> None:
    write_config(place, server, "po-student-v7")
    error = refused(ProviderError)
    assert "model 'po-student-v7' not found" in error.problem
    assert "`ollama list`" in error.fix
    assert "pull" not in error.fix


def test_a_prompt_that_is_longer_than_the_context_is_an_error_and_never_cut(place: Path, server: FakeOllama) -> None:
    write_config(place, server, "narrow")
    assert "Package the student with a larger num_ctx" in refused(ProviderError).fix


def test_a_model_that_is_too_slow_is_an_error_that_names_the_option(place: Path, server: FakeOllama) -> None:
    write_config(place, server)
    server.knobs.latency_s = 5.0
    error = refused(ProviderError, "--timeout-s", "0.2")
    assert error.problem == f"{MODEL} of ollama did not answer within 0.2 s."
    assert "--timeout-s" in error.fix
    with pytest.raises(ProviderError, match=r"m of haiku:ScriptedProvider did not answer within 0\.1 s"):
        ask(options={"delay_s": 5.0}, timeout_s=0.1)


@pytest.mark.parametrize("kind", ["drop", "broken", "cut", "error", "status"])
def test_a_call_that_breaks_is_not_made_again(place: Path, server: FakeOllama, kind: Any) -> None:
    write_config(place, server)
    server.faults[CHAT].planned.append(Fault(kind))
    server.seen.requests.clear()
    error = refused(ProviderError)
    assert server.seen.requests[CHAT] == 1
    assert "tried again" not in error.fix
    assert error.fix[0].isupper()
    assert list((place.parent / "temporary").iterdir()) == []


def test_another_model_that_answers_is_an_error_without_options_of_other_commands() -> None:
    with pytest.raises(ProviderError, match="and 'other' answered") as caught:
        ask(PAID, options={"served": "other"})
    assert "--allow-model" not in caught.value.fix


def test_a_provider_of_an_unknown_type_is_an_error_that_names_the_known_ones(place: Path) -> None:
    (place / "config.yaml").write_text(
        "providers: {house: {type: house_api}}\nroles: {product_owner: {provider: house, model: m}}\n"
    )
    error = refused(PluginError)
    assert "house, whose type is none that is known here" in error.problem
    assert "ollama, openai_compatible" in error.fix


@pytest.mark.parametrize(
    ("config", "kind", "says"),
    [
        (None, InputError, "config.yaml does not exist"),
        ("roles: {}\n", SettingsError, "names no provider and no model"),
        ("roles: {product_owner: {provider: ollama, model: m, temperature: 3}}\n", SettingsError, "temperature of 3.0"),
    ],
)
def test_a_config_that_names_nothing_to_ask_is_an_error(
    place: Path, config: str | None, kind: type[Exception], says: str
) -> None:
    if config is not None:
        (place / "config.yaml").write_text(config)
    assert says in str(refused(kind))


@pytest.mark.parametrize("text", ["", "[]", "nothing", '{"concept": "x"}', '{"a": ', '"a"'])
def test_a_file_without_a_concept_is_an_error(place: Path, server: FakeOllama, text: str) -> None:
    write_config(place, server)
    Path("c.json").write_text(text)
    assert "c.json" in refused(InputError, "--concept", "c.json").problem


@given(st.text() | st.recursive(st.none() | st.text(), lambda inner: st.lists(inner)).map(json.dumps))
def test_whatever_a_file_holds_in_place_of_a_concept_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        read_concept(text)


@given(st.text(min_size=1), st.text(), st.sampled_from(["", " ", "\n\t"]))
def test_the_first_concept_of_a_file_is_read_whatever_follows(concept: str, following: str, before: str) -> None:
    concept = f"A map for {concept}."
    row = {"concept": concept, "requirements_yaml": "title: x"}
    assert read_concept(before + json.dumps(row) + following).concept == concept


def read_concept(text: str) -> Concept:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.json")
        path.write_text(text, encoding="utf-8", newline="")
        return _concept(path, ROLE)


# --- what it is asked under, and where ---------------------------------------------------------------


def package(place: Path, contract: str) -> Path:
    """A version folder whose package was trained under one of the role's contracts."""
    from po_distill.artifacts import record_stage
    from po_distill.records import GGUFFile, OllamaPackage

    folder = place / "artifacts/models/po_student_v1"
    folder.mkdir(parents=True)
    trained = ProductOwnerRole(contract=contract).contract
    gguf = GGUFFile(path="x.gguf", quantization="q4_0", architecture="llama", size_bytes=1, tensors={},
                    digest="sha256:" + "0" * 64)  # fmt: skip
    made = OllamaPackage(name=MODEL, path=str(folder), gguf=gguf, modelfile_path="Modelfile", num_ctx=8192, stops=(),
                         contract=trained, create_command="ollama create")  # fmt: skip
    record_stage(folder, "package", made, inputs={}, outputs={}, contract=trained)
    return folder


def test_a_packaged_student_is_asked_under_the_contract_that_it_was_trained_on(place: Path, server: FakeOllama) -> None:
    write_config(place, server)
    package(place, "tagged")
    server.seen.bodies.clear()
    assert run().exit_code == 3  # it answers in fences
    assert server.seen.bodies[0][1]["messages"][1]["content"].startswith("### CONCEPT\n")


def test_another_contract_than_the_students_own_is_refused_before_anything_is_sent(
    place: Path, server: FakeOllama
) -> None:
    write_config(place, server)
    folder = package(place, "tagged")
    server.seen.requests.clear()
    Path("prompt.md").write_text("Be somebody else.")
    for arguments in (("--contract", "fenced"), ("--prompt", "prompt.md", "--package", str(folder))):
        assert "was trained under the prompt contract tagged" in refused(ContractMismatchError, *arguments).problem
    assert server.seen.requests[CHAT] == 0


def test_project_and_location_are_those_of_the_models_provider(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "providers:\n  cloud: {type: vertex_sdk, project_id: acme, location: europe-west4}\n"
        "  other: {type: vertex_sdk}\n"
        "roles:\n  a: {provider: cloud, model: m}\n  b: {provider: other, model: m}\n"
    )
    assert resolve_role_model(config, "a", {}).options == {"project": "acme", "location": "europe-west4"}
    assert resolve_role_model(config, "b", {}).options == {}


def test_temperature_and_length_are_ours_where_the_config_names_none() -> None:
    ScriptedProvider.requests.clear()
    ask()
    ask(temperature=0.0, max_tokens=7)
    found = [(request.generation.temperature, request.generation.max_tokens) for request in ScriptedProvider.requests]
    assert found == [(0.4, 4096), (0.0, 7)]
