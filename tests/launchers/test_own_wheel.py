import subprocess
import sys
import zipfile
from pathlib import Path

from po_distill.launchers.own_wheel import build_own_wheel, pinned_versions


def test_the_wheel_installs_by_pip_alone_and_holds_the_code_that_runs_here(tmp_path: Path) -> None:
    wheel = build_own_wheel()
    assert build_own_wheel() == wheel
    path = tmp_path / wheel.name
    path.write_bytes(wheel.data)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "to"),
    ]
    subprocess.run([*pip, str(path)], check=True, timeout=120)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import po_distill.launchers.vertex_worker as worker; from importlib.metadata import distribution\n"
        "print(worker.__file__, [e.name for e in distribution('po-distill').entry_points if 'launchers' in e.group])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "to")], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert shown.startswith(str(tmp_path / "to"))
    assert "'local'" in shown
    names = zipfile.ZipFile(path).namelist()
    assert not [name for name in names if "__pycache__" in name]


def test_the_versions_of_what_a_result_depends_on_are_pinned_and_torch_is_the_containers() -> None:
    pinned = pinned_versions().splitlines()
    assert [line.partition("==")[0] for line in pinned][:4] == ["transformers", "peft", "trl", "accelerate"]
    assert not [line for line in pinned if line.startswith("torch")]
