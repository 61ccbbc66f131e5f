from __future__ import annotations

import hashlib
import http.client
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.ollama_calls import ABSENT, TEMPLATE, ask, blobs, create, digest_of, upload
from fakes.ollama_models import DEFAULT_HOST, parse_name
from fakes.ollama_server import FakeOllama
from fakes.scripted_gguf import write_scripted_gguf


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_scripted_gguf(tmp_path_factory.mktemp("gguf") / "student.gguf", ["Hello", " from", " here."])


@pytest.fixture
def fake(tmp_path):
    with FakeOllama(tmp_path / "models") as server:
        yield server


# --- blobs --------------------------------------------------------------------------------------


def test_a_blob_is_sent_once_and_then_there(fake):
    path = f"/api/blobs/{digest_of(b'data')}"
    assert ask(fake, "HEAD", path) == (404, None)
    assert ask(fake, "POST", path, b"data") == (201, None)
    assert ask(fake, "HEAD", path) == (200, None)
    assert ask(fake, "POST", path, b"data") == (200, None)
    assert fake.seen.uploads == {digest_of(b"data"): 1}
    assert fake.seen.requests == {"HEAD /api/blobs": 2, "POST /api/blobs": 2}


def test_a_blob_of_another_digest_is_refused_and_kept_under_its_own(fake):
    status, answer = ask(fake, "POST", f"/api/blobs/{ABSENT}", b"data")
    assert (status, answer) == (400, {"error": f'digest mismatch, expected "{ABSENT}", got "{digest_of(b"data")}"'})
    assert blobs(fake) == [digest_of(b"data").replace(":", "-")]


@pytest.mark.parametrize("digest", ["sha256:12", "md5:" + "0" * 32, "sha256:" + "g" * 64, "sha256:..%2F..%2Fetc"])
def test_what_is_no_digest_is_refused(fake, digest):
    assert ask(fake, "HEAD", f"/api/blobs/{digest}")[0] == 400
    assert ask(fake, "POST", f"/api/blobs/{digest}", b"x") == (400, {"error": "invalid digest format"})
    assert blobs(fake) == []


def test_an_upload_is_never_held_in_memory(fake):
    size, piece = 64 * 2**20, b"\0" * 2**20
    whole = hashlib.sha256()
    for _ in range(64):
        whole.update(piece)
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=20)
    tracemalloc.start()
    connection.putrequest("POST", f"/api/blobs/sha256:{whole.hexdigest()}")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    for _ in range(64):
        connection.send(piece)
    assert connection.getresponse().status == 201
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    connection.close()
    assert peak < 8 * 2**20


# --- create -------------------------------------------------------------------------------------


def test_create_tells_its_work_in_order_and_then_success(fake, gguf):
    parameters = {"num_ctx": 256, "temperature": 0.4, "stop": ["<|im_end|>"]}
    status, lines = create(
        fake, "po-student-v1", gguf, system="Be good.", license=["MIT", "more"], parameters=parameters, stream=True
    )
    said = [line["status"] for line in lines]
    assert status == 200
    assert (
        said[0] == "parsing GGUF"
        and said[-3].startswith("creating new layer")
        and said[-2:] == ["writing manifest", "success"]
    )
    progress = [line for line in lines if line["status"] == "validating GGUF model"]
    assert [line["completed"] for line in progress][-1] == progress[-1]["total"] == gguf.stat().st_size
    assert said[1 + len(progress)] == "verifying conversion"
    manifest = fake.store.manifest(parse_name("po-student-v1"))
    kinds = ["model", "template", "system", "license", "license", "params"]
    assert [layer.kind for layer in manifest.layers] == kinds
    layers = [text for text in said if text.startswith("creating new layer")]
    assert layers == [f"creating new layer {layer.digest}" for layer in manifest.layers]
    assert fake.seen.creates == {"po-student-v1:latest": 1}


def test_create_without_a_stream_answers_once(fake, gguf):
    assert create(fake, "po-student-v1", gguf) == (200, {"status": "success"})


def test_the_gguf_that_is_kept_has_another_digest_and_the_same_content(fake, gguf):
    from gguf import GGUFReader

    create(fake, "m", gguf)
    kept = fake.store.manifest(parse_name("m")).layers[0]
    assert kept.digest != digest_of(gguf)
    before, after = GGUFReader(gguf), GGUFReader(fake.store.blob_path(kept.digest))
    assert digest_of(fake.store.blob_path(kept.digest)) == kept.digest
    assert list(after.fields)[-2:] == ["general.quantization_version", "general.file_type"]
    for name, field in before.fields.items():
        if name != "GGUF.kv_count":
            assert after.fields[name].contents() == field.contents()
    assert [(one.name, one.data.tobytes()) for one in after.tensors] == [
        (one.name, one.data.tobytes()) for one in before.tensors
    ]


def test_a_server_may_keep_a_gguf_as_it_came(fake, gguf):
    fake.knobs.rewrites = False
    create(fake, "m", gguf)
    assert fake.store.manifest(parse_name("m")).layers[0].digest == digest_of(gguf)


REFUSED = [
    ({"model": "../etc"}, 400, "invalid model name"),
    ({"model": "m", "files": {"/etc/m.gguf": ABSENT}}, 400, "file path must be relative"),
    ({"model": "m", "files": {"../m.gguf": ABSENT}}, 400, "file path must be relative"),
    ({"model": "m", "files": {"m.gguf": "sha256:1"}}, 400, "invalid digest format"),
    ({"model": "m"}, 400, "neither 'from' or 'files' was specified"),
    ({"model": "m", "files": {}}, 400, "unknown type"),
    ({"model": "m", "files": {"m.txt": "TEXT"}}, 400, "unknown type"),
    ({"model": "m", "files": {"m.gguf": "TEXT"}}, 400, "supplied file was not in GGUF format"),
    ({"model": "m", "files": {"m.gguf": "GGUF"}, "quantize": "q4_0"}, 500, "unsupported quantization type Q4_0 - "
     "supported types are F32, F16, Q4_K_S, Q4_K_M, Q8_0"),
    ({"model": "m", "files": {"m.gguf": "GGUF"}, "template": "{{ foo .X }}"}, 400,
     'template error: template: :1: function "foo" not defined'),
    ({"model": "m", "files": {"m.gguf": "GGUF"}, "adapters": {"a": ABSENT, "b": ABSENT}}, 400,
     "only one adapter is currently supported"),
    ({"model": "m", "files": {"config.json": "MISTRAL", "model.safetensors": "TEXT"}}, 500,
     'unsupported architecture "MistralForCausalLM"'),
    ({"model": "m", "from": "nobody"}, 500, "pull model manifest: Get "),
]  # fmt: skip


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("body", "status", "message"), REFUSED)
def test_what_create_refuses(fake, gguf, body, status, message, stream):
    uploads = {"TEXT": b"text", "MISTRAL": b'{"architectures": ["MistralForCausalLM"]}', "GGUF": gguf}
    files = {path: upload(fake, uploads[digest]) if digest in uploads else digest
             for path, digest in body.get("files", {}).items()}  # fmt: skip
    body = {**body, "stream": stream, **({"files": files} if "files" in body else {})}
    answered, answer = ask(fake, "POST", "/api/create", body)
    if isinstance(answer, list):  # it had begun to tell of its work
        assert (answered, "status" in answer[0]) == (200, True)
        answer = answer[-1]
    else:
        assert answered == status
    assert answer["error"].startswith(message)
    assert (fake.names(), fake.seen.creates) == ([], {})


def test_an_empty_body_and_a_broken_one_are_refused(fake):
    assert ask(fake, "POST", "/api/create", b"") == (400, {"error": "missing request body"})
    message = "invalid character 'n' looking for beginning of value"
    assert ask(fake, "POST", "/api/create", b"no") == (400, {"error": message})
    assert ask(fake, "POST", "/api/create", {"model": 3})[0] == 400


def test_a_gguf_that_was_cut_off_is_refused(fake, gguf, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf.read_bytes()[:-1000])
    status, answer = create(fake, "m", short)
    assert status == 500
    assert answer["error"].startswith("failed to validate GGUF with llama-quantize without compatibility patches")
    short.write_bytes(gguf.read_bytes()[:1000])
    assert create(fake, "m", short) == (500, {"error": "unexpected EOF"})


def test_a_model_of_a_model_has_its_layers_and_what_is_said_anew(fake, gguf):
    create(fake, "base", gguf, system="old", parameters={"num_ctx": 128, "top_k": 5, "stop": ["x"]})
    body = {"model": "child", "from": "base", "system": "new", "parameters": {"num_ctx": 256}, "stream": True}
    _, lines = ask(fake, "POST", "/api/create", body)
    assert lines[0]["status"].startswith("using existing layer sha256:")
    _, shown = ask(fake, "POST", "/api/show", {"model": "child"})
    assert (shown["system"], shown["template"]) == ("new", TEMPLATE)
    assert shown["parameters"].split() == ["num_ctx", "256", "stop", '"x"', "top_k", "5"]


def test_without_a_template_the_nearest_known_one_is_taken_and_its_stops_even_beside_a_template(fake, gguf, tmp_path):
    _, lines = create(fake, "guessed", gguf, template="", stream=True)
    assert "using autodetected template chatml" in [line["status"] for line in lines]
    create(fake, "given", gguf)
    strange = write_scripted_gguf(tmp_path / "strange.gguf", ["ab"], chat_template="{{ messages }}" + "x" * 300)
    create(fake, "strange", strange, template="")
    shown = [ask(fake, "POST", "/api/show", {"model": name})[1] for name in ("guessed", "given", "strange")]
    stops = 'stop                           "<|im_start|>"\nstop                           "<|im_end|>"'
    assert [one.get("parameters") for one in shown] == [stops, stops, None]
    assert shown[1]["template"] == TEMPLATE and shown[2]["template"] == "{{ .Prompt }}"


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_name", "shown"),
    [
        ("po-student", "po-student:latest"),
        ("po-student-v1:abc123", "po-student-v1:abc123"),
        ("library/x:y", "x:y"),
        ("team/x", "team/x:latest"),
        (f"{DEFAULT_HOST}/library/x", "x:latest"),
        ("host.example:5000/team/x:y", "host.example:5000/team/x:y"),
        ("http://host.example/team/x", "host.example/team/x:latest"),
        ("_x.Y-z", "_x.Y-z:latest"),
        ("x" * 80, "x" * 80 + ":latest"),
    ],
)
def test_a_name_is_shown_with_its_tag_and_without_the_defaults(given_name, shown):
    assert parse_name(given_name).is_valid
    assert str(parse_name(given_name)) == shown


@pytest.mark.parametrize(
    "name",
    ["", "x" * 81, ".x", "-x", "x:", ":y", "x:y:z", "/x", "a/b/c/d", "te.am/x", "x y", "ä", "x:.y", "x\n", "../x"],
)
def test_a_bad_name_is_refused(name):
    assert not parse_name(name).is_valid


@given(st.text(max_size=60))
def test_a_name_that_is_valid_stays_within_the_folder_and_means_itself(text):
    name = parse_name(text)
    if name.is_valid:
        assert (len(name.path.parts), parse_name(str(name))) == (4, name)
        assert not set(name.path.parts) & {".", ".."}


def test_a_model_is_found_by_its_name_in_any_case(fake, gguf):
    create(fake, "PO-Student", gguf)
    assert ask(fake, "POST", "/api/show", {"model": "po-student"})[0] == 200
    create(fake, "po-student", gguf, system="new")
    assert fake.names() == ["PO-Student:latest"]


# --- copy, delete, tags -------------------------------------------------------------------------


def test_an_alias_is_moved_by_copy_and_the_blobs_stay(fake, gguf):
    create(fake, "po-student-v1:a", gguf)
    create(fake, "po-student-v1:b", gguf, system="b")
    before = blobs(fake)
    for tag in "ab":
        copy = {"source": f"po-student-v1:{tag}", "destination": "po-student"}
        assert ask(fake, "POST", "/api/copy", copy) == (200, None)
        assert fake.model_digest("po-student") == fake.model_digest(f"po-student-v1:{tag}")
    assert (blobs(fake), fake.seen.copies) == (before, {"po-student:latest": 2})
    _, tags = ask(fake, "GET", "/api/tags")
    assert {line["name"]: line["digest"] for line in tags["models"]} == {
        name: fake.model_digest(name) for name in ("po-student:latest", "po-student-v1:a", "po-student-v1:b")
    }
    assert tags["models"][0]["details"]["quantization_level"] == "F16"


def test_a_manifest_is_named_by_the_digest_of_its_own_bytes(fake, gguf):
    create(fake, "m", gguf)
    path = fake.store.folder / "manifests" / DEFAULT_HOST / "library" / "m" / "latest"
    assert f"sha256:{fake.model_digest('m')}" == digest_of(path)
    create(fake, "n", gguf)
    assert fake.model_digest("n") == fake.model_digest("m")


def test_what_no_name_needs_is_deleted_and_no_more(fake, gguf):
    create(fake, "a", gguf, system="of a")
    create(fake, "b", gguf, system="of b")
    shared = set(fake.store.manifest(parse_name("b")).digests())
    assert ask(fake, "DELETE", "/api/delete", {"model": "a"}) == (200, None)
    assert {name.replace("-", ":") for name in blobs(fake)} == shared | {digest_of(gguf)}
    assert ask(fake, "DELETE", "/api/delete", {"model": "a"}) == (404, {"error": "model 'a' not found"})
    create(fake, "b", gguf, system="anew")  # over the old tag, without a word
    assert digest_of(b"of b").replace(":", "-") not in blobs(fake)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/api/copy", {"source": "no", "destination": "x"}, 404, 'model "no" not found'),
        ("POST", "/api/copy", {"source": "a b", "destination": "x"}, 400, 'source "a b" is invalid'),
        ("POST", "/api/copy", {"source": "no", "destination": ""}, 400, 'destination "" is invalid'),
        ("DELETE", "/api/delete", {"model": "a b"}, 400, 'name "a b" is invalid'),
        ("POST", "/api/show", {"model": "no:latest"}, 404, "model 'no:latest' not found"),
        ("POST", "/api/show", {}, 400, "model is required"),
    ],
)
def test_what_is_not_there_or_not_named_is_refused(fake, method, path, body, status, message):
    assert ask(fake, method, path, body) == (status, {"error": message})


def test_show_says_what_the_model_is_made_of(fake, gguf):
    parameters = {"num_ctx": 256, "temperature": 0.4, "stop": ["<|im_end|>", '"']}
    create(fake, "m", gguf, system="Be\ngood.", license="MIT", parameters=parameters)
    _, shown = ask(fake, "POST", "/api/show", {"model": "m"})
    assert (shown["template"], shown["system"], shown["license"]) == (TEMPLATE, "Be\ngood.", "MIT")
    assert shown["parameters"].splitlines() == [
        "num_ctx                        256",
        'stop                           "<|im_end|>"',
        'stop                           "\\""',
        "temperature                    0.4",
    ]
    assert shown["details"] == {"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"],
                                "parameter_size": "313K", "quantization_level": "F16"}  # fmt: skip
    assert shown["model_info"]["llama.context_length"] == 512 and shown["model_info"]["tokenizer.ggml.tokens"] is None
    assert shown["capabilities"] == ["completion"]
    assert 'SYSTEM "Be\ngood."\n' in shown["modelfile"] and "PARAMETER temperature 0.4\n" in shown["modelfile"]
