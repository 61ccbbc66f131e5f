"""Ollama's `/api/chat` and `/api/generate` (server/routes.go), answered by running the model's GGUF."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fakes.go_template import TemplateError
from fakes.ollama_chat import check_format, check_options
from fakes.ollama_models import ModelStore, Name, parse_name
from fakes.ollama_prompt import PromptTemplate, Turn, fit
from fakes.ollama_runner import DEFAULT_OPTIONS, Piece, Runner, RunnerError, Runners, Wish
from fakes.ollama_stored import StoredModel, details, read_model, timestamp
from fakes.serving import RefusedError

_FOREVER_S = 10.0 * 365 * 86400
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass
class Speaking:
    """Answers chats with the models of a store. `load_s`: a load takes so much longer."""

    store: ModelStore
    runners: Runners
    default_num_ctx: int
    keep_alive_s: float
    load_s: float = 0.0

    async def chat(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The lines of the answer. Raises RefusedError, RunnerError."""
        started, model = time.monotonic(), self._model(body, "chat")
        messages = body.get("messages") or []
        empty = {"message": {"role": "assistant", "content": ""}}
        if not messages and _seconds(body.get("keep_alive")) == 0:
            self.runners.unload(model.path)
            yield {**_head(body), **empty, "done": True, "done_reason": "unload"}
            return
        options = self._options(model, body)
        runner, loaded = await self._runner(model, body, options), time.monotonic()
        if not messages:
            yield {**_head(body), **empty, "done": True, "done_reason": "load"}
            return
        turns = [*model.turns, *(Turn(one["role"], one.get("content") or "") for one in messages)]
        if model.system and messages[0]["role"] != "system":
            turns.insert(0, Turn("system", model.system))
        check_format(body.get("format"))
        truncate = body.get("truncate") is not False
        if model.uses_chat_template:
            turns = await self._fitting_turns(turns, runner, truncate)
            prompt = await runner.apply_template(turns)
            pieces = runner.chat(turns, options, body.get("format"))
        else:
            prompt = await self._prompt(model.prompt_template, turns, runner, truncate)
            pieces = runner.complete(prompt, options, body.get("format"), truncate)
        if body.get("_debug_render_only"):
            yield {**_head(body), "message": {"role": "", "content": ""}, "done": False,
                   "_debug_info": {"rendered_template": prompt}}  # fmt: skip
            return
        async with aclosing(pieces):
            async for piece in pieces:
                line = {**_head(body), "message": {"role": "assistant", "content": piece.text}, "done": piece.done}
                yield {**line, **_counts(piece, started, loaded)}
        self._unload_if_asked(model, body)

    async def generate(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The lines of the answer. Raises RefusedError, RunnerError."""
        started, model = time.monotonic(), self._model(body, "generate")
        asked = body.get("prompt") or ""
        if not asked and _seconds(body.get("keep_alive")) == 0:
            self.runners.unload(model.path)
            yield {**_head(body), "response": "", "done": True, "done_reason": "unload"}
            return
        if body.get("raw") and (body.get("template") or body.get("system") or body.get("context")):
            raise RefusedError(400, {"error": "raw mode does not support template, system, or context"})
        if body.get("suffix") and "insert" not in model.capabilities():
            whole = f"{model.name.host}/{model.name.namespace}/{model.name.model}:{model.name.tag}"
            raise RefusedError(400, {"error": f"{whole} does not support insert"})
        options = self._options(model, body)
        runner, loaded = await self._runner(model, body, options), time.monotonic()
        if not asked:
            yield {**_head(body), "response": "", "done": True, "done_reason": "load"}
            return
        check_format(body.get("format"))
        truncate = body.get("truncate") is not False
        prompt = asked if body.get("raw") else await self._generate_prompt(model, body, runner, truncate)
        if body.get("_debug_render_only"):
            yield {**_head(body), "response": "", "done": False, "_debug_info": {"rendered_template": prompt}}
            return
        said = ""
        async with aclosing(runner.complete(prompt, options, body.get("format"), truncate)) as pieces:
            async for piece in pieces:
                said += piece.text
                line = {**_head(body), "response": piece.text, "done": piece.done}
                if piece.done and not body.get("raw"):
                    line["context"] = await runner.tokenize(prompt + said)
                yield {**line, **_counts(piece, started, loaded)}
        self._unload_if_asked(model, body)

    # --- the model ------------------------------------------------------------------------------

    def _model(self, body: dict[str, Any], what: str) -> StoredModel:
        name = read_name(body.get("model"), missing=None if what == "chat" else f"model '{body.get('model', '')}'")
        model = read_model(self.store, self.store.existing(name))
        if model is None:
            raise RefusedError(404, {"error": f"model '{body['model']}' not found"})
        if body.get("think") and "thinking" not in model.capabilities():
            raise RefusedError(400, {"error": f'"{body["model"]}" does not support thinking'})
        return model

    def _options(self, model: StoredModel, body: dict[str, Any]) -> dict[str, Any]:
        """The model's parameters, then the request's: only here is a wrong one found, not where it was created."""
        asked = body.get("options") or {}
        try:
            check_options(model.options)
            check_options(asked)
        except RefusedError as refused:  # it comes up where the model is scheduled, and that knows no 400 for it
            raise RefusedError(500, refused.body) from None
        return {**DEFAULT_OPTIONS, "num_ctx": self.default_num_ctx, **model.options, **asked}

    async def _runner(self, model: StoredModel, body: dict[str, Any], options: dict[str, Any]) -> Runner:
        keep_alive_s = _seconds(body.get("keep_alive"))
        wish = Wish(model.path, int(options["num_ctx"]), model.uses_chat_template, body.get("shift") is not False)
        loads = self.runners.loads
        runner = await self.runners.get(wish, self.keep_alive_s if keep_alive_s is None else keep_alive_s or 60.0)
        if self.runners.loads > loads:
            await asyncio.sleep(self.load_s)
        runner.shown = {"name": str(model.name), "model": str(model.name), "size": model.manifest.size,
                        "digest": model.manifest.digest, "details": details(model.config), "size_vram": 0,
                        "context_length": runner.num_ctx}  # fmt: skip
        return runner

    def _unload_if_asked(self, model: StoredModel, body: dict[str, Any]) -> None:
        if _seconds(body.get("keep_alive")) == 0:
            self.runners.unload(model.path)

    # --- the prompt -----------------------------------------------------------------------------

    async def _prompt(self, template: PromptTemplate, turns: Sequence[Turn], runner: Runner, truncate: bool) -> str:
        async def render(some: Sequence[Turn]) -> str:
            return _rendered(lambda: template.render(some))

        return await fit(turns, render, _counting(runner), runner.num_ctx) if truncate else await render(turns)

    async def _fitting_turns(self, turns: list[Turn], runner: Runner, truncate: bool) -> list[Turn]:
        """The turns that llama.cpp is given to render: as many of the last as fit, and the system's."""
        kept = turns

        async def render(some: Sequence[Turn]) -> str:
            nonlocal kept
            kept = list(some)
            return await runner.apply_template(some)

        if truncate and len(turns) > 1:
            await fit(turns, render, _counting(runner), runner.num_ctx)
        return kept

    async def _generate_prompt(self, model: StoredModel, body: dict[str, Any], runner: Runner, truncate: bool) -> str:
        template = PromptTemplate(body["template"]) if body.get("template") else model.prompt_template
        if body.get("suffix"):
            return _rendered(lambda: template.render([], prompt=body["prompt"], suffix=body["suffix"]))
        system = body.get("system") or model.system
        turns = [Turn("system", system)] if system else []
        turns += [*(model.turns if body.get("context") is None else []), Turn("user", body["prompt"])]
        if body.get("template"):
            return _rendered(lambda: template.render(turns))
        return await self._prompt(template, turns, runner, truncate)


def read_name(text: Any, *, missing: str | None = None) -> Name:
    """The name in a request that uses a model; a `:local` behind it is no tag. Raises RefusedError."""
    text = str(text or "").strip()
    if not text:
        raise RefusedError(
            404 if missing else 400, {"error": f"{missing} not found" if missing else "model is required"}
        )
    base, colon, source = text.rpartition(":")
    name = parse_name(base if colon and source.lower() == "local" else text)
    if not name.is_valid:
        raise RefusedError(400, {"error": "invalid model name"})
    return name


def _rendered(render: Callable[[], str]) -> str:
    try:
        return render()
    except TemplateError as error:
        raise RunnerError(500, str(error)) from error


def _counting(runner: Runner) -> Any:
    async def count(prompt: str) -> int:
        return len(await runner.tokenize(prompt))

    return count


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"model": body["model"], "created_at": timestamp(time.time())}


def _counts(piece: Piece, started: float, loaded: float) -> dict[str, Any]:
    """The last line's reason and counts: durations in nanoseconds, and no zeros."""
    if not piece.done:
        return {}
    counts = {
        "total_duration": int((time.monotonic() - started) * 1e9),
        "load_duration": int((loaded - started) * 1e9),
        "prompt_eval_count": piece.prompt_tokens,
        "prompt_eval_duration": int(piece.prompt_s * 1e9),
        "eval_count": piece.tokens,
        "eval_duration": int(piece.eval_s * 1e9),
    }
    return {"done_reason": piece.done_reason, **{name: count for name, count in counts.items() if count}}


def _seconds(keep_alive: Any) -> float | None:
    """A `keep_alive` in seconds: a number, or a duration such as 1h30m; below zero it is for ever."""
    if keep_alive is None:
        return None
    if isinstance(keep_alive, str) and not re.fullmatch(r"-?\d+(\.\d+)?", keep_alive):
        parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)", keep_alive)
        if not parts or "".join(number + unit for number, unit in parts) != keep_alive.lstrip("-"):
            raise RefusedError(400, {"error": f'time: invalid duration "{keep_alive}"'})
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        return _FOREVER_S if keep_alive.startswith("-") else seconds
    return _FOREVER_S if float(keep_alive) < 0 else float(keep_alive)
