"""The provider `llama_cpp`: a GGUF file answered by llama.cpp, in this process, through xllamacpp.

xllamacpp runs llama.cpp's own server on a free port of the loopback interface; requests go there over
HTTP with a key that only this process knows, so the chat template is the GGUF's and the decoding the
one that a deployment has.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from po_distill.errors import MissingExtraError, ProviderError, ProviderFault, SettingsError
from po_distill.interfaces import Role
from po_distill.providers.gguf_header import read_metadata
from po_distill.records import Message, ProviderSettings, ProviderTraits, Request, Response, Usage

_OPTIONS = ("n_ctx", "n_threads", "n_parallel", "n_gpu_layers", "stop", "timeout_s")
_DEFAULT_CONTEXT = 8192
_DEFAULT_TIMEOUT_S = 1800.0
# JSON on one line. With white space left to it, a weak model writes little else. Once for each of the two languages
# that llama.cpp can be built for: llguidance reads a key of the schema, a GBNF grammar has a rule of its own.
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_GBNF_SPACE = re.compile(r"^space ::= .*$", re.MULTILINE)


class LlamaCppProvider:
    """Answers requests with the GGUF file that `settings.model` names.

    Options: n_ctx (tokens of context for each request; by default the model's own, at most 8192), n_threads (by
    default the processors that this process may use), n_parallel (requests answered at a time, default 1),
    n_gpu_layers, stop (texts that end an answer), timeout_s. The model is loaded on the first request.
    """

    traits: ClassVar[ProviderTraits] = ProviderTraits(structured_output=True)

    def __init__(self, settings: ProviderSettings, role: Role) -> None:
        if unknown := sorted(set(settings.options) - set(_OPTIONS)):
            raise SettingsError(
                f"The provider llama_cpp has no option {unknown[0]!r}.", f"Its options: {', '.join(_OPTIONS)}."
            )
        if not settings.model:
            raise SettingsError(
                "The provider llama_cpp needs a model: the path of a GGUF file.",
                "Name it with --model; po-distill package writes one.",
            )
        self.path = Path(settings.model)
        self._options = settings.options
        self._stop = _texts(settings.options.get("stop"))
        self._parallel = self._number("n_parallel", 1)
        self._threads = self._number("n_threads", len(_processors()))
        self._timeout_s = float(self._number("timeout_s", int(_DEFAULT_TIMEOUT_S)))
        metadata = read_metadata(self.path)
        self._n_ctx = self._number("n_ctx", _context(metadata))
        self._has_template = bool(metadata.get("tokenizer.chat_template"))
        self._key = secrets.token_urlsafe(24)
        self._server: Any = None
        self._closed = False
        self._loading = threading.Lock()
        self._slots: asyncio.Semaphore | None = None

    async def generate(self, request: Request) -> Response:
        """Answer one request, with the chat template of the GGUF. Raises ProviderError."""
        if not self._has_template:
            raise ProviderError(
                f"{self.path} has no chat template.", "Package the model again with its chat template.", fault="refused"
            )
        body: dict[str, Any] = {
            "messages": _messages(request.messages),
            "temperature": request.generation.temperature,
            "max_tokens": request.generation.max_tokens,
            "reasoning_format": "none",
        }
        if request.generation.seed is not None:
            body["seed"] = request.generation.seed
        if self._stop:
            body["stop"] = list(self._stop)
        if request.json_schema is not None:
            body["grammar"] = _grammar(request.json_schema)
        answer, latency_s = await self._ask("/v1/chat/completions", body)
        try:
            choice, usage = answer["choices"][0], answer["usage"]
            finish = choice["finish_reason"]
            text = choice["message"]["content"] or ""
            if request.json_schema is not None:
                _check_held(text, request.json_schema)
            return Response(
                text=text,
                model=self.path.name,
                finish=finish if finish in ("stop", "length") else "other",
                usage=Usage(
                    prompt_tokens=usage["prompt_tokens"],
                    completion_tokens=usage["completion_tokens"],
                    latency_s=latency_s,
                ),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise ProviderError(
                f"llama.cpp answered in an unknown form: {str(answer)[:200]}", "Update xllamacpp.", fault="bad_answer"
            ) from error

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids that the runtime makes of a conversation, up to where the answer begins."""
        rendered, _ = await self._ask("/apply-template", {"messages": _messages(messages)})
        return await self.tokenize(rendered["prompt"])

    async def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, special tokens read as such, BOS put before it where the model wants one."""
        answer, _ = await self._ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return [int(token) for token in answer["tokens"]]

    async def continue_greedily(self, token_ids: Sequence[int], count: int) -> list[tuple[int, float | None]]:
        """The `count` tokens that greedy decoding puts after a prompt given as token ids, each with its logprob.

        The end of the answer is ignored. The runtime tells no logprob (None) of a token that ends within a character.
        """
        body = {
            "prompt": list(token_ids),
            "n_predict": count,
            "temperature": 0.0,
            "return_tokens": True,
            "ignore_eos": True,
            "cache_prompt": False,
            "n_probs": 1,
        }
        answer, _ = await self._ask("/completion", body)
        known = answer.get("completion_probabilities", ())
        told = deque((int(token["id"]), float(token["logprob"])) for token in known)
        return [(token, told.popleft()[1] if told and told[0][0] == token else None) for token in answer["tokens"]]

    async def aclose(self) -> None:
        """Stop the server and give the model's memory back."""
        self._closed = True
        await asyncio.to_thread(self._stop_server)

    # --- the server -----------------------------------------------------------------------------

    async def _ask(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """(the answer, seconds from the send to the answer). A cancelled caller ends the request."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._parallel)
        async with self._slots:
            server = await asyncio.to_thread(self._running_server)
            connection = http.client.HTTPConnection(
                server.listening_address.removeprefix("http://"), timeout=self._timeout_s
            )
            started = time.monotonic()
            try:
                answer = await asyncio.to_thread(self._post, connection, path, body)
            except asyncio.CancelledError:
                _cut(connection)
                raise
            finally:
                connection.close()
            return answer, time.monotonic() - started

    def _post(self, connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except TimeoutError as error:
            raise ProviderError(
                f"llama.cpp did not answer within {self._timeout_s:g} s.",
                "Set the option timeout_s higher, or max_tokens lower.",
                fault="timeout",
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ProviderError(
                f"The request to llama.cpp failed: {type(error).__name__}: {error}.", "Try again.", fault="unavailable"
            ) from error
        if response.status != 200:
            raise _refusal(response.status, answer, self._n_ctx)
        return dict(answer)

    def _running_server(self) -> Any:
        with self._loading:
            if self._closed:
                raise ProviderError("The provider is closed.", "Open a new one.", fault="refused")
            if self._server is None:
                self._server = self._start()
            return self._server

    def _start(self) -> Any:
        xllamacpp = _xllamacpp()
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(self.path)
        parameters.n_parallel = self._parallel
        parameters.n_ctx = self._n_ctx * self._parallel
        parameters.cpuparams.n_threads = self._threads
        if "n_gpu_layers" in self._options:
            parameters.n_gpu_layers = self._number("n_gpu_layers", 0)
        parameters.port = 0
        parameters.api_keys = [self._key]
        parameters.ui = False
        parameters.endpoint_slots = False
        parameters.verbosity = -1
        try:
            server = xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise ProviderError(
                f"llama.cpp cannot load {self.path}: {error}",
                "Look at the file with `po-distill doctor`, package it again, or lower the option n_ctx.",
                fault="refused",
            ) from error
        self._wait_for(server)
        return server

    def _wait_for(self, server: Any) -> None:
        """Let the server answer once: one that is closed before its listening has begun never ends."""
        connection = http.client.HTTPConnection(
            server.listening_address.removeprefix("http://"), timeout=self._timeout_s
        )
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException) as error:
            raise ProviderError(
                f"llama.cpp does not answer: {type(error).__name__}: {error}.", "Try again.", fault="unavailable"
            ) from error
        finally:
            connection.close()

    def _stop_server(self) -> None:
        with self._loading:
            self._server = None  # its destructor ends the threads and frees the model

    def _number(self, option: str, default: int) -> int:
        value = self._options.get(option, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if option == "n_gpu_layers" else 1):
            raise SettingsError(
                f"The option {option} of llama_cpp is {value!r}.", f"Give a whole number, such as {default}."
            )
        return value


def _messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.speaker, "content": message.content} for message in messages]


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise SettingsError(f"The option stop of llama_cpp is {value!r}.", "Give a text, or a list of texts.")
    return tuple(texts)


def _grammar(schema: Mapping[str, Any]) -> str:
    """What holds decoding to JSON of the schema, in llama.cpp's own words."""
    grammar: str = _xllamacpp().json_schema_to_grammar({**schema, "x-guidance": _COMPACT})
    return _GBNF_SPACE.sub('space ::= | " "', grammar)


def _check_held(text: str, schema: Mapping[str, Any]) -> None:
    """Raise ProviderError where an answer does not begin as JSON of the schema does.

    llama.cpp says of a schema that it cannot read nothing but a line of its log, and decodes without it.
    """
    openings = {"object": "{", "array": "[", "string": '"'}.get(str(schema.get("type")), '{["-0123456789tfn')
    if not text.startswith(tuple(openings)):
        raise ProviderError(
            "llama.cpp did not hold the answer to the JSON schema: it cannot read it.",
            "Use fewer kinds of limits in the schema: no maxLength beside a pattern, only types that JSON has.",
            fault="bad_answer",
        )


def _xllamacpp() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError("xllamacpp", "llamacpp", "Running a GGUF file") from error
    return xllamacpp


def _context(metadata: dict[str, Any]) -> int:
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return min(int(trained or _DEFAULT_CONTEXT), _DEFAULT_CONTEXT)


def _processors() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a request that a thread is waiting on; llama.cpp stops decoding when its client is gone."""
    waiting = connection.sock
    if waiting is not None:
        try:
            waiting.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it ended by itself


def _refusal(status: int, answer: Any, n_ctx: int) -> ProviderError:
    error = answer.get("error", {}) if isinstance(answer, dict) else {}
    message = str(error.get("message", answer))[:300]
    if error.get("type") == "exceed_context_size_error":
        return ProviderError(
            f"The prompt has {error.get('n_prompt_tokens')} tokens, the context {n_ctx}.",
            "Set the option n_ctx higher, or shorten the concept.",
            fault="bad_answer",
        )
    fault: ProviderFault = "bad_answer" if 400 <= status < 500 else "unavailable"
    return ProviderError(f"llama.cpp refused the request ({status}): {message}.", "Correct the request.", fault=fault)
