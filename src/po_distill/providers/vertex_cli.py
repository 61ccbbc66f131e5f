"""The provider `vertex_cli`: Gemini on Vertex AI over plain HTTPS, with the login of the gcloud command."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any, ClassVar

from po_distill.errors import ProviderError
from po_distill.interfaces import Role
from po_distill.providers.gemini import response_of
from po_distill.providers.http_json import JsonClient, UnauthorizedError
from po_distill.providers.vertex_project import TRAITS, WHO, vertex_project
from po_distill.records import ProviderSettings, ProviderTraits, Request, Response

_LOGIN = "Run: gcloud auth login"
_TOKEN_AGE_S = 45 * 60.0  # gcloud's tokens live 60 minutes, and a call may take ten
_GCLOUD_TIMEOUT_S = 60.0


class VertexCliProvider:
    """Answers requests with the Gemini model that `settings.model` names.

    Options: project (by default GOOGLE_CLOUD_PROJECT), location (GOOGLE_CLOUD_LOCATION, then us-central1; also
    global), timeout_s for a whole call (600), labels for the bill. `settings.base_url` replaces scheme and host.
    """

    traits: ClassVar[ProviderTraits] = TRAITS.model_copy(update={"says_when_it_sends": True})

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self._vertex = vertex_project(settings, "vertex_cli")
        self._client = JsonClient(WHO, timeout_s=self._vertex.timeout_s, extra="vertex")
        self._tokens = GcloudTokens()

    async def prepare(self) -> None:
        """Get a token and open the session. Raises ProviderError, and MissingExtraError."""
        self._client.prepare()
        await self._tokens.token()

    async def generate(self, request: Request) -> Response:
        """Answer one request; a token that is refused is replaced once. Raises ProviderError."""
        body = json.dumps(self._vertex.body_of(request)).encode()
        token = await self._tokens.token()
        try:
            return await self._ask(body, token)
        except UnauthorizedError:
            token = await self._tokens.token(refused=token)
        try:
            return await self._ask(body, token)
        except UnauthorizedError as error:
            raise ProviderError(error.problem, _LOGIN, fault="refused") from error

    async def _ask(self, body: bytes, token: str) -> Response:
        started = time.monotonic()
        answer = await self._client.post(self._vertex.generate_url, body, {"Authorization": f"Bearer {token}"})
        response = response_of(answer, asked=self._vertex.model, who=WHO)
        usage = response.usage.model_copy(update={"latency_s": time.monotonic() - started})
        return response.model_copy(update={"usage": usage})

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class GcloudTokens:
    """Access tokens of `gcloud auth print-access-token`: one at a time, each used for 45 minutes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._token, self._good_until = "", 0.0
        self._fetching: asyncio.Task[str] | None = None

    async def token(self, refused: str | None = None) -> str:
        """A token; another one than `refused`, if gcloud gives another. Raises ProviderError."""
        if self._token and self._token != refused and self._clock() < self._good_until:
            return self._token
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        # Shielded: a cancelled call takes nothing from the others that wait for the same token.
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> str:
        token = await asyncio.to_thread(_print_access_token)
        self._token, self._good_until = token, self._clock() + _TOKEN_AGE_S
        return token

    def _fetched(self, task: asyncio.Task[Any]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more


def _print_access_token() -> str:
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        raise ProviderError(
            "The provider vertex_cli needs the command gcloud, which is not on PATH.",
            f"Install the Google Cloud CLI. {_LOGIN}",
            fault="refused",
        )
    try:
        done = subprocess.run(
            [gcloud, "auth", "print-access-token"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GCLOUD_TIMEOUT_S,
            env={**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProviderError(f"gcloud did not run: {type(error).__name__}.", _LOGIN, fault="refused") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()[:300]
        raise ProviderError(f"gcloud gave no access token ({done.returncode}): {said}", _LOGIN, fault="refused")
    token = done.stdout.decode("utf-8", "replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ProviderError("gcloud printed something that is no access token.", _LOGIN, fault="refused")
    return token
