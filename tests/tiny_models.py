"""Checkpoint folders of tiny random models, with real tokenizers, for tests of the weights."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
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
    "Größe, naïve, 東京タワー, привет мир, \U0001f680\U0001f468\u200d\U0001f469, e\u0301 and \u00e9; x = [1, 22, 333]",
    '```yaml\nproduct_vision:\n  name: "Wer\'s glaubt"\n  users: ["a", "b"]\n```',
]
_SPLITS = {
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "qwen2": lambda: [
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
    "gpt-2": lambda: [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def byte_level_tokenizer(split: str) -> Tokenizer:
    """A byte-level BPE tokenizer trained on TEXTS, with the three special tokens of ChatML."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[split]())
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
