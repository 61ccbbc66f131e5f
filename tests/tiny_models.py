"""Checkpoint folders of tiny random models, with real tokenizers, for tests of the weights."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "The product vision says what the product is for, and for whom: teams that plan, build and ship.",
    "Requirements: it's 2026, 100% of users don't read 3,500 pages.\n\n  - indented\n\t- tabbed   spaces",
    "Größe, naïve, 東京タワー, привет мир, \U0001f680\U0001f468\u200d\U0001f469 and \u00e9; x = [1, 22, 333]",
    '```yaml\nproduct_vision:\n  name: "Wer\'s glaubt"\n  users: ["a", "b"]\n```',
]
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

GPT4O_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _regex_split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return [pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level]


_SPLITS = {
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "qwen2": lambda: _regex_split(QWEN2_SPLIT),
    "llama-bpe": lambda: _regex_split(LLAMA3_SPLIT),
    "dbrx": lambda: _regex_split(LLAMA3_SPLIT),
    "tekken": lambda: _regex_split(TEKKEN_SPLIT),
    "gpt-4o": lambda: _regex_split(GPT4O_SPLIT),
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def byte_level_tokenizer(split: str) -> Tokenizer:
    """A byte-level BPE tokenizer trained on TEXTS, with the three special tokens of ChatML."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[split]())
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def tiny_model(
    folder: Path, model_type: str = "llama", split: str = "smollm", *, dtype: str = "float32", **changes: object
) -> Path:
    """A random model of 2 layers with grouped-query attention, saved with its tokenizer."""
    tokenizer = byte_level_tokenizer(split)
    torch.manual_seed(0)
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**settings, **changes}))
    for name, value in model.named_parameters():
        if name.endswith(("bias", "norm.weight", "layernorm.weight")):  # zeros and ones would hide a mistake
            torch.nn.init.normal_(value, mean=float(name.endswith("weight")), std=0.2)
        elif model_type.startswith("gemma") and "embed_tokens" in name:  # else each token is followed by itself
            value.data *= 0.2
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings_of_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_of_tokenizer))
    (folder / "chat_template.jinja").write_text(CHATML)
    return folder


# A model of each family that is written as GGUF, and of each setting that changes what is written:
# (transformers' model_type, settings). Windows are shorter than the tests' prompts, layers enough for each kind.
TINY_FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "llama_tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama3_rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama_yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "mistral": ("mistral", {"num_key_value_heads": 4, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3_tied": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 24,
            "num_hidden_layers": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 24,
            "num_hidden_layers": 7,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
            },
        },
    ),
    "phi3": ("phi3", {"num_key_value_heads": 2}),
    "phi3_partial": (
        "phi3",
        {
            "hidden_size": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
        },
    ),
    "phi3_longrope": (
        "phi3",
        {
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
                "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
                "original_max_position_embeddings": 256,
            },
        },
    ),
}


def tiny_family(folder: Path, name: str, split: str = "smollm", **changes: object) -> Path:
    """The tiny model of a row of TINY_FAMILIES."""
    model_type, settings = TINY_FAMILIES[name]
    return tiny_model(folder, model_type, split, **{**settings, **changes})


def tiny_adapter(base: Path, folder: Path, *, scale: float = 0.3, **settings: object) -> Path:
    """A peft LoRA adapter of random weights, as peft's save_pretrained writes it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(model, LoraConfig(**settings))
    for name, value in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(value, std=scale)
        elif "modules_to_save" in name:
            value.data += scale
    adapted.save_pretrained(folder)
    return folder


# As Mistral-7B-Instruct-v0.3 renders chats, with the branch for tools that llama.cpp and Ollama look for.
MISTRAL_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and loop.last %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are supported') }}
    {%- endif %}
{%- endfor %}
"""


def tiny_mistral(folder: Path, tokenizer_class: str = "LlamaTokenizer", **pre_tokenizer: object) -> Path:
    """A tiny random Mistral with the real tokenizer of Mistral-7B-Instruct-v0.3, out of mistral-common."""
    import mistral_common
    from sentencepiece import SentencePieceProcessor

    data = Path(mistral_common.__file__).parent / "data" / "mistral_instruct_tokenizer_240323.model.v3"
    pieces = SentencePieceProcessor(model_file=str(data))
    ids = range(pieces.vocab_size())
    tiny_model(folder, "mistral", vocab_size=len(ids), sliding_window=None)
    vocab = {pieces.id_to_piece(number): number for number in ids}
    special = [number for number in ids if pieces.is_control(number) or pieces.is_unknown(number)]
    whole = [n for n in ids if n not in set(special) and not pieces.is_byte(n) and len(pieces.id_to_piece(n)) > 1]
    merges = []
    for number in sorted(whole, key=lambda n: -pieces.get_score(n)):
        text = pieces.id_to_piece(number)
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        pairs = [pair for pair in pairs if pair[0] in vocab and pair[1] in vocab]
        merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": pieces.id_to_piece(number), **flags} for number in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False, **pre_tokenizer
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, text],
            "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "legacy": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(MISTRAL_TEMPLATE)
    return folder
