"""Weight files made byte by byte, and the ways in which they are broken."""

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile_gguf import HUGE, mutated_gguf, other_bytes

ODD_NAMES = ("", "\x00", "\x1b[2J", "a\nb", "\u202e", "..", "/", "é" * 40, "x" * 70_000, "__metadata__", "\ud800", "*")
ODD_VALUES = (
    *(None, True, False, -1, 0, 1.5, -0.0, 10**25, 10**400, float("nan"), float("inf"), "", "x", [], {}, [[]], [None]),
    *({"a": {"b": []}}, ["q_proj", 1], 2**53, *HUGE),
)
DTYPES = (
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "U16", "U64", "F64", "F16", "I8", "BOOL"),
    *("f32", "F128", "", None, 3, ["F32"]),
)


# --- safetensors ----------------------------------------------------------------------------------


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    """A safetensors file; `header` is bytes, or what becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def good_header(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], bytes]:
    """A header for float32 tensors, and their bytes, each value another one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values: list[float] = []
    for name, shape in shapes.items():
        count = 1
        for number in shape:
            count *= number
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [4 * len(values), 4 * len(values) + 4 * count],
        }
        values += [0.25 + len(values) + number for number in range(count)]
    return header, struct.pack(f"<{len(values)}f", *values)


def mutated_safetensors(chance: random.Random, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A broken file of these tensors, or one that is only odd."""
    header, data = good_header(shapes)
    name = chance.choice(list(shapes))
    entry = header[name]
    kind = chance.randrange(14)
    if kind == 0:
        entry["dtype"] = chance.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = chance.choice(
            (
                [],
                [0],
                [-1, 4],
                [2**62, 2],
                [2**32, 2**32],
                [0, 2**62, 4],
                [1] * 40,
                [2.0],
                [True, 8],
                "4",
                None,
                4,
                [None],
            )
        )
    elif kind == 2:
        entry["data_offsets"] = chance.choice(
            (
                [0, 4],
                [4, 0],
                [-4, 0],
                [0],
                [0, 4, 8],
                [0, 2**64],
                [0, 10**30],
                [0.0, 4.0],
                {"0": 4},
                None,
                "04",
                [0, "4"],
            )
        )
    elif kind == 3:
        begin, end = entry["data_offsets"]
        moved = chance.choice((-8, -4, 4, 8, 64))
        entry["data_offsets"] = [max(0, begin + moved), end + moved]
    elif kind == 4:
        entry[chance.choice(("dtype", "shape", "data_offsets", "extra"))] = chance.choice(ODD_VALUES)
    elif kind == 5:
        entry.pop(chance.choice(list(entry)))
    elif kind == 6:
        header[chance.choice(ODD_NAMES)] = header.pop(name)
    elif kind == 7:
        header[chance.choice((name, "__metadata__", "new"))] = chance.choice(ODD_VALUES)
    elif kind == 8:
        header = _twice(chance, header)
    elif kind == 9:
        data = chance.choice((data + b"\0", data + b"\0" * 64, data[:-1], data[:-4], b""))
    elif kind == 10:
        header = {key: header[key] for key in chance.sample(list(header), len(header))}
    elif kind == 11:
        # A tensor without values is sound wherever it stands between two others.
        place = chance.choice((0, 4, len(data), len(data) + 4))
        header["empty"] = {
            "dtype": "F32",
            "shape": chance.choice(([0], [3, 0], [0, 0])),
            "data_offsets": [place, place],
        }
    elif kind == 12:
        return _other_head(chance, safetensors_bytes(header, data))
    else:
        return other_bytes(chance, safetensors_bytes(header, data))
    return safetensors_bytes(header, data)


def _twice(chance: random.Random, header: dict[str, Any]) -> bytes:
    """A header's JSON with a key that stands twice, or that is no JSON as others read it."""
    text = json.dumps(header)
    name = chance.choice(list(header))
    return chance.choice(
        (
            f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}",
            text.replace('"dtype"', '"dtype": "F16", "dtype"', 1),
            text.replace("[", "[" * 5_000, 1),
            text.replace("0", "-0", 1),
            text.replace("0", "0e0", 1),
            f"\ufeff{text}",
            f" {text}",
            f"{text}\n\n",
            f"{text}x",
            text.replace('"F32"', "NaN", 1),
            text.replace('"format"', '"\\ud83d"', 1),
            text.replace('"pt"', "1", 1),
            text.replace('{"format": "pt"}', "null", 1),
            "[" * 100_000,
            '{"a":' * 100_000,
        )
    ).encode()


def _other_head(chance: random.Random, whole: bytes) -> bytes:
    """Another length of the header."""
    length = chance.choice((0, 1, 7, len(whole), len(whole) - 8, len(whole) - 7, 99_999_999, 100_000_001, *HUGE))
    return struct.pack("<Q", length) + whole[8:]


# --- folders --------------------------------------------------------------------------------------

BASE_SHAPES = {"model.embed_tokens.weight": (6, 4), "lm_head.weight": (6, 4)} | {
    f"model.layers.{layer}.self_attn.{part}_proj.weight": (4, 4) for layer in range(2) for part in "qv"
}
ADAPTER_SHAPES = {
    f"base_model.model.{name.removesuffix('.weight')}.lora_{half}.weight": shape
    for name in BASE_SHAPES
    if "self_attn" in name
    for half, shape in (("A", (2, 4)), ("B", (4, 2)))
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 8},
    "modules_to_save": None,
    "bias": "none",
}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    "added_tokens": [],
    "pre_tokenizer": None,
}
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_PATTERNS = (
    *("(a+)+$", "(.*)*x", "(ab|ab)" * 30, ".*" * 30, "[", "(", "a{999999999999}", "(?<=a)b", "(" * 120 + ")" * 120),
    *("layers.0", r".*\.q_proj", "", "\x00", "q_proj", "^model.layers.1.self_attn.v_proj$", "q_proj|" * 900),
)


def write_base(folder: Path) -> None:
    """A checkpoint folder in two shards."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(BASE_SHAPES)
    for shard, part in zip(SHARDS, (names[:3], names[3:]), strict=True):
        (folder / shard).write_bytes(safetensors_bytes(*good_header({name: BASE_SHAPES[name] for name in part})))
    weight_map = {name: SHARDS[place >= 3] for place, name in enumerate(names)}
    _write_json(folder / INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})
    _write_json(folder / "config.json", CONFIG)
    _write_json(folder / "tokenizer.json", TOKENIZER)
    _write_json(folder / "tokenizer_config.json", {"chat_template": "{{ '[INST]' }}"})


def write_adapter(folder: Path) -> None:
    """An adapter folder that fits the base."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(*good_header(ADAPTER_SHAPES)))
    _write_json(folder / "adapter_config.json", ADAPTER_CONFIG)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def break_base(chance: random.Random, folder: Path) -> None:
    """Break one file of a checkpoint folder."""
    kind = chance.randrange(6)
    if kind == 0:
        index = json.loads((folder / INDEX).read_text())
        _break_index(chance, index)
        _write_json(folder / INDEX, index)
    elif kind == 1:
        shapes = {name: BASE_SHAPES[name] for name in list(BASE_SHAPES)[:3]}
        (folder / SHARDS[0]).write_bytes(mutated_safetensors(chance, shapes))
    elif kind == 2:
        (folder / chance.choice((*SHARDS, "config.json", "tokenizer.json"))).unlink()
    else:
        path = folder / chance.choice((INDEX, "config.json", "tokenizer.json", "tokenizer_config.json"))
        path.write_bytes(_other_json(chance, json.loads(path.read_text())))


def _break_index(chance: random.Random, index: dict[str, Any]) -> None:
    shards = index["weight_map"]
    name = chance.choice(list(shards))
    kind = chance.randrange(4)
    if kind == 0:
        shards[name] = chance.choice(
            (
                *("../model.safetensors", "/etc/passwd", "/etc/x.safetensors", "a/b.safetensors", "..", ".", ""),
                *(
                    "..\\x.safetensors",
                    "C:x.safetensors",
                    "C:\\x.safetensors",
                    "x.safetensors:stream",
                    "\x00.safetensors",
                ),
                *("x\x00.safetensors", "~/x.safetensors", "file:///x.safetensors", "x.bin", ".safetensors", "é" * 300),
                *(f"{'x' * 9_000}.safetensors", "\x1b[2J.safetensors", "//host/x.safetensors", SHARDS[0] + "/", " "),
                *("config.json", "MODEL-00001-of-00002.safetensors", *ODD_VALUES[:18]),
            )
        )
    elif kind == 1:
        shards[name] = SHARDS[shards[name] == SHARDS[0]]
    elif kind == 2:
        shards[chance.choice(ODD_NAMES)] = chance.choice(SHARDS)
    else:
        index["weight_map"] = chance.choice(ODD_VALUES)


def break_adapter(chance: random.Random, folder: Path) -> None:
    """Break one file of an adapter folder."""
    kind = chance.randrange(6)
    if kind in (0, 1):
        (folder / "adapter_model.safetensors").write_bytes(mutated_safetensors(chance, ADAPTER_SHAPES))
        return
    config = json.loads((folder / "adapter_config.json").read_text())
    if kind == 2:
        config[chance.choice(("rank_pattern", "alpha_pattern"))] = {
            chance.choice(_PATTERNS): chance.choice((2, 2, 2, *ODD_VALUES)) for _ in range(chance.choice((1, 1, 5)))
        }
    elif kind in (3, 4):
        field_name = chance.choice((*config, "use_dora", "lora_dropout", "a_field_of_the_future", "\x1b[2J"))
        config[field_name] = chance.choice(ODD_VALUES)
    else:
        (folder / "adapter_config.json").write_bytes(_other_json(chance, config))
        return
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _other_json(chance: random.Random, value: dict[str, Any]) -> bytes:
    """A JSON file that is broken, or that says something else."""
    whole = json.dumps(value)
    kind = chance.randrange(4)
    if kind == 0:
        return other_bytes(chance, whole.encode())
    if kind == 1:
        value[chance.choice(list(value))] = chance.choice(ODD_VALUES)
        return json.dumps(value).encode()
    name = json.dumps(chance.choice(list(value)))
    return chance.choice(
        (
            f"{whole[:-1]}, {name}: 1}}".encode(),
            f'{whole[:-1]}, "deep": {"[" * 99_000}'.encode(),
            f'{whole[:-1]}, "deep": {"[" * 300}{"]" * 300}}}'.encode(),
            f'{whole[:-1]}, "large": 1e999}}'.encode(),
            f'{whole[:-1]}, "large": {"9" * 5_000}}}'.encode(),
            f'{whole[:-1]}, "half": "\\ud83d"}}'.encode(),
            f'{whole[:-1]}, "whole": "\\ud83d\\ude80"}}'.encode(),
            whole.encode("utf-16"),
            f"\ufeff{whole}".encode(),
            b"",
            b"[]",
            b"null",
            b"\xff\xfe",
        )
    )


# --- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """One broken file or folder; `path` is what a reader is given."""

    kind: str  # safetensors, gguf, checkpoint, adapter
    path: Path


def mutations(count: int, folder: Path, seed: int = 1) -> Iterator[Mutation]:
    """So many broken files and folders, the same ones each time, each written anew below `folder`."""
    chance = random.Random(seed)
    shapes = {"a": (4,), "b": (2, 3), "c": (2, 2, 2)}
    makers: dict[str, Callable[[Path], None]] = {
        "safetensors": lambda path: _replace(path, mutated_safetensors(chance, shapes)),
        "gguf": lambda path: _replace(path, mutated_gguf(chance)),
        "checkpoint": lambda path: (_clear(path), write_base(path), break_base(chance, path))[0],
        "adapter": lambda path: (_clear(path), write_adapter(path), break_adapter(chance, path))[0],
    }
    paths = {
        "safetensors": folder / "w.safetensors",
        "gguf": folder / "w.gguf",
        "checkpoint": folder / "base",
        "adapter": folder / "adapter",
    }
    for kind in chance.choices(list(makers), (6, 6, 4, 5), k=count):
        makers[kind](paths[kind])
        yield Mutation(kind, paths[kind])


def _replace(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _clear(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink()
