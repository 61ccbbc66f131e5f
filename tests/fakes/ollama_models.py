"""Ollama's store of models on disk: names, blobs by digest, manifests (its types/model, manifest/ and server/).

`models/blobs/sha256-HEX` and `models/manifests/HOST/NAMESPACE/MODEL/TAG`. Blobs never change; a name is a small file
that lists digests.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# The real one's is its public registry; no test asks that by name.
DEFAULT_HOST = "registry.invalid"
MEDIA_TYPE = "application/vnd.ollama.image."
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")


class DigestError(Exception):
    """Not a digest, in Ollama's words."""

    def __init__(self) -> None:
        super().__init__("invalid digest format")


@dataclass(frozen=True)
class Name:
    """A model's whole name. `str()` is what Ollama shows: default host and namespace left out, never the tag."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def is_valid(self) -> bool:
        pairs = ((_HOST, self.host), (_NAMESPACE, self.namespace), (_PART, self.model), (_PART, self.tag))
        return all(pattern.fullmatch(part) for pattern, part in pairs)

    @property
    def path(self) -> Path:
        return Path(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        short = f"{self.model}:{self.tag}"
        if self.host.lower() != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{short}"
        return short if self.namespace.lower() == "library" else f"{self.namespace}/{short}"


def parse_name(text: str) -> Name:
    """`[host/][namespace/]model[:tag]` with its defaults; not always valid: a part that its separator promises and
    that is not there is the empty text, which no part may be.
    """
    rest, tag = text, "latest"
    if rest.rfind(":") > rest.rfind("/"):
        rest, _, tag = rest.rpartition(":")
    rest, slash, model = rest.rpartition("/")
    if not slash:
        return Name(DEFAULT_HOST, "library", model, tag)
    rest, slash, namespace = rest.rpartition("/")
    if not slash:
        return Name(DEFAULT_HOST, namespace, model, tag)
    return Name(rest.rpartition("://")[2], namespace, model, tag)


@dataclass(frozen=True)
class Layer:
    """A blob as a part of a model; `status` is the line that `create` says of it."""

    media_type: str
    digest: str
    size: int
    origin: str = ""
    status: str = ""

    @property
    def kind(self) -> str:
        """model, template, system, params, license or messages."""
        return self.media_type.removeprefix(MEDIA_TYPE)

    def entry(self) -> dict[str, Any]:
        """As the manifest has it."""
        entry: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**entry, "from": self.origin} if self.origin else entry


@dataclass(frozen=True)
class Manifest:
    """What a name stands for. `digest` is that of the manifest file, in bare hex."""

    digest: str
    config: Layer
    layers: tuple[Layer, ...]
    modified_s: float

    @property
    def size(self) -> int:
        return sum(layer.size for layer in (*self.layers, self.config))

    def digests(self) -> set[str]:
        return {layer.digest for layer in (*self.layers, self.config)}


@dataclass
class Spool:
    """A blob on its way to the disk."""

    store: ModelStore
    path: Path
    descriptor: int
    size: int = 0
    hash: Any = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        return f"sha256:{self.hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Raises OSError (ENOSPC) where the store's room is used up."""
        self.store.take_room(self.path, len(data))
        self.size += len(data)
        self.hash.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]

    def keep(self, kind: str = "") -> Layer:
        """Give the blob the name of its digest."""
        blob = self.store.blob_path(self.digest)
        status = "using existing layer"
        if not blob.exists():
            status = "creating new layer"
            os.replace(self.path, blob)
            blob.chmod(0o644)
        os.utime(blob)
        return Layer(MEDIA_TYPE + kind, self.digest, self.size, status=f"{status} {self.digest}")


class ModelStore:
    """The folder of models. `room_bytes` is how much it may hold in all, None without a limit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs, self._manifests = folder / "blobs", folder / "manifests"
        self.room_bytes: int | None = None
        for one in (self.blobs, self._manifests):
            one.mkdir(parents=True, exist_ok=True)

    # --- blobs ----------------------------------------------------------------------------------

    def blob_path(self, digest: str) -> Path:
        """Where the blob is, or would be. Raises DigestError."""
        if not _DIGEST.fullmatch(digest):
            raise DigestError
        return self.blobs / digest.replace(":", "-")

    def take_room(self, path: Path, size: int) -> None:
        if self.room_bytes is not None:
            used = sum(blob.stat().st_size for blob in self.blobs.iterdir())
            if used + size > self.room_bytes:
                raise OSError(errno.ENOSPC, "no space left on device", str(path))  # Go's words, not libc's

    @contextmanager
    def spool(self) -> Iterator[Spool]:
        """A blob to be written; what is not kept by the block's end is removed."""
        descriptor, name = tempfile.mkstemp(prefix="sha256-", dir=self.blobs)
        try:
            yield Spool(self, Path(name), descriptor)
        finally:
            os.close(descriptor)
            Path(name).unlink(missing_ok=True)

    def add(self, data: bytes, kind: str) -> Layer:
        """A layer of that data."""
        with self.spool() as spool:
            spool.write(data)
            return spool.keep(kind)

    def read(self, layer: Layer) -> bytes:
        return self.blob_path(layer.digest).read_bytes()

    # --- names ----------------------------------------------------------------------------------

    def existing(self, name: Name) -> Name:
        """The name in the case in which its parts are already known."""
        for known in self.names():
            for part in ("host", "namespace", "model", "tag"):
                if getattr(known, part).lower() == getattr(name, part).lower():
                    name = replace(name, **{part: getattr(known, part)})
        return name

    def names(self) -> list[Name]:
        paths = sorted(path for path in self._manifests.glob("*/*/*/*") if path.is_file())
        names = [Name(*path.relative_to(self._manifests).parts) for path in paths]
        return [name for name in names if name.is_valid]  # not one that is being written

    def manifest(self, name: Name) -> Manifest | None:
        path = self._manifests / name.path
        if not path.is_file():
            return None
        data = path.read_bytes()
        value = json.loads(data)
        layers = [Layer(entry["mediaType"], entry["digest"], entry["size"], entry.get("from", ""))
                  for entry in (value["config"], *value["layers"])]  # fmt: skip
        return Manifest(hashlib.sha256(data).hexdigest(), layers[0], tuple(layers[1:]), path.stat().st_mtime)

    def config(self, manifest: Manifest) -> dict[str, Any]:
        return dict(json.loads(self.read(manifest.config)))

    def write_manifest(self, name: Name, config: dict[str, Any], layers: Iterable[Layer]) -> Manifest:
        """Make the name stand for these layers; the blobs that it alone named before are removed."""
        layers, before = tuple(layers), self.manifest(name)
        whole = {**config, "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]}}
        top = replace(self.add(_json(whole), ""), media_type=_CONFIG_TYPE)
        value = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": top.entry(),
                 "layers": [layer.entry() for layer in layers]}  # fmt: skip
        self._write(name, _json(value))
        if before is not None:
            self._remove_unnamed(before.digests())
        written = self.manifest(name)
        assert written is not None
        return written

    def copy(self, source: Name, destination: Name) -> bool:
        """Give `destination` the manifest of `source`; False where there is none. No blob is touched."""
        path = self._manifests / source.path
        if not path.is_file():
            return False
        if source.path != destination.path:
            self._write(destination, path.read_bytes())
        return True

    def remove(self, name: Name) -> bool:
        """Forget the name and the blobs that it alone named; False where there is none."""
        manifest = self.manifest(name)
        if manifest is None:
            return False
        (self._manifests / name.path).unlink()
        self._remove_unnamed(manifest.digests())
        return True

    def prune(self, grace_s: float) -> None:
        """What Ollama does when it starts: remove blobs that no name needs, and pieces of blobs, once `grace_s` old."""
        named = self._named()
        for path in self.blobs.iterdir():
            if time.time() - path.stat().st_mtime >= grace_s and path.name.replace("-", ":") not in named:
                path.unlink()

    def _write(self, name: Name, data: bytes) -> None:
        path = self._manifests / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part~")
        part.write_bytes(data)
        os.replace(part, path)

    def _named(self) -> set[str]:
        manifests = [self.manifest(name) for name in self.names()]
        return {digest for manifest in manifests if manifest is not None for digest in manifest.digests()}

    def _remove_unnamed(self, digests: set[str]) -> None:
        for digest in digests - self._named():
            self.blob_path(digest).unlink(missing_ok=True)


def _json(value: Any) -> bytes:
    """As Go's encoder writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
