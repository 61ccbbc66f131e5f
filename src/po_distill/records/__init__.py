"""The data model: every record that crosses a border between rooms.

Records are frozen and refuse unknown keys. They hold no behaviour beyond what their own fields
determine. Scores are 0..1; digests are `sha256:<64 hex>`; times are ISO 8601 in UTC.
"""

from po_distill.records.answers import (
    Answer,
    CallPlan,
    Completion,
    Concept,
    GenerationSettings,
    Message,
    PromptContract,
    Rejection,
    Request,
    Response,
    Score,
    TeacherSummary,
    Usage,
    Violation,
)
from po_distill.records.datasets import (
    Dataset,
    Example,
    Split,
)
from po_distill.records.evaluation import (
    CandidateResult,
    CaseResult,
    ClassAccuracy,
    EvaluationReport,
    Verdict,
)
from po_distill.records.integration import (
    ConfigChange,
    PluginInfo,
)
from po_distill.records.providers import (
    ModelCapabilities,
    Price,
    ProviderSettings,
    ProviderTraits,
)
from po_distill.records.record import (
    Day,
    Digest,
    Dollars,
    Fraction,
    Record,
)
from po_distill.records.students import (
    Adapter,
    BaseModelSpec,
    GGUFFile,
    LoRASettings,
    MergedModel,
    OllamaPackage,
    Quantization,
    RunManifest,
    TrainingJob,
    TrainingSummary,
)

__all__ = [
    "Adapter",
    "Answer",
    "BaseModelSpec",
    "CallPlan",
    "CandidateResult",
    "CaseResult",
    "ClassAccuracy",
    "Completion",
    "Concept",
    "ConfigChange",
    "Dataset",
    "Day",
    "Digest",
    "Dollars",
    "EvaluationReport",
    "Example",
    "Fraction",
    "GGUFFile",
    "GenerationSettings",
    "LoRASettings",
    "MergedModel",
    "Message",
    "ModelCapabilities",
    "OllamaPackage",
    "PluginInfo",
    "Price",
    "PromptContract",
    "ProviderSettings",
    "ProviderTraits",
    "Quantization",
    "Record",
    "Rejection",
    "Request",
    "Response",
    "RunManifest",
    "Score",
    "Split",
    "TeacherSummary",
    "TrainingJob",
    "TrainingSummary",
    "Usage",
    "Verdict",
    "Violation",
]
