"""Nothing is promoted without a passed verdict on exactly its package."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline_files import CONFIG, CONTRACT, lines, make_version, make_workplace
from po_distill.errors import InputError, SettingsError
from po_distill.records import Verdict
from po_distill.stages.integration import Integration


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    return make_workplace(tmp_path)


OTHER = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"verdict": Verdict(passed=False, reasons=("passed: a", "failed: b 0.2"))}, r"is no \(failed: b 0.2\)"),
        ({"student_digest": OTHER}, "judges the GGUF 000000000000, the package is"),
        ({"student_digest": None}, "does not say which file"),
        ({"role": "architect"}, "judges the role architect, not product_owner"),
        ({"contract": CONTRACT.model_copy(update={"system": "other"})}, "another prompt contract"),
    ],
)
def test_without_a_passed_verdict_on_this_package_nothing_is_promoted(
    config: Path, changes: dict[str, Any], says: str
) -> None:
    shutil.rmtree("artifacts")
    make_version(Path("artifacts/models/po_student_v1"), "po-student-v1", **changes)
    with pytest.raises(InputError, match=f"po-student-v1 is not promoted: .*{says}") as caught:
        Integration(config).promote("po-student-v1")
    assert '--force "reason"' in caught.value.fix
    assert config.read_text() == CONFIG
    assert Integration(config).promote("po-student-v1", force="a trial for a day").applied
    assert lines(config)[0]["forced"] == "a trial for a day"


def test_a_package_that_is_not_evaluated_unknown_or_altered_is_not_promoted(config: Path) -> None:
    folder = Path("artifacts/models/po_student_v1")
    (folder / "evaluation.json").rename("elsewhere.json")
    with pytest.raises(InputError, match="was not evaluated"):
        Integration(config).promote("po-student-v1")
    assert Integration(config).promote("po-student-v1", report="elsewhere.json").applied
    assert lines(config)[0]["report_path"] == "elsewhere.json"
    Integration(config).rollback()
    with pytest.raises(InputError, match="no package of that name"):
        Integration(config).promote("po-student-v7")
    (folder / "po-student-v1.Q4_0.gguf").write_bytes(b"other weights")
    with pytest.raises(InputError, match="is not the file that was packaged"):
        Integration(config).promote("po-student-v1", report="elsewhere.json")


def test_the_package_is_found_by_the_models_name_or_given(config: Path) -> None:
    digest = make_version(Path("artifacts/models/second"), "po-student-v2")
    assert Integration(config).promote("po-student-v2:latest").package_digest == digest
    assert Integration(config).promote(f"po-student-v2:{digest[7:19]}").applied
    with pytest.raises(InputError, match=r"the package in .*second is"):
        Integration(config).promote("po-student-v2:0123456789ab")
    with pytest.raises(InputError, match="holds the package po-student-v2, not po-student-v1"):
        Integration(config).promote("po-student-v1", package="artifacts/models/second")
    with pytest.raises(InputError, match="holds no package"):
        Integration(config).promote("po-student-v1", package="artifacts")
    shutil.copytree("artifacts/models/second", "artifacts/models/third")
    with pytest.raises(InputError, match=r"2 packages .* are named po-student-v2"):
        Integration(config).promote("po-student-v2")
    assert Integration(config).promote("po-student-v2", package="artifacts/models/third").package_digest == digest


def test_a_reason_to_force_has_to_be_one(config: Path) -> None:
    with pytest.raises(SettingsError, match="reason to force"):
        Integration(config).promote("po-student-v1", force="  ")
