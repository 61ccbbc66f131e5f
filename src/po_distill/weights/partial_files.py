"""Files that grow under another name, and the note by which a run that was killed goes on with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from po_distill import artifacts
from po_distill.errors import ArtifactError


@dataclass(frozen=True)
class OutputFile:
    """One file to be written: what stands before its first tensor, and how long it will be."""

    path: Path
    header: bytes
    size_bytes: int

    @property
    def partial(self) -> Path:
        """The name under which it grows."""
        return self.path.with_name(f".{self.path.name}.partial")


@dataclass(frozen=True)
class Note:
    """How far an earlier run came: for each file, the bytes that are known to be on the disk."""

    path: Path
    key: str

    def read(self, files: Sequence[OutputFile], ends: list[dict[Path, int]]) -> int:
        """The number of blocks that need not be computed again: whole in every file."""
        try:
            note = json.loads(self.path.read_text(encoding="utf-8"))
            safe = {file.path: int(note["written_bytes"][file.path.name]) for file in files}
            if note["key"] != self.key or any(_size(file.partial) < safe[file.path] for file in files):
                return 0
            header = {file.path: len(file.header) for file in files}
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return sum(all(end[path] <= max(safe[path], header[path]) for path in end) for end in ends)

    def write(self, safe: Mapping[Path, int]) -> None:
        """Put down the bytes of each file that are on the disk."""
        artifacts.write_json(
            self.path, {"key": self.key, "written_bytes": {path.name: count for path, count in safe.items()}}
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def stream_key(files: Sequence[OutputFile], key: Mapping[str, object]) -> str:
    """What a note is kept under: the inputs that `key` names, and the headers of the files."""
    return artifacts.digest_value(
        {"inputs": key, "files": {file.path.name: artifacts.digest_bytes(file.header) for file in files}}
    )


@contextmanager
def locked(note: Path) -> Iterator[None]:
    """Keep other runs away from the files of a note. Raises ArtifactError where one writes them already."""
    from filelock import FileLock, Timeout

    lock = FileLock(note.with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ArtifactError(
            f"Another run is writing into {note.parent}.", "Wait until it is done, or name another output folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
        note.with_suffix(".lock").unlink(missing_ok=True)


def check_space(folder: Path, files: Sequence[OutputFile]) -> None:
    """Raise ArtifactError where the folder's disk has too little space for what is still to come."""
    there = sum(_size(file.partial) for file in files)
    needed = sum(file.size_bytes for file in files) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArtifactError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed.",
            "Free some space, or name an output folder on another disk.",
        )
