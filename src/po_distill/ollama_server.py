"""An Ollama server's models: shown, made, asked, copied and removed.

Through the `ollama` client where that has the call; over plain HTTP where it has not: whether a blob is there, an
upload of known length, what `show` says of the system text, the prompt that a server renders.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from po_distill.errors import InputError, MissingExtraError, ProviderError
from po_distill.ollama_names import server_url
from po_distill.progress import progress

if TYPE_CHECKING:
    import httpx
    import ollama

Turns = Sequence[Mapping[str, str]]
_PIECE_BYTES = 1 << 20
_MB = 1_000_000


class MissingModelError(ProviderError):
    """The server has no model of that name (404)."""


class ServerModel(NamedTuple):
    """A name on a server, and what it stands for. Names of one digest are one model."""

    name: str  # as the server writes it, with its tag
    digest: str  # of the manifest, in bare hex
    size_bytes: int
    modified_at: datetime | None
    quantization: str


class Spoken(NamedTuple):
    """One answer of a model."""

    text: str
    done_reason: str  # stop, length
    prompt_tokens: int
    answer_tokens: int
    latency_s: float


class OllamaServer:
    """The server at `host`, else OLLAMA_HOST's, else the one on this machine.

    What it refuses is a ProviderError of the fault `refused`, an answer that ends before it is done one of the fault
    `bad_answer`; where no answer comes, or none of Ollama's, the fault is `unavailable` or `timeout`. `timeout_s` says
    how long it may be silent.
    """

    def __init__(self, host: str | None = None, *, timeout_s: float = 1800.0) -> None:
        self.url = server_url(host, "--host")
        try:
            import httpx
            import ollama
        except ImportError as error:
            raise MissingExtraError("ollama", "ollama", "Talking to an Ollama server") from error
        # A proxy that the environment names is for the world outside, not for this machine.
        is_here = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        settings: dict[str, Any] = {
            "timeout": httpx.Timeout(timeout_s, connect=20.0, write=120.0),
            "trust_env": not is_here,
        }
        self._client: ollama.Client = ollama.Client(self.url, **settings)
        self._http: httpx.Client = httpx.Client(base_url=self.url, **settings)

    # --- blobs ----------------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether a file of that digest, `sha256:<hex>`, is there."""
        with self._translated("whether a file is there"):
            answer = self._http.head(f"/api/blobs/{digest}")
            if answer.status_code == 404:
                return False
            answer.raise_for_status()
            return True

    def upload(self, path: Path, digest: str) -> bool:
        """Put a file there, in pieces; False where it is there already.

        `digest` is what the file is known to have: it is not computed here, and the server refuses other bytes.
        """
        if self.has_blob(digest):
            return False
        try:
            size = path.stat().st_size
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.", "Package the model again.") from error
        try:
            with (
                self._translated(f"the file {path.name}"),
                progress(f"upload {path.name}", size / _MB, "MB") as advance,
            ):
                pieces = _pieces(path, lambda count: advance(count / _MB))
                headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
                self._http.post(f"/api/blobs/{digest}", content=pieces, headers=headers).raise_for_status()
        except ProviderError as error:
            # Where another process sent it meanwhile, the server breaks off; and an answer may be lost.
            if error.fault == "unavailable" and self.has_blob(digest):
                return True
            raise
        return True

    # --- models ---------------------------------------------------------------------------------

    def models(self) -> list[ServerModel]:
        """Every name on the server, the youngest first."""
        with self._translated("the list of models"):
            return [
                ServerModel(
                    name=str(line.model),
                    digest=str(line.digest),
                    size_bytes=int(line.size or 0),
                    modified_at=line.modified_at,
                    quantization=str(line.details.quantization_level) if line.details else "",
                )
                for line in self._client.list().models
            ]

    def find(self, name: str) -> ServerModel | None:
        """What the name stands for; None where it stands for nothing. Case plays no part, as on the server."""
        wanted = _compared(name)
        return next((model for model in self.models() if _compared(model.name) == wanted), None)

    def create(
        self,
        name: str,
        files: Mapping[str, str],
        *,
        template: str,
        system: str,
        parameters: Mapping[str, Any],
        license: str | None,
    ) -> None:
        """Make a model of uploaded files, path -> digest. One of that name is replaced without a word: look first."""
        said = ""
        with self._translated(f"the model {name}"), progress(f"make {name}", unit="steps") as advance:
            lines = self._client.create(
                name,
                files=dict(files),
                template=template,
                system=system or None,
                parameters=dict(parameters),
                license=license,
                stream=True,
            )
            for line in lines:
                if line.status and line.status != said:
                    advance(note=line.status)
                said = line.status or said
        if said != "success":
            raise ProviderError(
                f"Ollama broke off before {name} was made; the last that it said was {said!r}.",
                "Run the same command again; look at Ollama's log where this goes on.",
                fault="unavailable",
                doubtful=True,
            )

    def show(self, name: str) -> dict[str, Any]:
        """What a model is made of: template, system, parameters, license, details, model_info. Raises MissingModelError
        where there is none.
        """
        return self._posted("/api/show", {"model": name}, f"what {name} is made of")

    def copy(self, source: str, destination: str) -> None:
        """Let `destination` stand for what `source` stands for, whatever it stood for before."""
        with self._translated(f"the name {destination}"):
            self._client.copy(source, destination)

    def delete(self, name: str) -> None:
        """Forget a name; Ollama removes the data that no other name needs."""
        with self._translated(f"the removal of {name}"):
            self._client.delete(name)

    # --- asking ---------------------------------------------------------------------------------

    def render(self, name: str, turns: Turns) -> str:
        """The prompt that the server makes of a conversation for a model, without the BOS that its runtime adds."""
        body = {"model": name, "messages": [dict(turn) for turn in turns], "stream": False, "truncate": False}
        # A server that does not know the wish answers instead; one token of that is enough.
        wish = {"_debug_render_only": True, "options": {"num_predict": 1}}
        answer = self._posted("/api/chat", {**body, **wish}, f"the prompt of {name}")
        prompt = (answer.get("_debug_info") or {}).get("rendered_template")
        if not isinstance(prompt, str):
            raise ProviderError(
                f"The Ollama server at {self.url} does not show the prompts that it renders, so they cannot be proven.",
                "Update Ollama: 0.33 does.",
                fault="refused",
            )
        return prompt

    def chat(self, name: str, turns: Turns, **options: Any) -> Spoken:
        """The answer to a conversation; `options` go before the model's own parameters."""
        started, text, last = time.perf_counter(), [], None
        with self._translated(f"the answer of {name}"), progress(f"ask {name}", unit="tokens") as advance:
            messages = [dict(turn) for turn in turns]
            for last in self._client.chat(name, messages, stream=True, options=options):
                text.append(last.message.content or "")
                advance()
        if last is None or not last.done:
            raise ProviderError(
                f"Ollama broke off in the middle of {name}'s answer.",
                "Run the same command again; look at Ollama's log where this goes on.",
                fault="bad_answer",
            )
        return Spoken(
            text="".join(text),
            done_reason=last.done_reason or "",
            prompt_tokens=last.prompt_eval_count or 0,
            answer_tokens=last.eval_count or 0,
            latency_s=time.perf_counter() - started,
        )

    # --- what goes wrong ------------------------------------------------------------------------

    def _posted(self, path: str, body: Mapping[str, Any], what: str) -> dict[str, Any]:
        with self._translated(what):
            answer = self._http.post(path, json=body)
            answer.raise_for_status()
            value = answer.json()
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            return value

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """`what` is what the server is asked for, in the words of the error. Raises ProviderError."""
        import httpx
        import ollama

        try:
            yield
        except ollama.ResponseError as error:
            raise _refusal(what, error.status_code, error.error) from error
        except httpx.HTTPStatusError as error:
            raise _refusal(what, error.response.status_code, _error_in(error.response)) from error
        except (httpx.ConnectError, ConnectionError) as error:
            raise ProviderError(
                f"No Ollama server answers at {self.url}: {error.__cause__ or error}.",
                "Start it: ollama serve. Where it runs elsewhere, give --host or set OLLAMA_HOST.",
                fault="unavailable",
            ) from error
        except httpx.TimeoutException as error:
            raise ProviderError(
                f"Ollama at {self.url} was silent for too long over {what}.",
                "Run the same command again; look at Ollama's log where this goes on.",
                fault="timeout",
            ) from error
        except httpx.TransportError as error:
            raise ProviderError(
                f"The connection to Ollama at {self.url} broke over {what}: {error or type(error).__name__}.",
                "Run the same command again; what is done already is not done again.",
                fault="unavailable",
                doubtful=True,
            ) from error
        except ValueError as error:
            raise ProviderError(
                f"What answers at {self.url} about {what} is not what Ollama answers: {str(error)[:200]}",
                "Check the address, and whether a login page or a proxy stands before it.",
                fault="unavailable",
            ) from error


def _pieces(path: Path, tell: Any) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
            tell(len(piece))


def _compared(name: str) -> str:
    """A name as it is compared: small letters, without the namespace that Ollama leaves out."""
    return name.lower().removeprefix("library/")


def _error_in(answer: httpx.Response) -> str:
    try:
        answer.read()
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]


def _refusal(what: str, status: int, message: str) -> ProviderError:
    """The error for what a server said; a status of -1 is an error line in an answer that had begun."""
    said, words = message.strip()[:300] or "nothing more", message.lower()
    problem = f"Ollama refused {what} ({status}): {said}." if status > 0 else f"Ollama broke off over {what}: {said}."
    if status == 404 and "not found" in words:
        return MissingModelError(problem, "`ollama list` shows what is there.", fault="refused")
    if "no space left" in words:
        fix = "Free some space where that server keeps its models, then run the same command again."
        return ProviderError(problem, fix, fault="refused")
    if "digest mismatch" in words:
        return ProviderError(problem, "The file was changed since it was packaged: package it again.", fault="refused")
    fix = "Read what it says; Ollama's log may say more. Then run the same command again."
    return ProviderError(problem, fix, fault="unavailable" if status in (429, 502, 503, 504) else "refused")
