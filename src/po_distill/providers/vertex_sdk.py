"""The provider `vertex_sdk`: Gemini on Vertex AI through google-genai, with application default credentials."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from po_distill.errors import MissingExtraError, ProviderError, SettingsError
from po_distill.interfaces import Role
from po_distill.providers.gemini import response_of
from po_distill.providers.http_json import UnauthorizedError, broken_connections, refusal
from po_distill.providers.vertex_project import TRAITS, WHO, vertex_project
from po_distill.records import ProviderSettings, ProviderTraits, Request, Response

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_LOGIN = "Run: gcloud auth application-default login, or give the option credentials_path."


class VertexSdkProvider:
    """Answers requests with the Gemini model that `settings.model` names.

    Options: project (by default GOOGLE_CLOUD_PROJECT), location (GOOGLE_CLOUD_LOCATION, then us-central1; also
    global), timeout_s for a whole call (600), labels for the bill, credentials_path (the JSON of a service account
    or of an authorized user, in place of the application default credentials). `settings.base_url` replaces
    scheme and host.
    """

    traits: ClassVar[ProviderTraits] = TRAITS

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        self._vertex = vertex_project(settings, "vertex_sdk", ("credentials_path",))
        self._credentials_path = _file(settings.options.get("credentials_path"))
        self._credentials: Any = None
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._refreshing = asyncio.Lock()

    async def generate(self, request: Request) -> Response:
        """Answer one request; a token that is refused is replaced once. Raises ProviderError."""
        await self._open()
        token = await self._token()
        try:
            return await self._ask(request)
        except UnauthorizedError:
            await self._token(refused=token)
        try:
            return await self._ask(request)
        except UnauthorizedError as error:
            raise ProviderError(error.problem, _LOGIN, fault="refused") from error

    async def aclose(self) -> None:
        """Close the SDK's client and its connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aio.aclose()
            client.close()

    async def _ask(self, request: Request) -> Response:
        from google.auth.exceptions import GoogleAuthError
        from google.genai import errors

        contents, config = _in_sdk_types(self._vertex.body_of(request))
        started = time.monotonic()
        try:
            with broken_connections(WHO, self._vertex.generate_url, timeout_s=self._vertex.timeout_s, extra="vertex"):
                sent = self._client.aio.models.generate_content(
                    model=self._vertex.model, contents=contents, config=config
                )
                answer = json.loads((await sent).sdk_http_response.body)
        except errors.APIError as error:
            body = json.dumps(error.details, default=str).encode()
            raise refusal(WHO, error.code or 0, body, getattr(error.response, "headers", {})) from error
        except (
            ValueError,
            RecursionError,
            GoogleAuthError,
        ) as error:  # no JSON; a connection with a client certificate
            raise ProviderError(
                f"{WHO} answered with nothing that can be read: {type(error).__name__}.",
                "It is tried again; check the address where this goes on.",
                fault="unavailable",
                doubtful=True,
            ) from error
        response = response_of(answer, asked=self._vertex.model, who=WHO)
        usage = response.usage.model_copy(update={"latency_s": time.monotonic() - started})
        return response.model_copy(update={"usage": usage})

    # --- the client and its credentials ---------------------------------------------------------

    async def _open(self) -> None:
        async with self._opening:
            if self._client is None:  # in a thread: importing takes seconds, finding credentials may use the network
                self._credentials, self._client = await asyncio.to_thread(self._opened)

    def _opened(self) -> tuple[Any, Any]:
        try:
            from google import genai
            from google.genai import types
        except ImportError as error:
            raise MissingExtraError("google-genai", "vertex", "Asking Gemini on Vertex AI") from error
        try:
            import aiohttp  # noqa: F401 - without it the SDK falls back to a slower client
        except ImportError as error:
            raise MissingExtraError("aiohttp", "vertex", "Asking Gemini on Vertex AI") from error
        credentials = _in_google_auth(self._loaded_credentials)
        options = types.HttpOptions(
            base_url=self._vertex.origin,
            api_version="v1",
            timeout=int(self._vertex.timeout_s * 1000),
            # Without this the SDK waits up to ten seconds after a broken connection and sends the call once more,
            # which may then be paid twice.
            retry_options=types.HttpRetryOptions(attempts=1),
            async_client_args={"allow_redirects": False},
        )
        client = genai.Client(
            vertexai=True,
            project=self._vertex.project,
            location=self._vertex.location,
            credentials=credentials,
            http_options=options,
        )
        return credentials, client

    def _loaded_credentials(self) -> Any:
        import google.auth
        from google.oauth2 import credentials, service_account

        if self._credentials_path is None:
            return google.auth.default(scopes=_SCOPES)[0]
        try:
            info = json.loads(self._credentials_path.read_text(encoding="utf-8"))
            kind = info["type"]
            if kind == "service_account":
                return service_account.Credentials.from_service_account_info(info, scopes=_SCOPES)
            if kind == "authorized_user":
                return credentials.Credentials.from_authorized_user_info(info)
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise ProviderError(
                f"{self._credentials_path} holds no credentials that can be read: {type(error).__name__}.",
                "Give the JSON file of a service account or of an authorized user.",
                fault="refused",
            ) from error
        # Other kinds name commands to run and addresses to ask: a mere path does not start them.
        raise ProviderError(
            f"{self._credentials_path} holds credentials of the type {str(kind)[:40]!r}.",
            "Name that file in GOOGLE_APPLICATION_CREDENTIALS and leave credentials_path out.",
            fault="refused",
        )

    async def _token(self, refused: str | None = None) -> str:
        """The access token that the SDK will send, fetched anew where it has expired or is `refused`."""
        async with self._refreshing:
            credentials = self._credentials
            if credentials.expired or not credentials.token or credentials.token == refused:
                await asyncio.to_thread(_in_google_auth, self._refresh)
            return str(credentials.token)

    def _refresh(self) -> None:
        from google.auth.transport.requests import Request as Transport

        self._credentials.refresh(Transport())


def _in_google_auth(step: Callable[[], Any]) -> Any:
    """What the step returns; errors of google-auth as ProviderError."""
    from google.auth import exceptions

    try:
        return step()
    except exceptions.GoogleAuthError as error:
        may_pass = error.retryable or isinstance(error, exceptions.TransportError)
        raise ProviderError(
            f"Google gave no access token: {str(error.args[0] if error.args else error)[:300]}",
            "It is tried again; check the network." if may_pass else _LOGIN,
            fault="unavailable" if may_pass else "refused",
        ) from error


def _in_sdk_types(body: dict[str, Any]) -> tuple[list[Any], Any]:
    """(contents, config) that make the SDK send a body of `gemini.request_body`."""
    from google.genai import types

    wire = body["generationConfig"]
    thinking = wire.get("thinkingConfig")
    if thinking and thinking.get("thinkingLevel") not in (None, *types.ThinkingLevel.__members__):
        raise ProviderError(
            f"google-genai knows no thinking level {thinking['thinkingLevel']!r}.",
            f"Choose one of {', '.join(list(types.ThinkingLevel.__members__)[1:])}.",
            fault="refused",
        )
    system = body.get("systemInstruction")
    config = types.GenerateContentConfig(
        system_instruction=_content(system) if system else None,
        temperature=wire["temperature"],
        max_output_tokens=wire["maxOutputTokens"],
        seed=wire.get("seed"),
        thinking_config=types.ThinkingConfig.model_validate(thinking) if thinking else None,
        response_mime_type=wire.get("responseMimeType"),
        response_json_schema=wire.get("responseJsonSchema"),
        labels=body.get("labels"),
        # One call is one request, and its answer comes as it was sent: the SDK warns of words that it does not know.
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        automatic_continuation=False,
        should_return_http_response=True,
    )
    return [_content(content) for content in body["contents"]], config


def _content(wire: dict[str, Any]) -> Any:
    from google.genai import types

    return types.Content(role=wire.get("role"), parts=[types.Part(text=part["text"]) for part in wire["parts"]])


def _file(value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not Path(value).is_file():
        raise SettingsError(
            f"The option credentials_path of vertex_sdk is {value!r}, which is no file.",
            "Give the path of a service account's JSON file.",
        )
    return Path(value)
