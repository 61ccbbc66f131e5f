"""A model as Ollama reads it from its store, and what `/api/tags`, `/api/show` and `/api/ps` say of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from fakes.go_template_lexer import quote
from fakes.ollama_gguf import GGUFHead, read_head
from fakes.ollama_models import Manifest, ModelStore, Name
from fakes.ollama_prompt import DEFAULT_TEMPLATE, PromptTemplate, Turn

_heads: dict[str, GGUFHead] = {}  # by digest, which says all


@dataclass
class StoredModel:
    """What a name stands for, its layers read."""

    name: Name
    manifest: Manifest
    config: dict[str, Any]
    path: Path  # of the GGUF
    digest: str  # of the GGUF
    template: str | None = None
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)

    @property
    def head(self) -> GGUFHead:
        if self.digest not in _heads:
            _heads[self.digest] = read_head(self.path)
        return _heads[self.digest]

    @cached_property
    def prompt_template(self) -> PromptTemplate:
        return PromptTemplate(self.template if self.template is not None else DEFAULT_TEMPLATE)

    @property
    def uses_chat_template(self) -> bool:
        """Whether llama.cpp renders the GGUF's own chat template: there is no TEMPLATE, or it can less than that."""
        if self.template is None:
            return True
        return bool(self.head.chat_template) and self._prefers_chat_template()

    def capabilities(self) -> list[str]:
        ours = _chat_abilities(self.head.chat_template) if self.uses_chat_template else self._abilities()
        return ["completion", *sorted(ours)]

    def _abilities(self) -> set[str]:
        names = self.prompt_template.names()
        found = {"tools": "tools" in names, "insert": "suffix" in names, "thinking": "thinking" in names}
        return {ability for ability, has in found.items() if has}

    def _prefers_chat_template(self) -> bool:
        chat, own = _chat_abilities(self.head.chat_template), self._abilities()
        text = self.prompt_template.text
        own_round = {"tools", "toolcalls"} <= set(self.prompt_template.names()) and any(
            mark in text for mark in ('eq .Role "tool"', "tool_response", "TOOL_RESULTS")
        )
        if len(chat) > len(own):
            return not own_round or _chat_round_trip(self.head.chat_template)
        return chat == own and "tools" in chat and _chat_round_trip(self.head.chat_template) and not own_round


def _chat_abilities(chat_template: str) -> set[str]:
    """What a Jinja chat template speaks of. The marks of thinking are a guess at Ollama's list."""
    marks = {"tools": ("tools", "tool_call"), "thinking": ("enable_thinking", "reasoning_content", "<think>")}
    return {ability for ability, words in marks.items() if any(word in chat_template for word in words)}


def _chat_round_trip(chat_template: str) -> bool:
    answers = ("tool_response", "tool_results", "ipython", "role'] == 'tool'", 'role"] == "tool"',
               "message.role == 'tool'")  # fmt: skip
    return "tool_calls" in chat_template and any(mark in chat_template for mark in answers)


def read_model(store: ModelStore, name: Name) -> StoredModel | None:
    """The model; None where there is none of that name."""
    manifest = store.manifest(name)
    if manifest is None:
        return None
    gguf = next(layer for layer in reversed(manifest.layers) if layer.kind == "model")
    model = StoredModel(name, manifest, store.config(manifest), store.blob_path(gguf.digest), gguf.digest)
    for layer in manifest.layers:
        if layer.kind == "template":
            model.template = store.read(layer).decode()
        elif layer.kind == "system":
            model.system = store.read(layer).decode()
        elif layer.kind == "license":
            model.licenses.append(store.read(layer).decode())
        elif layer.kind == "params":
            model.options = json.loads(store.read(layer))
        elif layer.kind == "messages":
            model.turns = [Turn(turn["role"], turn["content"]) for turn in json.loads(store.read(layer))]
    return model


# --- what is said of it -------------------------------------------------------------------------


def details(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": config["model_format"],
        "family": config["model_family"],
        "families": config["model_families"],
        "parameter_size": config["model_type"],
        "quantization_level": config["file_type"],
    }


def tag_line(store: ModelStore, name: Name, manifest: Manifest) -> dict[str, Any]:
    """The model's entry in `/api/tags`."""
    return {
        "name": str(name),
        "model": str(name),
        "modified_at": timestamp(manifest.modified_s),
        "size": manifest.size,
        "digest": manifest.digest,
        "details": details(store.config(manifest)),
    }


def shown_model(model: StoredModel) -> dict[str, Any]:
    """The answer of `/api/show`; empty texts are left out."""
    lines = [f"{key:<30} {_written(value)}" for key, values in model.options.items() for value in _listed(values)]
    info = {key: value for key, value in model.head.metadata.items()
            if key not in ("general.name", "tokenizer.chat_template")}  # fmt: skip
    texts = {
        "license": "\n".join(model.licenses),
        "modelfile": _modelfile(model),
        "parameters": "\n".join(lines),
        "template": model.prompt_template.text,
        "system": model.system,
        "renderer": model.config.get("renderer", ""),
        "parser": model.config.get("parser", ""),
        "requires": model.config.get("requires", ""),
    }
    return {
        **{key: text for key, text in texts.items() if text},
        "details": details(model.config),
        **({"messages": [_message(turn) for turn in model.turns]} if model.turns else {}),
        "model_info": {**info, "general.parameter_count": model.head.parameter_count},
        "capabilities": model.capabilities(),
        "modified_at": timestamp(model.manifest.modified_s),
    }


def _message(turn: Turn) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _written(value: Any) -> str:
    """As Go's %#v writes what came out of JSON."""
    if isinstance(value, str):
        return quote(value)
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _modelfile(model: StoredModel) -> str:
    """As Ollama writes it out: its path in the store after FROM, and quotes where it thinks they are needed."""
    out = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.name}",
        "",
        f"FROM {model.path}",
        f"TEMPLATE {_quoted(model.prompt_template.text)}",
    ]
    if model.system:
        out.append(f"SYSTEM {_quoted(model.system)}")
    out += [f"PARAMETER {key} {_quoted(value if isinstance(value, str) else _written(value))}"
            for key, values in model.options.items() for value in _listed(values)]  # fmt: skip
    out += [f"LICENSE {_quoted(text)}" for text in model.licenses]
    out += [f"MESSAGE {turn.role} {_quoted(turn.content)}" for turn in model.turns]
    return "\n".join(out) + "\n"


def _quoted(text: str) -> str:
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text


def timestamp(seconds: float) -> str:
    """As Go writes a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
