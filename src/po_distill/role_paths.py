"""Where the files of a role lie by default: the role is in each path, so that two roles in one folder share none.

In a path `{role}` stands for the role's name, `{stem}` for how its versions begin, without `_student`: product_owner
and po.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from po_distill.interfaces import Role

CONCEPTS = "artifacts/synthetic/{role}/concepts.jsonl"
DATASET = "artifacts/distillation/{stem}_teacher_dataset.jsonl"
REPORT = "docs/{stem}_distillation_report.md"


def of_role(path: Path | str, role: Role) -> str:
    """The path with the role's name where `{role}` or `{stem}` stands in it."""
    stem = role.version_stem.removesuffix("_student")
    return str(path).replace("{role}", role.name).replace("{stem}", stem)
