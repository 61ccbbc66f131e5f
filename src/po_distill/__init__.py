"""po_distill: distil a role of an agent pipeline into a fast local model.

Public names are resolved on first use (PEP 562), so that importing the package stays cheap.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Teacher": "stages.teacher",
    "DatasetBuilder": "stages.dataset_builder",
    "LoRATrainer": "stages.lora_trainer",
    "Merger": "stages.merger",
    "Packager": "stages.packager",
    "Evaluator": "stages.evaluator",
    "distill": "pipeline",
    "product_owner_metric": "roles.product_owner.scoring",
    "PODistillError": "errors",
    **dict.fromkeys(("Provider", "Role", "Launcher"), "interfaces"),
    **dict.fromkeys(
        (
            "Adapter",
            "Answer",
            "BaseModelSpec",
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
        ),
        "records",
    ),
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
