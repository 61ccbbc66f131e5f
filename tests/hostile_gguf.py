"""GGUF files made byte by byte, and the ways in which they are broken."""

import random
import struct
from dataclasses import dataclass, replace

HUGE = (2**31, 2**32 - 1, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def other_bytes(chance: random.Random, whole: bytes, most: int = 2_000) -> bytes:
    """A file that is cut, or that has other bits in its first part, where the head is."""
    if chance.random() < 0.35:
        return whole[: chance.randrange(len(whole))]
    changed = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = chance.randrange(min(most, len(changed)))
        changed[place] ^= 1 << chance.randrange(8) if chance.random() < 0.7 else chance.randrange(1, 256)
    return bytes(changed)


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string of a GGUF, with another length where one is given."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def array(kind: int, items: list[bytes], count: int | None = None) -> bytes:
    return struct.pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


@dataclass(frozen=True)
class GGUFBytes:
    """A GGUF in parts that can be changed one by one; `bytes(file)` puts them together."""

    keys: tuple[tuple[bytes, int, bytes], ...]  # key, type, value
    tensors: tuple[tuple[bytes, tuple[int, ...], int, int], ...]  # name, dimensions, type, offset
    data: bytes
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32

    def __bytes__(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.keys) if self.key_count is None else self.key_count,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        head += b"".join(key + struct.pack("<I", kind) + value for key, kind, value in self.keys)
        for name, dimensions, kind, offset in self.tensors:
            head += name + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
        return head + b"\0" * (-len(head) % self.alignment) + self.data


def good_gguf() -> GGUFBytes:
    """A small GGUF with a value of every type, and tensors of three."""
    tokens = [text(f"t{number}") for number in range(100)]
    keys = (
        (text("general.architecture"), 8, text("llama")),
        (text("general.alignment"), 4, struct.pack("<I", 32)),
        (text("llama.block_count"), 4, struct.pack("<I", 1)),
        (text("llama.rope.freq_base"), 6, struct.pack("<f", 1e4)),
        (text("a.u8"), 0, b"\x07"),
        (text("a.i8"), 1, b"\xff"),
        (text("a.u16"), 2, struct.pack("<H", 65535)),
        (text("a.i16"), 3, struct.pack("<h", -2)),
        (text("a.i32"), 5, struct.pack("<i", -3)),
        (text("a.bool"), 7, b"\x01"),
        (text("a.u64"), 10, struct.pack("<Q", 2**64 - 1)),
        (text("a.i64"), 11, struct.pack("<q", -(2**63))),
        (text("a.f64"), 12, struct.pack("<d", 0.5)),
        (text("tokenizer.ggml.model"), 8, text("gpt2")),
        (text("tokenizer.ggml.tokens"), 9, array(8, tokens)),
        (text("tokenizer.ggml.token_type"), 9, array(5, [struct.pack("<i", 1)] * 100)),
        (text("tokenizer.chat_template"), 8, text("{{ '<|im_start|>' }}")),
        (text("po_distill.package"), 8, text("po-student-v1")),
    )
    tensors = (
        (text("token_embd.weight"), (64, 4), 2, 0),  # Q4_0: 8 blocks of 18 bytes, 144
        (text("blk.0.attn_q.weight"), (64, 2), 1, 160),  # F16: 256
        (text("output_norm.weight"), (64,), 0, 416),  # F32: 256
    )
    return GGUFBytes(keys, tensors, bytes(range(168)) * 4)


def mutated_gguf(chance: random.Random) -> bytes:
    """A broken GGUF, or one that is only odd."""
    good = good_gguf()
    kind = chance.randrange(12)
    if kind == 0:
        return bytes(replace(good, tensor_count=chance.choice((0, 1, 4, 100, *HUGE))))
    if kind == 1:
        return bytes(replace(good, key_count=chance.choice((0, 1, 17, 19, 10_000, *HUGE))))
    if kind == 2:
        version = chance.choice((0, 1, 2, 4, 0x03000000, 2**32 - 1))
        return bytes(replace(good, version=version, magic=chance.choice((b"GGUF", b"GGUF", b"FUGG", b"GGML"))))
    if kind in (3, 4, 5):
        return bytes(replace(good, keys=_other_keys(chance, good)))
    if kind in (6, 7, 8):
        return bytes(replace(good, tensors=_other_tensors(chance, good)))
    if kind == 9:
        return bytes(replace(good, data=chance.choice((b"", good.data[:600], good.data[:-1], good.data + b"\0" * 999))))
    if kind == 10:
        aligned = chance.choice((0, 1, 2, 3, 4, 8, 16, 24, 33, 64, 2**31, 2**32 - 1))
        keys = [key for key in good.keys if key[0] != text("general.alignment")]
        kind_of_value, value = chance.choice(
            ((4, struct.pack("<I", aligned)), (10, struct.pack("<Q", aligned)), (6, b"\0" * 4))
        )
        keys.insert(0, (text("general.alignment"), kind_of_value, value))
        return bytes(replace(good, keys=tuple(keys), alignment=aligned if 0 < aligned < 100 else 32))
    return other_bytes(chance, bytes(good))


def _other_keys(chance: random.Random, good: GGUFBytes) -> tuple[tuple[bytes, int, bytes], ...]:
    keys = list(good.keys)
    place = chance.randrange(len(keys))
    key, kind, value = keys[place]
    change = chance.randrange(7)
    if change == 0:
        keys[place] = (key, chance.choice((*range(14), 255, 2**31, 2**32 - 1)), value)
    elif change == 1:
        keys.append(chance.choice(keys))
    elif change == 2:
        keys[place] = (text(b"k" * 9, chance.choice((0, 10, 70_000, *HUGE))), kind, value)
    elif change == 3:
        keys[place] = (text(chance.choice((b"\xff\xfe", b"", b"\x00", b"a\x1b[2J", "é".encode() * 99))), kind, value)
    elif change == 4:
        keys[place] = (key, 8, text(b"\xff\xfevalue", chance.choice((None, 0, 300, *HUGE))))
    elif change == 5:
        count = chance.choice((0, 1, 99, 101, 10_000, *HUGE))
        keys[place] = (key, 9, array(chance.choice((0, 5, 8, 9, 12, 13, 77)), [b"\0" * 8] * 9, count))
    else:
        nested = b""
        for _ in range(chance.choice((1, 3, 4, 5, 200, 3_000))):
            nested = array(9 if nested else 4, [nested or b"\0" * 4])
        keys[place] = (key, 9, nested)
    return tuple(keys)


def _other_tensors(chance: random.Random, good: GGUFBytes) -> tuple[tuple[bytes, tuple[int, ...], int, int], ...]:
    tensors = list(good.tensors)
    place = chance.randrange(len(tensors))
    name, dimensions, kind, offset = tensors[place]
    change = chance.randrange(7)
    if change == 0:
        kind = chance.choice((3, 4, 5, 8, 14, 31, 36, 39, 42, 99, 2**31, 2**32 - 1))
    elif change == 1:
        offset = chance.choice((0, 1, 16, 32, 96, 128, 160, 384, 448, 4096, *HUGE))
    elif change == 2:
        dimensions = chance.choice(
            (
                (),
                (0,),
                (64, 0),
                (63, 4),
                (64, 2**60),
                (2**32, 2**32),
                (2**64 - 1,),
                (64, 1, 1, 1),
                (64, 1, 1, 1, 1),
                (1,) * 99,
            )
        )
    elif change == 3:
        tensors.append(chance.choice(tensors))
    elif change == 4:
        name = text(b"n" * 9, chance.choice((0, 8, 10, 300, *HUGE)))
    elif change == 5:
        name = text(chance.choice((b"\xff", b"", b"a\x1b[2J\x00", b"n" * 300)))
    else:
        chance.shuffle(tensors)
        return tuple(tensors)
    tensors[place] = (name, dimensions, kind, offset)
    return tuple(tensors)
