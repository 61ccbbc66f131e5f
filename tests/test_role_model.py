"""Which model a role uses: by the environment, else by the config."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from po_distill import plugins
from po_distill.errors import InputError, SettingsError
from po_distill.role_model import RoleModel, resolve_role_model

EXAMPLES = Path(__file__).parents[1] / "examples"
OPTIONS = {"project": "acme"}
CONFIG = """
providers:
  vertex: {type: vertex_ai, project_id: acme}
  gpu: {type: ollama, base_url: 'http://gpu:11434'}
  house: {type: openai_compatible, base_url: 'http://10.0.0.5:8000'}
roles:
  product_owner: {provider: vertex, model: gemini-2.5-pro, temperature: 0.7, max_tokens: 8192}
  architect: {provider: house, model: 'qwen:7b'}
  quality assurance: {provider: house, model: q}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def resolve(config: Path, role: str = "product_owner", **environ: str) -> RoleModel:
    return resolve_role_model(config, role, environ)


def test_the_config_says_which_model_and_where(config: Path) -> None:
    where = f"{config}: roles.product_owner"
    assert resolve(config) == RoleModel("vertex", "gemini-2.5-pro", None, 0.7, 8192, where, OPTIONS)
    assert resolve(config, "architect") == RoleModel(
        "openai_compatible", "qwen:7b", "http://10.0.0.5:8000", None, None, f"{config}: roles.architect"
    )


@pytest.mark.parametrize("name", ["PO_MODEL", "PRODUCT_OWNER_MODEL"])
def test_the_environment_goes_first_by_the_short_name_or_the_whole(config: Path, name: str) -> None:
    found = resolve(config, **{name: "gemini-2.5-flash"})
    assert found == RoleModel("vertex", "gemini-2.5-flash", None, 0.7, 8192, name, OPTIONS)


def test_two_variables_that_disagree_are_refused(config: Path) -> None:
    with pytest.raises(SettingsError, match="PO_MODEL=a and PRODUCT_OWNER_MODEL=b"):
        resolve(config, PO_MODEL="a", PRODUCT_OWNER_MODEL="b")
    assert resolve(config, PO_MODEL="a", PRODUCT_OWNER_MODEL="a").model == "a"


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_counts_as_missing(config: Path, value: str) -> None:
    assert resolve(config, PO_MODEL=value).model == "gemini-2.5-pro"


@pytest.mark.parametrize(
    ("value", "provider", "model", "base_url"),
    [
        ("house:mine", "openai_compatible", "mine", "http://10.0.0.5:8000"),  # a provider of the config
        ("gpu:po-student-v1:abc", "ollama", "po-student-v1:abc", "http://gpu:11434"),
        ("llama_cpp:student.gguf", "llama_cpp", "student.gguf", None),  # a provider by plugin
        ("ollama:po-student-v1", "ollama", "po-student-v1", None),
        ("gemini:latest", "vertex", "gemini:latest", None),  # no provider before the colon: a tag
        ("po-student-v1:abc", "ollama", "po-student-v1:abc", "http://gpu:11434"),
        ("po-student-v1", "ollama", "po-student-v1", "http://gpu:11434"),
        ("team/po_student_v2:latest", "ollama", "team/po_student_v2:latest", "http://gpu:11434"),
        ("po-students", "vertex", "po-students", None),
    ],
)
def test_a_variable_may_name_the_provider_too(
    config: Path, value: str, provider: str, model: str, base_url: str | None
) -> None:
    assert resolve(config, PO_MODEL=value)[:3] == (provider, model, base_url)


def test_a_student_is_asked_of_whoever_serves_the_student_of_the_config(config: Path) -> None:
    config.write_text(
        CONFIG.replace("{provider: vertex, model: gemini-2.5-pro", "{provider: house, model: po-student-v1")
    )
    assert resolve(config, PO_MODEL="po-student-v2")[:2] == ("openai_compatible", "po-student-v2")


def test_ollama_needs_no_section_to_serve_a_student(config: Path) -> None:
    config.write_text("roles: {}\n")
    assert resolve(config, PO_MODEL="po-student-v1") == RoleModel(
        "ollama", "po-student-v1", None, None, None, "PO_MODEL"
    )
    config.write_text("providers: {gpu: {type: ollama}, ollama: {base_url: 'http://other'}}\n")
    assert resolve(config, PO_MODEL="po-student-v1").base_url == "http://other"


def test_roles_of_any_name_have_variables_and_one_word_has_no_initials(config: Path) -> None:
    assert resolve(config, "quality assurance", QA_MODEL="x").model == "x"
    assert resolve(config, "quality assurance", QUALITY_ASSURANCE_MODEL="x").model == "x"
    assert resolve(config, "architect", ARCHITECT_MODEL="x", A_MODEL="y").model == "x"


def test_a_role_says_its_short_name_itself(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Architect:
        short_name = "arc"
        version_stem = "arc_student"

    names, load = plugins.names, plugins.load
    monkeypatch.setattr(plugins, "names", lambda group: [*names(group), *(["architect"] * (group == "roles"))])
    monkeypatch.setattr(plugins, "load", lambda group, name: Architect if name == "architect" else load(group, name))
    assert resolve(config, "architect", ARC_MODEL="x").source == "ARC_MODEL"
    assert resolve(config, "architect", ARC_MODEL="arc-student-v3").provider == "ollama"
    assert resolve(config, "architect", ARC_MODEL="po-student-v3").provider == "openai_compatible"


@pytest.mark.parametrize(
    ("text", "environ", "says", "fix"),
    [
        ("", {}, "roles.product_owner names no provider and no model", "po-distill promote"),
        ("roles: {a: {}, b: }", {}, "Its roles: a, b", "set PO_MODEL or PRODUCT_OWNER_MODEL"),
        ("roles: {product_owner: {provider: ollama}}", {}, "names no model", "provider and model"),
        ("roles: {product_owner: {model: m}}", {}, "names no provider", "provider and model"),
        ("", {"PO_MODEL": "m"}, "PO_MODEL names no provider, and", "PO_MODEL=provider:model"),
        ("", {"PO_MODEL": "ollama:"}, "PO_MODEL names no model", "PO_MODEL=provider:model"),
        ("roles: {product_owner: {provider: olama, model: m}}", {}, "'olama', which neither", "mean 'ollama'"),
        ("- a", {}, "is no mapping, but of the type list", "key: value"),
        ("roles: [a]", {}, "roles is no mapping", "key: value"),
        ("providers: x", {}, "providers is no mapping", "key: value"),
        ("roles: {product_owner: m}", {}, "roles.product_owner is no mapping", "key: value"),
        ("roles: {product_owner: {provider: ollama, model: 1.0}}", {}, "model is 1.0, which is no text", "quotes"),
        ("roles: {product_owner: {provider: [a], model: m}}", {}, "provider is ['a']", "quotes"),
        ("roles: {product_owner: {provider: ollama, model: m, temperature: hot}}", {}, "temperature is 'hot'", "0.4"),
        ("roles: {product_owner: {provider: ollama, model: m, temperature: .nan}}", {}, "temperature is nan", "0.4"),
        ("roles: {product_owner: {provider: ollama, model: m, temperature: yes}}", {}, "temperature is True", "0.4"),
        ("roles: {product_owner: {provider: ollama, model: m, max_tokens: 0}}", {}, "max_tokens is 0", "4096"),
        ("roles: {product_owner: {provider: ollama, model: m, max_tokens: 1.5}}", {}, "max_tokens is 1.5", "4096"),
    ],
)
def test_what_is_missing_or_wrong_is_said_with_its_place(
    config: Path, text: str, environ: dict[str, str], says: str, fix: str
) -> None:
    config.write_text(text)
    with pytest.raises(SettingsError) as caught:
        resolve(config, **environ)
    assert says in caught.value.problem
    assert fix in caught.value.fix


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        resolve(tmp_path / "none.yaml")


def test_what_a_promotion_writes_is_what_the_role_gets(config: Path) -> None:
    from po_distill.stages.integration import Integration

    Integration(config).promote("po-student-v1:latest", models=config.parent, force="trial")
    assert resolve(config) == RoleModel(
        "ollama", "po-student-v1:latest", "http://localhost:11434", 0.4, 4096, f"{config}: roles.product_owner"
    )
    Integration(config).rollback()
    assert resolve(config).model == "gemini-2.5-pro"


def test_importing_it_loads_nothing_and_takes_no_time() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import po_distill.role_model;"
        "print(time.perf_counter() - start, {'pydantic', 'yaml', 'click', 'numpy', 'torch'} & set(sys.modules))"
    )
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert {child.stdout.split(maxsplit=1)[1] for child in said} == {"set()\n"}
    assert min(float(child.stdout.split()[0]) for child in said) < 0.1


# --- the Makefile ---------------------------------------------------------------------------------


def make(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    given: dict[str, Any] = {name: value for name, value in os.environ.items() if not name.endswith("_MODEL")}
    command = ["make", "-s", "-f", str(EXAMPLES / "promote.mk"), *arguments]
    return subprocess.run(command, cwd=folder, env={**given, **environ}, capture_output=True, text=True, check=False)


def test_make_po_runs_the_role_with_the_model_that_is_named(config: Path) -> None:
    caller = config.parent / "run_product_owner.py"
    caller.write_text(
        "from po_distill.role_model import resolve_role_model\n"
        "found = resolve_role_model('config.yaml', 'product_owner')\nprint(found.provider, found.model)\n"
    )
    command = f"PO_COMMAND={shlex.quote(sys.executable)} {caller.name}"
    assert make(config.parent, "po", command, "PO_MODEL=po-student-v1").stdout == "ollama po-student-v1\n"
    assert make(config.parent, "po", command, PO_MODEL="po-student-v2").stdout == "ollama po-student-v2\n"
    assert make(config.parent, "po", command).stdout == "vertex gemini-2.5-pro\n"


def test_make_promote_and_rollback_call_the_commands(config: Path) -> None:
    echo = "PO_DISTILL=echo po-distill"
    promoted = make(config.parent, "promote", echo, "PO_MODEL=po-student-v1", "YES=1").stdout
    assert promoted == "po-distill promote --config config.yaml --role product_owner --model po-student-v1 --yes\n"
    assert make(config.parent, "rollback", echo).stdout == "po-distill rollback --config config.yaml\n"
    assert make(config.parent, "promotions", echo).stdout == "po-distill promotions --config config.yaml\n"
    unnamed = make(config.parent, "promote", echo)
    assert unnamed.returncode != 0 and re.search("Name the model", unnamed.stderr)
    hostile = make(config.parent, "promote", echo, PO_MODEL='"; touch broken; "').stdout
    assert '--model "; touch broken; "' in hostile and not (config.parent / "broken").exists()
