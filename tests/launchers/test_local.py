import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from po_distill.launchers.local import LocalLauncher
from po_distill.testing import LauncherContract


class TestLocal(LauncherContract):
    launcher_name = "local"


def test_the_exit_status_of_a_command_that_a_signal_ended_is_negative() -> None:
    assert LocalLauncher().run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}) == -9


def test_a_terminated_parent_ends_its_child(tmp_path: Path) -> None:
    note = tmp_path / "child.pid"
    child_code = f"import os, time, pathlib; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys\nfrom po_distill.launchers.local import LocalLauncher\n"
        f"LocalLauncher().run([sys.executable, '-c', {child_code!r}], {{}})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (note.exists() and note.read_text()):
        time.sleep(0.05)
    child = int(note.read_text())
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=30) == 128 + signal.SIGTERM
    with_child = Path(f"/proc/{child}")
    assert not with_child.exists() or "Z" in (with_child / "stat").read_text().split()[2]
    assert os.getpid() != child
