import pytest

from po_distill.errors import SettingsError
from po_distill.providers.vertex_cli import VertexCliProvider
from po_distill.providers.vertex_project import vertex_project
from po_distill.providers.vertex_sdk import VertexSdkProvider
from po_distill.records import ProviderSettings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.delenv(name, raising=False)


def settings(model="gemini-3.8-flash", base_url=None, **options):
    return ProviderSettings(
        provider="vertex_cli", model=model, base_url=base_url, options={"project": "my-project", **options}
    )


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("us-central1", "us-central1-aiplatform.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ],
)
def test_the_address_has_location_project_and_model(location, host):
    found = vertex_project(settings(location=location), "vertex_cli")
    assert found.generate_url == (
        f"https://{host}/v1/projects/my-project/locations/{location}"
        "/publishers/google/models/gemini-3.8-flash:generateContent"
    )


def test_project_and_location_fall_back_to_the_environment(monkeypatch):
    bare = ProviderSettings(provider="vertex_cli", model="gemini-3.8-flash")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-the-environment")
    assert vertex_project(bare, "vertex_cli").resource == "projects/from-the-environment/locations/us-central1"
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "europe-west4")
    assert vertex_project(bare, "vertex_cli").location == "europe-west4"
    assert vertex_project(settings(location="global"), "vertex_cli").resource == "projects/my-project/locations/global"


@pytest.mark.parametrize("provider", [VertexCliProvider, VertexSdkProvider])
def test_a_missing_project_names_the_three_places_that_take_one(provider):
    with pytest.raises(SettingsError) as caught:
        provider(ProviderSettings(provider="x", model="gemini-3.8-flash"), None)
    for place in ("--project", "providers.<name>.project_id", "GOOGLE_CLOUD_PROJECT"):
        assert place in caught.value.fix


@pytest.mark.parametrize("provider", [VertexCliProvider, VertexSdkProvider])
def test_a_missing_model_names_a_current_one(provider):
    with pytest.raises(SettingsError, match=r"--model gemini-3\.8-flash"):
        provider(settings(model=None), None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project": "my-project/../other"}, "project of vertex_cli"),
        ({"project": "my-project\n"}, "project of vertex_cli"),
        ({"project": 7}, "project of vertex_cli"),
        ({"location": "evil.example/"}, "location of vertex_cli"),
        ({"location": "US"}, "location of vertex_cli"),
        ({"model": "publishers/google/models/x"}, "model of vertex_cli"),
        ({"model": "gemini?key=1"}, "model of vertex_cli"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"timeout_s": "600"}, "timeout_s"),
        ({"labels": ["team"]}, "labels"),
        ({"labels": {"team": 3}}, "labels"),
        ({"projekt": "x"}, "no option 'projekt'.*project, location"),
        ({"credentials_path": "x"}, "no option 'credentials_path'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_by_name(changes, words):
    with pytest.raises(SettingsError, match=words):
        VertexCliProvider(settings(**changes), None)


@pytest.mark.parametrize(
    "address",
    [
        "http://aiplatform.example.com", "http://localhost.example.com", "http://10.0.0.1:8080", "http://0.0.0.0:80",
        "ftp://127.0.0.1", "https://user:pass@proxy.example", "http://127.0.0.1\\@evil.example", "http://127.0.0.1@evil",
        "https://proxy.example/?x=", "https://proxy.example#x", "127.0.0.1:80", "https://", "http://127.0.0.1\n",
    ],
)  # fmt: skip
def test_an_address_that_would_show_the_token_to_others_is_refused(address):
    for provider in (VertexCliProvider, VertexSdkProvider):
        with pytest.raises(SettingsError, match="base_url"):
            provider(settings(base_url=address), None)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8080", "http://localhost:80", "http://[::1]:1", "https://proxy.example/vertex/"]
)
def test_a_base_url_replaces_scheme_and_host(address):
    url = vertex_project(settings(base_url=address), "vertex_cli").generate_url
    assert url.startswith(address.rstrip("/") + "/v1/projects/my-project/locations/us-central1/publishers/")
