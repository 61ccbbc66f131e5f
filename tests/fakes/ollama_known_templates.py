"""Ollama's guess at a TEMPLATE from a GGUF's chat template, where none is given: the nearest known one.

The real one knows 37 and compares by edit distance; here are three, in our own words. So a guess here is a guess
there, but not always the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_FARTHEST = 100  # edits; Ollama's own limit


@dataclass(frozen=True)
class KnownTemplate:
    name: str
    chat_template: str
    template: str
    stops: tuple[str, ...]


_KNOWN = (
    KnownTemplate(
        "chatml",
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
        "+ '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
    KnownTemplate(
        "phi-3",
        "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\\n' + message['content'] + "
        "'<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
        "{{- range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n",
        ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    ),
    KnownTemplate(
        "mistral-instruct",
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}",
        '{{- range .Messages }}{{ if eq .Role "user" }}[INST] {{ .Content }}[/INST] '
        '{{ else if eq .Role "assistant" }}{{ .Content }}</s>{{ end }}{{ end }}',
        ("[INST]", "[/INST]"),
    ),
)


@lru_cache
def guess(chat_template: str) -> KnownTemplate | None:
    """The known template whose chat template is nearest, None where all are too far."""
    nearest = min(_KNOWN, key=lambda known: _distance(chat_template, known.chat_template))
    return nearest if _distance(chat_template, nearest.chat_template) < _FARTHEST else None


def _distance(left: str, right: str) -> int:
    """The edit distance of two texts, or _FARTHEST where it is no less."""
    if abs(len(left) - len(right)) >= _FARTHEST:
        return _FARTHEST
    row = list(range(len(right) + 1))
    for place, character in enumerate(left, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(right, start=1):
            steps = row[column] + 1, row[column - 1] + 1, diagonal + (character != other)
            diagonal, row[column] = row[column], min(steps)
        if min(row) >= _FARTHEST:
            return _FARTHEST
    return min(row[-1], _FARTHEST)
