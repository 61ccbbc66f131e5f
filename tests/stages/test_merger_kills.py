"""A merge killed with -9 at random moments: PO_DISTILL_MERGE_KILLS says how often (20 for the full number)."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")
from po_distill.artifacts import digest_file
from po_distill.stages.merger import Merger
from tiny_models import tiny_adapter, tiny_model

KILLS = int(os.environ.get("PO_DISTILL_MERGE_KILLS", "4"))
# One process that has everything imported, and forks a merge for each line that it reads. A block takes some
# milliseconds there, so that there is a middle to be killed in.
FORKING = """
import os, sys, time
from po_distill.stages.merger import Merger
from po_distill.weights import direct_io, weight_stream
from po_distill.weights.summed_weights import SummedWeights

weight_stream.BLOCK_ELEMENTS, weight_stream._NOTE_BYTES, weight_stream.WRITE_BYTES = 2048, 20_000, 4096
fill = SummedWeights.fill

def slowly(self, block, memory):
    time.sleep(0.02)
    fill(self, block, memory)

SummedWeights.fill = slowly
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        Merger(gguf="q4_0").merge(sys.argv[1], sys.argv[2])
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("done", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_merge_killed_at_random_moments_shows_no_unfinished_file_and_the_next_run_finishes(tmp_path):
    base = tiny_model(tmp_path / "base", hidden_size=128, intermediate_size=256)
    adapter = tiny_adapter(base, tmp_path / "adapter")
    out = tmp_path / "po_student_v1"
    whole = Merger(gguf="q4_0").merge(adapter, tmp_path / "whole" / "po_student_v1")
    assert whole.gguf is not None
    expected = {"po_student_v1.safetensors": whole.digest, "po-student-v1.Q4_0.gguf": whole.gguf.digest}
    chance = random.Random(7)
    environment = {**os.environ, "PO_DISTILL_QUIET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FORKING, str(adapter), str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
    ) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "ready\n"

        def merge(seconds=None):
            process.stdin.write("\n")
            child = int(process.stdout.readline())
            if seconds is not None:
                time.sleep(seconds)
                os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "done\n"

        killed = 0
        while killed < KILLS:
            merge(chance.uniform(0.0, 1.5))
            for name, digest in expected.items():  # what has its final name is whole
                assert not (out / name).exists() or digest_file(out / name) == digest
            if (out / "manifest.json").exists():  # it was done before the kill
                shutil.rmtree(out)
            else:
                killed += 1
        merge()
        process.stdin.close()
    assert {name: digest_file(out / name) for name in expected} == expected
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert (out / "manifest.json").exists()
