"""`accelerate launch` in a process of ours.

Called as `python -m po_distill.launchers.accelerate_entry CONFIG THREADS COMMAND...`.
It ends with the process that started it, and its exit status is that of the process that failed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence

PARENT_PROCESS = "PO_DISTILL_PARENT_PROCESS"


def main(arguments: Sequence[str]) -> int:
    """Launch COMMAND as the config says; its exit status, negative for a signal."""
    config, threads, *command = arguments
    _end_with_parent()
    # The processes that we start watch for our end, as we watch for our starter's.
    os.environ[PARENT_PROCESS] = str(os.getpid())
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--config_file", config, "--num_cpu_threads_per_process", threads, "--no_python"]
    try:
        launch_command(launch_command_parser().parse_args([*options, *command]))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode
    return 0


def _end_with_parent() -> None:
    parent = os.environ.get(PARENT_PROCESS)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
