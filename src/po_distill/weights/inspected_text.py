"""What a checkpoint folder or a GGUF says of its tokenizer and its chat template, without running either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.records import InspectedTokenizer
from po_distill.weights.checkpoint import read_json
from po_distill.weights.foreign_files import open_regular
from po_distill.weights.gguf_file import GGUFArray

TEMPLATE_KEY = "tokenizer.chat_template"
_LONGEST_TEMPLATE_BYTES = 16_000_000
_FORMS = (  # the first mark that a template holds, and what chats with it are called
    ("<|im_start|>", "ChatML"),
    ("<|start_header_id|>", "Llama 3"),
    ("<start_of_turn>", "Gemma"),
    ("<|start_of_role|>", "Granite"),
    ("<|start|>", "Harmony"),
    ("[INST]", "Mistral / Llama 2"),
    ("<|assistant|>", "Zephyr / Phi"),
    ("### Response", "Alpaca"),
)


def template_form(template: str) -> str | None:
    """The family of chats that a template renders, by the marks in its text; None where it has no known mark."""
    return next((form for mark, form in _FORMS if mark in template), None)


def template_of_folder(folder: Path) -> str | None:
    """The chat template of a folder, as transformers finds it; None where there is none. Raises WeightsError."""
    if (path := folder / "chat_template.jinja").is_file():
        return _read_text(path)
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(found, list):
            entries = [entry for entry in found if isinstance(entry, dict)]
            found = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
        if isinstance(found, str) and found:
            return found
    return None


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read(_LONGEST_TEMPLATE_BYTES + 1)
        if len(data) > _LONGEST_TEMPLATE_BYTES:
            raise ValueError(f"it takes more than {_LONGEST_TEMPLATE_BYTES:,} bytes")
        return data.decode("utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as text: {error}.", "Download that file again.") from error


def tokenizer_of_folder(folder: Path) -> InspectedTokenizer | None:
    """What tokenizer.json says, or that there is only a tokenizer.model. Raises WeightsError where it is no JSON."""
    if not (folder / "tokenizer.json").is_file():
        if (folder / "tokenizer.model").is_file():
            return InspectedTokenizer(kind="SentencePiece", tokens=None, added_tokens=None, pre_tokenizer=None)
        return None
    tokenizer = read_json(folder / "tokenizer.json")
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    return InspectedTokenizer(
        kind=str(model.get("type") or "unknown"),
        tokens=len(vocabulary) if isinstance(vocabulary, (dict, list)) else None,
        added_tokens=len(added) if isinstance(added, list) else None,
        pre_tokenizer=_kinds(tokenizer.get("pre_tokenizer")) or None,
    )


def _kinds(value: Any) -> str:
    """The types of a pre-tokenizer, those of a sequence in its order."""
    if not isinstance(value, dict):
        return ""
    inner = value.get("pretokenizers")
    if isinstance(inner, list):
        return ", ".join(kinds for part in inner if (kinds := _kinds(part)))
    return str(value.get("type") or "")


def tokenizer_of_gguf(values: Mapping[str, Any]) -> InspectedTokenizer | None:
    """What the key-values of a GGUF say of its tokenizer; None where they say nothing."""
    model, tokens, pre = (values.get(f"tokenizer.ggml.{key}") for key in ("model", "tokens", "pre"))
    if not isinstance(model, str):
        return None
    return InspectedTokenizer(
        kind=model,
        tokens=tokens.count if isinstance(tokens, GGUFArray) else None,
        added_tokens=None,
        pre_tokenizer=pre if isinstance(pre, str) else None,
    )
