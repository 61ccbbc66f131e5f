"""Small tokenizers of the kinds that Gemma and Phi-3 have, trained here: the real ones come from a hub.

Each is written twice, as a release has it: tokenizer.model of SentencePiece, which llama.cpp's converter reads, and
tokenizer.json as transformers makes it of the former. What the real ones have is kept: Gemma's runs of white space as
added tokens and its merges in the order of transformers' converter; Phi-3's added tokens that swallow white space.
"""

import io
import json
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers.convert_slow_tokenizer import generate_merges

from tiny_models import TEXTS

SPACE = "\u2581"
# As Gemma 2's tokenizer_config.json has it.
GEMMA2_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
# Gemma 3's, which puts a system text before the first question; its branch for images is left out.
GEMMA3_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""
PHI3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
    "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_GEMMA_WORDS = ["<mask>", "[multimodal]", "<unused0>", "<start_of_turn>", "<end_of_turn>"]
_RUNS = [sign * count for sign in ("\n", SPACE, "\t") for count in range(1, 9) if sign * count != SPACE]
_GEMMA_TAGS = ["<table>", "</table>", "<code>", "</code>"]
_GEMMA_SPECIAL = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"}
_PHI3_ADDED = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"]
GEMMA_TOKENS, PHI3_TOKENS = 620, 560


def write_gemma_tokenizer(folder: Path, template: str = GEMMA2_TEMPLATE) -> Path:
    """A tokenizer of Gemma's kind into a checkpoint folder: no space is put before a text, runs are one token."""
    added = ["<pad>", "<eos>", "<bos>", "<unk>", *_GEMMA_WORDS, *_RUNS, *_GEMMA_TAGS]
    pieces = _trained(
        folder,
        vocab_size=GEMMA_TOKENS,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=added[4:],
    )
    flags = {text: {"special": text in _GEMMA_SPECIAL} for text in added}
    tokenizer = {
        **_tokenizer(pieces, flags, "<bos>"),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False
        },
    }  # fmt: skip
    _write(folder, tokenizer, "GemmaTokenizer", template, bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>")
    return folder


def write_phi3_tokenizer(folder: Path) -> Path:
    """A tokenizer of Phi-3's kind: a space before every text, and added tokens that swallow white space behind them."""
    pieces = _trained(folder, vocab_size=PHI3_TOKENS - len(_PHI3_ADDED), unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    flags = {
        "<unk>": {"special": True},
        "<s>": {"special": True},
        "</s>": {"special": False, "rstrip": True},
        **{text: {"special": True, "rstrip": text != "<|endoftext|>"} for text in _PHI3_ADDED},
    }
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    tokenizer = {
        **_tokenizer(pieces, flags, None),
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
    }
    _write(
        folder, tokenizer, "LlamaTokenizer", PHI3_TEMPLATE,
        bos="<s>", eos="<|endoftext|>", unk="<unk>", pad="<|endoftext|>",
    )  # fmt: skip
    return folder


def _trained(folder: Path, **settings: object) -> SentencePieceProcessor:
    trained = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS for _ in range(3)]),
        model_writer=trained,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
        hard_vocab_limit=True,
        **settings,
    )
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    return SentencePieceProcessor(model_proto=trained.getvalue())


def _tokenizer(pieces: SentencePieceProcessor, flags: dict[str, dict[str, bool]], bos: str | None) -> dict[str, object]:
    """tokenizer.json but for how text is split, as transformers' converter of SentencePiece models makes it."""
    ids = range(pieces.vocab_size())
    vocab = {pieces.id_to_piece(number): number for number in ids}
    scores = {pieces.id_to_piece(n): pieces.get_score(n) for n in ids if not pieces.is_control(n)}
    merges = [list(pair) for pair in generate_merges(vocab, scores)]
    for text in flags:
        vocab.setdefault(text, len(vocab))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    text_part = {"Sequence": {"id": "A", "type_id": 0}}
    head = [{"SpecialToken": {"id": bos, "type_id": 0}}] if bos else []
    return {
        "version": "1.0",
        "added_tokens": sorted(
            ({"id": vocab[text], "content": text, **plain, **said} for text, said in flags.items()),
            key=lambda entry: entry["id"],
        ),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*head, text_part],
            "pair": [*head, text_part, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocab[bos]], "tokens": [bos]}} if bos else {},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": {text: number for text, number in vocab.items() if number in ids}, "merges": merges,
        },
    }  # fmt: skip


def _write(folder: Path, tokenizer: dict, tokenizer_class: str, template: str, **special: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": tokenizer_class == "GemmaTokenizer",
        "add_eos_token": False,
        "legacy": False,
        **{f"{kind}_token": text for kind, text in special.items()},
        "added_tokens_decoder": {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
            for entry in tokenizer["added_tokens"]
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
