"""A checkpoint's chat template: found, rendered as transformers renders it, and made plain for a GGUF.

An Ollama server prefers the template inside a GGUF to the Modelfile's where the former speaks of
tools or thinking. So such a template is replaced by a plain one, and only where both render the
same conversations to the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from po_distill.errors import MissingExtraError, WeightsError
from po_distill.weights.checkpoint import read_json

Conversation = Sequence[dict[str, str]]
_SPEAKS_OF_TOOLS = re.compile(r"tool|think|reasoning|available_functions", re.IGNORECASE)

_SYSTEM = {"role": "system", "content": "Be brief."}
_ASKED = {"role": "user", "content": "What is it?"}
_ANSWERED = {"role": "assistant", "content": "It is a vision."}
PROBES: tuple[tuple[dict[str, str], ...], ...] = (
    (_ASKED,),
    (_SYSTEM, _ASKED),
    (_ASKED, _ANSWERED, _ASKED),
    (_SYSTEM, _ASKED, _ANSWERED, _ASKED),
)
_TRIMMED_PROBE = (_ASKED, {"role": "assistant", "content": " It is a vision.\n"}, _ASKED)

_CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{- SYSTEM_TURN }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

_MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\\n\\n' %}
{%- set turns = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{{- bos_token }}
{%- for message in turns %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + (system if loop.last else '') + message['content'] + '[/INST]' }}
{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}
{%- endfor %}"""

_GEMMA = """\
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\\n\\n' %}
{%- set turns = messages[1:] %}
{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}
{{- bos_token }}
{%- for message in turns %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{{- (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

_PHI3 = """\
{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""

_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""


@dataclass(frozen=True)
class KnownForm:
    """A well-known form of chat that a template was found to render."""

    name: Literal["chatml", "mistral", "gemma", "phi3", "phi4", "llama3"]
    default_system: str | None  # the system text where a conversation has none; None for no system turn
    template: str  # plain Jinja that renders it


def read_chat_template(folder: Path) -> str:
    """The chat template of a checkpoint folder, as transformers finds it. Raises WeightsError where there is none."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(found, list):
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        if isinstance(found, str) and found:
            return found
    raise WeightsError(
        f"{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json).",
        "Take the instruct version of the model, or put its chat template into the folder.",
    )


def render(template: str, messages: Conversation, *, bos: str, eos: str, add_generation_prompt: bool = True) -> str:
    """A conversation as transformers' apply_chat_template renders it to text. Raises jinja2.TemplateError."""
    text: str = _compiled(template).render(
        messages=list(messages),
        bos_token=bos,
        eos_token=eos,
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
    )
    return text


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    """A template as transformers compiles it, kept as the same few are rendered again and again."""
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError("jinja2", "gguf", "Rendering a chat template") from error

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda pattern: "1 January 2026"
    return environment.from_string(template)


def known_form(template: str, *, bos: str, eos: str) -> KnownForm | None:
    """The well-known form that a template renders, proven on PROBES; None where it is none of them."""
    default = None
    plain = _outcome(template, PROBES[0], bos, eos)
    if match := re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n", plain or "", re.DOTALL):
        default = match[1]
    turn = "" if default is None else f"<|im_start|>system\n{default}<|im_end|>\n"
    forms = (
        KnownForm("chatml", default, _CHATML.replace("SYSTEM_TURN", _quoted(turn))),
        KnownForm("mistral", None, _MISTRAL),
        KnownForm("mistral", None, _MISTRAL.replace("message['content'] + eos", "message['content'] | trim + eos")),
        KnownForm("gemma", None, _GEMMA),
        KnownForm("phi3", None, _PHI3),
        KnownForm("phi4", None, _PHI3.replace("\\n", "")),
        KnownForm("llama3", None, _LLAMA3),
    )
    for probes in ((*PROBES, _TRIMMED_PROBE), PROBES):  # the nearest form, else one that renders prompts alike
        for form in forms:
            if renders_alike(template, form.template, bos=bos, eos=eos, probes=probes):
                return form
    return None


def renders_alike(one: str, other: str, *, bos: str, eos: str, probes: Sequence[Conversation] = PROBES) -> bool:
    """Whether `other` renders every probe that `one` accepts to the same text, and there is such a probe."""
    accepted = [(probe, text) for probe in probes if (text := _outcome(one, probe, bos, eos)) is not None]
    return bool(accepted) and all(_outcome(other, probe, bos, eos) == text for probe, text in accepted)


def plain_template(template: str, *, bos: str, eos: str) -> tuple[str, str | None]:
    """(the template for a GGUF, a note where it still speaks of tools or thinking)."""
    if not _SPEAKS_OF_TOOLS.search(template):
        return template, None
    form = known_form(template, bos=bos, eos=eos)
    if form is not None:
        return form.template, None
    return template, (
        "The chat template speaks of tools or thinking and has no plain equivalent that is known here; "
        "an Ollama server may prefer it to the Modelfile's TEMPLATE."
    )


def _outcome(template: str, probe: Conversation, bos: str, eos: str) -> str | None:
    """The rendered probe, with its generation prompt; None where the template refuses it."""
    try:
        return render(template, probe, bos=bos, eos=eos)
    except MissingExtraError:
        raise
    except Exception:  # a template may fail in any way that Python can
        return None


def _quoted(text: str) -> str:
    """Text as a Jinja string literal."""
    escaped: Any = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
