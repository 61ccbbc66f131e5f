"""The door for DSPy programs: a student as a `dspy.LM`, distilled by `BootstrapFinetune`, optimized by MIPROv2.

Names are resolved on first use, so that importing this costs nothing; resolving one needs the extra `dspy`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from po_distill.dspy.finetuning import DistillProvider
    from po_distill.dspy.instructions import role_instructions
    from po_distill.dspy.metrics import dspy_metric
    from po_distill.dspy.modules import ModuleProvider
    from po_distill.dspy.optimizing import mipro
    from po_distill.dspy.students import StudentLM, student_lm
    from po_distill.dspy.timing import time_mipro
    from po_distill.roles.product_owner.program import ProductOwner, ProductOwnerSignature

_HOMES = {
    "DistillProvider": "dspy.finetuning",
    "ModuleProvider": "dspy.modules",
    "ProductOwner": "roles.product_owner.program",
    "ProductOwnerSignature": "roles.product_owner.program",
    "StudentLM": "dspy.students",
    "dspy_metric": "dspy.metrics",
    "mipro": "dspy.optimizing",
    "role_instructions": "dspy.instructions",
    "student_lm": "dspy.students",
    "time_mipro": "dspy.timing",
}

__all__ = [
    "DistillProvider",
    "ModuleProvider",
    "ProductOwner",
    "ProductOwnerSignature",
    "StudentLM",
    "dspy_metric",
    "mipro",
    "role_instructions",
    "student_lm",
    "time_mipro",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from po_distill.dspy_form import require_dspy

    require_dspy(f"po_distill.dspy.{name}")
    return getattr(importlib.import_module(f"po_distill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
