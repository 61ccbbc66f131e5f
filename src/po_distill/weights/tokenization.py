"""Training rows as token ids: the prompt as the runtime will render it, the target and its end under the loss.

Nothing is truncated and nothing is skipped: a row that cannot be used stops the run and is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from po_distill.artifacts import parse_record, read_jsonl
from po_distill.errors import InputError, MissingExtraError, TrainingError
from po_distill.records import Example, Message

IGNORED = -100  # the label of a token that is not under the loss, as torch's cross-entropy has it
_NAMED_ROWS = 10
_TEMPLATE_MARKS = ("<|im_start|>", "<|im_end|>", "[INST]", "[/INST]", "<|start_header_id|>", "<start_of_turn>")


@dataclass(frozen=True)
class TokenizedRow:
    """One row as token ids. What follows the prompt is under the loss, the end of the turn included."""

    line: int  # in the data file, from 1
    input_ids: tuple[int, ...]
    prompt_tokens: int  # at least 2: a template opens the turn of each speaker
    example_id: str = ""  # its id there, where it has one

    @property
    def labels(self) -> list[int]:
        """The tokens under the loss at their own places, IGNORED before; a padding token plays no part."""
        return [IGNORED] * self.prompt_tokens + list(self.input_ids[self.prompt_tokens :])

    @property
    def answer_tokens(self) -> int:
        """Tokens under the loss."""
        return len(self.input_ids) - self.prompt_tokens


def load_tokenizer(base: Path) -> Any:
    """The tokenizer of a checkpoint's folder, chat template included. Raises TrainingError where it does not load."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "train", "Counting tokens") from error
    try:
        return AutoTokenizer.from_pretrained(base, local_files_only=True)
    except Exception as error:  # a tokenizer file can be wrong in any way
        raise TrainingError(f"The tokenizer in {base} does not load: {error}.", "Download the base again.") from error


def tokenize_file(
    path: Path | str, tokenizer: Any, *, max_seq_len: int, max_samples: int | None = None
) -> list[TokenizedRow]:
    """The rows of a JSONL file of `Example` or of {prompt, response}; `max_samples` takes the first ones.

    `tokenizer` is a transformers tokenizer with a chat template. Raises InputError with file and line
    where a row cannot be read or rendered, and where rows are longer than `max_seq_len` tokens.
    """
    control = _control_texts(tokenizer)
    rows = []
    for line, prompt, target, example_id in islice(_read(path), max_samples):
        where = f"{path}, line {line}"
        _refuse_rendered([*(message.content for message in prompt), target], control, where)
        rows.append(replace(tokenize_row(line, prompt, target, tokenizer, where), example_id=example_id))
    too_long = [row for row in rows if len(row.input_ids) > max_seq_len]
    if too_long:
        longest = max(len(row.input_ids) for row in too_long)
        raise InputError(
            f"{path}: {len(too_long)} of {len(rows)} rows are longer than {max_seq_len} tokens "
            f"({named(too_long)}); the longest has {longest}. Rows are never cut.",
            f"Use --max-seq-len {longest} or more, or take those rows out.",
        )
    return rows


def named(rows: Sequence[TokenizedRow]) -> str:
    """The first of some rows by line and id, and how many more there are."""
    shown = [f"{row.line} ({row.example_id})" if row.example_id else str(row.line) for row in rows[:_NAMED_ROWS]]
    more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
    return f"lines {', '.join(shown)}{more}"


def _control_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts that only a chat template may write: the tokenizer's own control tokens, and those of usual templates."""
    own = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys([*own, *_TEMPLATE_MARKS]))


def _refuse_rendered(texts: Sequence[str], control: Sequence[str], where: str) -> None:
    found = next((mark for mark in control for text in texts if mark in text), None)
    if found is not None:
        raise InputError(
            f"{where}: the text holds {found!r}, which only a chat template may write.",
            "Give rows as plain messages: the base's own template is put around them, once.",
        )


def _read(path: Path | str) -> Iterator[tuple[int, tuple[Message, ...], str, str]]:
    """(line, prompt, target, id) of each row; the id is empty where a row has none."""
    for line, value in read_jsonl(path):
        where = f"{path}, line {line}"
        if "response" in value:
            yield (
                line,
                (Message(speaker="user", content=_text(value, "prompt", where)),),
                _text(value, "response", where),
                "",
            )
            continue
        example = parse_record(value, Example, where)
        if len(example.completion) != 1 or example.completion[0].speaker != "assistant":
            raise InputError(
                f"{where}: the completion is not one assistant message.", "Give each row one message to learn."
            )
        if not example.prompt or example.prompt[-1].speaker == "assistant":
            raise InputError(f"{where}: the prompt does not end with a user message.", "Correct that row.")
        if not example.completion[0].content.strip():
            raise InputError(f"{where}: the completion is empty.", "Correct or delete that row.")
        yield line, example.prompt, example.completion[0].content, example.example_id


def _text(value: dict[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: {key} is not a text, or empty.", "Correct or delete that row.")
    return text


# --- one row ------------------------------------------------------------------------------------


def tokenize_row(line: int, prompt: Sequence[Message], target: str, tokenizer: Any, where: str) -> TokenizedRow:
    """One row. Raises InputError, with `where`, where the tokenizer's chat template cannot render it for training."""
    prompt_text = _render(tokenizer, prompt, where, add_generation_prompt=True)
    turn = _answer_turn(tokenizer, prompt, target, prompt_text, where)
    prompt_ids = _encode(tokenizer, prompt_text)
    ids = _encode(tokenizer, prompt_text + turn)
    if ids[: len(prompt_ids)] != prompt_ids or len(prompt_ids) < 2:
        raise InputError(
            f"{where}: the prompt's tokens are not the beginning of the whole row's tokens.",
            "The target begins with text that the tokenizer joins to the prompt (line ends, spaces): remove it.",
        )
    return TokenizedRow(line, tuple(_until_end_of_turn(ids, len(prompt_ids), tokenizer)), len(prompt_ids))


def _answer_turn(tokenizer: Any, prompt: Sequence[Message], target: str, prompt_text: str, where: str) -> str:
    """What the template adds to the rendered prompt for the answer: its text, and the end of the turn.

    Some templates show an earlier part of the conversation differently once it has been answered
    (Mistral v0.3 leaves the system text out), but the model is always asked as `prompt_text` has it.
    There the turn is taken from a conversation of the last message alone.
    """
    answer = Message(speaker="assistant", content=target)
    whole = _render(tokenizer, [*prompt, answer], where)
    if whole.startswith(prompt_text):
        return whole.removeprefix(prompt_text)
    asked = _render(tokenizer, prompt[-1:], where, add_generation_prompt=True)
    answered = _render(tokenizer, [prompt[-1], answer], where)
    if answered.startswith(asked):
        return answered.removeprefix(asked)
    raise InputError(
        f"{where}: the chat template does not render the prompt as the beginning of the answered conversation.",
        "Train a base model whose template appends turns (ChatML, Mistral), or correct its chat template.",
    )


def _until_end_of_turn(ids: list[int], prompt_tokens: int, tokenizer: Any) -> list[int]:
    """The row up to its last EOS: what a template writes behind that is never asked of the model."""
    eos = tokenizer.eos_token_id
    if eos is None or eos not in ids[prompt_tokens:]:
        raise TrainingError(
            f"The chat template ends an answer without the tokenizer's end token ({tokenizer.eos_token!r}); "
            "the student would never learn to stop.",
            "Correct eos_token in the base model's tokenizer_config.json, or its chat template.",
        )
    return ids[: len(ids) - ids[::-1].index(eos)]


def _render(tokenizer: Any, messages: Sequence[Message], where: str, *, add_generation_prompt: bool = False) -> str:
    from jinja2 import TemplateError

    chat = [{"role": message.speaker, "content": message.content} for message in messages]
    try:
        text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise InputError(
            f"{where}: the base model's chat template refuses the conversation: {error}.",
            "Choose a base model whose template knows these speakers, or a prompt contract without a system text.",
        ) from error
    except ValueError as error:
        raise TrainingError(
            f"The base model's tokenizer has no usable chat template: {error}.", "Take its instruct version."
        ) from error
    return text


def _encode(tokenizer: Any, text: str) -> list[int]:
    # The template has written the special tokens, BOS included.
    ids: list[int] = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    return ids
