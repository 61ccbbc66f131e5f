"""The launcher `local`: a child process on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType

_GRACE_S = 10.0  # between asking a child to end and killing it


class LocalLauncher:
    """Runs a command here, as a child that ends when we end."""

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run the command with `environment` on top of ours; its exit status, negative for a signal.

        Its output goes to ours. Ctrl-C and SIGTERM end the child first, then raise KeyboardInterrupt
        and SystemExit here. PO_DISTILL_PARENT_PROCESS tells it our process id, to watch for our end.
        """
        inherited = {**os.environ, **environment, "PO_DISTILL_PARENT_PROCESS": str(os.getpid())}
        # In a session of its own, so that a Ctrl-C reaches it once, from us, and not from the terminal as well.
        child = subprocess.Popen(list(command), env=inherited, start_new_session=True)
        try:
            with sigterm_raises():
                return child.wait()
        except KeyboardInterrupt:
            _end(child, signal.SIGINT)
            raise
        except BaseException:
            _end(child, signal.SIGTERM)
            raise


def _end(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    child.send_signal(number)
    try:
        child.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit, where Python hands signals out (the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
