import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from po_distill import artifacts
from po_distill.errors import ArtifactError, ContractMismatchError, InputError
from po_distill.records import Concept, Rejection
from po_distill.roles.product_owner.role import ProductOwnerRole


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with pytest.raises(RuntimeError), artifacts.atomic_file(path) as file:
        file.write("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    artifacts.write_text(path, "one\r\ntwo\n")
    assert path.read_bytes() == b"one\r\ntwo\n"
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    code = (
        "import sys, time\nfrom po_distill.artifacts import atomic_file\n"
        f"with atomic_file({str(path)!r}, 'wb') as file:\n"
        "    file.write(b'x' * 1_000_000); file.flush(); print('writing', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not path.exists()


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No space left") as caught, artifacts.atomic_file(tmp_path / "x") as file:
        file.write("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "Free some space" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_on_a_full_device_is_an_error_too() -> None:
    with pytest.raises(ArtifactError, match="/dev/full cannot be written"):
        artifacts.append_jsonl("/dev/full", {"a": 1})


def test_a_folder_appears_whole_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(RuntimeError), artifacts.atomic_folder(path) as partial:
        (partial / "a").write_text("a")
        raise RuntimeError
    assert not path.exists()
    with artifacts.atomic_folder(path) as partial:
        (partial / "a").write_text("a")
    assert (path / "a").read_text() == "a"
    with pytest.raises(ArtifactError, match="never overwritten"), artifacts.atomic_folder(path):
        raise AssertionError("the block must not begin")


def test_a_file_where_a_folder_is_needed_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifacts.write_text(tmp_path / "file" / "below", "x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'{"a": 1}\n{broken\n', "line 2: not JSON"),
        (b'{"a": 1}\n\n[1]\n', "line 3: a JSON object is expected, not list"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_broken_jsonl_file_is_refused_with_its_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        list(artifacts.read_jsonl(path))


def test_lines_with_odd_separators_stay_whole(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x85c"}, {"text": "d"}]
    artifacts.write_jsonl(tmp_path / "x.jsonl", rows)
    assert [row for _, row in artifacts.read_jsonl(tmp_path / "x.jsonl")] == rows


def test_a_record_that_does_not_fit_is_refused_with_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "concepts.jsonl"
    path.write_text('{"concept_id": "1", "concept": "x", "requirements_yaml": ""}\n')
    with pytest.raises(InputError, match=r"line 1: requirements_yaml: .*at least 1 character"):
        list(artifacts.read_records(path, Concept))
    path.write_text('{"concept_id": "1", "concept": "x", "requirements_yaml": "a", "tire": "simple"}\n')
    with pytest.raises(InputError, match="line 1: tire"):
        list(artifacts.read_records(path, Concept))


def test_records_survive_the_way_through_a_file(tmp_path: Path) -> None:
    concepts = ProductOwnerRole().generate_concepts(20, seed=2)
    assert artifacts.write_jsonl(tmp_path / "c.jsonl", concepts) == 20
    assert list(artifacts.read_records(tmp_path / "c.jsonl", Concept)) == concepts


def test_versions_count_up_from_the_highest(tmp_path: Path) -> None:
    assert artifacts.next_version(tmp_path, "po_student") == "po_student_v1"
    for name in ("po_student_v2", "po_student_v10", "other_v99", "po_student_vX"):
        (tmp_path / name).mkdir()
    assert artifacts.next_version(tmp_path, "po_student") == "po_student_v11"
    assert artifacts.next_version(tmp_path / "missing", "po_student") == "po_student_v1"


def test_the_manifest_gathers_stages_and_refuses_another_contract(tmp_path: Path) -> None:
    folder = tmp_path / "po_student_v1"
    record = Rejection(where="w", reason="r", detail="d")
    digest = artifacts.digest_bytes(b"")
    contract = ProductOwnerRole().contract
    artifacts.record_stage(
        folder, "train", record, inputs={"data": digest}, outputs={"adapter": digest}, contract=contract
    )
    artifacts.record_stage(folder, "merge", record, inputs={}, outputs={"merged": digest}, contract=None)
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None
    assert set(manifest.stages) == {"train", "merge"}
    assert set(manifest.outputs) == {"adapter", "merged"}
    assert manifest.contract == contract
    other = ProductOwnerRole("json").contract
    with pytest.raises(ContractMismatchError, match="merge2"):
        artifacts.record_stage(folder, "merge2", record, inputs={}, outputs={}, contract=other)


def test_digests_do_not_depend_on_the_order_of_keys() -> None:
    assert artifacts.digest_value({"a": 1, "b": [2]}) == artifacts.digest_value({"b": [2], "a": 1})
    assert artifacts.digest_value({"a": 1}) != artifacts.digest_value({"a": 2})


def test_concurrent_appends_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "from po_distill.artifacts import append_jsonl\n"
        f"for n in range(200): append_jsonl({str(path)!r}, {{'n': n, 'pad': 'x' * 500}})"
    )
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 600


def test_the_time_is_in_utc() -> None:
    assert artifacts.now().endswith("+00:00")
    assert artifacts.now()[:4] == time.strftime("%Y", time.gmtime())
