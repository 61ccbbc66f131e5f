"""A student goes into a pipeline's config.yaml and out again, whatever it is called and whoever edits the file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from generated_configs import ROLE, GeneratedConfig, generated_configs
from pipeline_files import CONFIG, PROMOTED, files, lines, make_workplace
from po_distill.artifacts import digest_bytes, digest_file
from po_distill.config_history import ConfigHistory
from po_distill.errors import InputError, SettingsError
from po_distill.records import ConfigChange
from po_distill.stages.integration import Integration


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    return make_workplace(tmp_path)


def test_a_promotion_changes_the_role_and_adds_the_provider(config: Path) -> None:
    change = Integration(config).promote("po-student-v1")
    assert config.read_text() == PROMOTED
    assert change.applied
    assert change.before == {"provider": "vertex", "model": "gemini-2.5-pro", "temperature": 0.7}
    assert change.after == {"provider": "ollama", "model": "po-student-v1", "temperature": 0.4, "max_tokens": 4096}
    assert '-    model: "gemini-2.5-pro"  # until the student is there\n' in change.diff


def test_a_rollback_gives_the_same_bytes(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    change = Integration(config).rollback()
    assert config.read_text() == CONFIG
    assert change.applied
    assert change.after == {"provider": "vertex", "model": "gemini-2.5-pro", "temperature": 0.7}


@given(generated_configs())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_config_is_the_same_bytes_after_promote_and_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: GeneratedConfig
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # half of the time, for what only a power cut would show
    check_there_and_back(tmp_path, generated)


def check_there_and_back(folder: Path, generated: GeneratedConfig) -> None:
    path, data = folder / "config.yaml", generated.text.encode()
    path.write_bytes(data)
    (folder / "promotions.jsonl").unlink(missing_ok=True)
    try:
        change = Integration(path).promote("po-student-v1", models=folder, force="trial")
    except InputError as refused:
        assert generated.may_be_refused, refused
        assert path.read_bytes() == data
        return
    said = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    assert said["roles"][ROLE].items() >= {"provider": "ollama", "model": "po-student-v1"}.items()
    assert "ollama" in said["providers"]
    rest = iter(re.split("\r\n|[\r\n]", path.read_bytes().decode("utf-8-sig")))
    assert all(line in rest for line in generated.other_lines)
    assert change.applied == (path.read_bytes() != data)
    if change.applied:
        Integration(path).rollback()
    assert path.read_bytes() == data


def test_a_value_of_any_kind_is_noted_as_it_was(config: Path) -> None:
    config.write_text("roles: {product_owner: {provider: , model: 2024-01-02, temperature: .nan, max_tokens: true}}\n")
    Integration(config).promote("po-student-v1")
    before = {"provider": None, "model": "2024-01-02", "temperature": "nan", "max_tokens": True}
    assert lines(config)[0]["before"] == Integration(config).history()[0].before == before


def test_several_promotions_are_rolled_back_one_by_one(config: Path) -> None:
    states = [config.read_bytes()]
    for model in ("po-student-v1", "po-student-v2", "po-student-v3:latest"):
        Integration(config).promote(model, force="trial")
        states.append(config.read_bytes())
    Integration(config).promote("m", role="architect", force="trial")
    assert len(set(states)) == 4
    assert [line.model for line in Integration(config).standing()][-1] == "m"
    for state in reversed(states):
        Integration(config).rollback()
        assert config.read_bytes() == state
    with pytest.raises(InputError, match="no promotion to roll back"):
        Integration(config).rollback()


def test_the_history_says_who_is_promoted_since_when_by_which_report_at_which_digest(config: Path) -> None:
    folder = Path("artifacts/models/po_student_v1")
    Integration(config).promote("po-student-v1")
    Integration(config).rollback()
    first, second = lines(config)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first.pop("at"))
    assert first == {
        "number": 1, "action": "promote", "config": "config.yaml", "role": ROLE, "provider": "ollama",
        "model": "po-student-v1",
        "before": {"provider": "vertex", "model": "gemini-2.5-pro", "temperature": 0.7},
        "after": {"provider": "ollama", "model": "po-student-v1", "temperature": 0.4, "max_tokens": 4096},
        "digest_before": digest_bytes(CONFIG.encode()), "digest_after": digest_bytes(PROMOTED.encode()),
        "package_path": str(folder), "package_digest": digest_file(folder / "po-student-v1.Q4_0.gguf"),
        "report_path": str(folder / "evaluation.json"), "report_digest": digest_file(folder / "evaluation.json"),
    }  # fmt: skip
    assert (second["action"], second["undoes"], second["model"]) == ("rollback", 1, "gemini-2.5-pro")
    assert (second["provider"], second["digest_after"]) == ("vertex", first["digest_before"])
    assert [line.number for line in Integration(config).history()] == [1, 2]
    assert Integration(config).standing() == []


def test_configs_of_one_folder_have_histories_of_their_own(config: Path) -> None:
    other = config.with_name("dev.yaml")
    other.write_text("roles: {}\n")
    Integration(config).promote("po-student-v1")
    Integration(other).promote("po-student-v1")
    assert [line["number"] for line in lines(config)] == [1, 2]
    Integration(config).rollback()
    assert config.read_text() == CONFIG
    assert [line.number for line in Integration(other).standing()] == [2]
    assert Integration(config).standing() == []


def test_a_config_that_says_so_already_is_not_written(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    before = files(config.parent)
    change = Integration(config).promote("po-student-v1")
    assert (change.applied, change.diff, change.before, change.after) == (False, "", {}, {})
    assert files(config.parent) == before


def test_what_is_not_approved_is_not_written(config: Path) -> None:
    shown: list[ConfigChange] = []
    before = files(config.parent)
    change = Integration(config, approve=lambda change: bool(shown.append(change))).promote("po-student-v1")
    assert [change] == shown
    assert not change.applied
    assert files(config.parent) == before


def test_a_provider_that_is_there_stays_as_it_is(config: Path) -> None:
    config.write_text("providers: {ollama: {base_url: http://gpu}, vllm: {type: openai_compatible}}\n")
    Integration(config).promote("po-student-v1")
    assert config.read_text().startswith(
        "providers: {ollama: {base_url: http://gpu}, vllm: {type: openai_compatible}}\n"
    )
    Integration(config).promote("po-student-v1", provider="vllm")
    assert yaml.safe_load(config.read_text())["roles"][ROLE]["provider"] == "vllm"
    with pytest.raises(SettingsError, match=r"has providers\.ollama already"):
        Integration(config).promote("po-student-v1", base_url="http://other")
    with pytest.raises(InputError, match=r"has no providers\.tgi"):
        Integration(config).promote("po-student-v1", provider="tgi")


@pytest.mark.parametrize("url", ["http://gpu:1", 'x"""', "two\nlines", "{{ x }}", "a\xa0b", "FROM /etc/passwd", "../x"])
def test_an_address_is_carried_exactly(config: Path, url: str) -> None:
    Integration(config).promote("po-student-v1", base_url=url)
    assert yaml.safe_load(config.read_text())["providers"]["ollama"]["base_url"] == url


# --- edits by hand --------------------------------------------------------------------------------


def test_a_rollback_over_edits_by_hand_is_refused_with_them_shown(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    config.write_text(edited := PROMOTED.replace("acme", "other"))
    with pytest.raises(InputError, match="was edited since po-student-v1 was promoted") as caught:
        Integration(config).rollback()
    assert "-    project_id: acme\n+    project_id: other" in caught.value.problem
    assert "--force" in caught.value.fix
    assert config.read_text() == edited
    assert not Integration(config).is_as_left()


def test_a_forced_rollback_keeps_the_edits_by_hand(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    config.write_text("mine: \x1b[2J1\n")
    change = Integration(config).rollback(force=True)
    assert config.read_text() == CONFIG
    assert "-mine: \\x1b[2J1\n" in change.diff
    assert ConfigHistory(config).kept(change.digest_before) == b"mine: \x1b[2J1\n"
    assert lines(config)[-1]["forced"] == "over edits by hand"


def test_edits_between_two_promotions_are_not_lost_by_the_second_rollback(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    config.write_text(between := PROMOTED.replace("acme", "other"))
    Integration(config).promote("po-student-v2", force="trial")
    Integration(config).rollback()
    assert config.read_text() == between
    with pytest.raises(InputError, match="was edited since"):
        Integration(config).rollback()
    Integration(config).rollback(force=True)
    assert config.read_text() == CONFIG


def test_a_file_that_was_put_back_by_hand_is_only_noted(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    config.write_text(CONFIG)
    assert Integration(config).rollback().diff == ""
    assert Integration(config).standing() == []
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(("damage", "says"), [(None, "cannot be read"), (b"other", "is damaged")])
def test_a_kept_state_that_is_gone_or_damaged_is_not_put_back(config: Path, damage: bytes | None, says: str) -> None:
    Integration(config).promote("po-student-v1")
    kept = ConfigHistory(config).kept_path(digest_bytes(CONFIG.encode()))
    kept.unlink() if damage is None else kept.write_bytes(damage)
    with pytest.raises(InputError, match=says):
        Integration(config).rollback()
    assert config.read_text() == PROMOTED


# --- hostile names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        'm"""',
        "two\nlines",
        "a\xa0b",
        "{{ .System }}",
        "FROM /etc/passwd",
        "../po",
        "a/../b",
        "x" * 100,
        "",
        " m",
        "m: n",
    ],
)
def test_a_name_that_ollama_would_not_take_is_refused(config: Path, model: str) -> None:
    with pytest.raises(InputError, match="no name that Ollama takes"):
        Integration(config).promote(model, force="trial")
    assert config.read_text() == CONFIG


@pytest.mark.parametrize("model", ["on", "null", "1.0", "0x10", "2024-01-01", "host:11434/team/m:1e3", "x" * 80, "_m"])
def test_a_name_that_yaml_would_read_otherwise_is_carried_exactly(config: Path, model: str) -> None:
    Integration(config).promote(model, force="trial")
    assert yaml.safe_load(config.read_text())["roles"][ROLE]["model"] == model


@pytest.mark.parametrize(
    "role", ['r"""', "two\nlines", "a\xa0b", "{{ x }}", "FROM /etc/passwd", "../x", "r" * 100, "no"]
)
def test_a_role_of_any_name_is_carried_exactly(config: Path, role: str) -> None:
    Integration(config).promote("m", role=role, force="trial")
    assert yaml.safe_load(config.read_text())["roles"][role]["model"] == "m"
    Integration(config).rollback()
    assert config.read_text() == CONFIG


WRITES = """
import os, sys
from po_distill.stages.integration import Integration

def watch(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link"):
        print(arguments[0])
        if event == "os.rename":
            print(arguments[1])

sys.addaudithook(watch)
Integration("sub/config.yaml").promote("../x" if len(sys.argv) > 1 else "m", role="../../r", force="trial")
"""


def test_nothing_outside_the_configs_folder_is_written(config: Path) -> None:
    (config.parent / "sub").mkdir()
    config.rename("sub/config.yaml")
    child = subprocess.run([sys.executable, "-B", "-c", WRITES], capture_output=True, text=True, check=True)
    touched = [Path(line) for line in child.stdout.splitlines() if not line.isdigit()]
    assert len(touched) > 8
    assert all(path.resolve().is_relative_to(config.parent / "sub") for path in touched)
