"""A GGUF that llama.cpp really runs and that always says the same: its next token depends on the last one only.

One layer whose attention and feed-forward are zeros, one direction of the hidden state per token, and an output
matrix that leads from each piece of the script to the next, then to the end. Any other token leads to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_NORMAL, _CONTROL = 1, 3


def write_scripted_gguf(
    path: Path,
    pieces: Sequence[str],
    *,
    chat_template: str | None = CHATML,
    context_tokens: int = 512,
    file_type: int = 1,
    name: str = "scripted",
) -> Path:
    """Write the model. Pieces are its tokens, so no two may be alike; after the last it says <|im_end|>, its end.

    `file_type` is only what the file says of itself (1 is F16): the weights are float32.
    """
    import gguf
    import numpy as np

    if len(set(pieces)) != len(pieces) or any(not piece or len(piece) == 1 for piece in pieces):
        raise ValueError("pieces have two characters or more, and no two are alike")
    visible = _visible_bytes()
    texts = [*visible.values(), visible[ord("a")] + visible[ord("b")], *SPECIALS]
    first, end = len(texts), texts.index("<|im_end|>")
    texts += ["".join(visible[byte] for byte in piece.encode()) for piece in pieces]
    width = -(-len(texts) // 64) * 64
    output = np.zeros((len(texts), width), dtype=np.float32)
    output[first] = 1.0  # whatever came before
    for place in range(len(pieces)):
        output[first, first + place] = 0.0
        output[first + place + 1 if place + 1 < len(pieces) else end, first + place] = 1.0

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(context_tokens)
    _add_shape(writer, width, len(texts))
    _add_tokenizer(writer, texts, end)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    shapes = {"attn_q": (64, width), "attn_k": (64, width), "attn_v": (64, width), "attn_output": (width, 64),
              "ffn_gate": (64, width), "ffn_up": (64, width), "ffn_down": (width, 64)}  # fmt: skip
    writer.add_tensor("token_embd.weight", np.eye(len(texts), width, dtype=np.float32))
    for tensor, shape in shapes.items():
        writer.add_tensor(f"blk.0.{tensor}.weight", np.zeros(shape, dtype=np.float32))
    for norm in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{norm}.weight", np.ones(width, dtype=np.float32))
    writer.add_tensor("output.weight", output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: Any, width: int, tokens: int) -> None:
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(64)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_vocab_size(tokens)


def _add_tokenizer(writer: Any, texts: list[str], end: int) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types([_CONTROL if text in SPECIALS else _NORMAL for text in texts])
    writer.add_token_merges(["a b"])  # llama.cpp wants one
    writer.add_bos_token_id(texts.index("<|endoftext|>"))
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def _visible_bytes() -> dict[int, str]:
    """Each byte as the character that GPT-2's vocabulary has for it."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    moved = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return {byte: moved.get(byte, chr(byte)) for byte in range(256)}
