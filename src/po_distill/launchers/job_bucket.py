"""What a job on Vertex AI reads and writes: files in a bucket, uploaded once, fetched when they change."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from po_distill.errors import MissingExtraError, SettingsError, TrainingError

MOUNT = "/gcs"  # where Vertex AI mounts every bucket in its containers, by Cloud Storage FUSE
_URI = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*?))?/*")
_CHUNK_BYTES = 32 * 2**20  # of an upload that can go on after a break
_TIMEOUT_S = (20.0, 300.0)


class JobBucket:
    """The files below one `gs://bucket/folder`. Methods raise TrainingError where Cloud Storage refuses."""

    def __init__(self, uri: str, *, project: str, credentials: Any, endpoint: str | None = None) -> None:
        found = _URI.fullmatch(uri)
        if not found:
            raise SettingsError(
                f"The staging_bucket is {uri!r}, which names no bucket.", "Give gs://BUCKET or gs://BUCKET/FOLDER."
            )
        self._name, folder = found[1], found[2] or ""
        self._prefix = f"{folder}/" if folder else ""
        self._project, self._credentials, self._endpoint = project, credentials, endpoint
        self._opened: Any = None

    def uri(self, path: str) -> str:
        """The address of a file or folder."""
        return f"gs://{self._name}/{self._prefix}{path}"

    def mounted(self, path: str) -> str:
        """Where the job's container sees it."""
        return f"{MOUNT}/{self._name}/{self._prefix}{path}"

    def upload(self, path: str, source: Path) -> bool:
        """Upload a file, unless one of that name and size is there: names hold digests. Whether it was uploaded."""
        with self._translated(f"writing {self.uri(path)}"):
            bucket = self._bucket()
            there = bucket.get_blob(self._prefix + path, timeout=_TIMEOUT_S)
            if there is not None and there.size == source.stat().st_size:
                return False
            blob = bucket.blob(self._prefix + path, chunk_size=_CHUNK_BYTES)
            blob.upload_from_filename(str(source), timeout=_TIMEOUT_S)
        return True

    def write(self, path: str, data: bytes) -> None:
        """Write a small file."""
        with self._translated(f"writing {self.uri(path)}"):
            self._bucket().blob(self._prefix + path).upload_from_string(data, timeout=_TIMEOUT_S)

    def read(self, path: str, *, known_bytes: int = -1) -> bytes | None:
        """A file's bytes; None where there is none, or none of another size than is known."""
        with self._translated(f"reading {self.uri(path)}"):
            blob = self._bucket().get_blob(self._prefix + path, timeout=_TIMEOUT_S)
            if blob is None or blob.size == known_bytes:
                return None
            data: bytes = blob.download_as_bytes(timeout=_TIMEOUT_S)
            return data

    def fetch(self, below: str, folder: Path) -> int:
        """Download all files below a path into a folder; how many."""
        count = 0
        with self._translated(f"reading {self.uri(below)}"):
            for blob in self._bucket().list_blobs(prefix=f"{self._prefix}{below}/", timeout=_TIMEOUT_S):
                relative = blob.name.removeprefix(f"{self._prefix}{below}/")
                if not relative or relative.endswith("/"):  # FUSE leaves objects for folders
                    continue
                target = (folder / relative).resolve()
                if not target.is_relative_to(folder.resolve()):
                    raise TrainingError(f"{self.uri(below)} holds {relative!r}, a path out of it.", "Delete it there.")
                target.parent.mkdir(parents=True, exist_ok=True)
                blob.download_to_filename(str(target), timeout=_TIMEOUT_S)
                count += 1
        return count

    def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _bucket(self) -> Any:
        if self._opened is None:
            try:
                from google.cloud import storage
            except ImportError as error:
                raise MissingExtraError("google-cloud-storage", "vertex", "The launcher vertex_job") from error
            options = {"api_endpoint": self._endpoint} if self._endpoint else None
            self._opened = storage.Client(project=self._project, credentials=self._credentials, client_options=options)
        return self._opened.bucket(self._name)

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests import RequestException

        try:
            yield
        except GoogleAPICallError as error:
            raise _refusal(int(error.code or 0), str(error.message), doing, self._name) from error
        except InvalidResponse as error:
            raise _refusal(int(error.response.status_code), str(error), doing, self._name) from error
        except GoogleAuthError as error:
            raise TrainingError(
                f"There are no credentials for {doing}: {str(error)[:300]}.",
                "Run: gcloud auth application-default login, or give the option credentials_path.",
            ) from error
        except (RequestException, DataCorruption) as error:
            raise TrainingError(
                f"Cloud Storage broke off while {doing}: {type(error).__name__}.",
                "Run the same command again: what is uploaded is not uploaded twice.",
            ) from error


def _refusal(status: int, message: str, doing: str, bucket: str) -> TrainingError:
    if status == 404:
        fix = f"Create the bucket {bucket}, in the job's region, or name another as staging_bucket."
    elif status in (401, 403):
        fix = f"Give the account the role Storage Object Admin on the bucket {bucket}."
    else:
        fix = "Run the same command again: what is uploaded is not uploaded twice."
    return TrainingError(f"Cloud Storage refused ({status}) {doing}: {message[:300]}.", fix)
