"""Candidates held against each other, and the verdict."""

from __future__ import annotations

from pydantic import Field

from po_distill.records.answers import GenerationSettings, PromptContract, Score, Usage
from po_distill.records.record import Digest, Fraction, Record


class CaseResult(Record):
    """One candidate's answer to one held-out concept."""

    concept_id: str
    expected_label: str | None  # planted truth
    score: Score
    usage: Usage
    finish: str


class ClassAccuracy(Record):
    """How often a class was recognised."""

    cases: int  # held-out cases of the class
    right: int  # of those, answered with the class


class CandidateResult(Record):
    """One candidate over all held-out cases."""

    name: str  # base, student, teacher
    model: str
    stand_in: bool = False
    cases: int
    score_mean: Fraction  # the metric, an invalid answer counting 0
    raw_score_mean: Fraction  # the metric as it is, invalid answers included
    valid_share: Fraction
    verdict_balanced_accuracy: Fraction | None  # mean over classes; None without planted truth
    verdicts: dict[str, ClassAccuracy]  # by class
    confusion: dict[str, dict[str, int]]  # expected class -> answered class (or "invalid") -> cases
    seconds_per_call: float  # median
    seconds_per_call_p95: float
    violations: dict[str, int]  # answers that show a violation, by kind
    results: tuple[CaseResult, ...]


class Verdict(Record):
    """What the acceptance gate says of the student."""

    passed: bool
    reasons: tuple[str, ...]  # each rule, with its figure, passed or not


class EvaluationReport(Record):
    """Candidates side by side on the same held-out concepts."""

    role: str
    contract: PromptContract
    cases: int
    labels: dict[str, int]  # held-out cases by planted class
    candidates: tuple[CandidateResult, ...]
    verdict: Verdict
    generation: GenerationSettings
    created_at: str
    artifacts: dict[str, str] = Field(default_factory=dict)  # name -> path
    student_digest: Digest | None = None  # over the file that the student is; None where it is recorded or served

    def candidate(self, name: str) -> CandidateResult:
        """The candidate of that name; KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


class SmokeResult(Record):
    """One concept asked of a role's model as production asks it, and what production makes of the answer."""

    role: str
    provider: str  # the plugin
    model: str  # as it was asked for
    served_model: str  # as the provider names what answered
    source: str  # who named the model: a variable of the environment, or the place in the config
    stand_in: bool = False  # rules answered in place of a model
    contract_digest: Digest  # of the prompt contract that it was asked under
    generation: GenerationSettings
    concept_id: str
    expected_label: str | None  # planted truth
    documents: dict[str, bool]  # each document of the role: whether a forgiving reading finds it
    readable: bool  # whether production can read the answer as it stands
    label: str | None  # the class of the answer
    score: Fraction  # the metric of the answer as it came, readable or not
    violations: tuple[str, ...]  # what is wrong with the answer, by kind
    finish: str
    finish_reason: str | None = None  # the provider's own word for it
    usage: Usage
    tokens_per_s: float | None  # of the answer, over the call without loading; None where a part is not known
    passed: bool  # production can read it, and the model stopped by itself
    problems: tuple[str, ...]  # why it did not pass
    answered_at: str
    answer: str | None = None  # as it came, where it was asked for
    findings: tuple[str, ...] = ()  # the violations in words, which may quote the answer; only together with it
