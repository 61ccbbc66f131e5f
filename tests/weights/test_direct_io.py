import errno
import hashlib
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from po_distill.errors import ArtifactError, WeightsError
from po_distill.weights import direct_io
from po_distill.weights.direct_io import ALIGNMENT_BYTES, FileStream, RangeReader, aligned_buffer

DATA = np.random.default_rng(0).integers(0, 256, 40_000, dtype=np.uint8)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refuse_direct(monkeypatch, at):
    """A file system that refuses O_DIRECT: at opening, or only at reading and writing."""
    real_open, real_read, real_write = os.open, os.preadv, os.pwrite
    direct = set()

    def open_(path, flags, *more):
        if flags & direct_io._O_DIRECT and at == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        handle = real_open(path, flags & ~direct_io._O_DIRECT, *more)
        (direct.add if flags & direct_io._O_DIRECT else direct.discard)(handle)
        return handle

    def refusing(real):
        def call(handle, *rest):
            if handle in direct:
                raise OSError(errno.EINVAL, "Invalid argument")
            return real(handle, *rest)

        return call

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", refusing(real_read))
    monkeypatch.setattr(os, "pwrite", refusing(real_write))


@pytest.fixture(params=["direct", "plain", "refused at open", "refused at use", "no preadv"])
def way(request, monkeypatch):
    if request.param.startswith("refused"):
        refuse_direct(monkeypatch, request.param.removeprefix("refused at "))
    if request.param == "no preadv":  # as on Windows
        for name in ("preadv", "pwrite", "posix_fadvise"):
            monkeypatch.delattr(os, name)
        monkeypatch.setattr(direct_io, "_O_DIRECT", 0)
    return {"direct": request.param != "plain"}


@QUICK
@given(st.integers(0, len(DATA)), st.integers(0, len(DATA)))
def test_any_range_is_read_as_it_stands(tmp_path, way, first, second):
    path = tmp_path / "data"
    DATA.tofile(path)
    begin, end = sorted((first, second))
    with RangeReader(**way) as reader:
        found = reader.read(path, begin, end, aligned_buffer(end - begin + 2 * ALIGNMENT_BYTES))
        assert np.array_equal(found, DATA[begin:end])
        again = reader.read(path, 0, 10, aligned_buffer(2 * ALIGNMENT_BYTES))
        assert np.array_equal(again, DATA[:10])


@QUICK
@given(st.lists(st.integers(0, 15_000), max_size=8), st.integers(0, 20_000))
def test_what_is_streamed_stands_in_the_file_under_its_digest(tmp_path, way, sizes, start):
    path = tmp_path / "out"
    DATA.tofile(path)  # an earlier run wrote more than it is sure of
    start = min(start, len(DATA))
    expected = DATA[:start].tobytes()
    with FileStream(path, start=start, **way) as stream:
        for size in sizes:
            stream.write(DATA[:size])
            expected += DATA[:size].tobytes()
        assert stream.written_bytes == len(expected)
        digest = stream.finish()
    assert path.read_bytes() == expected
    assert digest == "sha256:" + hashlib.sha256(expected).hexdigest()


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 11_000), st.sampled_from(["write", "exchange", "misplaced"])), max_size=12),
    st.integers(0, 20_000),
)
def test_buffers_that_are_exchanged_stand_in_the_file_and_are_free_again(tmp_path, way, pieces, start):
    path = tmp_path / "out"
    DATA.tofile(path)
    expected = DATA[:start].tobytes()
    with FileStream(path, start=start, size_bytes=200_000, buffer_bytes=4 * ALIGNMENT_BYTES, **way) as stream:
        buffer = aligned_buffer(4 * ALIGNMENT_BYTES)
        for number, (size, how) in enumerate(pieces):
            data = DATA[number : number + size]
            begin = (stream.written_bytes + (8 if how == "misplaced" else 0)) % ALIGNMENT_BYTES
            if how == "write":
                stream.write(data)
            else:
                buffer[begin : begin + size] = data
                buffer = stream.exchange(buffer, begin, begin + size)
                buffer[:] = 255
            expected += data.tobytes()
        digest = stream.finish()
    assert path.read_bytes() == expected
    assert digest == "sha256:" + hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EOPNOTSUPP, False), (errno.ENOSPC, True)])
def test_a_file_system_without_room_says_so_and_one_that_sets_none_aside_writes(
    tmp_path, monkeypatch, number, is_refused
):
    def fallocate(handle, offset, size):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    if is_refused:
        with pytest.raises(ArtifactError, match="No space left on device"):
            FileStream(tmp_path / "out", size_bytes=len(DATA))
        return
    with FileStream(tmp_path / "out", size_bytes=len(DATA)) as stream:
        stream.write(DATA)
        stream.finish()
    assert (tmp_path / "out").read_bytes() == DATA.tobytes()


def test_large_files_pass_through_the_buffers_and_sync_says_what_is_safe(tmp_path, monkeypatch):
    monkeypatch.setattr(direct_io, "WRITE_BYTES", 2 * ALIGNMENT_BYTES)
    expected = b""
    with FileStream(tmp_path / "out") as stream:
        for _ in range(5):
            stream.write(DATA)
            expected += DATA.tobytes()
            safe = stream.sync()
            assert len(expected) - 2 * ALIGNMENT_BYTES < safe <= len(expected)
            assert (tmp_path / "out").read_bytes()[:safe] == expected[:safe]
        stream.finish()
    assert (tmp_path / "out").read_bytes() == expected


def test_a_file_that_ends_early_is_refused_with_the_byte(tmp_path):
    DATA.tofile(tmp_path / "data")
    with RangeReader() as reader, pytest.raises(WeightsError, match="ends at byte 40000, 40001 are needed"):
        reader.read(tmp_path / "data", 39_000, 40_001, aligned_buffer(3 * ALIGNMENT_BYTES))
    with RangeReader() as reader, pytest.raises(WeightsError, match="none cannot be read: No such file"):
        reader.read(tmp_path / "none", 0, 1, aligned_buffer(3 * ALIGNMENT_BYTES))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told_at_the_next_write_or_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "ftruncate", lambda handle, size: None)
    (tmp_path / "out").symlink_to("/dev/full")
    with FileStream(tmp_path / "out", direct=False) as stream:
        stream.write(DATA)
        with pytest.raises(ArtifactError, match="No space left on device") as error:
            stream.finish()
    assert "Free some space" in error.value.fix


@pytest.mark.parametrize("large_pages", ["had", "refused", "unknown"])
def test_a_buffer_begins_at_a_page_whatever_pages_the_system_has(monkeypatch, large_pages):
    class Refusing(mmap.mmap):
        def madvise(self, *_):
            raise OSError(errno.EINVAL, "Invalid argument")

    if large_pages == "refused":
        monkeypatch.setattr(mmap, "mmap", Refusing)
    elif large_pages == "unknown":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    for blocks in (3, 600):  # smaller and larger than a large page
        buffer = aligned_buffer(blocks * ALIGNMENT_BYTES - 1)
        assert (buffer.ctypes.data % ALIGNMENT_BYTES, len(buffer)) == (0, blocks * ALIGNMENT_BYTES)
        assert not buffer.any()
        buffer[:] = 1  # it can be written


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages to ask for")
@pytest.mark.parametrize("size", [2 << 20, (8 << 20) + ALIGNMENT_BYTES, (2 << 20) + 1])
def test_a_large_buffer_begins_at_a_large_page_and_is_as_long_as_was_asked(size: int) -> None:
    for buffer in [aligned_buffer(size) for _ in range(3)]:
        assert buffer.ctypes.data % (2 << 20) == 0
        assert size <= len(buffer) < size + ALIGNMENT_BYTES
        buffer[0] = buffer[-1] = 7
