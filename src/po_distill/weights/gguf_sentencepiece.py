"""SentencePiece-like BPE of tokenizer.json in llama.cpp's terms: scores for merges, and what happens to white space.

llama.cpp cuts added tokens out of a text first, the longest first; then it merges, in what is left, any two neighbours
whose text together is a token, the best score first. Where that is not what tokenizer.json does, it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from po_distill.errors import WeightsError

SPACE = "\u2581"  # SentencePiece's sign for a space
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# Gemma's, which splits nothing: no space is left when it comes to be asked.
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
# llama.cpp's table of the tokens that swallow white space, which it has for models named like this alone.
PHI3_NAMES = ("phi-3", "phi3")
_PHI3_KEEP_SPACE = {"<unk>", "<s>", "<|endoftext|>"}


def merge_scores(tokenizer: dict[str, Any], path: Path) -> dict[str, float]:
    """For each text that merges make, a score that makes llama.cpp merge in the order of tokenizer.json.

    It is the negative rank of the text's merges, which is their order only if all merges into one text stand together.
    Raises WeightsError where they do not, but for added tokens: those are cut out before anything is merged.
    """
    added = {entry["content"] for entry in tokenizer.get("added_tokens") or []}
    first: dict[str, int] = {}
    previous = ""
    for rank, merge in enumerate(tokenizer["model"]["merges"]):
        left, right = _pair(merge)
        merged = left + right
        if merged != previous and merged in first and merged not in added:
            raise _refusal(path, f"merges into {merged!r} at different ranks")
        first.setdefault(merged, rank)
        previous = merged
    _check_runs(added, [_pair(merge) for merge in tokenizer["model"]["merges"]], path)
    return {text: -float(rank) for text, rank in first.items()}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _check_runs(added: set[str], merges: Sequence[tuple[str, str]], path: Path) -> None:
    """Raise WeightsError unless runs of spaces merge before all else, from the left, into the longest added token.

    Gemma has such tokens. tokenizer.json finds them by merging, since they are added in the sign for a space; llama.cpp
    by cutting them out, the longest first.
    """
    runs = sorted((text for text in added if SPACE in text), key=len)
    if not runs:
        return
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    longer = [ranks.get((SPACE * (count - 1), SPACE)) for count in range(2, len(runs[-1]) + 1)]
    others = (
        rank
        for rank, (left, right) in enumerate(merges)
        if (left.endswith(SPACE) or right.startswith(SPACE)) and (left + right).strip(SPACE)
    )
    is_greedy = (
        runs == [SPACE * count for count in range(2, len(runs[-1]) + 1)]
        and None not in longer
        and longer == sorted(longer, key=lambda rank: -(rank or 0))
        and (longer[0] or 0) < next(others, len(merges))
    )
    if not is_greedy:
        raise _refusal(path, "added tokens of spaces that do not merge from the left into the longest")


def strips_right(tokenizer: dict[str, Any], path: Path) -> bool:
    """Whether added tokens swallow the white space behind them, as Phi-3's do.

    Raises WeightsError where other ones do than those of Phi-3, or where tokens do so in front of them.
    """
    entries = tokenizer.get("added_tokens") or []
    if odd := [entry["content"] for entry in entries if entry.get("lstrip") or entry.get("single_word")]:
        raise _refusal(path, f"the added token {odd[0]!r}, which takes part of the text in front of it")
    stripping = {entry["content"] for entry in entries if entry.get("rstrip")}
    if not stripping:
        return False
    known = {entry["content"] for entry in entries} | set(tokenizer["model"]["vocab"])
    others = {entry["content"] for entry in entries} - stripping
    if not others <= _PHI3_KEEP_SPACE or stripping & _PHI3_KEEP_SPACE or not {*_PHI3_KEEP_SPACE, "</s>"} <= known:
        raise _refusal(path, "added tokens that swallow the white space behind them, others than Phi-3's")
    return True


def adds_space(tokenizer: dict[str, Any], prompts: Sequence[str], path: Path) -> bool:
    """Whether llama.cpp is to put a space before text that begins a prompt or follows a special token.

    llama.cpp knows only yes and no; tokenizer.json knows more. The answer is the one under which both see the same text
    in every prompt.
    """
    for answer in (False, True):
        if all(
            _with_space(tokenizer, piece, begins, path) == _escaped((" " if answer else "") + piece)
            for prompt in prompts
            for piece, begins in _pieces(prompt, tokenizer.get("added_tokens") or [])
        ):
            return answer
    raise _refusal(path, "a rule for leading spaces")


def _pieces(prompt: str, added: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    """(text between added tokens, whether it begins the prompt)."""
    pattern = "|".join(
        re.escape(entry["content"]) + (r"\s*" if entry.get("rstrip") else "")
        for entry in sorted(added, key=lambda entry: -len(entry["content"]))
    )
    found, end = [], 0
    for match in re.finditer(pattern, prompt) if pattern else ():
        found.append((prompt[end : match.start()], end == 0))
        end = match.end()
    found.append((prompt[end:], end == 0))
    return [(piece, begins) for piece, begins in found if piece]


def _escaped(text: str) -> str:
    return text.replace(" ", SPACE)


def _with_space(tokenizer: dict[str, Any], piece: str, begins: bool, path: Path) -> str:
    """A piece of text as tokenizer.json hands it to BPE."""
    normalizer, pre = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if normalizer == {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]} and pre is None:
        return SPACE + _escaped(piece)
    if normalizer == _REPLACE and pre in (None, _NO_SPLIT):
        return _escaped(piece)
    if normalizer is None and pre is not None and pre.get("type") == "Metaspace" and pre.get("split") is False:
        scheme, text = pre.get("prepend_scheme", "always"), _escaped(piece)
        wanted = scheme == "always" or (scheme == "first" and begins)
        return SPACE + text if wanted and not text.startswith(SPACE) else text
    raise _refusal(path, f"the normalizer {(normalizer or {}).get('type')} with {(pre or {}).get('type')}")


def _refusal(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} has {what}, for which llama.cpp has no equivalent that is known here.",
        "Take a base model with a tokenizer as Mistral, Llama 2, Gemma or Phi-3 have it, or with a byte-level one.",
    )
