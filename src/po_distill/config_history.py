"""The past of a config file: what was promoted, the bytes before and after, and a change that a kill cannot halve.

Beside the config lie `promotions.jsonl`, to which each change adds one line, and the folder `.po_distill` with

    <sha256>.yaml   every state of a config before and after a change, under the digest of its bytes
    staged          the next state of a config, with the config's own permissions
    pending.json    the line of the change that is being made
    lock            held by the process that makes one

A change keeps both states, stages the new one, notes the line as pending, renames the staged file onto the config, adds
the line and removes the note. Where a process died in between, the next one finds the note: the config was replaced
where `staged` is gone, and the line is added; it was not where `staged` is there, and both are removed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from po_distill import artifacts
from po_distill.errors import ArtifactError, InputError
from po_distill.records import Digest, Promotion

LINES_NAME = "promotions.jsonl"
FOLDER_NAME = ".po_distill"
_LOCK_WAIT_S = 10.0


class ConfigHistory:
    """The past of one config file, which `path` names; a link is followed to the file itself."""

    def __init__(self, path: Path | str) -> None:
        self.path = _file_itself(Path(path))
        self._lines_path = self.path.parent / LINES_NAME
        self._folder = self.path.parent / FOLDER_NAME
        self._pending, self._staged = self._folder / "pending.json", self._folder / "staged"

    def read(self) -> bytes:
        """The config's bytes as they are now. Raises InputError."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}.", "Check its permissions.") from error

    def promotions(self) -> list[Promotion]:
        """Every change of this config, in both directions, oldest first."""
        lines = self._lines()
        pending = self._pending_line()
        if pending and self._is_missing(pending, lines) and self._took_effect(pending):
            lines.append(pending)
        return [line for line in lines if line.config == self.path.name]

    def standing(self) -> list[Promotion]:
        """The promotions that were not rolled back, oldest first."""
        lines = self.promotions()
        undone = {line.undoes for line in lines}
        return [line for line in lines if line.action == "promote" and line.number not in undone]

    def kept(self, digest: Digest) -> bytes:
        """The bytes that were kept under a digest. Raises InputError where they are gone or others."""
        path = self.kept_path(digest)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.", "Put it back from a backup.") from error
        if artifacts.digest_bytes(data) != digest:
            raise InputError(f"{path} is damaged: its bytes have another digest.", "Put it back from a backup.")
        return data

    def kept_path(self, digest: Digest) -> Path:
        """Where the bytes of a digest are kept."""
        return self._folder / f"{digest.removeprefix('sha256:')}.yaml"

    def change(self, line: Promotion, former: bytes, new: bytes) -> Promotion:
        """Put `new` in the place of `former` and add the line, both or neither; the line as it was numbered.

        Raises InputError where the config no longer holds `former`, ArtifactError where it cannot be replaced: the
        config is as it was then.
        """
        self._open_folder()
        with self._locked():
            self._settle()
            line = line.model_copy(update={"number": max((given.number for given in self._lines()), default=0) + 1})
            for data in (former, new):
                self._keep(data)
            if new != former:
                self._stage(new)
            artifacts.write_json(self._pending, line)
            try:
                self._put_in_place(former, new)
            except (InputError, ArtifactError):
                self._clear()
                raise
            self._add(line)
            self._clear()
        return line

    # --- the steps of a change ------------------------------------------------------------------

    def _keep(self, data: bytes) -> None:
        digest = artifacts.digest_bytes(data)
        path = self.kept_path(digest)
        if not path.exists() or artifacts.digest_file(path) != digest:
            with artifacts.atomic_file(path, "wb") as file:
                file.write(data)

    def _stage(self, new: bytes) -> None:
        """The new state as a file with the config's owner and permissions."""
        facts = self.path.stat()
        if facts.st_nlink > 1:
            raise ArtifactError(
                f"{self.path} has {facts.st_nlink} names (hard links), and the others would keep the former text.",
                "Make the other names symbolic links, then run the same command again.",
            )
        if not os.access(self.path, os.W_OK):
            raise ArtifactError(f"{self.path} is not to be written: its permissions say so.", "Change them first.")
        with artifacts.atomic_file(self._staged, "wb") as file:
            file.write(new)
        if hasattr(os, "chown"):
            with contextlib.suppress(PermissionError):  # who may not give files away becomes the owner
                os.chown(self._staged, facts.st_uid, facts.st_gid)
        os.chmod(self._staged, stat.S_IMODE(facts.st_mode))

    def _put_in_place(self, former: bytes, new: bytes) -> None:
        if self.read() != former:
            raise InputError(
                f"{self.path} was changed by another process since it was read.",
                "Nothing was written. Run the same command again; it begins with the file as it is now.",
            )
        if new == former:
            return
        try:
            os.replace(self._staged, self.path)
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be replaced: {error.strerror}.",
                "A file that is mounted by itself cannot be: run this where the file comes from.",
            ) from error

    def _add(self, line: Promotion) -> None:
        """One line more at the end, atomically; this makes the config's own rename last too, as they share a folder."""
        before = self._lines_path.read_bytes() if self._lines_path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        with artifacts.atomic_file(self._lines_path.resolve(), "wb") as file:
            file.write(before + artifacts.jsonl_line(line).encode())

    def _clear(self) -> None:
        # In this order: without `staged` a note would say that the config was replaced.
        self._pending.unlink(missing_ok=True)
        self._staged.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Finish or forget the change of a process that died."""
        pending = self._pending_line()
        if pending and self._is_missing(pending, self._lines()) and self._took_effect(pending):
            self._add(pending)
        self._clear()

    def _is_missing(self, pending: Promotion, lines: list[Promotion]) -> bool:
        return pending.number not in {line.number for line in lines}

    def _took_effect(self, line: Promotion) -> bool:
        path = self.path.with_name(line.config)
        digest = artifacts.digest_file(path) if path.exists() else None
        if digest in (line.digest_after, line.digest_before):
            return digest == line.digest_after
        return not self._staged.exists()  # edited by hand since: the rename took the staged file away, or did not

    # --- what lies there ------------------------------------------------------------------------

    def _lines(self) -> list[Promotion]:
        if not self._lines_path.exists() or not self._lines_path.stat().st_size:
            return []
        return list(artifacts.read_records(self._lines_path, Promotion))

    def _pending_line(self) -> Promotion | None:
        return artifacts.read_record(self._pending, Promotion) if self._pending.exists() else None

    def _open_folder(self) -> None:
        """Make the folder, for those alone who may read or write the config: what is kept says what the config says."""
        mode = stat.S_IMODE(self.path.stat().st_mode)
        allowed = 0o700 | (mode & 0o066) | ((mode & 0o044) >> 2)
        if not self._folder.exists():
            artifacts.write_text(self._folder / ".gitignore", "*\n")  # a config may hold what no repository should
        else:
            allowed &= stat.S_IMODE(self._folder.stat().st_mode)  # several configs share the folder
        with contextlib.suppress(PermissionError):  # it is somebody else's, who set it the same way
            os.chmod(self._folder, allowed)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among processes. SQLite's lock, as every system has it and a process that dies gives it back."""
        import sqlite3

        lock = self._folder / "lock"
        try:
            database = sqlite3.connect(lock, timeout=_LOCK_WAIT_S, isolation_level=None)
            with contextlib.closing(database):
                with contextlib.suppress(PermissionError):  # for all whom the folder lets in
                    os.chmod(lock, self._folder.stat().st_mode & 0o666)
                database.execute("BEGIN EXCLUSIVE")
                yield
        except sqlite3.Error as error:
            raise ArtifactError(
                f"{lock} cannot be locked: {error}.",
                "Wait for the other process that changes a config of this folder, then run the same command again.",
            ) from error


def _file_itself(path: Path) -> Path:
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be found: {error}"
        raise InputError(f"{path} {what}.", "Check the path.") from error
    if not found.is_file():
        raise InputError(f"{path} is no file.", "Name the pipeline's config.yaml.")
    return found
