"""Is a file of rows fit for training, and if not, by which rule? `python examples/dataset_doctor.py [FILE]`."""

import sys
import tempfile
from pathlib import Path

from po_distill import DatasetDoctor
from po_distill.artifacts import write_jsonl
from po_distill.roles.product_owner.role import ProductOwnerRole


def careless_rows(folder: Path) -> Path:
    """Rows as a hasty team might collect them: one twice, one cut, and no answer that objects to anything."""
    role = ProductOwnerRole()
    concepts = [c for c in role.generate_concepts(60, seed=5) if c.planted_label != "misaligned"]
    rows = [
        {"concept": c.concept, "requirements_yaml": c.requirements_yaml, "response": role.answer_by_rules(c)}
        for c in concepts
    ]
    rows.append(rows[0])
    rows[1] = {**rows[1], "response": rows[1]["response"].split("```yaml REVIEW")[0]}
    write_jsonl(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


with tempfile.TemporaryDirectory() as name:
    path = sys.argv[1] if len(sys.argv) > 1 else careless_rows(Path(name))
    checkup = DatasetDoctor("product_owner").check(path)

print(f"{checkup.rows} rows: {checkup.accepted} accepted, rejected: {checkup.rejected}")
print(f"{checkup.distinct_prompts} prompts, {checkup.exact_duplicate_rows} rows twice")
for rule in checkup.rules:
    print("kept  " if rule.kept else "BROKEN", rule.rule, "" if rule.kept else rule.detail)
print("fit for training" if checkup.fit else "not fit for training")
