"""A config is changed whole or not at all: permissions, links, other processes, kills, full disks."""

import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline_files import CONFIG, PROMOTED, leftovers, lines, make_workplace
from po_distill.errors import ArtifactError, InputError
from po_distill.records import ConfigChange
from po_distill.stages.integration import Integration

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # and back, afterwards
    return make_workplace(tmp_path)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_stay_and_what_is_kept_is_for_nobody_else(config: Path, mode: int) -> None:
    config.chmod(mode)
    Integration(config).promote("po-student-v1")
    assert stat.S_IMODE(config.stat().st_mode) == mode
    folder = stat.S_IMODE((config.parent / ".po_distill").stat().st_mode)
    assert folder == {0o600: 0o700, 0o640: 0o750, 0o664: 0o775, 0o755: 0o755}[mode]
    Integration(config).rollback()
    assert stat.S_IMODE(config.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(config: Path) -> None:
    os.chown(config, 1234, 1235)
    Integration(config).promote("po-student-v1")
    assert (config.stat().st_uid, config.stat().st_gid) == (1234, 1235)


def test_a_link_stays_and_the_file_behind_it_is_edited(config: Path) -> None:
    link = config.parent / "linked" / "pipeline.yaml"
    link.parent.mkdir()
    link.symlink_to("../config.yaml")
    assert Integration(link).promote("po-student-v1").config_path == str(config)
    assert link.is_symlink() and config.read_text() == PROMOTED
    assert list(link.parent.iterdir()) == [link]
    Integration(config).rollback()
    assert link.read_text() == CONFIG


def test_a_file_of_several_names_is_refused(config: Path) -> None:
    os.link(config, config.with_name("same.yaml"))
    with pytest.raises(ArtifactError, match="2 names"):
        Integration(config).promote("po-student-v1")
    assert config.read_text() == CONFIG
    assert not (config.parent / "promotions.jsonl").exists()


@pytest.mark.parametrize("name", ["none.yaml", ".", "loop"])
def test_what_is_no_file_is_refused(config: Path, name: str) -> None:
    (config.parent / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"does not exist|is no file|cannot be found"):
        Integration(name)


def test_a_config_that_is_not_utf_8_is_refused(config: Path) -> None:
    config.write_bytes("roles: {}\n".encode("utf-16"))
    with pytest.raises(InputError, match="not UTF-8"):
        Integration(config).promote("po-student-v1")


def test_a_file_that_another_process_changed_meanwhile_is_left_to_it(config: Path) -> None:
    def change_meanwhile(_: ConfigChange) -> bool:
        config.write_text("theirs: 1\n")
        return True

    with pytest.raises(InputError, match="changed by another process") as caught:
        Integration(config, approve=change_meanwhile).promote("po-student-v1")
    assert "Nothing was written" in caught.value.fix
    assert config.read_text() == "theirs: 1\n"
    assert not (config.parent / "promotions.jsonl").exists()
    assert leftovers(config.parent) == []
    Integration(config).promote("po-student-v1")
    Integration(config).rollback()
    assert config.read_text() == "theirs: 1\n"


def test_of_promotions_at_one_time_each_is_whole_or_refused(config: Path) -> None:
    code = (
        "import sys\nfrom po_distill.stages.integration import Integration\n"
        "Integration('config.yaml').promote('m' + sys.argv[1], role='role' + sys.argv[1], force='trial')"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    ended = [(child.communicate()[1], child.returncode) for child in children]
    assert all(code == 0 or "changed by another process" in said for said, code in ended)
    done = [number for number, (_, code) in enumerate(ended) if code == 0]
    assert done
    assert sorted(line["model"] for line in lines(config)) == [f"m{number}" for number in done]
    said = yaml.safe_load(config.read_text())["roles"]
    assert {name for name in said if name.startswith("role")} == {f"role{number}" for number in done}
    for _ in done:
        Integration(config).rollback()
    assert config.read_text() == CONFIG


# --- killed ---------------------------------------------------------------------------------------


def killed_at_each_step(work: Callable[[], object]) -> Iterator[int]:
    """Runs the work in children that kill themselves right before a rename or a removal, where a file gets or loses
    its name: before the first in the first child, and so on, up to a child that lives. Yields the step's number.
    """
    for step in range(1, 30):
        child = FORK.Process(target=die_at, args=(step, work))
        child.start()
        child.join()
        if child.exitcode == 0:
            return
        assert child.exitcode == -signal.SIGKILL
        yield step
    raise AssertionError("no child lived")


def die_at(step: int, work: Callable[[], object]) -> None:
    here, left = str(Path.cwd()), step

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.rename", "os.remove") and str(Path(arguments[0]).absolute()).startswith(here):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    work()


def promote_it() -> ConfigChange:
    return Integration("config.yaml").promote("po-student-v1")


def roll_back() -> ConfigChange:
    return Integration("config.yaml").rollback()


def test_killed_at_any_step_of_a_promotion_the_next_finds_the_old_or_the_new_state(config: Path) -> None:
    seen = set()
    for step in killed_at_each_step(promote_it):
        now = config.read_text()
        assert now in (CONFIG, PROMOTED)
        seen.add(now)
        standing = Integration(config).standing()
        assert [line.model for line in standing] == (["po-student-v1"] if now == PROMOTED else [])
        Integration(config).promote("po-student-v1")
        assert config.read_text() == PROMOTED
        Integration(config).rollback()
        assert config.read_text() == CONFIG, step
        assert leftovers(config.parent) == []
        assert [line["action"] for line in lines(config)] == ["promote", "rollback"]
        assert not Integration(config).standing()
        shutil.rmtree(".po_distill")
        Path("promotions.jsonl").unlink()
    assert seen == {CONFIG, PROMOTED}
    assert step >= 8


def test_killed_at_any_step_of_a_rollback_the_next_finds_the_old_or_the_new_state(config: Path) -> None:
    Integration(config).promote("po-student-v1")
    whole = config.parent / "whole"
    shutil.copytree(".po_distill", whole / ".po_distill")
    for name in ("config.yaml", "promotions.jsonl"):
        shutil.copy(name, whole)
    for _ in killed_at_each_step(roll_back):
        now = config.read_text()
        assert now in (CONFIG, PROMOTED)
        if now == PROMOTED:
            Integration(config).rollback()
        else:
            assert Integration(config).standing() == []
        Integration(config).promote("po-student-v1")
        Integration(config).rollback()
        assert config.read_text() == CONFIG
        assert leftovers(config.parent) == []
        assert [line["action"] for line in lines(config)] == ["promote", "rollback"] * 2
        shutil.rmtree(".po_distill")
        shutil.copytree(whole, ".", dirs_exist_ok=True)
    assert config.read_text() == CONFIG  # the child that was not killed


def test_a_file_that_was_edited_after_a_kill_is_settled_by_the_staged_file(config: Path) -> None:
    settled = {}
    for step in killed_at_each_step(promote_it):
        replaced = config.read_text() == PROMOTED
        pending = (config.parent / ".po_distill/pending.json").exists()
        config.write_text("by hand: 1\n")
        settled[step] = [line.model for line in Integration(config).standing()]
        noted = (config.parent / "promotions.jsonl").exists()
        assert settled[step] == (["po-student-v1"] if replaced and (pending or noted) else [])
        shutil.rmtree(".po_distill")
        (config.parent / "promotions.jsonl").unlink(missing_ok=True)
        config.write_text(CONFIG)
    assert [] in settled.values() and ["po-student-v1"] in settled.values()


def test_a_full_disk_at_any_step_leaves_the_old_or_the_new_state(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, 0

    def fail_at(step: int) -> None:
        def replaced(source: Any, target: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == step:
                raise OSError(28, "No space left on device")
            replace(source, target)

        monkeypatch.setattr(os, "replace", replaced)

    for step in range(1, 30):
        calls = 0
        fail_at(step)
        try:
            Integration(config).promote("po-student-v1")
            break
        except ArtifactError as error:
            assert "No space left" in error.problem
        monkeypatch.setattr(os, "replace", replace)
        assert bool(Integration(config).standing()) == (config.read_text() == PROMOTED)
        Integration(config).promote("po-student-v1")
        Integration(config).rollback()
        assert config.read_text() == CONFIG
        shutil.rmtree(".po_distill")
        Path("promotions.jsonl").unlink()
    assert step == 8  # the ignore file, two kept states, the staged one, the note, the config, the line


def test_a_file_that_is_not_to_be_written_is_not(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not (Path(path) == config and mode == os.W_OK))
    with pytest.raises(ArtifactError, match="is not to be written"):
        Integration(config).promote("po-student-v1")
    assert config.read_text() == CONFIG


def test_a_lock_that_another_process_does_not_give_back_is_an_error(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Integration(config).promote("po-student-v1")
    monkeypatch.setattr("po_distill.config_history._LOCK_WAIT_S", 0.05)
    with sqlite3.connect(".po_distill/lock", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ArtifactError, match="cannot be locked"):
            Integration(config).rollback()
    other.close()
    assert config.read_text() == PROMOTED
    Integration(config).rollback()
    assert config.read_text() == CONFIG
