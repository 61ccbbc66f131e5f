"""Names and addresses as Ollama reads them. How a provider reads them is in providers/test_ollama.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.ollama_models import parse_name
from po_distill.errors import InputError, SettingsError
from po_distill.ollama_names import ModelName, read_model_name, server_url, split_model_name


@pytest.mark.parametrize(
    ("text", "stem", "tag"),
    [
        ("po", "po", "latest"),
        ("po:v1", "po", "v1"),
        ("team/po", "team/po", "latest"),
        ("host.example:5000/team/po", "host.example:5000/team/po", "latest"),
        ("host.example:5000/team/po:v1", "host.example:5000/team/po", "v1"),
    ],
)
def test_a_name_is_taken_apart_and_put_together(text, stem, tag):
    assert read_model_name(text) == ModelName(stem, tag)
    assert str(read_model_name(text)) == f"{stem}:{tag}"


@given(st.text(max_size=40) | st.from_regex(r"[a-z./:_-]{0,12}", fullmatch=True))
def test_what_is_taken_for_a_name_is_one_to_the_fake_too_and_means_the_same(text):
    try:
        name = read_model_name(text)
    except InputError:
        return
    assert parse_name(text).is_valid
    assert parse_name(str(name)) == parse_name(text)
    assert split_model_name(str(name)) == name


def test_an_address_that_is_none_is_refused_by_the_name_of_what_gave_it(monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert server_url("gpu", "--host") == "http://gpu:11434"
    assert server_url(None, "--host") == "http://127.0.0.1:11434"
    with pytest.raises(SettingsError, match="--host for Ollama is 'ftp://x', which is no address"):
        server_url("ftp://x", "--host")
