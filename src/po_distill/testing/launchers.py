"""What every launcher does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from po_distill.interfaces import Launcher
from po_distill.testing.registered import load_once


class LauncherContract:
    """The contract of a launcher that can run this Python: subclass it, and name the launcher.

    class TestNice(LauncherContract):
        launcher_name = "nice"
    """

    launcher_name: str  # under which it is registered

    @pytest.fixture
    def launcher(self) -> Launcher:
        """The launcher, opened as the trainer opens it. Override it where it needs settings of the environment."""
        opened: Launcher = load_once("launchers", self.launcher_name)()
        return opened

    @pytest.mark.parametrize("status", [0, 7])
    def test_it_returns_the_exit_status_of_the_command(self, launcher: Launcher, status: int) -> None:
        assert launcher.run([sys.executable, "-c", f"raise SystemExit({status})"], {}) == status

    def test_the_command_gets_the_environment_on_top_of_ours(
        self, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PO_DISTILL_TEST_OURS", "ours")
        monkeypatch.setenv("PO_DISTILL_TEST_BOTH", "ours")
        names = "PO_DISTILL_TEST_OURS", "PO_DISTILL_TEST_BOTH"
        code = f"import os, sys; sys.exit([os.environ.get(name) for name in {names}] != ['ours', 'new'])"
        assert launcher.run([sys.executable, "-c", code], {"PO_DISTILL_TEST_BOTH": "new"}) == 0

    def test_arguments_reach_the_command_as_they_are(self, launcher: Launcher, tmp_path: Path) -> None:
        given = ["two words", "'quoted'", "$HOME", "*", "", "ä"]
        code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('\\n'.join(sys.argv[2:]), encoding='utf-8')"
        assert launcher.run([sys.executable, "-c", code, str(tmp_path / "seen"), *given], {}) == 0
        assert (tmp_path / "seen").read_text(encoding="utf-8").split("\n") == given

    def test_it_waits_for_the_end_of_the_command_and_shows_its_output(
        self, launcher: Launcher, capfd: pytest.CaptureFixture[str]
    ) -> None:
        code = "import time; time.sleep(0.3); print('said at the end')"
        assert launcher.run([sys.executable, "-c", code], {}) == 0
        assert "said at the end" in capfd.readouterr().out
