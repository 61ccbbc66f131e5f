"""Ollama's TEMPLATE of each family beside the chat template that training used: the same text, and the same tokens."""

from __future__ import annotations

import json
import random
import shutil
import unicodedata

import pytest

pytest.importorskip("xllamacpp")
from test_chat_template import QWEN
from transformers import AutoTokenizer

from fakes.ollama_prompt import PromptTemplate, Turn
from po_distill.base_models import MISTRAL_7B_INSTRUCT, QWEN2_5_7B_INSTRUCT, SMOLLM2_135M_INSTRUCT
from po_distill.package_proof import training_prompt
from po_distill.records import ChatForm
from po_distill.stages.packager import ollama_template
from po_distill.weights.chat_template import known_form, render
from po_distill.weights.checkpoint import TOKENIZER_FILES, locate, read_config
from po_distill.weights.gguf import write_gguf
from po_distill.weights.gguf_tokenizer import read_tokenizer
from runtime import Runtime
from tiny_models import (
    CHATML,
    MISTRAL_TEMPLATE,
    TEXTS,
    byte_level_tokenizer,
    tiny_family,
    tiny_mistral,
    tiny_model,
)
from tiny_sentencepiece import (
    GEMMA3_TEMPLATE,
    GEMMA_TOKENS,
    PHI3_TEMPLATE,
    PHI3_TOKENS,
    write_gemma_tokenizer,
    write_phi3_tokenizer,
)

CONVERSATIONS = 500
# The real one (v0.3) takes the white space around earlier answers away.
MISTRAL = MISTRAL_TEMPLATE.replace("' ' + message['content'] + eos", "' ' + message['content'] | trim + eos")
PIECES = [
    *TEXTS,
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>assistant\n", "<s>", "</s>", "[INST]", "[/INST]"),
    *("{{ .System }}", "{{- range .Messages }}", "{% raw %}", "{# no #}", '"""', "\\n", "$x", "FROM /etc/passwd"),
    *("\n", "\n\n", "  ", "\t", " ", "\r\n", "\u00a0", "\u200b", "\u2028", "'", '"', "a", "Act as senior PO.", "0123"),
]


def smollm2(folder):
    """A tiny model with SmolLM2's own tokenizer and chat template."""
    own = locate("smollm2-135m-instruct").path
    tiny_model(folder, vocab_size=read_config(own)["vocab_size"])
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
        if (own / name).exists():
            shutil.copy(own / name, folder / name)
    return folder


def with_template(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    return folder


# As Llama 3's tokenizer_config.json has it.
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI4 = PHI3_TEMPLATE.replace("\n", "")


def llama3(folder):
    """A tiny model with a tokenizer of Llama 3's kind: byte-level, with headers, BOS put before each text."""
    tokenizer = byte_level_tokenizer("llama-bpe")
    tokenizer.add_special_tokens(LLAMA3_TOKENS)
    bos = {"SpecialToken": {"id": LLAMA3_TOKENS[0], "type_id": 0}}
    tiny_model(folder, vocab_size=tokenizer.get_vocab_size())
    written = json.loads(tokenizer.to_str())
    written["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            LLAMA3_TOKENS[0]: {
                "id": LLAMA3_TOKENS[0],
                "ids": [tokenizer.token_to_id(LLAMA3_TOKENS[0])],
                "tokens": LLAMA3_TOKENS[:1],
            }
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(written))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA3_TOKENS[0], "eos_token": "<|eot_id|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return with_template(folder, LLAMA3)


FAMILIES = {
    "mistral": lambda folder: with_template(tiny_mistral(folder), MISTRAL),
    "qwen2": lambda folder: with_template(tiny_model(folder, "qwen2", "qwen2"), QWEN),
    "chatml_without_default": lambda folder: with_template(tiny_model(folder), CHATML),
    "smollm2": smollm2,
    "gemma2": lambda folder: write_gemma_tokenizer(tiny_family(folder, "gemma2", vocab_size=GEMMA_TOKENS)),
    "gemma3": lambda folder: write_gemma_tokenizer(
        tiny_family(folder, "gemma3", vocab_size=GEMMA_TOKENS), GEMMA3_TEMPLATE
    ),
    "phi3": lambda folder: write_phi3_tokenizer(tiny_family(folder, "phi3", vocab_size=PHI3_TOKENS)),
    "phi4": lambda folder: with_template(tiny_family(folder, "phi3", "gpt-4o"), PHI4),
    "llama3": llama3,
}
BEGIN_WITH_BOS = {"mistral", "gemma2", "gemma3", "llama3"}
TRIM_ANSWERS, TRIM_ALL = {"mistral"}, {"gemma2", "gemma3", "llama3"}  # which Ollama's templates cannot
REGISTERED = {
    "mistral": MISTRAL_7B_INSTRUCT,
    "qwen2": QWEN2_5_7B_INSTRUCT,
    "smollm2": SMOLLM2_135M_INSTRUCT,
}


def conversations(family):
    """Random ones, the same each time: with a system text, with an empty one, without; one to four questions."""
    rng = random.Random(f"parity of {family}")  # a text seeds the same everywhere

    def text(speaker):
        said = "".join(rng.choice(PIECES) for _ in range(rng.choice((1, 2, 4, 9))))
        said = unicodedata.normalize("NFC", said)
        if family == "phi3":  # behind its special tokens llama.cpp swallows ASCII white space only, as the GGUF notes
            said = said.replace("\u00a0", "").replace("\u2028", "")
        is_trimmed = family in TRIM_ALL and (speaker != "system" or family == "llama3")
        return said.strip() if is_trimmed or (family in TRIM_ANSWERS and speaker == "assistant") else said

    for _ in range(CONVERSATIONS):
        opening = rng.choice(([], [("system", text("system"))], [("system", "")]))
        opening = [] if family == "gemma2" else opening  # its template refuses a system text
        turns = [(speaker, text(speaker)) for _ in range(rng.randrange(4)) for speaker in ("user", "assistant")]
        yield [{"role": speaker, "content": content} for speaker, content in [*opening, *turns, ("user", text("user"))]]


def as_ollama(template, chat):
    return template.render([Turn(turn["role"], turn["content"]) for turn in chat])


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    return request.param, FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / "model")


def test_five_hundred_conversations_are_the_same_tokens_to_training_and_to_ollama(family, tmp_path):
    name, folder = family
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = PromptTemplate(ollama_template(folder, None))
    seen, kinds = 0, set()
    with Runtime(tmp_path / "m.gguf", n_ctx=64) as runtime:
        for chat in conversations(name):
            trained = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
            assert runtime.tokenize(as_ollama(template, chat)) == trained, chat
            seen += 1
            kinds.add((chat[0]["role"], len(chat)))
    assert (seen, len(kinds)) == (CONVERSATIONS, 4 if name == "gemma2" else 8)


def test_five_hundred_conversations_are_the_same_text_but_for_the_bos_that_the_runtime_adds(family):
    name, folder = family
    read = read_tokenizer(folder, read_config(folder))
    tokens = {kind: read.tokens[number] for kind, number in read.ids.items()}
    text = (folder / "chat_template.jinja").read_text()
    form = ChatForm(template=text, bos=tokens["bos"], eos=tokens["eos"], runtime_adds_bos=read.add_bos)
    template = PromptTemplate(ollama_template(folder, None))
    for chat in conversations(name):
        assert as_ollama(template, chat) == training_prompt(form, chat)
    assert read.add_bos == (name in BEGIN_WITH_BOS)


def test_the_plain_template_that_a_gguf_gets_renders_them_too(family):
    name, folder = family
    text = (folder / "chat_template.jinja").read_text()
    form = known_form(text, bos="<s>", eos="</s>")
    for chat in conversations(name):
        assert render(form.template, chat, bos="<s>", eos="</s>") == render(text, chat, bos="<s>", eos="</s>")


@pytest.mark.parametrize("name", list(REGISTERED))
def test_the_registered_template_of_a_family_is_the_one_that_was_compared(name, tmp_path):
    assert ollama_template(FAMILIES[name](tmp_path / "model"), None) == REGISTERED[name].ollama_template


def test_white_space_around_an_earlier_answer_is_all_in_which_mistrals_templates_differ(tmp_path):
    # Ollama's templates cannot trim. A role's prompts hold no earlier answer.
    template = PromptTemplate(MISTRAL_7B_INSTRUCT.ollama_template)
    chat = [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": " b\n"},
        {"role": "user", "content": "c"},
    ]
    assert as_ollama(template, chat) == "[INST]  a [/INST]  b\n</s>[INST] c[/INST]"
    assert render(MISTRAL, chat, bos="", eos="</s>") == "[INST]  a [/INST] b</s>[INST] c[/INST]"


def test_a_default_system_text_that_looks_like_a_template_is_written_as_it_stands(tmp_path):
    default = 'Say {{ .System }} and "{" in {{- this }} or {'
    text = CHATML.replace(
        "{% for",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + "{{ D }}<|im_end|>\n{% endif %}{% for",
    ).replace("{{ D }}", "{% raw %}" + default + "{% endraw %}")
    folder = with_template(tiny_model(tmp_path / "model"), text)
    template = PromptTemplate(ollama_template(folder, None))
    asked = {"role": "user", "content": "y"}
    for chat in ([asked], [{"role": "system", "content": default}, asked]):
        assert as_ollama(template, chat) == render(text, chat, bos="", eos="")
        assert default in as_ollama(template, chat)
