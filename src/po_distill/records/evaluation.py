"""Candidates held against each other, and the verdict."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from po_distill.records.answers import GenerationSettings, PromptContract, Score, Usage
from po_distill.records.record import Digest, Fraction, Record

Outcome = Literal["passed", "failed", "undecided", "not judged"]
"""What a rule says. `undecided`: the cases are too few, or something that it needs is not there, so nothing passes.
`not judged`: it does not apply here (no model in production is named), and decides nothing."""

Decision = Literal["better", "not worse", "worse", "undecided"]
"""What a paired difference says, against a margin."""


class ItemChange(Record):
    """One item of the candidate's answer held against the reference's."""

    path: str  # document and field, such as product_owner_review.summary
    change: Literal["same", "reworded", "missing", "added"]  # missing: only the reference has it
    reference: str | None = None  # the reference's text; None where it is added
    candidate: str | None = None  # the candidate's text, where it is another one
    similarity: Fraction | None = None  # of the two texts, where it is reworded


class Failure(Record):
    """Why an answer failed, by its gravest cause."""

    level: Literal["format", "schema", "content"]
    cause: str  # a stable name, such as folded_list_item
    detail: str  # what and where, for a person
    also: tuple[str, ...] = ()  # other causes that the same answer shows


class CaseResult(Record):
    """One candidate's answer to one held-out concept. `score` is of the first try."""

    concept_id: str
    expected_label: str | None  # planted truth
    score: Score
    usage: Usage
    finish: str
    tier: str = "medium"
    watched: bool = False  # the concept is on the watch list
    reference_label: str | None = None  # the class that the reference answered; None without a reference
    characters: int = 0  # of the answer
    repaired_value: Fraction | None = None  # the metric after format repair; None where repair does not help
    failure: Failure | None = None  # None where nothing failed
    coverage: Fraction | None = None  # share of the requirements that the answer deals with, where the role counts it
    changes: tuple[ItemChange, ...] = ()  # against the reference's answer, every item once
    meaning: Fraction | None = None  # agreement with the reference's answer in meaning
    tries: int = 1  # how often the candidate was asked; `score` is of the first
    final: Score | None = None  # of the last try, where there were several


class ClassAccuracy(Record):
    """How often a class was recognised."""

    cases: int  # held-out cases of the class
    right: int  # of those, answered with the class


class Difference(Record):
    """The paired difference of the metric, candidate minus reference, an invalid answer counting 0."""

    reference: str  # the candidate that it is held against
    n: int  # cases that both have
    mean: float
    low: float  # 95 % confidence interval of the mean
    high: float
    std: float  # of the single differences
    effect_size: float | None  # mean / std; None where all differences are equal
    p_value: Fraction  # paired permutation test of no difference, two-sided
    p_adjusted: Fraction  # the same by Holm over all candidates
    margin: float  # how much worse still counts as not worse
    level: Fraction  # the confidence that the decision was made at: 0.975, or more where candidates are several
    decision: Decision
    cases_to_decide: int | None = None  # about how many cases would decide it; None where it is decided


class Slice(Record):
    """A part of the cases."""

    kind: Literal["tier", "class", "watch"]
    name: str
    n: int
    mean: Fraction
    valid_share: Fraction
    reference_mean: Fraction | None = None  # the reference's on the same cases
    production_mean: Fraction | None = None  # of the model now in production, on the same cases


class Times(Record):
    """What calls took, without the loading of a model. Figures are None where no row says them."""

    n: int  # calls with a known time
    median_s: float | None = None
    p95_s: float | None = None
    first_token_s: float | None = None  # median
    first_token_n: int = 0
    prompt_tokens_per_s: float | None = None  # over calls with a time to the first token
    answer_tokens_per_s: float | None = None
    load_s: float | None = None  # the longest that a call waited for the model to load
    total_s: float = 0.0


class Cluster(Record):
    """Answers that failed by the same cause."""

    cause: str
    level: Literal["format", "schema", "content"]
    n: int
    concept_ids: tuple[str, ...]  # those to read first, first
    lost: float  # what the cause costs the mean at most: repaired or reference's value less the counted one, over all n


class Judgement(Record):
    """What a model as a judge says of a candidate's answers against the reference's, asked in both orders."""

    judge: str  # the model
    n: int  # cases; n = better + worse + tied + inconsistent + unreadable
    better: int
    worse: int
    tied: int
    inconsistent: int  # the judge preferred a place, not an answer
    unreadable: int  # the judge said none of A, B and TIE


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
    score_std: float = 0.0  # of the metric over the cases (n - 1)
    repaired_mean: Fraction | None = None  # the mean had unreadable answers been repaired (unfolded, quoted)
    parts: dict[str, float] = Field(default_factory=dict)  # mean of each part of the metric, invalid answers as 0
    coverage: Fraction | None = None  # mean share of the requirements dealt with
    coverage_n: int = 0
    characters: float = 0.0  # mean length of an answer
    meaning: Fraction | None = None  # mean agreement with the reference in meaning
    meaning_n: int = 0
    item_changes: dict[str, int] = Field(default_factory=dict)  # same, reworded, missing, added -> items
    reference_confusion: dict[str, dict[str, int]] = Field(default_factory=dict)  # the reference's class -> answered
    reference_balanced_accuracy: Fraction | None = None  # over the reference's classes; None without a reference
    difference: Difference | None = None  # against the reference; None for the reference itself and without one
    slices: tuple[Slice, ...] = ()
    times: Times | None = None
    clusters: tuple[Cluster, ...] = ()  # gravest first
    judgement: Judgement | None = None  # None where no judge was asked
    retried: int = 0  # cases that were asked more than once
    valid_share_after_retries: Fraction | None = None  # None where nothing was retried
    score_mean_after_retries: Fraction | None = None

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """The cases that failed."""
        return tuple(result for result in self.results if result.failure is not None)


class RuleResult(Record):
    """What one rule of the gate says, with the figure that it says it by."""

    rule: str  # a stable name, such as valid_share
    outcome: Outcome
    reason: str  # the figure in words
    value: float | None = None  # the figure; None where it is not known
    threshold: float | None = None
    n: int = 0  # cases that the figure is of


class Verdict(Record):
    """What the acceptance gate says of the student."""

    passed: bool
    reasons: tuple[str, ...]  # each rule, with its figure, passed or not
    outcome: Literal["passed", "failed", "undecided"] | None = None  # None in reports of 0.1
    candidate: str | None = None  # who was judged
    gate: str | None = None  # which rules: a name of the library's own, or a file
    rules: tuple[RuleResult, ...] = ()

    @property
    def decided(self) -> Literal["passed", "failed", "undecided"]:
        """The outcome, in reports of any age."""
        return self.outcome or ("passed" if self.passed else "failed")


class Projection(Record):
    """How long a piece of work takes with a candidate, from its measured times."""

    candidate: str
    work: str  # what is projected: pipeline, miprov2
    calls: int
    concurrency: Annotated[int, Field(gt=0)]
    seconds: float
    basis: str  # how it was reckoned, with n


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
    reference: str | None = None  # the candidate that the others are held against
    production: str | None = None  # the candidate that is now in production
    tiers: dict[str, int] = Field(default_factory=dict)  # held-out cases by tier
    watch: tuple[str, ...] = ()  # concept ids of the watch list that are among the cases
    concurrency: int = 1
    interleaved: bool | None = None  # candidates were asked in turn; None where nobody was asked
    guaranteed_valid: bool = False  # those that were asked decoded under a JSON schema
    seed: int = 0  # of the resampling
    meaning_by: str | None = None  # what compared meanings: an embedding model's name, or a named fallback
    observations: tuple[str, ...] = ()  # sentences drawn from the figures, with the concept ids that show them
    recommendations: tuple[str, ...] = ()
    projections: tuple[Projection, ...] = ()
    digests: dict[str, Digest] = Field(default_factory=dict)  # what was read: completions of a candidate, cases, rules

    def candidate(self, name: str) -> CandidateResult:
        """The candidate of that name; KeyError where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @property
    def judged(self) -> CandidateResult:
        """The candidate that the verdict is on: the student, or the one that the verdict names."""
        names = [candidate.name for candidate in self.candidates]
        wanted = self.verdict.candidate or "student"
        return self.candidates[names.index(wanted)] if wanted in names else self.candidates[0]


class StageFinding(Record):
    """A stage of the road held against the one before it."""

    stage: str  # adapter, merged, gguf, ollama
    before: str | None  # the stage that it is held against; None for the first
    n: int  # cases that both answered
    same_answers: Fraction | None  # share of answers that are equal to the letter; None for the first stage
    agreement: Fraction | None  # mean share of equal leading characters or tokens
    score_mean: Fraction
    valid_share: Fraction
    cut_share: Fraction  # answers that ran into the limit in place of stopping
    difference: Difference | None
    fault: str | None = None  # what is wrong with it: no_op_merge, wrong_template, missing_stop, quality_lost
    detail: str = ""


class StageParity(Record):
    """The same prompts through each stage of the road: where quality went."""

    role: str
    contract: PromptContract
    cases: int
    stages: tuple[StageFinding, ...]
    passed: bool
    created_at: str


class MetricCheck(Record):
    """One thing that was tried on a metric."""

    check: str  # a stable name, such as empty_answer
    passed: bool | None  # None where it only informs
    value: float | None
    detail: str


class MetricCheckup(Record):
    """What a metric does with answers that are known: whether it can be trusted, and how it can be gamed."""

    metric: str
    role: str
    checks: tuple[MetricCheck, ...]
    passed: bool
    gameable: Fraction | None  # score of a content-free answer over the score of a sound one
    seconds_per_call: float


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
