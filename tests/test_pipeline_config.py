from pathlib import Path

import pytest

from po_distill.errors import InputError, SettingsError
from po_distill.pipeline_config import ConfiguredProvider, configured_provider

CONFIG = """
# the pipeline's own file, with its comments
providers:
  vertex_sdk:
    type: vertex_ai        # no plugin of ours: the section's name is
    project_id: acme-prod
    location: europe-west4
  house:
    type: openai_compatible
    base_url: http://10.0.0.5:8000
  ollama:
    type: openai_compatible
    base_url: http://localhost:11434
  bare:
  empty: {}
  odd:
    project_id: 12345
  text: just text
roles:
  product_owner: {provider: ollama, model: m}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "vertex_sdk",
            ConfiguredProvider("vertex_sdk", None, {"project": "acme-prod", "location": "europe-west4"}),
        ),
        ("house", ConfiguredProvider("openai_compatible", "http://10.0.0.5:8000", {})),
        ("ollama", ConfiguredProvider("ollama", "http://localhost:11434", {})),  # a plugin's name says who
        ("bare", ConfiguredProvider("bare", None, {})),
        ("empty", ConfiguredProvider("empty", None, {})),
        ("absent", ConfiguredProvider("absent", None, {})),
    ],
)
def test_a_section_says_where_a_provider_is(config: Path, name: str, found: ConfiguredProvider) -> None:
    assert configured_provider(config, name) == found
    assert config.read_text() == CONFIG


@pytest.mark.parametrize(("name", "says"), [("odd", "project_id"), ("text", "no mapping")])
def test_a_section_of_another_form_is_refused_with_its_place(config: Path, name: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        configured_provider(config, name)
    assert f"{config}: providers.{name}" in caught.value.problem


@pytest.mark.parametrize("text", ["", "roles: {}", "providers:", "providers: {}"])
def test_a_config_without_providers_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert configured_provider(path, "ollama") == ConfiguredProvider("ollama", None, {})


@pytest.mark.parametrize("text", ["- a list", "just text", "providers: [vertex_sdk]", "providers: vertex_sdk"])
def test_a_config_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match="mapping"):
        configured_provider(path, "vertex_sdk")


def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        configured_provider(tmp_path / "none.yaml", "ollama")
    path = tmp_path / "config.yaml"
    path.write_text("providers: {a: [")
    with pytest.raises(InputError, match="is not YAML"):
        configured_provider(path, "ollama")
