"""A student as a `dspy.LM`: on an Ollama server, as a GGUF in this process, or behind an OpenAI-compatible server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import dspy
from pydantic import JsonValue

from po_distill import artifacts, plugins
from po_distill.dspy.engine import ANSWER_CONCEPTS, AsyncProviderEngine, ModelPath, ProviderEngine, read_model_path
from po_distill.errors import InputError, SettingsError
from po_distill.installing import PACKAGE_STAGE, read_package
from po_distill.ollama_names import read_model_name, server_url
from po_distill.ollama_server import OllamaServer
from po_distill.pipeline_config import ConfiguredProvider, configured_provider
from po_distill.providers.gguf_header import read_metadata
from po_distill.records import Message
from po_distill.role_model import resolve_role_model

_NUM_CTX = 8192  # where neither the package nor the model says
_MAX_TOKENS = 4096
_SHOWN = 12  # hex digits of a digest, as in the tags of packages
_CONTEXT_OPTION = {"llama_cpp": "n_ctx", "ollama": "num_ctx"}


class StudentLM(dspy.LM):  # type: ignore[misc]
    """A `dspy.LM` that knows the context and the slots of its runtime, and whose cache knows which model answered.

    `num_ctx` are the tokens that prompt and answer may have together, None where that is not known; `parallel` is how
    many requests the runtime answers at a time. The model's name ends with its digest, which is asked for again before
    every cached call where the runtime knows it: a tag that was made again is another model.
    """

    model: str

    def __init__(
        self, model: str, *, engine: ProviderEngine, num_ctx: int | None = None, parallel: int = 1, **settings: Any
    ) -> None:
        settings.pop("async_engine", None)
        path = read_model_path(model)
        self.num_ctx, self.parallel = num_ctx, parallel
        super().__init__(
            model=model, engine=engine.for_provider(path.provider), async_engine=AsyncProviderEngine(engine), **settings
        )

    def __call__(self, prompt: Any = None, *, messages: Any = None, **settings: Any) -> Any:
        """As `dspy.LM` answers."""
        self._renew(settings)
        return super().__call__(prompt, messages=messages, **settings)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **settings: Any) -> Any:
        """As `dspy.LM` answers, awaited."""
        self._renew(settings)
        return await super().acall(prompt, messages=messages, **settings)

    def count_tokens(self, messages: tuple[Message, ...]) -> int | None:
        """How many tokens the runtime makes of a prompt; None where it does not say."""
        tokens: int | None = self.engine.count_tokens(self.model, messages)
        return tokens

    def dump_state(self) -> dict[str, Any]:
        """What a saved program needs to make this LM again."""
        return {**super().dump_state(), "num_ctx": self.num_ctx, "parallel": self.parallel}

    def close(self) -> None:
        """Stop the runtime, where it runs in this process, and give its memory back."""
        self.engine.close()
        super().close()

    def _renew(self, settings: Mapping[str, Any]) -> None:
        path = read_model_path(self.model)
        if path.provider == "ollama" and path.digest and settings.get("cache", self.cache):
            digest = _digest_on_server(self.engine.base_url, path.model)
            if digest != path.digest:
                self.model = str(path._replace(digest=digest))


class _Found(NamedTuple):
    """What a name stands for."""

    path: ModelPath
    base_url: str | None = None
    num_ctx: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    options: Mapping[str, JsonValue] = {}


def student_lm(
    name: str | Path | None = None,
    *,
    config: Path | str | None = None,
    role: str | None = "product_owner",
    base_url: str | None = None,
    num_ctx: int | None = None,
    parallel: int = 1,
    temperature: float | None = None,
    max_tokens: int | None = None,
    digest: str | None = None,
    cache: bool = True,
    **options: JsonValue,
) -> StudentLM:
    """A `dspy.LM` that asks a student.

    `name` is a GGUF file or a version folder with one (run in this process), the name of a model on an Ollama server
    (the one at `base_url`, else OLLAMA_HOST's), or `provider:model`. `config` is a pipeline's config.yaml: without a
    name it says what `role` uses, with one where the provider is. `num_ctx` goes with every request; without it the
    package's is taken. `parallel` are the runtime's slots. The temperature is the config's, else 0; `options` are the
    provider's own.

    DSPy's cache is kept by the model's digest. Where nobody knows one (a server that is not Ollama's), nothing is
    cached unless `digest` names it. Raises SettingsError, InputError, and ProviderError where the model is not there.
    """
    if name is None and config is None:
        raise SettingsError("A student is named by its name or by a config.", "Give one of them.")
    found = _named(str(name), config) if name is not None else _configured(config or "", role or "")
    url = base_url or found.base_url
    known = found if found.num_ctx and found.path.digest else _looked_up(found, url)
    context = num_ctx or known.num_ctx
    provider = known.path.provider
    given = {**known.options, **options}
    if context and provider in _CONTEXT_OPTION:
        given.setdefault(_CONTEXT_OPTION[provider], context)
    if provider == "llama_cpp":
        given.setdefault("n_parallel", parallel)
    path = known.path._replace(digest=digest or known.path.digest)
    return StudentLM(
        str(path),
        engine=ProviderEngine(base_url=url, options=given, role=role if provider in ANSWER_CONCEPTS else None),
        num_ctx=context,
        parallel=parallel,
        temperature=next((value for value in (temperature, found.temperature) if value is not None), 0.0),
        max_tokens=max_tokens or found.max_tokens or min(_MAX_TOKENS, (context or 2 * _MAX_TOKENS) // 2),
        cache=cache and path.digest is not None,
    )


# --- what a name stands for -----------------------------------------------------------------------


def _configured(config: Path | str, role: str) -> _Found:
    model = resolve_role_model(config, role)
    return _Found(
        ModelPath(model.provider, model.model, None),
        base_url=model.base_url,
        temperature=model.temperature,
        max_tokens=model.max_tokens,
        options=model.options,
    )


def _named(name: str, config: Path | str | None) -> _Found:
    provider, colon, model = name.partition(":")
    if not (colon and provider in plugins.names("providers")):
        provider, model = "ollama", name
        if name == "offline":
            provider, model = name, "rules"
        elif name.endswith(".gguf") or Path(name).is_dir():
            provider = "llama_cpp"
    known = configured_provider(config, provider) if config is not None else ConfiguredProvider(provider, None, {})
    return _Found(ModelPath(known.provider, model, None), known.base_url, options=known.options)


def _looked_up(found: _Found, base_url: str | None) -> _Found:
    """With the digest and the context that the package or the server says."""
    path = found.path
    if path.provider == "llama_cpp":
        return _of_file(found)
    if path.provider == "ollama":
        path = path._replace(model=str(read_model_name(path.model)))
        shown = OllamaServer(base_url).show(path.model)
        return found._replace(
            path=path._replace(digest=_digest_on_server(base_url, path.model)), num_ctx=_context_of(shown)
        )
    return found


def _of_file(found: _Found) -> _Found:
    given = Path(found.path.model)
    folder = given if given.is_dir() else given.parent
    manifest = artifacts.read_manifest(folder)
    package = read_package(folder) if manifest and PACKAGE_STAGE in manifest.stages else None
    file = given
    if given.is_dir():
        file = folder / Path(package.gguf.path).name if package else _only_gguf(folder)
    trained = read_metadata(file)
    context = int(trained.get(f"{trained.get('general.architecture')}.context_length") or _NUM_CTX)
    described = package is not None and Path(package.gguf.path).name == file.name
    return found._replace(
        path=ModelPath("llama_cpp", str(file.resolve()), _digest_of_file(file, file.stat().st_mtime_ns)[:_SHOWN]),
        num_ctx=package.num_ctx if package and described else min(context, _NUM_CTX),
    )


def _only_gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise InputError(f"{folder} holds {len(files)} GGUF files.", "Name the one that is meant.")
    return files[0]


@lru_cache(maxsize=32)
def _digest_of_file(file: Path, changed_ns: int) -> str:
    return artifacts.digest_file(file).removeprefix("sha256:")


def _digest_on_server(base_url: str | None, model: str) -> str:
    found = _server(server_url(base_url, "base_url")).find(model)
    if found is None:
        raise InputError(f"The Ollama server has no model {model!r}.", "`ollama list` shows what is there.")
    return found.digest[:_SHOWN]


@lru_cache(maxsize=8)  # each holds connections, and is asked before every cached call
def _server(url: str) -> OllamaServer:
    return OllamaServer(url)


def _context_of(shown: Mapping[str, Any]) -> int:
    """The context of a model on a server: its parameter num_ctx, else the model's own, up to 8192."""
    said = re.search(r"^num_ctx\s+(\d+)", str(shown.get("parameters") or ""), re.MULTILINE)
    if said:
        return int(said[1])
    info = shown.get("model_info")
    lengths = [value for key, value in (info or {}).items() if key.endswith(".context_length")]
    return min(int(lengths[0]), _NUM_CTX) if lengths else _NUM_CTX
