"""Which students a server has, which of them a config uses, and which may go."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("ollama")
pytest.importorskip("xllamacpp")
from fakes.ollama_server import FakeOllama
from fakes.scripted_gguf import write_scripted_gguf
from installs import ALIAS, ANSWER, NAME, ROLE, install, plant_old, whole_name
from po_distill.cli import cli
from po_distill.errors import InputError, ProviderError
from po_distill.ollama_server import OllamaServer
from po_distill.served_students import remove_student, served_students
from po_distill.stages.integration import Integration
from po_distill.stages.packager import Packager
from scripted_student import scripted_student

CONFIG = "providers:\n  ollama: {type: ollama}\nroles:\n  product_owner: {provider: vertex, model: gemini-2.5-pro}\n"

FOREIGN = ["mistral:7b", f"mistral:{'a' * 12}"]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return scripted_student(tmp_path_factory.mktemp("models") / "po_student_v1", ANSWER, contract=ROLE.contract)


@pytest.fixture(scope="module")
def package(student):
    return Packager().package(student)


@pytest.fixture(scope="module")
def later(package):
    return package.model_copy(update={"name": "po-student-v2", "temperature": 0.1})


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("gguf") / "foreign.gguf", ["not", " ours"])


@pytest.fixture
def fake(tmp_path, package, foreign):
    with FakeOllama(tmp_path / "models") as server:
        for name in FOREIGN:
            plant_old(server, foreign, name)
        install(server, package)
        yield server


@pytest.fixture
def server(fake):
    return OllamaServer(fake.base_url)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def by_name(server, config=None):
    return {one.name: one for one in served_students(server, config)}


def run(fake, *arguments):
    return CliRunner().invoke(cli, ["package", *map(str, arguments), "--host", fake.base_url], catch_exceptions=False)


# --- the list -------------------------------------------------------------------------------------


def test_students_are_told_by_what_their_gguf_says_and_others_are_left_out(fake, server, package):
    found = by_name(server)
    assert list(found) == [whole_name(package), ALIAS]
    assert [one.state for one in found.values()] == ["proven", "alias"]
    first = found[whole_name(package)]
    assert (first.digest, first.quantization) == (f"sha256:{fake.model_digest(ALIAS)}", "Q4_0")
    assert first.size_bytes > package.gguf.size_bytes / 2 and first.modified_at is not None
    assert first.promoted == first.needed == ()


def test_what_a_killed_run_left_and_what_an_alias_stood_for_are_told_apart(fake, server, package):
    server.copy(whole_name(package), f"{NAME}:{'b' * 12}-unproven")
    server.copy(whole_name(package), f"{NAME}:kept-{'c' * 12}")
    states = {name: one.state for name, one in by_name(server).items()}
    assert states == {
        whole_name(package): "proven", ALIAS: "alias", f"{NAME}:{'b' * 12}-unproven": "unproven",
        f"{NAME}:kept-{'c' * 12}": "kept",
    }  # fmt: skip


@pytest.mark.parametrize("model", [NAME, ALIAS, "PO-Student-V1", "the tag"])
def test_what_the_config_uses_is_promoted_under_all_its_names(server, config, package, model):
    Integration(config).promote(whole_name(package) if model == "the tag" else model, force="trial")
    assert {one.promoted for one in by_name(server, config).values()} == {("product_owner",)}


def test_what_somebody_wrote_into_the_config_by_hand_is_promoted_too(server, config):
    config.write_text(f"roles:\n  architect: {{model: {NAME}}}\n  other: 3\n")
    assert by_name(server, config)[ALIAS].promoted == ("architect",)
    config.write_text("[]")
    assert by_name(server, config)[ALIAS].promoted == ()


def test_what_a_rollback_would_give_back_is_needed(fake, server, config, package, later):
    install(fake, later)
    Integration(config).promote(NAME, force="trial")
    Integration(config).promote("po-student-v2", force="trial")
    found = by_name(server, config)
    assert (found[ALIAS].promoted, found[ALIAS].needed) == ((), ("product_owner",))
    assert (found["po-student-v2:latest"].promoted, found["po-student-v2:latest"].needed) == (("product_owner",), ())
    Integration(config).rollback()
    found = by_name(server, config)
    assert (found[ALIAS].promoted, found["po-student-v2:latest"].promoted) == (("product_owner",), ())


# --- away with one --------------------------------------------------------------------------------


def test_a_name_goes_with_all_its_tags_and_nothing_else_does(fake, server, package, later):
    install(fake, package.model_copy(update={"temperature": 0.2}))
    install(fake, later)
    removed = [one.name for one in remove_student(server, NAME)]
    assert len(removed) == 3 and whole_name(package) in removed and ALIAS in removed
    assert fake.names() == [*FOREIGN, whole_name(later), "po-student-v2:latest"]


def test_a_tag_goes_with_the_alias_that_stands_for_it(fake, server, package):
    cooler = package.model_copy(update={"temperature": 0.2})
    install(fake, cooler)
    assert [one.name for one in remove_student(server, whole_name(package))] == [whole_name(package)]
    assert {one.name for one in remove_student(server, whole_name(cooler))} == {whole_name(cooler), ALIAS}
    assert fake.names() == FOREIGN


def test_what_is_promoted_or_needed_stays_unless_it_is_forced(fake, server, config, package, later):
    install(fake, later)
    Integration(config).promote(NAME, force="trial")
    with pytest.raises(InputError, match=r"is promoted: .*config\.yaml has product_owner use it") as caught:
        remove_student(server, whole_name(package), config)
    assert "po-distill rollback --config" in caught.value.fix
    Integration(config).promote("po-student-v2", force="trial")
    with pytest.raises(InputError, match=r"is what a rollback of .* would give back to product_owner"):
        remove_student(server, NAME, config)
    assert len(by_name(server)) == 4
    assert len(remove_student(server, NAME, config, force=True)) == 2
    assert set(by_name(server)) == {whole_name(later), "po-student-v2:latest"}


@pytest.mark.parametrize("name", ["mistral", *FOREIGN, "po-student-v9", f"{NAME}:no"])
def test_what_is_no_student_of_ours_is_never_removed(fake, server, name):
    with pytest.raises(InputError, match="There is no student"):
        remove_student(server, name, force=True)
    assert not fake.seen.deletes.keys() & set(FOREIGN)


# --- at the command line --------------------------------------------------------------------------


def test_the_command_installs_lists_and_removes(fake, config, student, package, tmp_path):
    made = run(fake, "--model", student, "--install", "--name", NAME)
    assert f"{whole_name(package)} is proven on {fake.base_url}" in made.stdout
    assert "po-distill promote --model po-student-v1" in made.stdout
    Integration(config).promote(NAME, force="trial")
    listed = run(fake, "list", "--config", config)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [whole_name(package), ALIAS]
    assert listed.stdout.count("promoted: product_owner") == 2
    found = json.loads(run(fake, "list", "--config", config, "--json").stdout)
    assert found["server"] == fake.base_url and found["students"][0]["promoted"] == ["product_owner"]
    with pytest.raises(InputError, match="is promoted"):
        run(fake, "remove", NAME, "--config", config)
    removed = json.loads(run(fake, "remove", NAME, "--config", config, "--force", "--json").stdout)
    assert set(removed["removed"]) == {whole_name(package), ALIAS}
    assert run(fake, "list").stdout == f"No students on {fake.base_url}.\n"


def test_the_command_tells_what_it_installed_as_json_and_what_it_moved_away(fake, student, package, foreign):
    former = fake.plant(ALIAS, foreign, template="{{ .Prompt }}")
    told = run(fake, "--model", student, "--install", "--name", NAME)
    assert f"What {ALIAS} stood for before is {NAME}:kept-{former[:12]} now." in told.stdout
    said = json.loads(run(fake, "--model", student, "--install", "--name", NAME, "--json").stdout)
    assert said["name"] == NAME
    assert said["installed"]["name"] == whole_name(package) and said["installed"]["made"] is False


def test_an_unproven_name_is_pointed_out(fake, server, package):
    server.copy(whole_name(package), f"{NAME}:{'b' * 12}-unproven")
    assert "Unproven: a run was killed." in run(fake, "list").stdout


@pytest.mark.parametrize(
    ("target", "command"),
    [("ollama", "ollama create"), ("llama_cpp", "llama-server -m"), ("vllm", "vllm serve")],
)
def test_the_command_prints_what_to_type_for_a_runtime(student, target, command):
    result = CliRunner().invoke(cli, ["package", "--model", str(student), "--name", NAME, "--target", target])
    assert f"Next: {command}" in result.stdout


def test_where_there_is_no_server_nothing_is_packaged_for_it(tmp_path):
    folder = scripted_student(tmp_path / "s", ANSWER)
    before = sorted(folder.iterdir())
    with pytest.raises(ProviderError, match="No Ollama server answers"):
        arguments = ["package", "--model", str(folder), "--install", "--host", "127.0.0.1:9"]
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("arguments", [[], ["--model", "a", "--adapter", "b"]])
def test_a_package_is_made_of_a_model_or_of_an_adapter(arguments):
    result = CliRunner().invoke(cli, ["package", *arguments])
    assert result.exit_code == 2 and "--adapter FOLDER to merge it first" in result.stderr
