"""po_distill: distil a role of an agent pipeline into a fast local model.

Public names are resolved on first use (PEP 562), so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from po_distill.errors import PODistillError
    from po_distill.interfaces import Launcher, Provider, Role
    from po_distill.pipeline import DistillResult, distill
    from po_distill.records import (
        Adapter,
        Answer,
        BaseModelSpec,
        Checkup,
        Completion,
        Concept,
        ConfigChange,
        Dataset,
        EvaluationReport,
        Example,
        GenerationSettings,
        GGUFFile,
        LoRASettings,
        MergedModel,
        Message,
        OllamaPackage,
        Promotion,
        PromptContract,
        ProviderSettings,
        Rejection,
        Request,
        Response,
        RunManifest,
        Score,
        Usage,
        Verdict,
        Violation,
    )
    from po_distill.role_model import RoleModel, resolve_role_model
    from po_distill.roles.product_owner.scoring import product_owner_metric
    from po_distill.settings import Settings
    from po_distill.stages.dataset_builder import DatasetBuilder
    from po_distill.stages.dataset_doctor import DatasetDoctor
    from po_distill.stages.evaluator import Evaluator
    from po_distill.stages.integration import Integration
    from po_distill.stages.lora_trainer import LoRATrainer
    from po_distill.stages.merger import Merger
    from po_distill.stages.packager import Packager
    from po_distill.stages.teacher import Teacher
    from po_distill.valid_answers import ValidAnswers, valid_answer

__version__ = "0.1.0"

_HOMES = {
    "errors": ("PODistillError",),
    "interfaces": ("Launcher", "Provider", "Role"),
    "pipeline": ("DistillResult", "distill"),
    "records": (
        *("Adapter", "Answer", "BaseModelSpec", "Checkup", "Completion", "Concept", "ConfigChange", "Dataset"),
        *("EvaluationReport", "Example", "GGUFFile", "GenerationSettings", "LoRASettings", "MergedModel", "Message"),
        *(
            "OllamaPackage",
            "Promotion",
            "PromptContract",
            "ProviderSettings",
            "Rejection",
            "Request",
            "Response",
            "RunManifest",
        ),
        *("Score", "Usage", "Verdict", "Violation"),
    ),
    "roles.product_owner.scoring": ("product_owner_metric",),
    "settings": ("Settings",),
    "stages.dataset_builder": ("DatasetBuilder",),
    "stages.dataset_doctor": ("DatasetDoctor",),
    "stages.evaluator": ("Evaluator",),
    "role_model": ("RoleModel", "resolve_role_model"),
    "stages.integration": ("Integration",),
    "stages.lora_trainer": ("LoRATrainer",),
    "stages.merger": ("Merger",),
    "stages.packager": ("Packager",),
    "stages.teacher": ("Teacher",),
    "valid_answers": ("ValidAnswers", "valid_answer"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order of the road; the names above, spelled out for type checkers
    "Teacher",
    "DatasetBuilder",
    "DatasetDoctor",
    "LoRATrainer",
    "Merger",
    "Packager",
    "Evaluator",
    "Integration",
    "resolve_role_model",
    "RoleModel",
    "ValidAnswers",
    "valid_answer",
    "distill",
    "DistillResult",
    "Settings",
    "product_owner_metric",
    "Launcher",
    "Provider",
    "Role",
    "PODistillError",
    "Adapter",
    "Answer",
    "BaseModelSpec",
    "Checkup",
    "Completion",
    "Concept",
    "ConfigChange",
    "Dataset",
    "EvaluationReport",
    "Example",
    "GGUFFile",
    "GenerationSettings",
    "LoRASettings",
    "MergedModel",
    "Message",
    "OllamaPackage",
    "Promotion",
    "PromptContract",
    "ProviderSettings",
    "Rejection",
    "Request",
    "Response",
    "RunManifest",
    "Score",
    "Usage",
    "Verdict",
    "Violation",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
