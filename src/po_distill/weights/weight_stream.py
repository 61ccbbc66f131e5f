"""The weights of a model, block by block, from its files into one or more files: the pace is the disk's.

Some threads read a block of rows, compute it and encode it for each output; the blocks are written in their
order. Memory holds a few blocks, whatever the size of the model. Blocks at the end that are slow to encode are begun
between the others, while those wait for the disk. A run that was killed goes on behind the last block that is known to
be on the disk; nothing has its final name before all is whole.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from po_distill import artifacts
from po_distill.progress import Advance, progress
from po_distill.weights.block_arithmetic import Floats, Words, use_one_thread, whole_threads_afterwards
from po_distill.weights.direct_io import ALIGNMENT_BYTES, WRITE_BYTES, Bytes, FileStream, aligned_buffer
from po_distill.weights.partial_files import Note, OutputFile, check_space, locked, stream_key
from po_distill.weights.safetensors_file import TensorInfo

BLOCK_ELEMENTS = 1 << 22
_MOST_WORKERS = 8
_NOTE_BYTES = 2 << 30  # so much may have to be written again after a kill
_MOST_EARLY_BYTES = 128 << 20  # what is encoded before its turn stays in memory until then


@dataclass(frozen=True)
class Block:
    """Some rows of a tensor of the source; all of it where it has fewer than two dimensions."""

    source: TensorInfo
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Elements of a row."""
        return math.prod(self.source.shape[1:])

    @property
    def elements(self) -> int:
        return (self.stop - self.start) * self.width

    @property
    def is_last(self) -> bool:
        return self.stop == _rows(self.source)


@dataclass
class BlockMemory:
    """A block on its way from a thread that computes it to the one that writes it."""

    buffer: Bytes  # an `aligned_buffer` for its values in 16 bits
    encoded: list[Bytes]  # for each output, memory for what it makes of a block
    shift: int = 0  # the bytes of `buffer` before the first value: then a disk takes the values as they lie
    exact: Floats | None = None  # a vector's values before they were rounded
    results: list[Bytes | None] = field(default_factory=list)  # for each output, its bytes of this block

    @property
    def words(self) -> Words:
        """The values, in the first `block.elements` places."""
        whole = (len(self.buffer) - self.shift) // 2 * 2
        return self.buffer[self.shift : self.shift + whole].view(np.uint16)


class Output(Protocol):
    """A form in which the weights are wanted."""

    @property
    def files(self) -> Sequence[OutputFile]:
        """The files that it writes."""
        ...

    @property
    def gives_words(self) -> bool:
        """Whether `encode` gives a block's words as they are."""
        ...

    def place(self, block: Block) -> tuple[int, int, int] | None:
        """(the number of its file, its bytes, the bytes of padding behind it); None where the output leaves it out."""
        ...

    def is_slow(self, block: Block) -> bool:
        """Whether `encode` takes much longer for the block than the disk does."""
        ...

    def most_bytes(self, block: Block) -> int:
        """The memory of its own that `encode` needs for a block."""
        ...

    def encode(self, block: Block, memory: BlockMemory, own: Bytes) -> Bytes:
        """The bytes of a block, as a view into `memory.words` or into `own`. Called from several threads at once."""
        ...


class Source(Protocol):
    """Where the values of a block come from."""

    def fill(self, block: Block, memory: BlockMemory) -> None:
        """Put a block's values into `memory`. Called from several threads at once."""
        ...


@dataclass(frozen=True)
class Written:
    """What a stream wrote."""

    digests: dict[Path, str]  # final path -> sha256:<hex>
    read_bytes: int
    written_bytes: int
    resumed_blocks: int  # blocks that stood there from an earlier run


def natural(name: str) -> list[str | int]:
    """A key that sorts names with numbers in them as people do: layers.2 before layers.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def cut_blocks(source: TensorInfo, step: int = 1) -> Iterator[Block]:
    """A tensor in blocks of at most BLOCK_ELEMENTS, each of a multiple of `step` rows (but for the last)."""
    rows, width = _rows(source), max(1, math.prod(source.shape[1:]))
    most = rows if len(source.shape) < 2 else max(step, BLOCK_ELEMENTS // width // step * step)
    for start in range(0, rows, max(1, most)):
        yield Block(source, start, min(start + most, rows))


def _rows(source: TensorInfo) -> int:
    return source.shape[0] if source.shape else 1


@contextmanager
def written_outputs(
    label: str,
    blocks: Sequence[Block],
    source: Source,
    outputs: Sequence[Output],
    key: Mapping[str, object],
) -> Iterator[Written]:
    """Write all outputs under partial names; they take their final names when the block of `with` ends well.

    So there is room for a proof before anything is called finished. `key` says what goes in: what an earlier run left
    is gone on with only where its key and its headers are the same. Raises ArtifactError where the disk has too little
    space or where another run writes the same files.
    """
    files = [file for output in outputs for file in output.files]
    for folder in {file.path.parent for file in files}:
        with artifacts.translated(folder):
            folder.mkdir(parents=True, exist_ok=True)
    note = Note(files[0].path.parent / f".{files[0].path.name}.progress.json", stream_key(files, key))
    with locked(note.path):
        ends = _ends(blocks, outputs)
        done = note.read(files, ends)
        for folder in {file.path.parent for file in files}:
            check_space(folder, [file for file in files if file.path.parent == folder])
        try:
            yield _write(label, blocks, source, outputs, ends, done, note)
            for file in files:
                artifacts.take_name(file.partial, file.path)
            note.path.unlink(missing_ok=True)
        except Exception:
            for path in (note.path, *(file.partial for file in files)):
                path.unlink(missing_ok=True)
            raise


# --- the stream -----------------------------------------------------------------------------------


def _write(
    label: str,
    blocks: Sequence[Block],
    source: Source,
    outputs: Sequence[Output],
    ends: list[dict[Path, int]],
    done: int,
    note: Note,
) -> Written:
    total = sum(_read_bytes(block) for block in blocks)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(_MOST_WORKERS, processors) + 1  # one more, as some of them wait for the disk
    buffer_bytes = max([2 * block.elements for block in blocks], default=0) + ALIGNMENT_BYTES
    shifts = _shifts(blocks, outputs, ends)
    with ExitStack() as stack:
        files = stack.enter_context(_GrowingFiles(outputs, ends[done - 1] if done else {}, buffer_bytes))
        computed = stack.enter_context(
            _computed(blocks[done:], shifts[done:], source, outputs, workers, files.buffer_bytes)
        )
        before = sum(_read_bytes(block) for block in blocks[:done])
        advance = stack.enter_context(progress(label, round(total / 1e9, 1), "GB", done=round(before / 1e9, 1)))
        pace = _Pace(advance, before)
        since_note = 0
        for number, (block, memory) in enumerate(computed, start=done):
            for output, data in zip(outputs, memory.results, strict=True):
                if data is not None and (place := output.place(block)) is not None:
                    assert len(data) == place[1], block.source.name
                    files.write(output.files[place[0]], data, place[2], memory if output.gives_words else None)
                    since_note += len(data)
            pace.read(_read_bytes(block))
            assert files.lengths() == ends[number], block.source.name
            if since_note >= _NOTE_BYTES:
                note.write(files.sync())
                since_note = 0
        digests = files.finish()
    return Written(digests, total, sum(file.size_bytes for output in outputs for file in output.files), done)


class _GrowingFiles:
    """The files under their partial names: each is opened at its first byte and closed, on the disk, at its last."""

    def __init__(self, outputs: Sequence[Output], lengths: Mapping[Path, int], buffer_bytes: int) -> None:
        self.buffer_bytes = max(buffer_bytes, WRITE_BYTES)
        self._files = [file for output in outputs for file in output.files]
        self._lengths = {file.path: lengths.get(file.path, len(file.header)) for file in self._files}
        self._streams: dict[Path, FileStream] = {}
        self._digests: dict[Path, str] = {}

    def __enter__(self) -> _GrowingFiles:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self._streams.values():
            stream.__exit__(*error)

    def write(self, file: OutputFile, data: Bytes, padding: int, memory: BlockMemory | None) -> None:
        """The next bytes of a file and their padding; where they are a block's words, `memory` gets another buffer."""
        stream = self._stream(file)
        if memory is None:
            stream.write(data)
        else:
            memory.buffer = stream.exchange(memory.buffer, memory.shift, memory.shift + len(data))
        stream.write(np.zeros(padding, dtype=np.uint8))
        self._lengths[file.path] += len(data) + padding
        if stream.written_bytes == file.size_bytes:
            self._digests[file.path] = self._streams.pop(file.path).finish()

    def lengths(self) -> dict[Path, int]:
        """How long each file is, a file without a byte of its weights as long as its header."""
        return self._lengths

    def sync(self) -> dict[Path, int]:
        """Bring what is whole onto the disk; the bytes of each file that outlast a power cut."""
        safe = {path: stream.sync() for path, stream in self._streams.items()}
        return {
            file.path: file.size_bytes if file.path in self._digests else safe.get(file.path, 0) for file in self._files
        }

    def finish(self) -> dict[Path, str]:
        """The digests of all files, those that an earlier run finished among them."""
        for file in self._files:
            if file.path not in self._digests:
                self._digests[file.path] = self._stream(file).finish()
                self._streams.pop(file.path)
        return self._digests

    def _stream(self, file: OutputFile) -> FileStream:
        if file.path not in self._streams:
            is_new = self._lengths[file.path] == len(file.header)
            start = 0 if is_new else self._lengths[file.path]
            stream = FileStream(file.partial, start=start, size_bytes=file.size_bytes, buffer_bytes=self.buffer_bytes)
            self._streams[file.path] = stream
            if is_new:
                stream.write(np.frombuffer(file.header, dtype=np.uint8))
        return self._streams[file.path]


@contextmanager
def _computed(
    blocks: Sequence[Block],
    shifts: Sequence[int],
    source: Source,
    outputs: Sequence[Output],
    workers: int,
    buffer_bytes: int,
) -> Iterator[Iterator[tuple[Block, BlockMemory]]]:
    """The blocks with what each output makes of them, in order; a block's memory is used again after its turn."""
    own = [max((output.most_bytes(block) for block in blocks), default=0) for output in outputs]
    early = _Early(blocks, outputs)

    def new_memory() -> BlockMemory:
        return BlockMemory(aligned_buffer(buffer_bytes), [aligned_buffer(size) for size in own])

    def encode_early(block: Block) -> list[Bytes | None]:
        memory = new_memory()
        source.fill(block, memory)
        return [
            _copied(output.encode(block, memory, spare)) if output.is_slow(block) else None
            for output, spare in zip(outputs, memory.encoded, strict=True)
        ]

    def compute(number: int, memory: BlockMemory, found: Future[list[Bytes | None]] | None) -> BlockMemory:
        block, memory.shift, memory.exact = blocks[number], shifts[number], None
        memory.results = list(found.result()) if found else [None] * len(outputs)
        source.fill(block, memory)
        for index, (output, spare) in enumerate(zip(outputs, memory.encoded, strict=True)):
            if memory.results[index] is None and output.place(block) is not None:
                memory.results[index] = output.encode(block, memory, spare)
        return memory

    def stream() -> Iterator[tuple[Block, BlockMemory]]:
        waiting: deque[tuple[Block, Future[BlockMemory]]] = deque()
        begun: dict[int, Future[list[Bytes | None]]] = {}
        for number, block in enumerate(blocks):
            if len(waiting) < workers + 1:
                memory = new_memory()
            else:
                first, future = waiting.popleft()
                memory = future.result()
                yield first, memory
            if (other := early.due(number)) is not None:
                begun[other] = threads.submit(encode_early, blocks[other])
            waiting.append((block, threads.submit(compute, number, memory, begun.pop(number, None))))
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()

    threads = ThreadPoolExecutor(workers, thread_name_prefix="weights", initializer=use_one_thread)
    with whole_threads_afterwards():
        try:
            yield stream()
        finally:
            threads.shutdown(cancel_futures=True)


def _copied(data: Bytes) -> Bytes:
    kept = aligned_buffer(len(data))[: len(data)]  # of large pages, which a process gets sooner than small ones
    np.copyto(kept, data)
    return kept


def _shifts(blocks: Sequence[Block], outputs: Sequence[Output], ends: list[dict[Path, int]]) -> list[int]:
    """For each block, where in a block of the disk its words begin in the file that has them as they are."""
    assert sum(output.gives_words for output in outputs) <= 1, "the first would give the words' memory away"
    lengths = {file.path: len(file.header) for output in outputs for file in output.files}
    shifts = []
    for number, block in enumerate(blocks):
        before = ends[number - 1] if number else lengths
        places = [(output, output.place(block)) for output in outputs if output.gives_words]
        begins = [before[output.files[place[0]].path] for output, place in places if place is not None]
        shifts.append(begins[0] % ALIGNMENT_BYTES if begins else 0)
    return shifts


class _Early:
    """When the slow blocks at the end are begun: evenly between those before them, as many as memory may hold."""

    def __init__(self, blocks: Sequence[Block], outputs: Sequence[Output]) -> None:
        held = 0
        self._first = len(blocks)
        for block in reversed(blocks):
            placed = [output.place(block) for output in outputs if output.is_slow(block)]
            held += sum(place[1] for place in placed if place is not None)
            if not placed or held > _MOST_EARLY_BYTES:
                break
            self._first -= 1
        self._count = len(blocks) - self._first
        self._pace = self._first // (self._count + 1)

    def due(self, number: int) -> int | None:
        """The number of the block that is begun before the one of this number."""
        turn, rest = divmod(number, self._pace) if self._pace else (0, 1)
        return self._first + turn - 1 if not rest and 0 < turn <= self._count and number < self._first else None


class _Pace:
    """Says how much was read, and how fast."""

    def __init__(self, advance: Advance, read_bytes: int) -> None:
        self._advance, self._read, self._shown = advance, read_bytes, round(read_bytes / 1e9, 1)
        self._from, self._started = read_bytes, time.monotonic()

    def read(self, count: int) -> None:
        self._read += count
        tenths = round(self._read / 1e9, 1)
        rate = (self._read - self._from) / 1e9 / max(time.monotonic() - self._started, 1e-3)
        self._advance(tenths - self._shown, note=f"{rate:.2f} GB/s")
        self._shown = tenths


def _read_bytes(block: Block) -> int:
    return block.elements * (block.source.end - block.source.begin) // max(1, block.source.elements)


def _ends(blocks: Sequence[Block], outputs: Sequence[Output]) -> list[dict[Path, int]]:
    """For each block, how long every file is once the block is written. Checks that the files come out as declared."""
    ends: list[dict[Path, int]] = []
    length = {file.path: len(file.header) for output in outputs for file in output.files}
    for block in blocks:
        for output in outputs:
            if (place := output.place(block)) is not None:
                length[output.files[place[0]].path] += place[1] + place[2]
        ends.append(dict(length))
    for output in outputs:
        for file in output.files:
            assert length[file.path] == file.size_bytes, f"{file.path}: {length[file.path]} of {file.size_bytes} bytes"
    return ends
