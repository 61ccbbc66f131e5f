"""This package as a wheel, made of the files that run here: for a machine that has to run the very same code.

It needs neither a network nor a build backend, and makes the same bytes of the same files. The layout is that of the
binary distribution format (packaging.python.org), version 1.0.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import po_distill

_DISTRIBUTION = "po-distill"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file knows
_WHEEL = "Wheel-Version: 1.0\nGenerator: po-distill\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_METADATA = ("METADATA", "entry_points.txt")
# What the run's result depends on beside torch, which a container brings.
_PINNED = ("transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "tokenizers")


class OwnWheel(NamedTuple):
    """A wheel in memory."""

    name: str  # its file name, which pip reads
    data: bytes


def build_own_wheel() -> OwnWheel:
    """The wheel of this package as it is imported here, whether it was installed or is a checkout."""
    distribution = importlib.metadata.distribution(_DISTRIBUTION)
    stem = f"po_distill-{distribution.version}"
    package = Path(po_distill.__file__).parent
    files = {
        f"po_distill/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in _METADATA:
        if (text := distribution.read_text(name)) is not None:
            files[f"{stem}.dist-info/{name}"] = text.encode()
    files[f"{stem}.dist-info/WHEEL"] = _WHEEL.encode()
    record = f"{stem}.dist-info/RECORD"
    files[record] = _record(files, record).encode()
    return OwnWheel(f"{stem}-py3-none-any.whl", _zipped(files))


def pinned_versions() -> str:
    """What a training run depends on, in the versions that are installed here, as pip's constraints."""
    lines = []
    for name in _PINNED:
        try:
            lines.append(f"{name}=={importlib.metadata.version(name)}\n")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "".join(lines)


def _record(files: dict[str, bytes], own_name: str) -> str:
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    return "\n".join([*lines, f"{own_name},,", ""])


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()
