"""The only writer of files: atomic, digested, and never over a finished version.

A file or folder appears under its final name whole or not at all: it is written beside it under a
name that starts with a dot, flushed to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import BaseModel, ValidationError

from po_distill.errors import ArtifactError, ContractMismatchError, InputError
from po_distill.records import PromptContract, RunManifest

_R = TypeVar("_R", bound=BaseModel)


def now() -> str:
    """The time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


# --- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_file(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """An open file that takes the name `path` when the block ends well, and vanishes otherwise.

    `mode` is "w" (UTF-8, line ends as written) or "wb". Raises ArtifactError where it cannot be
    written: no space, no permission, a folder in its place.
    """
    path = Path(path)
    partial: Path | None = None
    try:
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
            partial = Path(name)
            text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
            with os.fdopen(handle, mode, **text) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o666 & ~_umask())
            take_name(partial, path)
    except BaseException:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """A new folder that takes the name `path` when the block ends well, and vanishes otherwise.

    Raises ArtifactError where `path` exists: a finished folder is never overwritten.
    """
    path = Path(path)
    refuse_existing(path)
    partial = path.parent / f".{path.name}.partial"
    try:
        with translated(path):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync_file(file)
            os.rename(partial, path)
            _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def take_name(partial: Path, path: Path) -> None:
    """Give a file that is whole and on the disk its final name."""
    with translated(path):
        os.replace(partial, path)
        _sync_folder(path.parent)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file, atomically."""
    with atomic_file(path) as file:
        file.write(text)


def write_json(path: Path | str, value: BaseModel | Mapping[str, Any]) -> None:
    """Write a record or a mapping as indented JSON, atomically."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path | str, rows: Iterable[BaseModel | Mapping[str, Any]]) -> int:
    """Write one JSON object per line, atomically; the number of lines."""
    count = 0
    with atomic_file(path) as file:
        for row in rows:
            file.write(jsonl_line(row))
            count += 1
    return count


def jsonl_line(row: BaseModel | Mapping[str, Any]) -> str:
    """A record or mapping as one line of JSON, with its line end; fields at None are left out."""
    data = row.model_dump(mode="json", exclude_none=True) if isinstance(row, BaseModel) else row
    return json.dumps(data, ensure_ascii=False) + "\n"


def append_text(path: Path | str, text: str) -> None:
    """Append to a log, in one write, so that concurrent writers do not mix their lines."""
    path = Path(path)
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(text.encode())


def append_jsonl(path: Path | str, row: BaseModel | Mapping[str, Any]) -> None:
    """Append one line of JSON to a log."""
    append_text(path, jsonl_line(row))


def refuse_existing(path: Path | str) -> None:
    """Raise ArtifactError where something stands under this name already."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise ArtifactError(f"{path} exists already; a finished artifact is never overwritten.", "Name another output.")


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make a rename last through a power cut, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Give the system's errors at writing `path` as ArtifactErrors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "Free some space, or name an output on another disk; then run the same command again."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            fix = "Name an output that you may write."
        else:
            fix = "Look at the path, then run the same command again."
        raise ArtifactError(f"{path} cannot be written: {error.strerror or error}.", fix) from error


# --- reading ------------------------------------------------------------------------------------


def read_text(path: Path | str) -> str:
    """A UTF-8 text file whole. Raises InputError where it is missing, a folder or not UTF-8."""
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}).", "Convert it to UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank.

    Raises InputError where the file is missing, empty or not UTF-8, and, with the line number,
    where a line is not a JSON object.
    """
    path = Path(path)
    found = False
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        found = True
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise InputError(
                f"{path}, line {number}: not JSON ({message}): {_excerpt(line)}",
                "Correct or delete that line.",
            ) from error
        if not isinstance(value, dict):
            raise InputError(
                f"{path}, line {number}: a JSON object is expected, not {type(value).__name__}: {_excerpt(line)}",
                "Correct or delete that line.",
            )
        yield number, value
    if not found:
        raise InputError(f"{path} is empty.", "Give a file with at least one JSON object per line.")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time, ended by line feeds alone."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}).", "Convert it to UTF-8.") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error


def read_records(path: Path | str, kind: type[_R]) -> Iterator[_R]:
    """The records of a JSONL file. Raises InputError, with line and field, where one does not fit."""
    for number, value in read_jsonl(path):
        yield parse_record(value, kind, f"{path}, line {number}")


def read_record(path: Path | str, kind: type[_R]) -> _R:
    """The record of a JSON file. Raises InputError where it does not fit."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(
            f"{path} is not JSON: {error}.", "Delete it and run the stage that writes it again."
        ) from error
    return parse_record(value, kind, str(path))


def parse_record(value: Any, kind: type[_R], where: str) -> _R:
    """`value` as a record. Raises InputError, with `where` and the field, where it does not fit."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the record"
        raise InputError(
            f"{where}: {field}: {first['msg'].lower()} (got {_excerpt(repr(first.get('input')))}).",
            f"A {kind.__name__} has the fields {', '.join(kind.model_fields)}.",
        ) from error


def _excerpt(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- digests and versions -----------------------------------------------------------------------


def digest_bytes(data: bytes) -> str:
    """`sha256:<hex>` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_value(value: Any) -> str:
    """`sha256:<hex>` of a JSON value, whatever the order of its keys."""
    return digest_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def digest_file(path: Path | str) -> str:
    """`sha256:<hex>` of a file's bytes, read in pieces."""
    with Path(path).open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def next_version(folder: Path | str, stem: str) -> str:
    """The first free name `<stem>_v<number>` below a folder, counting up from the highest taken."""
    folder = Path(folder)
    pattern = re.compile(rf"\.?{re.escape(stem)}_v(\d+)(\.partial)?$")
    taken = [int(m[1]) for p in folder.glob("*") if (m := pattern.match(p.name))] if folder.is_dir() else []
    return f"{stem}_v{max(taken, default=0) + 1}"


# --- manifests ----------------------------------------------------------------------------------

MANIFEST_NAME = "manifest.json"


def read_manifest(folder: Path | str) -> RunManifest | None:
    """The manifest of a version folder; None where it has none yet."""
    path = Path(folder) / MANIFEST_NAME
    return read_record(path, RunManifest) if path.exists() else None


def record_stage(
    folder: Path | str,
    stage: str,
    record: BaseModel,
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    contract: PromptContract | None,
) -> RunManifest:
    """Add a finished stage to the version folder's manifest: its record, and digests by name.

    `outputs` are paths below the folder. Raises ContractMismatchError where the folder's earlier stages
    ran under another prompt contract.
    """
    folder = Path(folder)
    before = read_manifest(folder)
    if before and before.contract and contract and before.contract.digest != contract.digest:
        raise ContractMismatchError(
            f"{folder} was made under the prompt contract {before.contract.digest[:19]}, the stage {stage!r} "
            f"runs under {contract.digest[:19]}.",
            "Use the same --contract and --prompt for all stages, or begin a new version.",
        )
    manifest = RunManifest(
        version=folder.name,
        po_distill=package_version(),
        contract=contract or (before.contract if before else None),
        inputs={**(before.inputs if before else {}), **inputs},
        outputs={**(before.outputs if before else {}), **outputs},
        packages={name: version for name in _RECORDED_PACKAGES if (version := _installed(name))},
        stages={**(before.stages if before else {}), stage: record.model_dump(mode="json")},
        created_at=before.created_at if before else now(),
    )
    write_json(folder / MANIFEST_NAME, manifest)
    return manifest


_RECORDED_PACKAGES = ("torch", "transformers", "peft", "trl", "gguf", "libgguf", "xllamacpp", "safetensors")


def package_version() -> str:
    """The version of this package; "unknown" where it is not installed."""
    return _installed("po-distill") or "unknown"


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
