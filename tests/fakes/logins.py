"""Logins for the fake of Vertex AI: a `gcloud` that is a script, and files that google-auth reads."""

from __future__ import annotations

import json
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any

from fakes.vertex import FakeVertex

EMAIL = "teacher@test-project.iam.gserviceaccount.com"
REFRESH_TOKEN = "1//a-refresh-token"


class FakeGcloud:
    """A `gcloud` in a folder of its own, which prints what it is told to and counts how often it ran."""

    def __init__(self, folder: Path, *, takes_s: float = 0.0) -> None:
        self.folder = folder
        folder.mkdir()
        script = folder / "gcloud"
        script.write_text(
            f'#!/bin/sh\necho "$*" >> "{folder}/calls"\nsleep {takes_s}\n'
            f'if [ -f "{folder}/error" ]; then cat "{folder}/error" >&2; exit 1; fi\ncat "{folder}/token"\n'
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    def put_on(self, monkeypatch: Any) -> None:
        """Make it the first on PATH."""
        monkeypatch.setenv("PATH", f"{self.folder}{os.pathsep}{os.environ['PATH']}")

    def prints(self, token: str) -> None:
        (self.folder / "token").write_text(token + "\n")

    def fails(self, message: str) -> None:
        (self.folder / "error").write_text(message)

    @property
    def calls(self) -> list[str]:
        """The arguments of each run."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@cache
def _key_pair() -> tuple[str, str]:
    """(private, public) key in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


def service_account(path: Path, fake: FakeVertex) -> Path:
    """The file of a service account that the fake knows."""
    private, public = _key_pair()
    fake.tokens.service_accounts[EMAIL] = public
    info = {
        "type": "service_account",
        "project_id": "test-project",
        "private_key_id": "1",
        "private_key": private,
        "client_email": EMAIL,
        "token_uri": f"{fake.base_url}/token",
    }
    path.write_text(json.dumps(info))
    return path


def authorized_user(path: Path, fake: FakeVertex, monkeypatch: Any) -> Path:
    """The file of a user that the fake knows. google-auth asks Google whatever such a file says, so it is told."""
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{fake.base_url}/token")
    fake.tokens.refresh_tokens.add(REFRESH_TOKEN)
    info = {"type": "authorized_user", "client_id": "id", "client_secret": "secret", "refresh_token": REFRESH_TOKEN}
    path.write_text(json.dumps(info))
    return path
