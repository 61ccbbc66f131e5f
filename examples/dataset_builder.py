"""Build a gated dataset out of a teacher's answers.

    python examples/dataset_builder.py [FOLDER]

Offline. Answers that you have already are read with `builder.build_from("rows.jsonl", output)`.
"""

import sys
import tempfile
from pathlib import Path

from po_distill import DatasetBuilder, Teacher
from po_distill.plugins import load

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="po_distill_"))
role = load("roles", "product_owner")()

teacher = Teacher(role, journal_path=folder / "teacher_journal.sqlite", log_path=None)
completions = teacher.answer(role.generate_concepts(60, seed=7))

builder = DatasetBuilder(role, min_score=0.85, validation_share=0.05, test_share=0.1)
dataset = builder.build(completions, folder / "dataset.jsonl")

print(f"{dataset.inputs} answers = {dataset.counts} + rejected {dataset.rejected}")
print(f"by verdict: {dataset.labels}")
for split, path in dataset.paths.items():
    print(f"{split}: {path}")
print(f"rejected, each with its reason: {dataset.rejected_path}")
