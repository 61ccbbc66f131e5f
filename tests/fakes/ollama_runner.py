"""The models that the fake of Ollama has loaded: each a llama.cpp server, in this process, as Ollama's runner asks it.

Source: llm/llama_server.go. A prompt that is too long is cut in its middle, where Ollama cuts it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakes.ollama_gguf import GGUFHead, read_head
from fakes.ollama_prompt import Turn

DEFAULT_OPTIONS: dict[str, Any] = {
    "num_predict": -1, "num_keep": 4, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0,
    "repeat_last_n": 64, "repeat_penalty": 1.1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": -1,
    "stop": [],
}  # fmt: skip
_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)
_MOST_REPEATS = 30


class RunnerError(Exception):
    """What Ollama answers where its runner cannot."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Piece:
    """A part of an answer; the last is `done`, with its counts and seconds."""

    text: str
    done: bool = False
    done_reason: str = ""
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    tokens: int = 0
    eval_s: float = 0.0


@dataclass(frozen=True)
class Wish:
    """How a model shall be loaded; another wish loads it anew."""

    path: Path
    num_ctx: int
    jinja: bool  # whether llama.cpp renders the chat template itself
    shift: bool = True


@dataclass
class Runner:
    """A loaded model."""

    wish: Wish
    head: GGUFHead
    server: Any
    key: str
    expires_s: float = 0.0
    shown: dict[str, Any] = field(default_factory=dict)  # its line in /api/ps
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def num_ctx(self) -> int:
        return self.wish.num_ctx

    @classmethod
    def load(cls, wish: Wish, threads: int) -> Runner:
        """Takes a while. Raises RunnerError."""
        import xllamacpp

        head = read_head(wish.path)
        num_ctx = min(wish.num_ctx, head.context_tokens or wish.num_ctx)
        key = secrets.token_urlsafe(12)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(wish.path)
        parameters.n_parallel, parameters.n_ctx = 1, num_ctx
        parameters.ctx_shift, parameters.use_jinja = wish.shift, wish.jinja
        parameters.cpuparams.n_threads = threads
        parameters.port, parameters.api_keys = 0, [key]
        parameters.ui = parameters.endpoint_slots = parameters.warmup = False
        parameters.cache_ram_mib, parameters.verbosity = 0, -1
        try:
            server = xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise RunnerError(500, f"llama-server startup failed: {error}") from error
        # A server that is closed before its listening has begun never ends; one that has answered listens.
        connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"), timeout=60)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        return cls(Wish(wish.path, num_ctx, wish.jinja, wish.shift), head, server, key)

    # --- asking ---------------------------------------------------------------------------------

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        body = {"content": text, **({"add_special": True} if special else {})}
        return [int(token) for token in (await self._ask("/tokenize", body))["tokens"]]

    async def apply_template(self, turns: Sequence[Turn]) -> str:
        """The prompt that llama.cpp makes with the GGUF's own chat template."""
        return str((await self._ask("/apply-template", {"messages": _messages(turns)}))["prompt"])

    async def complete(self, prompt: str, options: dict[str, Any], form: Any, truncate: bool) -> AsyncIterator[Piece]:
        """What follows the prompt. Raises RunnerError."""
        cut = await self._fitting(prompt, options, truncate)
        body = {**self._sampling(options, form), "prompt": cut}
        async with self.turn:
            async for event in self._stream("/completion", body):
                text, timings = str(event.get("content", "")), event.get("timings", {})
                if event.get("stop"):
                    yield _last(text, "length" if event.get("stop_type") == "limit" else "stop", timings)
                    return
                if text:
                    yield Piece(text)

    async def chat(self, turns: Sequence[Turn], options: dict[str, Any], form: Any) -> AsyncIterator[Piece]:
        """The answer that llama.cpp's own chat gives. Raises RunnerError."""
        body = {**self._sampling(options, None), "messages": _messages(turns), "reasoning_format": "none"}
        if isinstance(form, dict):
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "schema", "schema": form}}
        elif form == "json":
            body["response_format"] = {"type": "json_object"}
        async with self.turn:
            async for event in self._stream("/v1/chat/completions", body):
                choice = (event.get("choices") or [{}])[0]
                text = str((choice.get("delta") or {}).get("content") or "")
                if reason := choice.get("finish_reason"):
                    yield _last(text, "length" if reason == "length" else "stop", event.get("timings", {}))
                    return
                if text:
                    yield Piece(text)

    async def _fitting(self, prompt: str, options: dict[str, Any], truncate: bool) -> str | list[int]:
        """The prompt, or the tokens of it that are left: its first few and its end."""
        if not truncate or self.num_ctx <= 1 or len(prompt.encode()) < self.num_ctx:
            return prompt
        tokens = await self.tokenize(prompt, special=True)
        most = self.num_ctx - 1
        if len(tokens) <= most:
            return prompt
        if not self.wish.shift:
            raise RunnerError(400, _TOO_LONG)
        keep = len(tokens) if options["num_keep"] < 0 else int(options["num_keep"])
        keep = min(keep + bool(self.head.metadata.get("tokenizer.ggml.add_bos_token", True)), most)
        limit = self.num_ctx - max((self.num_ctx - keep) // 2, 1)
        return tokens[:keep] + tokens[keep + len(tokens) - limit :]

    def _sampling(self, options: dict[str, Any], form: Any) -> dict[str, Any]:
        predict, most = int(options["num_predict"]), 10 * self.num_ctx
        body = {"stream": True, "cache_prompt": self.wish.shift, "n_predict": predict if 0 <= predict <= most else most,
                "n_keep": options["num_keep"]}  # fmt: skip
        body.update({name: options[name] for name in DEFAULT_OPTIONS if not name.startswith("num_")})
        if isinstance(form, dict):
            body["json_schema"] = form
        elif form == "json":  # the real one gives a grammar of any JSON object
            body["json_schema"] = {"type": "object"}
        return body

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async for answer in self._post(path, body):
            return dict(json.loads(answer))
        raise RunnerError(500, "unexpected EOF")

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Its events. One text more than 30 times in a row ends them, as Ollama ends an answer that goes nowhere."""
        last, repeats = "", 0
        async for line in self._post(path, body, lines=True):
            data = line.strip().removeprefix(b"data: ")
            if not data or data == b"[DONE]":
                continue
            event = dict(json.loads(data))
            text = str(event.get("content", "")).strip()
            if path == "/completion":
                last, repeats = (last, repeats + 1) if text == last else (text, 0)
                if repeats > _MOST_REPEATS:
                    return
            yield event

    async def _post(self, path: str, body: dict[str, Any], *, lines: bool = False) -> AsyncIterator[bytes]:
        import aiohttp

        url = self.server.listening_address + path
        headers = {"Authorization": f"Bearer {self.key}"}
        timeout = aiohttp.ClientTimeout(total=600)
        async with (
            aiohttp.ClientSession(timeout=timeout, read_bufsize=2**20) as session,
            session.post(url, json=body, headers=headers) as response,
        ):
            if response.status >= 400:
                raise RunnerError(response.status, (await response.text()).strip())
            if not lines:
                yield await response.read()
                return
            async for line in response.content:
                yield line

    def close(self) -> None:
        self.server = None  # its destructor ends the threads and frees the model


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _last(text: str, reason: str, timings: dict[str, Any]) -> Piece:
    return Piece(
        text,
        done=True,
        done_reason=reason,
        prompt_tokens=timings.get("prompt_n", 0) + timings.get("cache_n", 0),
        prompt_s=timings.get("prompt_ms", 0.0) / 1e3,
        tokens=timings.get("predicted_n", 0),
        eval_s=timings.get("predicted_ms", 0.0) / 1e3,
    )


class Runners:
    """The loaded models, at most `most` of them; the one that would go first makes room."""

    def __init__(self, threads: int, most: int) -> None:
        self._threads, self._most = threads, most
        self._loaded: dict[Path, Runner] = {}
        self._loading = asyncio.Lock()
        self.loads = 0

    async def get(self, wish: Wish, keep_alive_s: float) -> Runner:
        """The runner of the wish, loaded where it is not. Raises RunnerError."""
        async with self._loading:
            runner = self._loaded.get(wish.path)
            if runner is not None and not self._fits(runner, wish):
                async with runner.turn:
                    self.unload(wish.path)
                runner = None
            if runner is None:
                self._make_room()
                runner = await asyncio.to_thread(Runner.load, wish, self._threads)
                self.loads += 1
                self._loaded[wish.path] = runner
            runner.expires_s = time.time() + keep_alive_s
            return runner

    @staticmethod
    def _fits(runner: Runner, wish: Wish) -> bool:
        clamped = min(wish.num_ctx, runner.head.context_tokens or wish.num_ctx)
        return runner.wish == Wish(wish.path, clamped, wish.jinja, wish.shift)

    def _make_room(self) -> None:
        for runner in self.shown()[self._most - 1 :]:
            if not runner.turn.locked():
                self.unload(runner.wish.path)

    def shown(self) -> list[Runner]:
        """The loaded ones, the one that stays longest first; those whose time is over are unloaded."""
        for path, runner in list(self._loaded.items()):
            if runner.expires_s <= time.time() and not runner.turn.locked():
                self.unload(path)
        return sorted(self._loaded.values(), key=lambda runner: -runner.expires_s)

    def unload(self, path: Path) -> None:
        if runner := self._loaded.pop(path, None):
            runner.close()

    def close(self) -> None:
        for path in list(self._loaded):
            self.unload(path)
