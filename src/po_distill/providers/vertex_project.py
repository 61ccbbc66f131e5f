"""What the providers for Gemini on Vertex AI share: project, location, model, and the address of their calls."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from po_distill.errors import SettingsError
from po_distill.providers.gemini import request_body
from po_distill.records import ProviderSettings, ProviderTraits, Request

WHO = "Vertex AI"
OPTIONS = ("project", "location", "timeout_s", "labels")
TRAITS = ProviderTraits(
    family="vertex",
    paid=True,
    structured_output=True,
    names_served_model=True,
    transport_options=("project", "location", "timeout_s", "labels", "credentials_path"),
)

_DEFAULT_LOCATION = "us-central1"
_DEFAULT_TIMEOUT_S = 600.0
_EXAMPLE_MODEL = "gemini-3.8-flash"

# They go into a URL, so nothing that could mean something there passes.
_PROJECT = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,62}:)?[a-z0-9][a-z0-9-]{0,62}")
_LOCATION = re.compile(r"[a-z][a-z0-9-]{0,39}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
_BASE_URL = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?")


@dataclass(frozen=True)
class VertexProject:
    """Where the calls of one provider go, checked."""

    project: str
    location: str
    model: str
    origin: str  # scheme and host, without a slash at its end
    timeout_s: float
    labels: Mapping[str, str]

    @property
    def resource(self) -> str:
        """The path of project and location, as Google writes it."""
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def generate_url(self) -> str:
        """The address of generateContent."""
        return f"{self.origin}/v1/{self.resource}/publishers/google/models/{self.model}:generateContent"

    def body_of(self, request: Request) -> dict[str, Any]:
        """The body of a generateContent call, with the labels that the project's bill is split by."""
        body = request_body(request)
        if self.labels:
            body["labels"] = dict(self.labels)
        return body


def vertex_project(settings: ProviderSettings, provider: str, more_options: tuple[str, ...] = ()) -> VertexProject:
    """What the settings and the environment say, `more_options` known beside the shared ones. Raises SettingsError."""
    options, known = settings.options, (*OPTIONS, *more_options)
    if unknown := sorted(set(options) - set(known)):
        raise SettingsError(
            f"The provider {provider} has no option {unknown[0]!r}.", f"Its options: {', '.join(known)}."
        )
    if not settings.model:
        raise SettingsError(f"The provider {provider} needs a model.", f"Name one with --model {_EXAMPLE_MODEL}.")
    project = _name(options.get("project") or os.environ.get("GOOGLE_CLOUD_PROJECT"), "project", _PROJECT, provider)
    location = _name(
        options.get("location") or os.environ.get("GOOGLE_CLOUD_LOCATION") or _DEFAULT_LOCATION,
        "location",
        _LOCATION,
        provider,
    )
    return VertexProject(
        project=project,
        location=location,
        model=_name(settings.model, "model", _MODEL, provider),
        origin=_origin(settings.base_url, location),
        timeout_s=_seconds(options.get("timeout_s", _DEFAULT_TIMEOUT_S), provider),
        labels=_labels(options.get("labels", {}), provider),
    )


def _name(value: Any, what: str, pattern: re.Pattern[str], provider: str) -> str:
    if not value:  # of the three, only the project has no default
        raise SettingsError(
            f"The provider {provider} needs the {what} that pays for its calls.",
            "Give it with --project, as providers.<name>.project_id in config.yaml, "
            "or in the variable GOOGLE_CLOUD_PROJECT.",
        )
    if not isinstance(value, str) or not pattern.fullmatch(value):
        example = {"project": "my-project", "location": _DEFAULT_LOCATION, "model": _EXAMPLE_MODEL}[what]
        raise SettingsError(f"The {what} of {provider} is {value!r}.", f"Give its name alone, such as {example}.")
    return value


def _origin(base_url: str | None, location: str) -> str:
    if base_url is None:
        if location == "global":
            return "https://aiplatform.googleapis.com"
        if location in ("us", "eu"):  # multi-regions have hosts of another form
            return f"https://aiplatform.{location}.rep.googleapis.com"
        return f"https://{location}-aiplatform.googleapis.com"
    if not _BASE_URL.fullmatch(base_url):
        raise SettingsError(f"The base_url {base_url!r} is no plain http(s) address.", "Give https://HOST, or none.")
    parts = urlsplit(base_url)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise SettingsError(
            f"The base_url {base_url!r} would carry the access token in clear.", "Give an https:// address."
        )
    return base_url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(value: Any, provider: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise SettingsError(f"The option timeout_s of {provider} is {value!r}.", "Give seconds, such as 600.")
    return float(value)


def _labels(value: Any, provider: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise SettingsError(
            f"The option labels of {provider} is {value!r}.", "Give a mapping of texts, such as {team: search}."
        )
    return dict(value)
