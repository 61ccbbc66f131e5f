"""The rows of a dataset in other shapes, written row by row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from po_distill.artifacts import atomic_file, read_jsonl
from po_distill.errors import MissingExtraError, SettingsError
from po_distill.example_rows import SHAPES

_BATCH = 1_000


def check_shapes(shapes: Sequence[str]) -> None:
    """Raise SettingsError for a shape that is none, MissingExtraError where what writes it is not installed."""
    for shape in shapes:
        if shape not in SHAPES:
            raise SettingsError(f"There is no shape {shape!r}.", f"Choose of {', '.join(SHAPES)}.")
    if "parquet" in shapes:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("pyarrow", "data", "Writing Parquet") from error


def write_shape(shape: str, path: Path | str) -> Path:
    """Write the rows of a JSONL file of examples in a shape, beside it: `x.messages.jsonl`, `x.parquet`."""
    path = Path(path)
    rows = (SHAPES[shape](row) for _, row in read_jsonl(path))
    output = path.with_name(f"{path.stem}.parquet" if shape == "parquet" else f"{path.stem}.{shape}.jsonl")
    if shape == "parquet":
        _write_parquet(output, rows)
    else:
        with atomic_file(output) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return output


def _write_parquet(output: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    first = list(itertools.islice(rows, _BATCH))
    schema = pa.Table.from_pylist(first).schema  # every row has every column, and none is null
    with atomic_file(output, "wb") as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while first:
            writer.write_table(pa.Table.from_pylist(first, schema=schema))
            first = list(itertools.islice(rows, _BATCH))
