"""Which weight files a path stands for, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from po_distill.errors import InputError, WeightsError
from po_distill.progress import progress
from po_distill.records import InspectedFile
from po_distill.weights.adapter_config import CONFIG_NAME
from po_distill.weights.checkpoint import weight_files
from po_distill.weights.foreign_files import escaped, open_regular
from po_distill.weights.gguf_file import MAGIC

INDEX_NAME = "model.safetensors.index.json"
Kind = Literal["safetensors", "checkpoint", "adapter", "gguf"]
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PIECE_BYTES = 1 << 23
_MB = 1_000_000
_PROGRESS_FROM_MB = 200


def find_weights(path: Path) -> tuple[Path, Kind]:
    """(the file or folder that is meant, its kind).

    Raises InputError where there are no weights or more than one, WeightsError where there are pickles alone.
    """
    if path.is_dir():
        return _found_in_folder(path)
    if not path.exists():
        raise InputError(f"{path} does not exist.", "Check the path.")
    if path.suffix.lower() in _PICKLES:
        raise WeightsError(
            f"{path} is a pickle file by its name, which can run code when read; it was not opened.",
            "Save the weights as safetensors, with transformers or peft, on a machine that may run it.",
        )
    try:
        with open_regular(path) as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    if magic == MAGIC or path.suffix.lower() == ".gguf":
        return path, "gguf"
    if path.suffix.lower() == ".safetensors":
        return path, "safetensors"
    raise InputError(
        f"{path} is neither a GGUF nor, by its name, a safetensors file.",
        "Give a .safetensors or .gguf file, or the folder of a checkpoint or an adapter.",
    )


def _found_in_folder(path: Path) -> tuple[Path, Kind]:
    if (path / "model.safetensors").exists() or (path / INDEX_NAME).exists():
        return path, "checkpoint"
    for folder in (path, path / "adapter"):
        if (folder / CONFIG_NAME).exists():
            return folder, "adapter"
    kinds: tuple[Kind, ...] = ("gguf", "safetensors")
    for kind in kinds:
        files = sorted(path.glob(f"*.{kind}"))
        if len(files) == 1:
            return files[0], kind
        if files:
            raise InputError(
                f"{path} holds {len(files)} {kind} files and says of none that it is the one: "
                f"{', '.join(escaped(file.name) for file in files[:3])}.",
                "Give one of them.",
            )
    if (path / "config.json").exists() or any(file.suffix.lower() in _PICKLES for file in path.iterdir()):
        weight_files(path)  # says why it cannot be read
    raise InputError(
        f"{path} holds no weights.",
        "Give a .safetensors or .gguf file, or the folder of a checkpoint or an adapter.",
    )


def inspect_files(files: Sequence[Path], *, digests: bool) -> tuple[InspectedFile, ...]:
    """The files with their sizes and, where wanted, their digests. Raises WeightsError where one cannot be read."""
    try:
        sizes = [file.stat().st_size for file in files]
        with _digesting(math.ceil(sum(sizes) / _MB) if digests else 0) as advance:
            return tuple(
                InspectedFile(name=file.name, size_bytes=size, digest=_digest(file, advance) if digests else None)
                for file, size in zip(files, sizes, strict=True)
            )
    except OSError as error:
        raise WeightsError(f"{error.filename} cannot be read: {error.strerror or error}.", "Check the path.") from error


@contextlib.contextmanager
def _digesting(size_mb: int) -> Iterator[Callable[[float], None]]:
    """The function that says how many MB more are read; nothing is shown where it is a matter of a moment."""
    if size_mb < _PROGRESS_FROM_MB:
        yield lambda amount: None
        return
    with progress("Digests", total=size_mb, unit="MB") as advance:
        yield advance


def _digest(file: Path, advance: Callable[[float], None]) -> str:
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        while piece := opened.read(_PIECE_BYTES):
            digest.update(piece)
            advance(len(piece) / _MB)
    return "sha256:" + digest.hexdigest()
