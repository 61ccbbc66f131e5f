import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from po_distill.errors import InputError
from po_distill.records import Rejection
from po_distill.row_files import MAX_LINE_BYTES, RawRow, files_of, raw_rows, row_in

ROWS: list[dict[str, Any]] = [{"a": "é", "b": 1}, {"a": "two\nlines", "b": 2}, {"a": "", "b": 3}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path, **options: Any) -> list[dict[str, Any] | Rejection]:
    return [row_in(raw) for raw in raw_rows(path, **options)]


def reasons(path: Path) -> list[str | None]:
    return [row.reason if isinstance(row, Rejection) else None for row in read(path)]


def written(folder: Path, data: bytes) -> Path:
    (folder / "rows.jsonl").write_bytes(data)
    return folder / "rows.jsonl"


def test_every_form_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    written(tmp_path, JSONL.encode())
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    halves = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    )
    halves.save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.jsonl").write_text(JSONL.split("\n", 1)[0])
    parquet.write_table(pa.Table.from_pylist(ROWS[1:]), tmp_path / "folder" / "2.parquet")
    (tmp_path / "folder" / ".hidden.jsonl").write_text("{")
    for name in ("rows.jsonl", "rows.parquet", "saved", "splits", "folder"):
        assert read(tmp_path / name) == ROWS, name


def test_each_row_says_where_it_lies(tmp_path: Path) -> None:
    path = written(tmp_path, b'\n{"a": 1}\n\n \t\r\n{"a": 2}')
    assert [raw.where for raw in raw_rows(path)] == [f"{path}, line 2", f"{path}, line 5"]
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert next(raw_rows(tmp_path / "rows.parquet")).where == f"{tmp_path / 'rows.parquet'}, row 1"


def test_so_many_rows_are_read_and_no_more(tmp_path: Path) -> None:
    path = written(tmp_path, JSONL.encode())
    assert read(path, most=2) == ROWS[:2]
    assert read(path, most=9) == ROWS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1}', None),
        (b'\xef\xbb\xbf{"a": 1}', None),  # a byte order mark, as editors write it
        (b'{"a": 1}\r', None),
        (b'{"a": NaN, "b": Infinity}', None),
        (b'{"a": "\\ud800"}', None),  # whether that may be learned from is for the gate to say
        (b'{"a": 1', "not_json"),
        (b"{'a': 1}", "not_json"),
        (b'{"a": 1}{"a": 2}', "not_json"),
        (b'{"a": "\x01"}', "not_json"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not_json"),
        (b"\x00" * 10, "not_json"),
        (b'{"a": "\xe9"}', "not_utf8"),
        (b'{"a": "\xed\xa0\x80"}', "not_utf8"),  # half a character, written as if it were one
        ('{"a": "é"}'.encode("utf-16"), "not_utf8"),
        ('{"a": "e"}'.encode("utf-16-le"), "not_json"),
        (b"[]", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b"null", "not_an_object"),
    ],
)
def test_a_line_that_is_no_row_says_why(tmp_path: Path, line: bytes, reason: str | None) -> None:
    path = written(tmp_path, line + b"\n" + JSONL.encode())
    assert reasons(path) == [reason, None, None, None]
    rejections = [row for row in read(path) if isinstance(row, Rejection)]
    assert all(row.where == f"{path}, line 1" and row.detail for row in rejections)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(st.binary(max_size=30) | st.sampled_from([row.encode() for row in JSONL.split("\n")])))
def test_every_line_that_is_not_blank_is_a_row_or_a_rejection(tmp_path: Path, lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    filled = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if not filled:
        with pytest.raises(InputError, match="is empty"):
            read(written(tmp_path, data))
        return
    found = read(written(tmp_path, data))
    assert len(found) == len(filled)
    assert all(isinstance(row, (dict, Rejection)) for row in found)


@pytest.mark.parametrize("over", [-1, 0, 1, 2, MAX_LINE_BYTES, 2 * MAX_LINE_BYTES + 7])
def test_a_line_that_is_too_long_takes_no_other_with_it(tmp_path: Path, over: int) -> None:
    begin, end = b'{"a": "', b'"}\n'
    line = begin + b"x" * (MAX_LINE_BYTES + over - len(begin) - len(end)) + end
    assert len(line) == MAX_LINE_BYTES + over
    path = written(tmp_path, line + JSONL.encode() + line.removesuffix(b"\n"))
    long = "line_too_long" if over > 0 else None
    last = "line_too_long" if over > 1 else None  # it has no line end
    assert reasons(path) == [long, None, None, None, last]
    assert [raw.where for raw in raw_rows(path)] == [f"{path}, line {number}" for number in range(1, 6)]


def test_a_line_without_an_end_is_not_held_in_memory(tmp_path: Path) -> None:
    path = written(tmp_path, b"x" * (12 * MAX_LINE_BYTES) + b"\n" + JSONL.encode())
    tracemalloc.start()
    assert reasons(path) == ["line_too_long", None, None, None]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * MAX_LINE_BYTES


def test_a_row_of_parquet_that_python_cannot_hold_is_one_rejection(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"\xff\xfe", b"fine"]).cast(pa.binary()).view(pa.utf8())
    far = pa.array([0, 0, 2**45], pa.timestamp("s"))
    table = pa.Table.from_arrays([broken, far, pa.array([1, 2, 3])], names=["text", "time", "n"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    first, second, third = read(tmp_path / "rows.parquet")
    assert isinstance(first, dict) and (first["text"], first["n"]) == ("good", 1)
    for number, row in ((2, second), (3, third)):
        assert isinstance(row, Rejection)
        assert (row.reason, row.where) == ("unreadable_row", f"{tmp_path / 'rows.parquet'}, row {number}")
        assert row.detail


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("none.jsonl", None, "does not exist"),
        ("none.parquet", None, "does not exist"),
        ("empty.jsonl", b"", "is empty"),
        ("blank.jsonl", b"\n \n\xef\xbb\xbf", ""),
        ("text.parquet", b"PAR1 no", "no Parquet"),
    ],
)
def test_a_file_that_holds_no_rows_says_so(tmp_path: Path, name: str, data: bytes | None, says: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    if not says:  # a mark in the middle is no row, but no white space either
        assert reasons(tmp_path / name) == ["not_json"]
        return
    with pytest.raises(InputError, match=says):
        read(tmp_path / name)


def test_a_cut_parquet_file_says_so(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    data = (tmp_path / "rows.parquet").read_bytes()
    for kept in range(0, len(data), 37):
        (tmp_path / "rows.parquet").write_bytes(data[:kept])
        with pytest.raises(InputError, match="no Parquet"):
            read(tmp_path / "rows.parquet")


@pytest.mark.parametrize("state", ["{}", "[]", "", '{"_data_files": [{"filename": "none.arrow"}]}'])
def test_a_saved_dataset_that_was_changed_says_so(tmp_path: Path, state: str) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(InputError, match="no dataset that can be loaded"):
        read(tmp_path / "saved")


def test_a_folder_without_rows_says_so(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("no rows")
    with pytest.raises(InputError, match="holds no rows"):
        read(tmp_path)


def test_a_row_in_memory_is_read_as_it_is() -> None:
    row = {"a": 1}
    found = row_in(RawRow("rows, row 1", row))
    assert found == row and found is not row


def test_the_files_of_a_folder_are_all_of_them_in_order(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert [path.name for path in files_of(tmp_path / "saved")] == [
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "state.json",
    ]
    assert files_of(tmp_path / "saved" / "state.json") == [tmp_path / "saved" / "state.json"]
