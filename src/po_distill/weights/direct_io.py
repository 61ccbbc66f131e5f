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
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from po_distill.artifacts import translated
from po_distill.errors import WeightsError

ALIGNMENT_BYTES = 4096  # a multiple of the block size of every disk in use
WRITE_BYTES = 8 << 20
_LARGE_PAGE_BYTES = 2 << 20  # x86-64's and arm64's with small pages of 4 kB
_WRITE_BUFFERS = 4
_WRITERS = 2  # one alone gets too small a share of a disk from which several threads read
_O_DIRECT = getattr(os, "O_DIRECT", 0)
_O_BINARY = getattr(os, "O_BINARY", 0)
_REFUSALS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
Bytes = npt.NDArray[np.uint8]


def aligned_buffer(size_bytes: int) -> Bytes:
    """So many bytes of memory, beginning at a page and a multiple of one long, so that a disk can fill it directly.

    It lies in large pages where the system has them, from its first byte on, but for what does not fill one: a disk
    takes such a buffer in a few pieces, while of small pages each is a piece of its own.
    """
    size = max(1, -(-size_bytes // ALIGNMENT_BYTES)) * ALIGNMENT_BYTES
    whole = size // _LARGE_PAGE_BYTES * _LARGE_PAGE_BYTES
    if not whole or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    # Private, as shared memory gets no large pages; what lies before the first and behind the last is never touched.
    memory = mmap.mmap(-1, size + _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer = np.frombuffer(memory, dtype=np.uint8)
    first = -buffer.ctypes.data % _LARGE_PAGE_BYTES
    with contextlib.suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE, first, whole)
    return buffer[first : first + size]


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
    """Writes one file front to back in threads of its own, and digests each piece while the disk takes it.

    `start` bytes of an earlier run are kept, and digested again; what stood behind them goes. For `size_bytes` room is
    taken on the disk at once, where the file system can: so several pieces are written at a time, and a disk that is
    too full says so before the work. The bytes lie under `path` from the beginning, so `path` is a name that nobody
    takes for a finished file. Use as a context manager.
    """

    def __init__(
        self,
        path: Path,
        *,
        start: int = 0,
        size_bytes: int = 0,
        buffer_bytes: int | None = None,
        direct: bool = True,
    ) -> None:
        self.path = path
        self.written_bytes = start
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()
        self._pending: deque[tuple[Bytes, Future[None], Future[None]]] = deque()  # buffer, its writing, its digesting
        with translated(path):
            self._offset = start // ALIGNMENT_BYTES * ALIGNMENT_BYTES  # up to where pieces were handed to the threads
            kept = self._keep(start)
            self._handle, self._is_direct = _opened(path, os.O_WRONLY | os.O_CREAT, _O_DIRECT if direct else 0)
            self._handles = [self._handle]
            try:
                os.ftruncate(self._handle, start)
                self._take_room(size_bytes)
            except OSError:
                os.close(self._handle)
                raise
        self._free = [aligned_buffer(buffer_bytes or WRITE_BYTES) for _ in range(_WRITE_BUFFERS)]
        self._buffer = self._free.pop()
        self._buffer[: len(kept)] = np.frombuffer(kept, dtype=np.uint8)
        self._filled, self._digested = len(kept), len(kept)
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix=f"writer of {path.name}")
        self._digester = ThreadPoolExecutor(1, thread_name_prefix=f"digest of {path.name}")

    def __enter__(self) -> FileStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._writers.shutdown(cancel_futures=True)
        self._digester.shutdown(cancel_futures=True)
        while self._handles:
            os.close(self._handles.pop())

    def write(self, data: Bytes) -> None:
        """The next bytes. Raises ArtifactError where an earlier write failed."""
        self.written_bytes += len(data)
        done = 0
        while done < len(data):
            piece = data[done : done + len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            done += len(piece)
            if self._filled == len(self._buffer):
                self._hand_over(self._next_buffer())

    def exchange(self, buffer: Bytes, begin: int, end: int) -> Bytes:
        """Write the bytes `begin` to `end` of an aligned buffer without a copy, and give another buffer for it.

        That is done for a buffer of `buffer_bytes` in which the bytes begin where in a block of the disk they will be
        in the file; else they are copied, and the buffer itself comes back. Raises as `write`.
        """
        rest = self._filled % ALIGNMENT_BYTES  # the bytes that do not fill a block of the disk
        if len(buffer) != len(self._buffer) or begin != rest or end - begin < ALIGNMENT_BYTES:
            self.write(buffer[begin:end])
            return buffer
        self.written_bytes += end - begin
        buffer[:rest] = self._buffer[self._filled - rest : self._filled]
        if self._filled == rest:
            free, self._buffer, self._filled = self._buffer, buffer, end
            return free
        self._hand_over(buffer)
        self._filled = end
        return self._next_buffer()

    def sync(self) -> int:
        """Bring what is whole onto the disk; the bytes from the file's start that now outlast a power cut."""
        self._await_all()
        with translated(self.path):
            os.fsync(self._handle)
        return self._offset

    def finish(self) -> str:
        """Write the rest, bring it onto the disk and close the file; its digest, `sha256:<hex>`."""
        self._await_all()
        with translated(self.path):
            self._hash.update(self._buffer[self._digested : self._filled].data)
            self._go_plain()
            _write_all(self._handle, self._buffer[: self._filled], self._offset)
            os.ftruncate(self._handle, self.written_bytes)
            os.fsync(self._handle)
        self.__exit__()
        return "sha256:" + self._hash.hexdigest()

    # --- the threads ----------------------------------------------------------------------------

    def _hand_over(self, following: Bytes) -> None:
        """Give the buffer to the threads, but for what does not fill a block: it stands in the `following` one."""
        buffer, rest = self._buffer, self._filled % ALIGNMENT_BYTES
        whole = buffer[: self._filled - rest]
        writing = self._writers.submit(self._write, whole, self._offset)
        digesting = self._digester.submit(self._hash.update, buffer[self._digested : self._filled].data)
        self._pending.append((buffer, writing, digesting))
        self._offset += len(whole)
        self._buffer, self._filled, self._digested = following, rest, rest

    def _next_buffer(self) -> Bytes:
        return self._free.pop() if self._free else self._await_oldest()

    def _await_oldest(self) -> Bytes:
        """The buffer handed over first, once nobody needs it. Raises ArtifactError where it was not written."""
        buffer, writing, digesting = self._pending.popleft()
        digesting.result()
        with translated(self.path):
            writing.result()
        return buffer

    def _await_all(self) -> None:
        while self._pending:
            self._free.append(self._await_oldest())

    def _write(self, buffer: Bytes, offset: int) -> None:
        handle, is_direct = self._handle, self._is_direct
        try:
            _write_all(handle, buffer, offset)
        except OSError as error:
            if not is_direct or error.errno not in _REFUSALS:
                raise
            self._go_plain()
            _write_all(self._handle, buffer, offset)
        if not self._is_direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._handle, 0, offset, os.POSIX_FADV_DONTNEED)

    def _go_plain(self) -> None:
        """Open the file again, without O_DIRECT; the other threads may be writing by the first handle still."""
        with self._lock:
            if self._is_direct:
                self._handle, self._is_direct = os.open(self.path, os.O_WRONLY | _O_BINARY), False
                self._handles.append(self._handle)

    # --- at the beginning -----------------------------------------------------------------------

    def _take_room(self, size_bytes: int) -> None:
        """Have the disk set room aside for the whole file: without it ext4 takes one direct write after the other."""
        if not self._is_direct or size_bytes <= self.written_bytes or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._handle, self.written_bytes, size_bytes - self.written_bytes)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise

    def _keep(self, start: int) -> bytes:
        """Digest what an earlier run wrote; the bytes behind the last whole block, which are written again."""
        if not start:
            return b""
        with self.path.open("rb") as file:
            left = start
            while left:
                piece = file.read(min(left, WRITE_BYTES))
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
