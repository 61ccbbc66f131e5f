"""Values that look like commands, quotes or paths are refused or carried exactly; no file elsewhere is touched."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import threading
from pathlib import Path

import pytest

pytest.importorskip("ollama")
pytest.importorskip("xllamacpp")
from fakes.ollama_server import FakeOllama
from installs import ANSWER, ROLE
from po_distill.errors import InputError
from po_distill.ollama_server import OllamaServer
from po_distill.records import BaseModelSpec
from po_distill.roles.product_owner.role import ProductOwnerRole
from po_distill.stages import packager
from po_distill.stages.packager import Packager
from scripted_student import scripted_student

ODD = {
    "quotes": 'say """\nFROM evil\n""" now',
    "one_quote": '"x',
    "newlines": "two\n\nlines\n  PARAMETER num_ctx 1",
    "no_break_space": "no\u00a0break",
    "zero_width": "zero\u200bwidth",
    "carriage_return": "a\r\nb",
    "template": "{{ .Messages }} {{- range",
    "command": "FROM /etc/passwd",
    "path": "../../outside",
    "long": "a" * 100,
    "astral": "\U0001f680 {% raw %}",
    "comment": "# SYSTEM x",
}
# Ollama's Modelfile parser drops these, or ends the value at them.
NOT_IN_A_MODELFILE = ("quotes", "one_quote", "no_break_space", "zero_width", "carriage_return")
_VALUE = re.compile(r'^(\w+) (?:stop )?(?:"""(.*?)"""|"([^"\n]*)"|(\S+ ?\S*))$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def fake(tmp_path):
    with FakeOllama(tmp_path / "server") as server:
        yield server


def written(folder):
    """The values of a Modelfile by command, read without the code that wrote them; empty where it holds no FROM."""
    text = (folder / "Modelfile").read_text()
    if not text.startswith("FROM ./"):
        assert all(line.startswith("#") for line in text.splitlines())
        assert "po-distill package --model" in text and "--install" in text
        return {}
    return {match[1]: next(part for part in match.groups()[1:] if part is not None) for match in _VALUE.finditer(text)}


def installed(fake, folder):
    """What the server says of the package that it was given."""
    package = Packager().package(folder)
    name = Packager().install(package, fake.base_url).name
    return package, OllamaServer(fake.base_url).show(name)


@pytest.mark.parametrize("kind", [*ODD])
def test_an_odd_name_is_refused(kind):
    with pytest.raises(InputError, match="no name that Ollama takes"):
        Packager(ODD[kind])


@pytest.mark.parametrize("kind", [*ODD])
def test_an_odd_system_text_is_carried_exactly_or_the_modelfile_says_why_not(fake, tmp_path, kind):
    contract = ProductOwnerRole(prompt=ODD[kind]).contract
    folder = scripted_student(tmp_path / "po_student_v1", ANSWER, contract=contract)
    package, shown = installed(fake, folder)
    assert package.system == shown["system"] == ODD[kind]
    values = written(folder)
    assert values.get("SYSTEM") == (None if kind in NOT_IN_A_MODELFILE else ODD[kind])
    assert package.serve["ollama"].startswith("ollama create" if values else "po-distill package --model")


@pytest.mark.parametrize("kind", [*ODD])
def test_an_odd_licence_and_an_odd_stop_are_carried_exactly(fake, tmp_path, monkeypatch, kind):
    stop = f"STOP{ODD[kind]}"
    spec = BaseModelSpec(name="odd", hub_id="o/dd", family="llama", license=ODD[kind], context_tokens=8192,
                         stops=("<|im_end|>", stop))  # fmt: skip
    monkeypatch.setattr(packager, "find_spec", lambda _: spec)
    folder = scripted_student(tmp_path / "po_student_v1", ANSWER, contract=ROLE.contract)
    package, shown = installed(fake, folder)
    assert (package.license, shown["license"]) == (ODD[kind], ODD[kind])
    lines = [line.split(maxsplit=1)[1] for line in shown["parameters"].split("\n") if line.startswith("stop ")]
    assert package.stops == ("<|im_end|>", stop) and len(lines) == 2
    assert written(folder).get("LICENSE") == (None if kind in NOT_IN_A_MODELFILE else ODD[kind])


@pytest.mark.parametrize("kind", [*ODD])
def test_an_odd_text_in_a_template_is_carried_exactly(fake, tmp_path, monkeypatch, kind):
    chat = "{% for m in messages %}###" + "{{ odd }}" + "{{ m['content'] }}\n{% endfor %}"
    literal = json.dumps(ODD[kind], ensure_ascii=False)
    template = f"{{{{ range .Messages }}}}###{{{{ {literal} }}}}{{{{ .Content }}}}\n{{{{ end }}}}"
    spec = BaseModelSpec(name="odd", hub_id="o/dd", family="llama", license="MIT", context_tokens=8192,
                         stops=("<|im_end|>",), ollama_template=template)  # fmt: skip
    monkeypatch.setattr(packager, "find_spec", lambda _: spec)
    folder = scripted_student(
        tmp_path / "po_student_v1", ANSWER, contract=ROLE.contract,
        chat_template=f"{{% set odd = {literal} %}}{chat}",
    )  # fmt: skip
    package, shown = installed(fake, folder)
    assert package.template == shown["template"] == template
    assert written(folder).get("TEMPLATE") in (None, template)


def test_a_template_that_go_refuses_is_an_error_and_makes_nothing(fake, tmp_path, monkeypatch):
    spec = BaseModelSpec(name="odd", hub_id="o/dd", family="llama", license="MIT", context_tokens=8192,
                         stops=("<|im_end|>",), ollama_template="{{ range .Messages }}{{ .Content")  # fmt: skip
    monkeypatch.setattr(packager, "find_spec", lambda _: spec)
    folder = scripted_student(tmp_path / "s", ANSWER, contract=ROLE.contract,
                              chat_template="{{ messages[-1]['content'] }}")  # fmt: skip
    with pytest.raises(Exception, match="template error") as caught:
        installed(fake, folder)
    assert "Ollama" in str(caught.value)
    assert fake.names() == []


# --- files ----------------------------------------------------------------------------------------

_touched: list[tuple[str, str]] = []
_watched: list[int] = []  # the thread whose files are noted, while they are


def _note(event, arguments):
    if _watched and threading.get_ident() in _watched and event in _EVENTS:
        _touched.extend((event, str(path)) for path in arguments[: _EVENTS[event]] if isinstance(path, str | Path))


_EVENTS = {"open": 1, "os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.link": 2, "os.symlink": 2, "os.rmdir": 1}


def test_nothing_outside_the_package_folder_is_read_or_written(fake, tmp_path):
    contract = ProductOwnerRole(prompt="../../outside\nFROM /etc/passwd").contract
    folder = scripted_student(tmp_path / "models" / "po_student_v1", ANSWER, contract=contract)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file() and "server" not in path.parts)
    sys.addaudithook(_note)  # cannot be taken away again, so it is switched
    _watched.append(threading.get_ident())
    try:
        made = Packager("team/po.v-1:x").package(folder)
        Packager().install(made, fake.base_url)
    finally:
        _watched.clear()
    code = (sys.prefix, sys.base_prefix, str(Path(packager.__file__).parents[2]))
    header = (str(Path(tempfile.gettempdir(), "po_distill_")), "header.gguf")  # in a folder of its own, and gone again
    outside = {(event, path) for event, path in _touched if not path.startswith((str(folder), *code, *header))}
    assert outside == set()
    assert any(path == str(folder / "Modelfile") for _, path in _touched)
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file() and "server" not in path.parts)
    assert set(after) - set(before) == {folder / "Modelfile", folder / "team-po.v-1-x.Q4_0.gguf"}


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "..", "x/../../y"])
def test_a_record_that_names_a_file_elsewhere_never_leads_there(fake, tmp_path, path):
    made = Packager().package(scripted_student(tmp_path / "s", ANSWER, contract=ROLE.contract))
    tampered = made.model_copy(update={"gguf": made.gguf.model_copy(update={"path": path})})
    with pytest.raises(InputError) as caught:
        Packager().install(tampered, fake.base_url)
    assert caught.value.problem.startswith(str(tmp_path / "s"))
    assert not fake.seen.uploads
