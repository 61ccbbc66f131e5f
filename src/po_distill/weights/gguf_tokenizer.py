"""tokenizer.json in the words of a GGUF, such that llama.cpp makes the same token ids of a prompt.

Two kinds are written: byte-level BPE (GGUF model "gpt2") whose splitting before BPE llama.cpp knows by
a name, and SentencePiece-like BPE with byte fallback (GGUF model "llama"), where scores stand for the
order of the merges. What llama.cpp would split otherwise is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError
from po_distill.weights.chat_template import PROBES, plain_template, read_chat_template, render
from po_distill.weights.checkpoint import read_json, read_special_texts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
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
}
_SPACE = "\u2581"  # SentencePiece's sign for a space


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
    tokens, types = _tokens(tokenizer, int(config["vocab_size"]), path)
    special = _special_ids(read_special_texts(folder), config, tokenizer)
    names = {kind: tokens[number] for kind, number in special.items()}
    template = read_chat_template(folder)
    bos, eos = names.get("bos", ""), names.get("eos", "")
    chat_template, note = plain_template(template, bos=bos, eos=eos)
    prompts = _probe_prompts(template, bos, eos)
    add_bos, bos_note = _adds_bos(tokenizer, settings, special, tokens, prompts)
    notes = [entry for entry in (note, bos_note) if entry]
    is_sentencepiece = bool(model.get("byte_fallback"))
    pre, scores, merges, space = "default", None, None, False
    if is_sentencepiece:
        scores = _scores(model, tokens, types, path)
        space = _adds_space(tokenizer, prompts, path)
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
        chat_template,
        tuple(notes),
    )


def _unsupported(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} has {what}, for which llama.cpp has no equivalent that is known here.",
        f"Known: SentencePiece-like BPE with byte fallback (Mistral, Llama 2), byte-level BPE as of "
        f"{', '.join(PRE_TOKENIZERS)}. Take a base model with one of these.",
    )


# --- tokens ---------------------------------------------------------------------------------------


def _tokens(tokenizer: dict[str, Any], size: int, path: Path) -> tuple[list[str], list[int]]:
    """Text and type of every token id below `size`, the rows of the embedding; gaps are filled as unused."""
    byte_fallback = bool(tokenizer["model"].get("byte_fallback"))
    unknown = tokenizer["model"].get("unk_token")
    known: dict[int, tuple[str, int]] = {}
    for text, number in tokenizer["model"]["vocab"].items():
        is_byte = byte_fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", text)
        known[number] = (text, BYTE if is_byte else UNKNOWN if byte_fallback and text == unknown else NORMAL)
    for entry in tokenizer.get("added_tokens") or []:
        if not (byte_fallback and entry["content"] == unknown):
            known[entry["id"]] = (entry["content"], CONTROL if entry.get("special") else USER_DEFINED)
    if known and max(known) >= size:
        raise WeightsError(
            f"{path} has the token id {max(known)}, the embedding only {size} rows.",
            "Take tokenizer.json and the weights from the same model.",
        )
    filled = [known.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    return [text for text, _ in filled], [kind for _, kind in filled]


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


def _scores(model: dict[str, Any], tokens: list[str], types: list[int], path: Path) -> list[float]:
    """Scores that make llama.cpp merge in the order of tokenizer.json: the negative rank of a token's merges.

    llama.cpp merges any two neighbours whose text together is a token, the best score first. That is the
    order of the merges only if all merges into one token stand together, which is checked.
    """
    first: dict[str, int] = {}
    previous = ""
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merged = left + right
        if merged != previous and merged in first:
            raise _unsupported(path, f"merges into {merged!r} at different ranks")
        first.setdefault(merged, rank)
        previous = merged
    last = float(len(model["merges"]))
    return [-float(first.get(text, last)) if kind == NORMAL else 0.0 for text, kind in zip(tokens, types, strict=True)]


# --- splitting ------------------------------------------------------------------------------------


def _pre_tokenizer(tokenizer: dict[str, Any], path: Path) -> tuple[str, str | None]:
    """(llama.cpp's name of a byte-level tokenizer's splitting, a note where it is not quite the same)."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    name = next((name for name, known in PRE_TOKENIZERS.items() if known == steps), None)
    if name is None or tokenizer["model"].get("end_of_word_suffix") or tokenizer["model"].get("dropout"):
        raise _unsupported(path, f"the pre-tokenizer {' + '.join(steps) or 'none'}")
    if (name == "llama-bpe") != bool(tokenizer["model"].get("ignore_merges")) and name != "tekken":
        raise _unsupported(path, f"ignore_merges: {tokenizer['model'].get('ignore_merges')} with {name}")
    normalizer = tokenizer.get("normalizer")
    if normalizer is None:
        return name, None
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


def _adds_space(tokenizer: dict[str, Any], prompts: list[str], path: Path) -> bool:
    """Whether llama.cpp is to put a space before text that begins a prompt or follows a special token.

    llama.cpp knows only yes and no; tokenizer.json knows more. The answer is the one under which both
    see the same text in every probe of the chat template.
    """
    pattern = "|".join(
        re.escape(entry["content"])
        for entry in sorted(tokenizer.get("added_tokens") or [], key=lambda entry: -len(entry["content"]))
    )
    for answer in (False, True):
        if all(
            _with_space(tokenizer, piece, begins, path) == _escaped((" " if answer else "") + piece)
            for prompt in prompts
            for piece, begins in _pieces(prompt, pattern)
        ):
            return answer
    raise _unsupported(path, "a rule for leading spaces")


def _pieces(prompt: str, pattern: str) -> list[tuple[str, bool]]:
    """(text between special tokens, whether it begins the prompt)."""
    found, end = [], 0
    for match in re.finditer(pattern, prompt) if pattern else ():
        found.append((prompt[end : match.start()], end == 0))
        end = match.end()
    found.append((prompt[end:], end == 0))
    return [(piece, begins) for piece, begins in found if piece]


def _escaped(text: str) -> str:
    return text.replace(" ", _SPACE)


def _with_space(tokenizer: dict[str, Any], piece: str, begins: bool, path: Path) -> str:
    """A piece of text as tokenizer.json hands it to BPE."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if normalizer in ({"type": "Sequence", "normalizers": [prepend, replace]}, replace) and pre is None:
        return (_SPACE if normalizer != replace else "") + _escaped(piece)
    if normalizer is None and pre is not None and pre.get("type") == "Metaspace" and pre.get("split") is False:
        scheme, text = pre.get("prepend_scheme", "always"), _escaped(piece)
        wanted = scheme == "always" or (scheme == "first" and begins)
        return _SPACE + text if wanted and not text.startswith(_SPACE) else text
    raise _unsupported(path, f"the normalizer {(normalizer or {}).get('type')} with {(pre or {}).get('type')}")


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
