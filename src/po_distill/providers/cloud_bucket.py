"""Files in a Cloud Storage bucket, for batch jobs: created, never overwritten; read; listed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from po_distill.errors import MissingExtraError, ProviderError, ProviderFault, SettingsError

_T = TypeVar("_T")
_WHO = "Cloud Storage"
_URI = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?")
_EXCERPT = 300
_CONNECT_S = 20.0


class CloudBucket:
    """The files below one `gs://bucket/prefix`.

    Nothing is opened before the first file is touched. `endpoint` is another Cloud Storage, which is told no
    credentials. Methods raise ProviderError; they do not try again. The caller can, as no file is ever overwritten.
    """

    def __init__(
        self,
        uri: str,
        *,
        project: str,
        credentials: Callable[[], Awaitable[Any]],
        endpoint: str | None,
        timeout_s: float,
    ) -> None:
        found = _URI.fullmatch(uri)
        if not found:
            raise SettingsError(
                f"The option bucket is {uri!r}, which names no bucket.", "Give gs://BUCKET or gs://BUCKET/FOLDER."
            )
        self.name, prefix = found[1], (found[2] or "").strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._project, self._credentials = project, credentials
        self._endpoint, self._timeout = endpoint, (_CONNECT_S, timeout_s)
        self._client: Any = None
        self._one_at_a_time = asyncio.Lock()  # the client's connections are not made for many threads

    def uri(self, path: str = "") -> str:
        """The full address of a file below the prefix."""
        return f"gs://{self.name}/{self._prefix}{path}"

    async def create(self, path: str, data: bytes) -> bool:
        """Write a new file; False where one of that name is there already, which stays as it is."""

        def upload(bucket: Any) -> bool:
            from google.api_core.exceptions import PreconditionFailed

            blob = bucket.blob(self._prefix + path)
            try:
                blob.upload_from_string(
                    data, content_type="application/jsonl", if_generation_match=0, timeout=self._timeout, retry=None
                )
            except PreconditionFailed:
                return False
            return True

        return await self._do(upload, f"writing {self.uri(path)}")

    async def read(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""

        def download(bucket: Any) -> bytes | None:
            from google.api_core.exceptions import NotFound

            try:
                data: bytes = bucket.blob(self._prefix + path).download_as_bytes(timeout=self._timeout, retry=None)
            except NotFound as error:
                if "bucket does not exist" in str(error).lower():
                    raise
                return None
            return data

        return await self._do(download, f"reading {self.uri(path)}")

    async def paths(self, below: str) -> list[str]:
        """The files whose path begins with `below`, sorted."""

        def walk(bucket: Any) -> list[str]:
            blobs = bucket.list_blobs(prefix=self._prefix + below, timeout=self._timeout, retry=None)
            return sorted(blob.name.removeprefix(self._prefix) for blob in blobs)

        return await self._do(walk, f"listing {self.uri(below)}")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await asyncio.to_thread(client.close)

    async def _do(self, work: Callable[[Any], _T], doing: str) -> _T:
        async with self._one_at_a_time:
            if self._client is None:
                credentials = None if self._endpoint else await self._credentials()
                self._client = await asyncio.to_thread(self._opened, credentials)
            return await asyncio.to_thread(_translated, work, self._client.bucket(self.name), doing)

    def _opened(self, credentials: Any) -> Any:
        try:
            from google.auth.credentials import AnonymousCredentials
            from google.cloud import storage
        except ImportError as error:
            raise MissingExtraError("google-cloud-storage", "vertex", "A batch on Vertex AI") from error
        if self._endpoint is None:
            return storage.Client(project=self._project, credentials=credentials)
        options = {"api_endpoint": self._endpoint}
        return storage.Client(project=self._project, credentials=AnonymousCredentials(), client_options=options)


def _translated(work: Callable[[Any], _T], bucket: Any, doing: str) -> _T:
    """What the work returns; errors of google-cloud-storage and of what it stands on as ProviderError."""
    import requests
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    try:
        return work(bucket)
    except GoogleAPICallError as error:
        raise _refusal(int(error.code or 0), str(error.message), doing) from error
    except InvalidResponse as error:
        raise _refusal(int(error.response.status_code), str(error), doing) from error
    except (requests.RequestException, TransportError, DataCorruption, OSError) as error:
        raise ProviderError(
            f"{_WHO} broke off while {doing}: {type(error).__name__}.", "It is tried again.", fault="unavailable"
        ) from error
    except GoogleAuthError as error:
        raise ProviderError(
            f"{_WHO} got no credentials while {doing}: {str(error)[:_EXCERPT]}",
            "Run: gcloud auth application-default login, or set the option credentials_path.",
            fault="refused",
        ) from error


def _refusal(status: int, message: str, doing: str) -> ProviderError:
    fault: ProviderFault = "refused"
    fix = "Correct the option bucket."
    if status == 429:
        fault, fix = "rate_limited", "It is tried again."
    elif status in (0, 408) or status >= 500:
        fault, fix = "unavailable", "It is tried again."
    elif status in (401, 403):
        fix = "Give the account the role Storage Object User on this bucket, or name another bucket."
    elif status == 404:
        fix = "Create the bucket, or name another in the option bucket."
    return ProviderError(f"{_WHO} refused ({status}) {doing}: {message[:_EXCERPT]}", fix, fault=fault)
