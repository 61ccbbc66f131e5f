"""Each worker of pytest-xdist gets processors of its own, which its models and child processes take for all there are.

torch and llama.cpp start a thread for each processor that they may use, and wait for each other in busy loops: two
workers with two threads each on two processors are slower than one.
"""

import os


def pytest_configure() -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        mine = processors[int(worker) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
        os.sched_setaffinity(0, mine or processors)
