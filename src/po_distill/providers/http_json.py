"""JSON over HTTP for the providers: one session, errors told apart by what may help.

aiohttp, because it keeps 64 and more calls in flight on one core where other clients degrade. It is
imported when the first call is made.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import TYPE_CHECKING, Any

from po_distill.errors import MissingExtraError, ProviderError, ProviderFault
from po_distill.interfaces import leaving

if TYPE_CHECKING:
    import aiohttp

# What of a body goes into an error: enough to see what it is, not enough to be a prompt.
_EXCERPT = 300
# Gemini: "The input token count (N) exceeds the maximum number of tokens allowed (M)."
_TOO_LONG = "exceeds the maximum number of tokens"


class UnauthorizedError(ProviderError):
    """The server refused the credentials (401): another token may pass."""


class JsonClient:
    """Posts JSON to one server. `who` names it in errors; `timeout_s` is for a whole call, `connect_s` to reach it.

    Connections are as many as there are calls: the caller's window is the only limit.
    """

    def __init__(self, who: str, *, timeout_s: float, extra: str, connect_s: float = 20.0) -> None:
        self.who, self._timeout_s, self._extra, self._connect_s = who, timeout_s, extra, connect_s
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, url: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON object that answers. Raises ProviderError; see `refusal` for how a status is read."""
        async with self.stream(url, body, headers) as response:
            text = await response.read()
        return self._object(text)

    async def get(self, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The JSON object at an address. Raises ProviderError."""
        async with self._request("GET", url, None, headers) as response:
            text = await response.read()
        return self._object(text)

    @asynccontextmanager
    async def stream(
        self, url: str, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The response to a POST, its status seen to be 200, its body still to be read.

        What goes wrong while the body is read is a ProviderError too, and doubtful: the server may have answered.
        """
        async with self._request("POST", url, body, headers) as response:
            yield response

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, body: Mapping[str, Any] | bytes | None, headers: Mapping[str, str] | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._opened()
        data = body if isinstance(body, bytes) or body is None else json.dumps(body, ensure_ascii=False).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        with broken_connections(self.who, url, timeout_s=self._timeout_s, extra=self._extra):
            async with session.request(method, url, data=data, headers=sent, allow_redirects=False) as response:
                if response.status != 200:
                    text = await response.read()
                    raise refusal(self.who, response.status, text, response.headers)
                yield response

    def _object(self, text: bytes) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProviderError(
                f"{self.who} answered with no JSON: {_excerpt(text)}",
                "It is tried again; check the address where this goes on.",
                fault="unavailable",
                doubtful=True,
            ) from error
        if not isinstance(value, dict):
            raise ProviderError(
                f"{self.who} answered with no JSON object: {_excerpt(text)}", "Check the address.", fault="refused"
            )
        return value

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            aiohttp = _aiohttp(self._extra)
            # Nothing at rest longer than servers keep it: a reused connection that just closed looks like a doubt.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
            timeout = aiohttp.ClientTimeout(total=self._timeout_s, connect=self._connect_s)
            trace = aiohttp.TraceConfig()
            trace.on_request_chunk_sent.append(_leaves)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trace_configs=[trace])
        return self._session

    def prepare(self) -> None:
        """Open the session, which the first call would do. Raises MissingExtraError."""
        self._opened()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


async def _leaves(*_: object) -> None:
    """Tell the caller that a request leaves: aiohttp writes it to the socket in the same step."""
    await leaving.get()()


@contextmanager
def broken_connections(who: str, url: str, *, timeout_s: float, extra: str) -> Iterator[None]:
    """Within it, what aiohttp raises is a ProviderError, doubtful where the server may have answered."""
    aiohttp = _aiohttp(extra)
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:  # it never left
        raise ProviderError(
            f"{who} cannot be reached at {_origin(url)}: {error}.",
            "Check the address and that the server runs.",
            fault="unavailable",
        ) from error
    except TimeoutError as error:
        raise ProviderError(
            f"{who} did not answer within {timeout_s:g} s.",
            "Set the option timeout_s higher, or ask for less.",
            fault="timeout",
        ) from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise ProviderError(
            f"{url!r} is no address that can be asked.", "Give one such as http://localhost:8000.", fault="refused"
        ) from error
    except (aiohttp.ClientError, OSError) as error:
        raise ProviderError(
            f"The connection to {who} broke: {type(error).__name__}: {error}.",
            "It is tried again; look at the server where this goes on.",
            fault="unavailable",
            doubtful=True,
        ) from error


def refusal(who: str, status: int, body: bytes, headers: Mapping[str, str]) -> ProviderError:
    """The error that an HTTP status stands for.

    429 is `rate_limited`; 408 and 5xx are `unavailable`; 413, 422 and a prompt that is too long concern the request
    (`bad_answer`); every other status (400, 403, 404, a redirect) concerns all requests (`refused`), and so does 401,
    an UnauthorizedError.
    """
    message = _message(body)
    kind: type[ProviderError] = UnauthorizedError if status == 401 else ProviderError
    fault: ProviderFault = "refused"
    fix = "Correct the settings of the provider."
    if status == 429:
        fault, fix = "rate_limited", "It is tried again; a smaller --batch-size asks less at a time."
    elif status == 408 or status >= 500:
        fault, fix = "unavailable", "It is tried again; look at the server where this goes on."
    elif status in (413, 422) or (status == 400 and _TOO_LONG in message):
        fault, fix = "bad_answer", "Shorten the concept."
    elif status in (401, 403):
        fix = "Check the credentials, and that they may use this model."
    elif status == 404:
        fix = "Check the model's name and the address."
    return kind(f"{who} refused ({status}): {message}", fix, fault=fault, retry_after_s=retry_after_s(headers))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait that a Retry-After header asks for, in seconds; None without one that can be read."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, wait_s) if isfinite(wait_s) else None


def _message(body: bytes) -> str:
    """The message in an error's body, in any of the usual shapes, with its code where that is a word."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _excerpt(body)
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message", error) if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else None
    told = f" ({code})" if isinstance(code, str) and code not in str(message) else ""
    return str(message)[:_EXCERPT] + told[:_EXCERPT]


def _excerpt(body: bytes) -> str:
    return body[:_EXCERPT].decode("utf-8", "replace").strip() or "(nothing)"


def _origin(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.split('/')[0].rpartition('@')[2]}"


def _aiohttp(extra: str) -> Any:
    try:
        import aiohttp
    except ImportError as error:
        raise MissingExtraError("aiohttp", extra, "Asking a server") from error
    return aiohttp
