"""Custom jobs of Vertex AI through google-cloud-aiplatform: created, found again by label, watched, cancelled."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from po_distill.errors import MissingExtraError, SettingsError, TrainingError

_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")
_TIMEOUT_S = 60.0
_TRIES = 5  # of a question, which costs nothing to ask again
_FIRST_WAIT_S = 1.0


class JobService:
    """The jobs of one project in one region. Methods raise TrainingError where Vertex AI refuses."""

    def __init__(self, project: str, region: str, *, credentials: Any, endpoint: str | None = None) -> None:
        self._parent = f"projects/{project}/locations/{region}"
        self._endpoint = checked_endpoint(endpoint) or f"{region}-aiplatform.googleapis.com"
        self._credentials, self._opened = credentials, None

    def create(self, job: Mapping[str, Any]) -> str:
        """Start a job, given as JSON; its name."""
        with _translated("starting the job"):
            return str(self._client().create_custom_job(parent=self._parent, custom_job=as_message(job)).name)

    def find(self, label: str, value: str) -> dict[str, Any] | None:
        """The newest job with a label, as JSON; None where there is none."""
        found = self._asked(
            "looking for the job",
            lambda client: list(
                client.list_custom_jobs(
                    request={"parent": self._parent, "filter": f'labels.{label}="{value}"'}, timeout=_TIMEOUT_S
                )
            ),
        )
        jobs = [as_json(job) for job in found]
        return max(jobs, key=lambda job: job.get("createTime", ""), default=None)

    def get(self, name: str) -> dict[str, Any]:
        """A job as JSON."""
        return as_json(
            self._asked("asking for the job", lambda client: client.get_custom_job(name=name, timeout=_TIMEOUT_S))
        )

    def cancel(self, name: str) -> None:
        """Have a job ended; that takes it a moment."""
        with _translated("cancelling the job"):
            self._client().cancel_custom_job(name=name, timeout=_TIMEOUT_S)

    def _asked(self, doing: str, question: Any) -> Any:
        """An answer; a question that the network or the service drops is asked again."""
        for attempt in range(_TRIES):
            try:
                with _translated(doing):
                    return question(self._client())
            except _PassingError:
                if attempt == _TRIES - 1:
                    raise
                time.sleep(_FIRST_WAIT_S * 2**attempt)
        raise AssertionError

    def _client(self) -> Any:
        if self._opened is None:
            from google.api_core.client_options import ClientOptions

            aiplatform_v1 = _library()
            options = ClientOptions(api_endpoint=self._endpoint)
            self._opened = aiplatform_v1.JobServiceClient(
                credentials=self._credentials, transport="rest", client_options=options
            )
        return self._opened


class _PassingError(TrainingError):
    """The service could not be reached or could not answer; that may pass."""


def has_ended(job: Mapping[str, Any]) -> bool:
    """Whether nothing more will happen to a job."""
    return state_of(job) in _ENDED


def state_of(job: Mapping[str, Any]) -> str:
    """PENDING, RUNNING, SUCCEEDED, ..."""
    return str(job.get("state", "JOB_STATE_UNSPECIFIED")).removeprefix("JOB_STATE_")


def as_message(job: Mapping[str, Any]) -> Any:
    """A job given as JSON as the library's own message. Raises SettingsError where it is no valid CustomJob."""
    from google.protobuf.json_format import ParseError

    try:
        return _library().CustomJob.from_json(json.dumps(job))
    except ParseError as error:
        raise SettingsError(f"That is no valid CustomJob: {error}.", "Correct the launcher's options.") from error


def as_json(message: Any) -> dict[str, Any]:
    """A message of the library as JSON."""
    value = type(message).to_json(message, use_integers_for_enums=False, including_default_value_fields=False)
    return dict(json.loads(value))


def checked_endpoint(endpoint: str | None) -> str | None:
    """An address that may be told credentials. Raises SettingsError."""
    if endpoint is None:
        return None
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise SettingsError(
            f"The endpoint {endpoint!r} would carry the access token in clear.", "Give an https:// address."
        )
    return endpoint.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _library() -> Any:
    try:
        from google.cloud import aiplatform_v1
    except ImportError as error:
        raise MissingExtraError("google-cloud-aiplatform", "vertex", "The launcher vertex_job") from error
    return aiplatform_v1


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    from google.api_core.exceptions import GoogleAPICallError, RetryError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests import RequestException

    try:
        yield
    except GoogleAPICallError as error:
        status = int(error.code or 0)
        if status in (0, 429) or status >= 500:
            raise _PassingError(
                f"Vertex AI did not answer ({status}) {doing}: {str(error.message)[:300]}.",
                "Run the same command again: a job that runs is found, and not paid for twice.",
            ) from error
        raise TrainingError(
            f"Vertex AI refused ({status}) {doing}: {str(error.message)[:300]}.", _fix(status)
        ) from error
    except (RequestException, RetryError, TransportError) as error:
        raise _PassingError(
            f"Vertex AI was not reached {doing}: {type(error).__name__}.",
            "Run the same command again: a job that runs is found, and not paid for twice.",
        ) from error
    except GoogleAuthError as error:
        raise TrainingError(
            f"There are no credentials for {doing}: {str(error)[:300]}.",
            "Run: gcloud auth application-default login, or give the option credentials_path.",
        ) from error


def _fix(status: int) -> str:
    if status == 400:
        return "Correct the launcher's options; `po-distill train --dry-run` prints the job as it would be sent."
    if status in (401, 403):
        return "Give the account the role Vertex AI User in that project, and enable aiplatform.googleapis.com there."
    if status == 404:
        return "Check the options project and region."
    return "Run the same command again: a job that runs is found, and not paid for twice."
