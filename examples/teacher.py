"""Let a teacher answer concepts, and look at what came back.

    python examples/teacher.py [FOLDER]

Offline: the stand-in teacher `offline` answers by rules. With `provider="replay", model="answers.jsonl"`
recorded answers take its place, and with a plugin of yours, any model.
"""

import sys
import tempfile
from pathlib import Path

from po_distill import Teacher
from po_distill.plugins import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="po_distill_"))
role = load("roles", "product_owner")()

concepts = role.generate_concepts(30, seed=7)
teacher = Teacher(
    role,
    provider="offline",
    batch_size=20,
    min_score=0.85,
    journal_path=folder / "teacher_journal.sqlite",
    log_path=folder / "teacher_calls.log",
)
summary = teacher.write(concepts, folder / "completions.jsonl")

print(f"{summary.accepted} of {summary.asked} accepted; rejected: {summary.rejected or 'none'}")
print(f"{summary.sends} calls, {summary.from_journal} answers found in the journal")
for rejection in teacher.rejections:
    print(rejection.where, rejection.reason, rejection.detail)
print(folder / "completions.jsonl")
