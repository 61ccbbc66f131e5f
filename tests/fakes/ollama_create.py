"""The work behind Ollama's `/api/create` (v0.33): what it checks, says and writes, in its order (server/create.go)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from fakes.go_template import TemplateError
from fakes.ollama_gguf import BrokenGGUFError, GGUFHead, NotGGUFError, begins_as_gguf, read_head, rewritten
from fakes.ollama_known_templates import guess
from fakes.ollama_models import MEDIA_TYPE, DigestError, Layer, Manifest, ModelStore, Name, parse_name
from fakes.ollama_prompt import PromptTemplate

Say = Callable[[dict[str, Any]], None]

_QUANTIZATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_K_S", "Q4_K_M", "Q4_K")
# Of the checkpoints that Ollama's own converter reads. That of Mistral's models is not among them.
_CONVERTED = ("LlamaForCausalLM", "Qwen2ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM",
              "MixtralForCausalLM")  # fmt: skip
_UNPACKED_STATUS_DIGEST = "0000000000000000000"


class CreateError(Exception):
    """A refusal of Ollama's; 500 unless its source says another status."""

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def check(store: ModelStore, body: dict[str, Any]) -> Name:
    """The model's name. Raises CreateError for what is refused before any status line."""
    for path, digest in (body.get("files") or {}).items():
        if not _is_relative(path):
            raise CreateError("file path must be relative", 400)
        try:
            store.blob_path(digest)
        except DigestError as error:
            raise CreateError(str(error), 400) from None
    name = parse_name(body.get("model") or body.get("name") or "")
    if not name.is_valid:
        raise CreateError("invalid model name", 400)
    return store.existing(name)


def create(store: ModelStore, name: Name, body: dict[str, Any], say: Say, *, rewrites: bool = True) -> Manifest:
    """Make the model, telling `say` each status but the last. Raises CreateError, OSError.

    A name that exists is written over without a word, and the blobs that it alone had are removed.
    """
    plan = _Plan()
    if body.get("from"):
        _take_model(store, body["from"], plan, say)
    elif body.get("files") is not None:
        _take_files(store, body["files"], plan, say)
    else:
        raise CreateError("neither 'from' or 'files' was specified", 400)
    if adapters := body.get("adapters"):
        if len(adapters) > 1:
            raise CreateError("only one adapter is currently supported", 400)
        raise CreateError("this fake takes no adapter", 501)
    for number, part in enumerate(plan.models):
        plan.models[number] = _checked_model(store, part, body, rewrites, say)
    layers = _layers(store, plan, body)
    for layer in layers:
        if layer.status:
            say({"status": layer.status})
    say({"status": "writing manifest"})
    return store.write_manifest(name, _config(plan, body), layers)


@dataclass(frozen=True)
class _Part:
    """A GGUF among the layers; `is_new` where a user brought it."""

    layer: Layer
    head: GGUFHead
    is_new: bool


@dataclass
class _Plan:
    models: list[_Part] = field(default_factory=list)
    others: list[Layer] = field(default_factory=list)  # of the model that `from` names
    guessed_template: str | None = None
    guessed_name: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)


def _is_relative(path: str) -> bool:
    """Go's fs.ValidPath."""
    return path == "." or all(part not in ("", ".", "..") for part in path.split("/"))


# --- what a model is made of --------------------------------------------------------------------


def _take_model(store: ModelStore, text: str, plan: _Plan, say: Say) -> None:
    name = parse_name(text)
    if not name.is_valid:
        raise CreateError("invalid model name", 400)
    manifest = store.manifest(store.existing(name))
    if manifest is None:
        # The real one asks its registry; this one is on a machine without a network.
        say({"status": "pulling manifest"})
        url = f"https://{name.host}/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
        raise CreateError(f'pull model manifest: Get "{url}": dial tcp: lookup {name.host}: no such host')
    for layer in manifest.layers:
        used = replace(layer, origin=str(name), status=f"using existing layer {layer.digest}")
        if layer.kind == "model":
            plan.models.append(_Part(used, read_head(store.blob_path(layer.digest)), is_new=False))
        elif layer.kind == "params":
            plan.parameters.update(json.loads(store.read(layer)))
            plan.others.append(used)
        else:
            plan.others.append(used)


def _take_files(store: ModelStore, files: dict[str, str], plan: _Plan, say: Say) -> None:
    kind = _kind_of_files(store, files)
    if kind == "safetensors":
        _convert(store, files, say)
    if kind != "gguf":
        raise CreateError("unknown type", 400)
    for path in sorted(files):
        say({"status": "parsing GGUF"})
        blob = store.blob_path(files[path])
        try:
            head = read_head(blob)
        except FileNotFoundError:
            raise CreateError(f"open {blob}: no such file or directory") from None
        except NotGGUFError:
            raise CreateError("supplied file was not in GGUF format", 400) from None
        except BrokenGGUFError as error:
            raise CreateError(str(error)) from None
        layer = Layer(f"{MEDIA_TYPE}model", files[path].replace("sha256-", "sha256:"), blob.stat().st_size)
        plan.models.append(_Part(layer, head, is_new=True))
        if known := guess(head.chat_template) if head.chat_template else None:
            plan.guessed_template, plan.guessed_name = known.template, known.name
            plan.parameters.update(stop=list(known.stops))


def _kind_of_files(store: ModelStore, files: dict[str, str]) -> str:
    for path, digest in files.items():
        if path.endswith(".safetensors"):
            return "safetensors"
        blob = store.blob_path(digest)
        if path.endswith(".gguf") or (blob.exists() and begins_as_gguf(blob)):
            return "gguf"
        if not blob.exists():
            return ""
    return ""


def _convert(store: ModelStore, files: dict[str, str], say: Say) -> None:
    """Refuse a checkpoint as the converter would, or say that this fake does not convert."""
    say({"status": "converting model"})
    config = next((files[path] for path in files if PurePosixPath(path).name == "config.json"), None)
    if config is None or not store.blob_path(config).exists():
        raise CreateError("open config.json: no such file or directory")
    architectures = json.loads(store.blob_path(config).read_bytes()).get("architectures") or []
    if not architectures:
        raise CreateError("unknown architecture")
    if architectures[0] not in _CONVERTED:
        raise CreateError(f'unsupported architecture "{architectures[0]}"')
    raise CreateError(f"this fake does not convert {architectures[0]}", 501)


def _checked_model(store: ModelStore, part: _Part, body: dict[str, Any], rewrites: bool, say: Say) -> _Part:
    """The model with the layer that is kept of it: each GGUF of a user is written anew."""
    wanted = str(body.get("quantize") or body.get("quantization") or "").upper()
    if wanted:
        if wanted not in _QUANTIZATIONS:
            known = "F32, F16, Q4_K_S, Q4_K_M, Q8_0"
            raise CreateError(f"unsupported quantization type {wanted} - supported types are {known}")
        if part.head.file_type not in ("F16", "BF16", "F32"):
            raise CreateError("quantization is only supported for F16, BF16 and F32 models")
        if part.head.file_type != wanted:
            raise CreateError("this fake does not quantize", 501)
    if not part.is_new:
        return part
    if not rewrites:
        return replace(part, layer=replace(part.layer, status=f"using existing layer {part.layer.digest}"))
    return replace(part, layer=_rewrite(store, part, say))


def _rewrite(store: ModelStore, part: _Part, say: Say) -> Layer:
    size, said = part.layer.size, 0

    def report(done: int, total: int) -> None:
        nonlocal said
        completed = size * done // max(total, 1)
        if completed - said >= size // 20 or done == total:
            said = completed
            say({"status": "validating GGUF model", "digest": _UNPACKED_STATUS_DIGEST, "total": size,
                 "completed": completed})  # fmt: skip

    failed = "failed to validate GGUF with llama-quantize without compatibility patches"
    try:
        with store.spool() as spool:
            for piece in rewritten(store.blob_path(part.layer.digest), part.head, report):
                spool.write(piece)
            say({"status": "verifying conversion"})
            return spool.keep("model")
    except BrokenGGUFError as error:
        raise CreateError(f"{failed}: llama-quantize failed: {error}") from None
    except OSError as error:
        raise CreateError(f"{failed}: write {error.filename}: {error.strerror}") from None


# --- layers and config --------------------------------------------------------------------------


def _layers(store: ModelStore, plan: _Plan, body: dict[str, Any]) -> list[Layer]:
    layers = [part.layer for part in plan.models] + plan.others
    if plan.guessed_template is not None and not body.get("template"):
        guessed = store.add(plan.guessed_template.encode(), "template")
        layers.append(replace(guessed, status=f"using autodetected template {plan.guessed_name}"))
    if template := body.get("template"):
        try:
            PromptTemplate(template)
        except TemplateError as error:
            raise CreateError(f"template error: {error}", 400) from None
        layers = [layer for layer in layers if layer.kind != "template"]
        layers.append(store.add(template.encode(), "template"))
    if system := body.get("system"):
        layers = [layer for layer in layers if layer.kind != "system"]
        layers.append(store.add(system.encode(), "system"))
    licenses = body.get("license") or []
    for text in [licenses] if isinstance(licenses, str) else licenses:
        layers.append(store.add(text.encode(), "license"))
    if parameters := {**plan.parameters, **(body.get("parameters") or {})}:
        layers = [layer for layer in layers if layer.kind != "params"]
        layers.append(store.add(_encoded(parameters), "params"))
    if messages := body.get("messages"):
        layers = [layer for layer in layers if layer.kind != "messages"]
        layers.append(store.add(_encoded(messages), "messages"))
    return layers


def _encoded(value: Any) -> bytes:
    """As Go's encoder writes a map: sorted, and a newline behind."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _config(plan: _Plan, body: dict[str, Any]) -> dict[str, Any]:
    heads = [part.head for part in plan.models]
    first = heads[0]
    config = {"model_format": "gguf", "model_family": first.architecture,
              "model_families": [head.architecture for head in heads],
              "model_type": _human(first.parameter_count), "file_type": first.file_type}  # fmt: skip
    chosen = {name: body[name] for name in ("renderer", "parser", "requires") if body.get(name)}
    return {**config, **chosen, "architecture": "amd64", "os": "linux"}


def _human(number: int) -> str:
    """A count as Ollama writes it: 7.2B, 134.52M, 95K."""
    for unit, letter, digits in ((10**9, "B", 1), (10**6, "M", 2)):
        if number >= unit:
            return f"{number / unit:.{0 if number % unit == 0 else digits}f}{letter}"
    return f"{number / 1000:.0f}K" if number >= 1000 else str(number)
