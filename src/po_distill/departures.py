"""Which sends did leave: a note beside the journal, made without a sync in the step in which a request leaves.

An intent is on the disk before its request leaves, and a process can be killed while the disk works: such a send never
left, and nobody should think that it was paid for. A note that is only written survives a kill of the process, though
not a power cut; so notes are trusted within one boot of one machine, and where they cannot be, every send without an
end counts as left.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_ENTRY = struct.Struct("<q")
_HEADER_BYTES = 64


class Departures:
    """The file `<journal>-left`: the boot in which it was begun, then the numbers of the sends, eight bytes each.

    Without `begin` nothing is noted, and every send without an end counts as left.
    """

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(f"{journal.name}-left")
        self._handle: int | None = None
        self._earlier = self._read()

    def may_have_left(self, send_id: int) -> bool:
        """Whether a send of an earlier run left, or cannot be known not to have."""
        return self._earlier is None or send_id in self._earlier

    def begin(self) -> None:
        """Forget the notes of earlier runs, whose sends have an end now."""
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._handle = os.open(self._path, flags, 0o600)
        os.write(self._handle, (boot_id() or "").encode().ljust(_HEADER_BYTES))

    def note(self, send_id: int) -> None:
        """Note that a send leaves now."""
        if self._handle is not None:
            os.write(self._handle, _ENTRY.pack(send_id))

    def close(self) -> None:
        """Close the file; its notes stay."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _read(self) -> set[int] | None:
        """The sends that are noted; None where the notes cannot be trusted."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return None
        boot, entries = data[:_HEADER_BYTES].strip().decode("utf-8", "replace"), data[_HEADER_BYTES:]
        if len(data) < _HEADER_BYTES or not boot or boot != boot_id():
            return None
        whole = len(entries) // _ENTRY.size * _ENTRY.size
        return {number for (number,) in _ENTRY.iter_unpack(entries[:whole])}


def boot_id() -> str | None:
    """What names this boot of this machine, where the system says it (Linux); None elsewhere."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None
