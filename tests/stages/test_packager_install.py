"""A package becomes a proven model on an Ollama server, whatever breaks, dies or stands in the way."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

pytest.importorskip("ollama")
pytest.importorskip("xllamacpp")
import ollama

from fakes.ollama_server import FakeOllama, Fault
from fakes.scripted_gguf import write_scripted_gguf
from installs import ALIAS, ANSWER, CONCEPT, NAME, PROMPT, ROLE, answer, install, plant_old, whole_name
from po_distill import artifacts
from po_distill.artifacts import digest_file
from po_distill.errors import ContractMismatchError, InputError
from po_distill.installing import read_package
from po_distill.ollama_server import OllamaServer
from po_distill.package_proof import UnprovenError
from po_distill.records import OllamaPackage
from po_distill.served_students import remove_student, served_students
from po_distill.stages.packager import Packager
from scripted_student import scripted_student

CHATS_OF_A_PROOF = 5  # four prompts that are rendered, one answer


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return scripted_student(tmp_path_factory.mktemp("models") / "po_student_v1", ANSWER, contract=ROLE.contract)


@pytest.fixture(scope="module")
def package(student):
    return Packager().package(student)


@pytest.fixture(scope="module")
def old_gguf(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("old") / "old.gguf", ["the old", " one"])


@pytest.fixture
def fake(tmp_path):
    with FakeOllama(tmp_path / "models") as server:
        yield server


# --- made and proven ------------------------------------------------------------------------------


def test_a_student_answers_a_plain_client_as_production_calls_it_and_both_blocks_parse(fake, package):
    installed = install(fake, package)
    said = ollama.Client(host=fake.base_url).chat(model=NAME, messages=PROMPT).message.content
    assert ROLE.score(CONCEPT, said).valid
    assert set(ROLE.parse(said).documents) == {"product_vision", "product_owner_review"}
    assert (installed.name, installed.alias, installed.made) == (whole_name(package), ALIAS, True)
    assert fake.names() == [whole_name(package), ALIAS]
    assert installed.digest == f"sha256:{fake.model_digest(ALIAS)}" == f"sha256:{fake.model_digest(installed.name)}"
    assert (installed.server, installed.answer_tokens) == (fake.base_url, 3)
    assert installed.prompt_tokens > 1000


@pytest.mark.live
@pytest.mark.skipif("OLLAMA_HOST" not in os.environ, reason="OLLAMA_HOST names no server")
def test_a_real_server_is_told_the_same_and_answers_the_same(student, tmp_path):
    package = Packager("po-distill-test").package(student, tmp_path / "out")
    server = OllamaServer()
    try:
        assert Packager().install(package).made
        assert Packager().install(package).made is False
        said = ollama.Client(server.url).chat("po-distill-test", PROMPT).message.content
        assert ROLE.score(CONCEPT, said).valid
        assert [one.state for one in served_students(server) if one.name.startswith("po-distill-test:")]
    finally:
        removed = remove_student(server, "po-distill-test")
    assert {one.name for one in removed} == {whole_name(package), "po-distill-test:latest"}


def test_the_model_is_made_of_what_the_package_says(fake, package):
    install(fake, package)
    body = next(body for route, body in fake.seen.bodies if route == "POST /api/create")
    assert body == {
        "model": f"{whole_name(package)}-unproven", "files": {"po-student-v1.Q4_0.gguf": package.gguf.digest},
        "template": package.template, "system": ROLE.contract.system, "stream": True,
        "parameters": {"num_ctx": 8192, "num_predict": 4096, "temperature": 0.4, "stop": ["<|im_end|>"]},
    }  # fmt: skip
    shown = ollama.Client(fake.base_url).show(NAME)
    assert shown.details.quantization_level == "Q4_0"
    assert shown.modelinfo["po_distill.package"] == NAME
    assert shown.modelinfo["po_distill.prompt_contract"] == ROLE.contract.digest


def test_what_is_there_is_proven_and_not_made_again(fake, package):
    first, second = install(fake, package), install(fake, package)
    assert (first.made, second.made, second.digest) == (True, False, first.digest)
    assert set(fake.seen.creates.values()) == set(fake.seen.uploads.values()) == {1}
    assert fake.seen.copies == {whole_name(package): 1, ALIAS: 1}


def test_the_folder_is_as_good_as_the_record_wherever_it_lies_now(fake, student, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("manifest.json", "po-student-v1.Q4_0.gguf", "Modelfile"):
        (moved / name).write_bytes((student / name).read_bytes())
    assert install(fake, moved).name == whole_name(read_package(student))
    with pytest.raises(InputError, match="holds no package"):
        install(fake, tmp_path)


def test_the_ggufs_digest_is_computed_while_it_is_written_and_never_again(tmp_path, fake, monkeypatch):
    computed, read = [], hashlib.file_digest

    def counted(file, name):
        computed.append(Path(file.name).name)
        return read(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    student = scripted_student(tmp_path / "po_student_v1", ANSWER, contract=ROLE.contract)
    packager = Packager()
    packager.install(packager.package(student), fake.base_url)
    packager.install(packager.package(student), fake.base_url)
    assert artifacts.read_manifest(student).stages.keys() == {"merge", "package"}
    assert computed.count("po-student-v1.Q4_0.gguf") == 0
    monkeypatch.undo()
    made = OllamaPackage.model_validate(artifacts.read_manifest(student).stages["package"])
    assert artifacts.digest_file(student / "po-student-v1.Q4_0.gguf") == made.gguf.digest


def test_a_name_with_a_tag_is_the_alias(fake, student, tmp_path):
    package = Packager("team/po:v2").package(student, tmp_path / "out")
    installed = Packager().install(package, fake.base_url)
    assert (installed.name, installed.alias) == (f"team/po:{package.tag}", "team/po:v2")
    assert fake.names() == [f"team/po:{package.tag}", "team/po:v2"]


def test_the_tag_changes_with_all_that_a_server_is_given_and_with_nothing_else(package):
    gguf = package.gguf.model_copy(update={"digest": "sha256:" + "1" * 64})
    changes = [{"gguf": gguf}, {"template": "x"}, {"system": "x"}, {"num_ctx": 4096}, {"num_predict": 1},
               {"temperature": 0.5}, {"stops": ("x",)}, {"license": "MIT"}]  # fmt: skip
    tags = [package.model_copy(update=change).tag for change in changes]
    assert len({package.tag, *tags}) == 1 + len(changes)
    same = {"path": "x", "create_command": "x", "serve": {}, "modelfile_path": "x", "contract": None, "chat": None}
    assert package.model_copy(update=same).tag == package.tag
    assert OllamaPackage.model_validate(json.loads(package.model_dump_json())).tag == package.tag


# --- the alias, and what is left ------------------------------------------------------------------


def test_the_alias_is_moved_from_one_version_to_the_next_and_the_former_stays(fake, package, student):
    install(fake, package)
    cooler = package.model_copy(update={"temperature": 0.1})
    assert install(fake, cooler).kept is None
    assert fake.names() == sorted([whole_name(package), whole_name(cooler), ALIAS])
    assert fake.model_digest(ALIAS) == fake.model_digest(whole_name(cooler))
    assert install(fake, package).made is False  # back again
    assert fake.model_digest(ALIAS) == fake.model_digest(whole_name(package))


def test_what_the_alias_stood_for_is_kept_where_it_has_no_other_name(fake, package, old_gguf):
    former = plant_old(fake, old_gguf)
    kept = f"{NAME}:kept-{former[:12]}"
    assert install(fake, package).kept == kept
    assert fake.model_digest(kept) == former
    assert answer(fake, kept) == "the old one"


def test_what_a_killed_run_left_a_day_ago_is_removed_and_what_is_younger_stays(fake, package, old_gguf):
    for tag in ("0" * 12, "1" * 12):
        plant_old(fake, old_gguf, f"{NAME}:{tag}-unproven")
    plant_old(fake, old_gguf, f"other:{'0' * 12}-unproven")
    old = time.time() - 25 * 3600
    for path in fake.store.folder.glob(f"manifests/*/*/*/{'0' * 12}-unproven"):
        os.utime(path, (old, old))
    assert install(fake, package).removed == (f"{NAME}:{'0' * 12}-unproven",)
    left = {name for name in fake.names() if name.endswith("-unproven")}
    assert left == {f"{NAME}:{'1' * 12}-unproven", f"other:{'0' * 12}-unproven"}


# --- what is no proof -----------------------------------------------------------------------------


def refused(fake, package, old_gguf, match):
    """The package is refused; nothing of it is left, and the alias is where it was."""
    before = plant_old(fake, old_gguf)
    with pytest.raises(UnprovenError, match=match):
        Packager().install(package, fake.base_url)
    assert (fake.names(), fake.model_digest(ALIAS)) == ([ALIAS], before)
    assert answer(fake) == "the old one"


def test_a_prompt_that_is_not_the_trainings_is_no_proof(fake, package, old_gguf):
    bare = package.model_copy(update={"template": "{{ range .Messages }}{{ .Content }}{{ end }}"})
    refused(fake, bare, old_gguf, "departs from the training prompt at character 0: it has 'You are the Product")


def test_a_training_that_rendered_other_prompts_is_no_proof(fake, package, old_gguf):
    template = package.chat.template.replace("{{ '<|im_start|>assistant", "{{ '<|im_start|>user")
    other = package.model_copy(update={"chat": package.chat.model_copy(update={"template": template})})
    refused(fake, other, old_gguf, "departs from the training prompt at character .* training had '.*im_start.>user")


def test_another_quantization_than_the_packages_is_no_proof(fake, package, old_gguf):
    gguf = package.gguf.model_copy(update={"quantization": "q8_0"})
    match = r"its quantization is 'Q4_0', packaged was 'Q8_0'"
    refused(fake, package.model_copy(update={"gguf": gguf}), old_gguf, match)


def test_a_chat_template_in_the_gguf_that_goes_before_the_packages_is_no_proof(fake, package, old_gguf, tmp_path):
    text = package.chat.template.replace("<|im_start|>", "# ") + "{# tools #}"
    path = write_scripted_gguf(tmp_path / "own.gguf", [ANSWER[:900], ANSWER[900:]], chat_template=text, file_type=2)
    changes = {"path": str(path), "digest": digest_file(path), "size_bytes": path.stat().st_size}
    own = package.model_copy(update={"path": str(tmp_path), "gguf": package.gguf.model_copy(update=changes)})
    refused(fake, own, old_gguf, "departs from the training prompt")


def test_an_answer_that_never_ends_is_no_proof(fake, old_gguf, tmp_path):
    endless = scripted_student(tmp_path / "s", "over and over", contract=ROLE.contract, stops=False)
    package = Packager(NAME, num_predict=20).package(endless)
    refused(fake, package, old_gguf, "it did not stop by itself within 20 tokens. It began: 'over and over")


def test_an_answer_that_the_role_cannot_read_is_no_proof(fake, old_gguf, tmp_path):
    chatty = scripted_student(tmp_path / "s", "I would rather talk.", contract=ROLE.contract)
    refused(
        fake, Packager(NAME).package(chatty), old_gguf, "cannot be read by the role product_owner: .*missing_vision"
    )
    assert fake.seen.requests["POST /api/chat"] == 4 + 3 + 1  # three concepts, and the old one


def test_a_model_that_cannot_run_is_no_proof(fake, package, old_gguf):
    fake.faults["POST /api/chat"].planned += [None] * 4 + [Fault("status", status=500, message="llama runner died")]
    refused(fake, package, old_gguf, "llama runner died")


def test_a_model_without_a_contract_is_asked_plainly_and_has_to_stop(fake, tmp_path):
    assert install(fake, Packager("plain").package(scripted_student(tmp_path / "s", "It is a vision."))).made
    assert fake.seen.requests["POST /api/chat"] == CHATS_OF_A_PROOF


def test_a_tag_that_is_something_else_is_told_and_neither_used_nor_removed(fake, package, old_gguf):
    planted = plant_old(fake, old_gguf, whole_name(package))
    with pytest.raises(UnprovenError, match="is not what was packaged") as caught:
        install(fake, package)
    assert f"po-distill package remove {whole_name(package)}" in caught.value.fix
    assert fake.names() == [whole_name(package)] and fake.model_digest(whole_name(package)) == planted


def test_a_package_that_does_not_say_how_it_is_proven_is_refused_before_anything_is_sent(fake, package):
    with pytest.raises(InputError, match="made by an earlier version"):
        install(fake, package.model_copy(update={"chat": None, "template": ""}))
    other = package.contract.model_copy(update={"template": "{concept}"})
    with pytest.raises(ContractMismatchError, match="trained under the prompt contract"):
        install(fake, package.model_copy(update={"contract": other}))
    assert not fake.seen.requests


def test_a_gguf_that_is_not_the_packaged_one_is_refused(fake, package, tmp_path):
    (tmp_path / "po-student-v1.Q4_0.gguf").write_bytes(b"short")
    with pytest.raises(InputError, match="is not the file that was packaged"):
        install(fake, package.model_copy(update={"path": str(tmp_path)}))
    with pytest.raises(InputError, match="does not exist"):
        install(fake, package.model_copy(update={"path": str(tmp_path / "gone")}))
