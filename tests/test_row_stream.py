import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from po_distill.errors import PODistillError, SettingsError
from po_distill.row_files import RawRow
from po_distill.row_stream import looked_at

MANY = 5_000


def squared(row: int) -> tuple[int, int]:
    if row % 97 == 0:
        time.sleep(0.002)  # so that chunks are not done in the order in which they left
    return row * row, os.getpid()


def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@pytest.mark.parametrize("count", [0, 1, 1_999, 2_000, 2_001, MANY])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_come_back_in_their_order(count: int, workers: int) -> None:
    found = list(looked_at(numbers(count), squared, workers=workers))
    assert [square for square, _ in found] == [row * row for row in range(count)]
    others = {process for _, process in found} - {os.getpid()}
    assert bool(others) == (count > 2_000 and workers > 1)
    assert len(others) <= workers


def test_what_cannot_travel_stays_here() -> None:
    lock = threading.Lock()

    def look(row: int) -> tuple[int, int]:
        with lock:
            return squared(row)

    found = list(looked_at(numbers(MANY), look, workers=2))
    assert found == [(row * row, os.getpid()) for row in range(MANY)]


def test_what_is_written_on_the_spot_travels() -> None:
    power = 3
    found = list(looked_at(numbers(MANY), lambda row: (row**power, os.getpid()), workers=2))
    assert [cube for cube, _ in found] == [row**3 for row in range(MANY)]
    assert os.getpid() not in {process for _, process in found}


def test_rows_that_cannot_travel_are_looked_at_here() -> None:
    rows = [threading.Lock() if number == 3_000 else number for number in range(MANY)]
    found = list(looked_at(rows, lambda row: (isinstance(row, int), os.getpid()), workers=2))
    assert [known for known, _ in found] == [number != 3_000 for number in range(MANY)]
    assert found[3_000][1] == os.getpid() != found[0][1]


def test_an_error_of_a_look_comes_through_as_it_is() -> None:
    def look(row: int) -> int:
        if row == 4_000:
            raise SettingsError("The metric broke.", "Mend it.")
        return row

    found = []
    with pytest.raises(SettingsError, match=r"The metric broke\. Mend it\."):
        for row in looked_at(numbers(MANY), look, workers=2):
            found.append(row)
    assert found == list(range(len(found)))


def test_a_killed_process_is_an_error_that_says_so() -> None:
    def look(row: int) -> int:
        if row == 3_500:
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    started = time.monotonic()
    with pytest.raises(PODistillError, match="was killed"):
        list(looked_at(numbers(MANY), look, workers=2))
    assert time.monotonic() - started < 60
    assert len(list(looked_at(numbers(MANY), squared, workers=2))) == MANY  # and the next run has new processes


def test_a_reader_that_stops_early_leaves_nothing_behind() -> None:
    rows = looked_at(numbers(10**9), squared, workers=2)
    assert [next(rows)[0] for _ in range(3)] == [0, 1, 4]
    processes = {next(rows)[1] for _ in range(1_000)}
    rows.close()  # type: ignore[attr-defined]
    assert processes
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_few_rows_are_read_ahead_however_long_they_are() -> None:
    read = 0

    def long_rows() -> Iterator[RawRow]:
        nonlocal read
        for number in range(200):
            read += 1
            yield RawRow(f"row {number}", b"x" * 1_000_000)

    most = 0
    for done, size in enumerate(looked_at(long_rows(), lambda row: len(row.content), workers=2)):
        assert size == 1_000_000
        most = max(most, read - done)
    assert done == 199
    assert most < 45  # 20 before processes start, then two a chunk, and six chunks on their way


def test_a_script_without_a_guard_is_enough(tmp_path: Path) -> None:
    """As in a notebook: what it defines travels, and it is not run again in each process."""
    (tmp_path / "script.py").write_text(
        "import os\n"
        "from po_distill.row_stream import looked_at\n"
        "print('begun')\n"
        "def look(row):\n"
        "    return row + 1, os.getpid()\n"
        "found = list(looked_at(iter(range(5000)), look, workers=2))\n"
        "assert [one for one, _ in found] == list(range(1, 5001))\n"
        "assert os.getpid() not in {process for _, process in found}\n"
        "print('done')\n"
    )
    done: Any = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.split()) == (0, ["begun", "done"]), done.stderr
