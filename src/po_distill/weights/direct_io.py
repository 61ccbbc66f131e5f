"""Ranges of files read, and files written front to back, past the system's page cache where it lets us.

A model of 14 GB that goes through the page cache pushes everything else out of it and costs a copy of
each byte; O_DIRECT (open(2), Linux) avoids both, for ranges and buffers aligned to a block of the disk.
Where the file system refuses it (tmpfs, some overlays and network mounts) or the system does not know
it (macOS, Windows), the same bytes go the plain way.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from po_distill.artifacts import translated
from po_distill.errors import WeightsError

ALIGNMENT_BYTES = 4096  # a multiple of the block size of every disk in use
_WRITE_BYTES = 8 << 20
_WRITE_BUFFERS = 4
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_O_BINARY = getattr(os, "O_BINARY", 0)
_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
Bytes = npt.NDArray[np.uint8]


def aligned_buffer(size_bytes: int) -> Bytes:
    """So many bytes of memory, beginning at a page and a multiple of one long, so that a disk can fill it directly.

    The system is asked for large pages where it has them: a disk then takes a buffer in a few pieces, not in thousands.
    """
    size = max(1, -(-size_bytes // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory gets no large pages
    with contextlib.suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


class RangeReader:
    """Reads byte ranges of files into given memory, from several threads at once. Use as a context manager."""

    def __init__(self, *, direct: bool = True) -> None:
        self._flag = _O_DIRECT if direct else 0
        self._handles: dict[Path, tuple[int, bool]] = {}  # path -> (descriptor, whether it is direct)
        self._lock = threading.Lock()

    def __enter__(self) -> RangeReader:
        return self

    def __exit__(self, *_: object) -> None:
        for handle, _direct in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def read(self, path: Path, begin: int, end: int, buffer: Bytes) -> Bytes:
        """The bytes `begin` to `end` of a file, as a view into `buffer`.

        `buffer` is an `aligned_buffer` of at least end - begin + 2 * ALIGNMENT_BYTES. Raises WeightsError where the
        file cannot be read or ends before `end`.
        """
        try:
            handle, is_direct = self._handle(path)
            try:
                return self._read(handle, path, begin, end, buffer, is_direct)
            except OSError as error:
                if not is_direct or error.errno not in _REFUSALS:
                    raise
            return self._read(self._plain_handle(path), path, begin, end, buffer, False)
        except OSError as error:
            raise WeightsError(
                f"{path} cannot be read: {error.strerror}.", "Copy or download that file again."
            ) from error

    def _handle(self, path: Path) -> tuple[int, bool]:
        with self._lock:
            if path not in self._handles:
                self._handles[path] = _opened(path, os.O_RDONLY, self._flag)
            return self._handles[path]

    def _plain_handle(self, path: Path) -> int:
        """The file opened again, for a file system that takes O_DIRECT and then refuses to read so."""
        with self._lock:
            handle, is_direct = self._handles[path]
            if is_direct:
                self._flag = 0
                os.close(handle)
                self._handles[path] = (os.open(path, os.O_RDONLY | _O_BINARY), False)
            return self._handles[path][0]

    def _read(self, handle: int, path: Path, begin: int, end: int, buffer: Bytes, is_direct: bool) -> Bytes:
        start = begin // ALIGNMENT_BYTES * ALIGNMENT_BYTES if is_direct else begin
        stop = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES if is_direct else end
        got = 0
        while start + got < end:
            count = self._read_some(handle, buffer[got : stop - start], start + got)
            got += count
            if not count or (is_direct and count % ALIGNMENT_BYTES):  # a direct read ends short at the end of the file
                break
        if start + got < end:
            raise WeightsError(
                f"{path} ends at byte {start + got}, {end} are needed.", "Copy or download that file again."
            )
        if not is_direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, start, stop - start, os.POSIX_FADV_DONTNEED)
        return buffer[begin - start : end - start]

    def _read_some(self, handle: int, target: Bytes, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(handle, [target.data], offset)
        with self._lock:  # Windows reads at a position that all threads share
            os.lseek(handle, offset, os.SEEK_SET)
            data = os.read(handle, len(target))
        target[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        return len(data)


class FileStream:
    """Writes one file front to back in a thread of its own, and digests each piece while the disk takes it.

    `start` bytes of an earlier run are kept, and digested again; what stood behind them goes. The bytes lie under
    `path` from the beginning, so `path` is a name that nobody takes for a finished file. Use as a context manager.
    """

    def __init__(self, path: Path, *, start: int = 0, direct: bool = True) -> None:
        self.path = path
        self.written_bytes = start
        self._hash = hashlib.sha256()
        self._failure: BaseException | None = None
        self._free: queue.SimpleQueue[Bytes] = queue.SimpleQueue()
        self._full: queue.Queue[tuple[Bytes, int] | None] = queue.Queue()
        with translated(path):
            self._offset = start // ALIGNMENT_BYTES * ALIGNMENT_BYTES  # what the thread has written, or will have
            kept = self._keep(start)
            self._handle, self._is_direct = _opened(path, os.O_WRONLY | os.O_CREAT, _O_DIRECT if direct else 0)
            os.ftruncate(self._handle, start)
        for _ in range(_WRITE_BUFFERS):
            self._free.put(aligned_buffer(_WRITE_BYTES))
        self._buffer = self._free.get()
        self._buffer[: len(kept)] = np.frombuffer(kept, dtype=np.uint8)
        self._filled, self._digested = len(kept), len(kept)
        self._thread = threading.Thread(target=self._work, name=f"writer of {path.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> FileStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def write(self, data: Bytes) -> None:
        """The next bytes. Raises ArtifactError where an earlier write failed."""
        self.written_bytes += len(data)
        done = 0
        while done < len(data):
            piece = data[done : done + _WRITE_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            done += len(piece)
            if self._filled == _WRITE_BYTES:
                self._hand_over()

    def sync(self) -> int:
        """Bring what is whole onto the disk; the bytes from the file's start that now outlast a power cut."""
        self._full.join()
        self._raise()
        with translated(self.path):
            os.fsync(self._handle)
        return self._offset

    def finish(self) -> str:
        """Write the rest, bring it onto the disk and close the file; its digest, `sha256:<hex>`."""
        self._stop()
        self._raise()
        with translated(self.path):
            self._hash.update(self._buffer[self._digested : self._filled].data)
            if self._is_direct:
                self._go_plain()
            _write_all(self._handle, self._buffer[: self._filled], self._offset)
            os.ftruncate(self._handle, self.written_bytes)
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = -1
        return "sha256:" + self._hash.hexdigest()

    # --- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        with ThreadPoolExecutor(1, thread_name_prefix=f"digest of {self.path.name}") as digester:
            while (item := self._full.get()) is not None:
                buffer, digested = item
                try:
                    if self._failure is None:
                        digesting = digester.submit(self._hash.update, buffer[digested:].data)
                        try:
                            self._write(buffer)
                        finally:
                            digesting.result()  # before the buffer is filled again
                except BaseException as error:  # it is raised where the next bytes are given
                    self._failure = error
                self._free.put(buffer)
                self._full.task_done()

    def _write(self, buffer: Bytes) -> None:
        try:
            _write_all(self._handle, buffer, self._offset)
        except OSError as error:
            if not self._is_direct or error.errno not in _REFUSALS:
                raise
            self._go_plain()
            _write_all(self._handle, buffer, self._offset)
        if not self._is_direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle, 0, self._offset, os.POSIX_FADV_DONTNEED)
        self._offset += len(buffer)

    def _go_plain(self) -> None:
        os.close(self._handle)
        self._handle, self._is_direct = os.open(self.path, os.O_WRONLY | _O_BINARY), False

    def _hand_over(self) -> None:
        self._raise()
        self._full.put((self._buffer, self._digested))
        self._buffer, self._filled, self._digested = self._free.get(), 0, 0
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            with translated(self.path):
                raise self._failure

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._full.put(None)
            self._thread.join()

    def _keep(self, start: int) -> bytes:
        """Digest what an earlier run wrote; the bytes behind the last whole block, which are written again."""
        if not start:
            return b""
        with self.path.open("rb") as file:
            left = start
            while left:
                piece = file.read(min(left, _WRITE_BYTES))
                if not piece:
                    raise OSError(errno.EIO, f"it has lost what was written before byte {start}")
                self._hash.update(piece)
                left -= len(piece)
            file.seek(self._offset)
            return file.read(start - self._offset)


def _opened(path: Path, flags: int, direct: int) -> tuple[int, bool]:
    """(descriptor, whether it is direct)."""
    if direct:
        with contextlib.suppress(OSError):
            return os.open(path, flags | direct, 0o666), True
    return os.open(path, flags | _O_BINARY, 0o666), False


def _write_all(handle: int, data: Bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(handle, data[done:].data, offset + done)
        else:
            os.lseek(handle, offset + done, os.SEEK_SET)
            done += os.write(handle, data[done:].data)
