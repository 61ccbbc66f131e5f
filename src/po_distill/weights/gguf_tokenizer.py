"""tokenizer.json in the words of a GGUF, such that llama.cpp makes the same token ids of a prompt.

Two kinds are written: byte-level BPE (GGUF model "gpt2") whose splitting before BPE llama.cpp knows by
a name, and SentencePiece-like BPE with byte fallback (GGUF model "llama"; see gguf_sentencepiece). What
llama.cpp would split otherwise is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.weights.chat_template import PROBES, plain_template, read_chat_template, render
from po_distill.weights.checkpoint import read_json, read_special_texts
from po_distill.weights.gguf_sentencepiece import SPACE, adds_space, merge_scores, strips_right

_CASED_NOTE = (
    "llama.cpp splits words with capitals beyond ASCII, such as GR\u00d6SSE, otherwise than this tokenizer, "
    "which knows small and capital letters of every script."
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType

# Texts that llama.cpp's src/llama-vocab.cpp makes special tokens of, whatever the file says of them.
_LOOKS_LIKE_CONTROL = {
    "</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>",
    "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<end_of_utterance>",
}  # fmt: skip

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's name of a splitting -> its steps in tokenizer.json, as `_steps` writes them.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "gpt-2": ("ByteLevel(regex)",),
    "smollm": ("Digits(individual)", "ByteLevel(regex)"),
    "qwen2": (rf"Split({_CONTRACTIONS}|{_WORDS}|\p{{N}}{_REST})", "ByteLevel"),
    "llama-bpe": (rf"Split({_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}{_REST})", "ByteLevel"),
    "tekken": (f"Split({_TEKKEN})", "ByteLevel"),
    "gpt-4o": (f"Split({_CASED})", "ByteLevel"),
}


@dataclass(frozen=True)
class GGUFTokenizer:
    """A tokenizer as GGUF metadata. Lists go by token id."""

    model: str  # "gpt2" for byte-level BPE, "llama" for SentencePiece
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None  # SentencePiece only
    merges: list[str] | None  # byte-level BPE only
    ids: dict[str, int]  # bos, eos, unk, pad -> token id
    add_bos: bool
    add_space_prefix: bool
    strips_right: bool  # added tokens swallow the white space behind them, for which llama.cpp goes by the model's name
    chat_template: str
    notes: tuple[str, ...]


def read_tokenizer(folder: Path, config: dict[str, Any]) -> GGUFTokenizer:
    """The tokenizer of a checkpoint folder for its GGUF; `config` is the folder's config.json.

    Raises WeightsError where llama.cpp has no tokenizer that makes the same token ids.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    settings_path = folder / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.is_file() else {}
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise _unsupported(path, f"the model type {model.get('type')!r}")
    tokens, types, left_out = _tokens(tokenizer, int(config["vocab_size"]), path)
    special = _special_ids(read_special_texts(folder), config, tokenizer)
    names = {kind: tokens[number] for kind, number in special.items()}
    template = read_chat_template(folder)
    bos, eos = names.get("bos", ""), names.get("eos", "")
    chat_template, note = plain_template(template, bos=bos, eos=eos)
    prompts = _probe_prompts(template, bos, eos)
    add_bos, bos_note = _adds_bos(tokenizer, settings, special, tokens, prompts)
    is_swallowing = strips_right(tokenizer, path)
    notes = [entry for entry in (note, bos_note, left_out, _control_note(tokens, types)) if entry]
    if is_swallowing:
        notes.append(
            "Behind special tokens llama.cpp swallows ASCII white space only, this tokenizer all of Unicode's."
        )
    is_sentencepiece = bool(model.get("byte_fallback"))
    pre, scores, merges, space = "default", None, None, False
    if is_sentencepiece:
        ranked, last = merge_scores(tokenizer, path), -float(len(model["merges"]))
        scores = [ranked.get(text, last) if kind == NORMAL else 0.0 for text, kind in zip(tokens, types, strict=True)]
        space = adds_space(tokenizer, prompts, path)
    else:
        pre, pre_note = _pre_tokenizer(tokenizer, path)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        notes += [pre_note] if pre_note else []
    return GGUFTokenizer(
        "llama" if is_sentencepiece else "gpt2",
        pre,
        tokens,
        types,
        scores,
        merges,
        special,
        add_bos,
        space,
        is_swallowing,
        chat_template,
        tuple(notes),
    )


def _unsupported(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} has {what}, for which llama.cpp has no equivalent that is known here.",
        f"Known: SentencePiece-like BPE with byte fallback (Mistral, Llama 2, Gemma, Phi-3), byte-level BPE as of "
        f"{', '.join(PRE_TOKENIZERS)}. Take a base model with one of these.",
    )


# --- tokens ---------------------------------------------------------------------------------------


def _tokens(tokenizer: dict[str, Any], size: int, path: Path) -> tuple[list[str], list[int], str | None]:
    """(text and type of every token id below `size`, the rows of the embedding; a note on added tokens beyond it).

    Gaps are filled as unused.
    """
    byte_fallback = bool(tokenizer["model"].get("byte_fallback"))
    unknown = tokenizer["model"].get("unk_token")
    is_byte_token = re.compile("<0x[0-9A-F]{2}>").fullmatch
    known: dict[int, tuple[str, int]] = {}
    for text, number in tokenizer["model"]["vocab"].items():
        is_byte = byte_fallback and is_byte_token(text)
        known[number] = (text, BYTE if is_byte else UNKNOWN if byte_fallback and text == unknown else NORMAL)
    if known and max(known) >= size:
        raise WeightsError(
            f"{path} has the token id {max(known)}, the embedding only {size} rows.",
            "Take tokenizer.json and the weights from the same model.",
        )
    beyond = []
    for entry in tokenizer.get("added_tokens") or []:
        text, kind = entry["content"], CONTROL if entry.get("special") else USER_DEFINED
        if byte_fallback and text == unknown:
            continue
        if entry["id"] >= size:
            beyond.append(text)
            continue
        # llama.cpp finds added tokens in the text as it is given, before spaces get their sign.
        known[entry["id"]] = (text.replace(SPACE, " ") if byte_fallback and kind == USER_DEFINED else text, kind)
    filled = [known.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    note = f"Added tokens without a row in the embedding are left out: {', '.join(beyond)}." if beyond else None
    return [text for text, _ in filled], [kind for _, kind in filled], note


def _control_note(tokens: list[str], types: list[int]) -> str | None:
    found = [text for text, kind in zip(tokens, types, strict=True) if kind == NORMAL and text in _LOOKS_LIKE_CONTROL]
    if not found:
        return None
    return f"llama.cpp takes {', '.join(found)} in a text for a special token that ends an answer, training did not."


def _special_ids(texts: dict[str, str], config: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, int]:
    """The ids of bos, eos, unk and pad: by tokenizer_config.json, or else by config.json."""
    by_text = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer.get("added_tokens") or []}}
    ids: dict[str, int] = {}
    for kind in ("bos", "eos", "unk", "pad"):
        number = by_text.get(texts[kind]) if kind in texts else config.get(f"{kind}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if isinstance(number, int) and 0 <= number < int(config["vocab_size"]):
            ids[kind] = number
    return ids


# --- splitting ------------------------------------------------------------------------------------


def _pre_tokenizer(tokenizer: dict[str, Any], path: Path) -> tuple[str, str | None]:
    """(llama.cpp's name of a byte-level tokenizer's splitting, a note where it is not quite the same)."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    name = next((name for name, known in PRE_TOKENIZERS.items() if known == steps), None)
    if name is None or tokenizer["model"].get("end_of_word_suffix") or tokenizer["model"].get("dropout"):
        raise _unsupported(path, f"the pre-tokenizer {' + '.join(steps) or 'none'}")
    ignores = bool(tokenizer["model"].get("ignore_merges"))
    if name == "llama-bpe" and not ignores:
        name = "dbrx"  # the same splitting, without a look at whole words first
    elif ignores and name not in ("llama-bpe", "tekken"):
        raise _unsupported(path, f"ignore_merges: {tokenizer['model'].get('ignore_merges')} with {name}")
    normalizer = tokenizer.get("normalizer")
    if normalizer is None:
        return name, _CASED_NOTE if name in ("tekken", "gpt-4o") else None
    if normalizer == {"type": "NFC"}:
        return name, "llama.cpp does not normalise text to Unicode NFC as this tokenizer does; send it in NFC."
    raise _unsupported(path, f"the normalizer {normalizer.get('type')}")


def _steps(node: dict[str, Any] | None) -> tuple[str, ...]:
    """A pre-tokenizer's steps, one text for each, with all that changes the result."""
    if node is None:
        return ()
    kind = node.get("type")
    if kind == "Sequence":
        return tuple(step for inner in node.get("pretokenizers") or [] for step in _steps(inner))
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return ("ByteLevel(regex)" if node.get("use_regex", True) else "ByteLevel",)
    if kind == "Digits" and node.get("individual_digits"):
        return ("Digits(individual)",)
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        return (f"Split({(node.get('pattern') or {}).get('Regex')})",)
    return (str(kind) + str({key: value for key, value in node.items() if key != "type"}),)


# --- BOS ------------------------------------------------------------------------------------------


def _probe_prompts(template: str, bos: str, eos: str) -> list[str]:
    prompts = []
    for probe in PROBES:
        try:
            prompts.append(render(template, probe, bos=bos, eos=eos))
        except Exception as error:  # a template may refuse a system turn; one that refuses all is useless
            failure = error
    if not prompts:
        raise WeightsError(f"The chat template renders no conversation: {failure}.", "Correct chat_template.jinja.")
    return prompts


def _adds_bos(
    tokenizer: dict[str, Any],
    settings: dict[str, Any],
    special: dict[str, int],
    tokens: list[str],
    prompts: list[str],
) -> tuple[bool, str | None]:
    """(whether a runtime is to put BOS before a prompt, a note where that departs from tokenizer.json).

    A prompt that training saw is the chat template's text, special tokens and all, so BOS may be added
    only where the template begins with it; the runtime then takes the template's own away.
    """
    if "bos" not in special:
        return False, None
    wanted = settings.get("add_bos_token")
    if wanted is None:
        wanted = _begins_with_special(tokenizer.get("post_processor"))
    if not wanted:
        return False, None
    if all(prompt.startswith(tokens[special["bos"]]) for prompt in prompts):
        return True, None
    return False, "The chat template does not begin with BOS, so the runtime adds none, unlike tokenizer.json."


def _begins_with_special(node: dict[str, Any] | None) -> bool:
    if not node:
        return False
    if node.get("type") == "Sequence":
        return any(_begins_with_special(inner) for inner in node.get("processors") or [])
    single = node.get("single") or [] if node.get("type") == "TemplateProcessing" else []
    return bool(single) and isinstance(single, list) and "SpecialToken" in single[0]
