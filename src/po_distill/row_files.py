"""Files of rows in any form that people keep them in, a row at a time, and never more of a file than a row in memory.

JSONL, Parquet, and folders that `datasets` saved or that hold such files. A line that is no JSON object is a row too:
it comes with what is wrong with it, so that whoever counts rows counts it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from po_distill.errors import InputError, MissingExtraError
from po_distill.records import Rejection

MAX_LINE_BYTES = 4_000_000
"""A longer line is no row of text for a role, and is not read to its end."""

_ROW_FORMS = (".jsonl", ".ndjson", ".json", ".parquet")


class RawRow(NamedTuple):
    """A row as it lies in its file."""

    where: str  # file and line, or file and row
    # A line of JSON that nobody has read yet, or the row itself, or why there is none.
    content: bytes | Mapping[str, Any] | Rejection


def raw_rows(path: Path | str, *, most: int | None = None) -> Iterator[RawRow]:
    """The rows of a file or folder; blank lines are none. `most` reads only so many.

    Raises InputError where the path is missing, cannot be read or holds no row.
    """
    found = False
    for number, row in enumerate(_rows(Path(path))):
        found = True
        if most is not None and number >= most:
            return
        yield row
    if not found:
        raise InputError(f"{path} is empty.", "Give a file with at least one JSON object per line.")


def row_in(raw: RawRow) -> dict[str, Any] | Rejection:
    """The row as a mapping, or why it is none."""
    if isinstance(raw.content, Rejection):
        return raw.content
    if not isinstance(raw.content, bytes):
        return dict(raw.content)
    try:
        value = json.loads(raw.content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Rejection(where=raw.where, reason="not_utf8", detail=f"byte {error.start} of the line: {error.reason}")
    except RecursionError:
        return Rejection(where=raw.where, reason="not_json", detail="nested too deeply")
    except ValueError as error:
        return Rejection(where=raw.where, reason="not_json", detail=str(error)[:200])
    if not isinstance(value, dict):
        return Rejection(where=raw.where, reason="not_an_object", detail=f"a {type(value).__name__} in place of a row")
    return value


def files_of(path: Path | str) -> list[Path]:
    """The files that the rows of a path are in, for its digest; the path itself where it is a file."""
    path = Path(path)
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _rows(path: Path) -> Iterator[RawRow]:
    if path.is_dir():
        yield from _folder_rows(path)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[RawRow]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(line) > MAX_LINE_BYTES:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE_BYTES)
                    detail = f"more than {MAX_LINE_BYTES:,} bytes"
                    yield RawRow(where, Rejection(where=where, reason="line_too_long", detail=detail))
                    continue
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield RawRow(where, line)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", "Reading Parquet") from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in _rows_of(batch):
                    number += 1
                    where = f"{path}, row {number}"
                    if isinstance(row, Exception):
                        yield RawRow(where, Rejection(where=where, reason="unreadable_row", detail=str(row)[:200]))
                    else:
                        yield RawRow(where, row)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.", "Check the path.") from error
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet that can be read: {error}.", "Write it again.") from error


def _rows_of(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch; in place of one with a value that Python cannot hold, what it says of that."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # text that is no UTF-8, a time out of range
        pass
    for number in range(batch.num_rows):
        try:
            yield from batch.slice(number, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            yield error


def _folder_rows(path: Path) -> Iterator[RawRow]:
    if any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        yield from _saved_rows(path)
        return
    files = sorted(file for file in path.iterdir() if file.suffix in _ROW_FORMS and not file.name.startswith("."))
    if not files:
        raise InputError(
            f"{path} holds no rows: no {', '.join(_ROW_FORMS)} and nothing that datasets saved.", "Name the file."
        )
    for file in files:
        yield from _rows(file)


def _saved_rows(path: Path) -> Iterator[RawRow]:
    """What `datasets` wrote with save_to_disk: one dataset, or one for each split."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "data", "Reading a saved Hugging Face dataset") from error
    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # KeyError and others too, where a file of it was cut or changed
        raise InputError(f"{path} is no dataset that can be loaded: {error}.", "Save it again.") from error
    splits = saved if isinstance(saved, datasets.DatasetDict) else {"": saved}
    for name, rows in splits.items():
        for number, row in enumerate(rows, start=1):
            yield RawRow(f"{path}, {name + ' ' if name else ''}row {number}", row)
