"""The same prompts through each stage of the road (adapter, merged, GGUF, Ollama): where quality went.

Each stage is held against the one before it, by its recorded answers alone, so it does not matter who ran it. What
differs is named:

| fault | what shows it |
| --- | --- |
| `no_op_merge` | the stage answers as the base model does, where the stage before did not |
| `missing_stop` | the stage says what the one before said, or is complete otherwise, and goes on to the limit |
| `wrong_template` | the answers are others, and the prompts have other numbers of tokens or answers hold chat markers |
| `quality_lost` | the metric is worse by more than the margin, for a reason that is none of these |
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from po_distill.artifacts import now
from po_distill.errors import InputError
from po_distill.interfaces import Role
from po_distill.paired_comparison import compare
from po_distill.rating import Rater
from po_distill.recorded_answers import answers_to, read_completions
from po_distill.records import Completion, Difference, Score, StageFinding, StageParity

Answers = Path | str | Sequence[Completion]

_MOSTLY = 0.5  # of the cases: a fault of a stage is no accident of some answers
_AS_GOOD_AS_EQUAL = 0.9  # of an answer's leading characters
_OTHER = 0.5  # under it two answers are different ones
_MARKER = re.compile(
    r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|<start_of_turn>|<end_of_turn>|^#{2,3} (?:Instruction|Response):|</?s>",
    re.MULTILINE,
)
_SAYS = {
    "no_op_merge": "{share:.2f} of its answers are the base model's; the adapter is not in these weights: merge again",
    "missing_stop": "{share:.2f} of its answers are complete and go on, where {before} stopped: set the stop token",
    "wrong_template": "{share:.2f} of its answers are others than {before}'s, and {why}: use the chat template of the "
    "training",
    "quality_lost": "the metric is {mean:+.3f} against {before}, 95 % interval [{low:+.3f}, {high:+.3f}]",
}


class _Stage(NamedTuple):
    """A stage's answers, in the order of the cases."""

    name: str
    answers: list[Completion]
    scores: list[Score]

    @property
    def values(self) -> dict[str, float]:
        return {
            answer.concept.concept_id: score.value if score.valid else 0.0
            for answer, score in zip(self.answers, self.scores, strict=True)
        }


def compare_stages(
    stages: Mapping[str, Answers],
    role: Role,
    *,
    base: Answers | None = None,
    max_tokens: int | None = None,
    margin: float = 0.03,
    seed: int = 0,
) -> StageParity:
    """Hold each stage against the one before it, on the prompts of the first.

    `base` are the base model's answers, without which a merge that merged nothing is only seen as lost quality.
    `max_tokens` is the limit that answers had: one that is as long did not stop by itself. Raises InputError where a
    stage lacks an answer, and ContractMismatchError where it was asked under another prompt.
    """
    if len(stages) < 2:
        raise InputError("Stages are held against each other; there is one.", "Give at least two, as NAME=FILE.")
    read = {
        name: read_completions(given, role) if isinstance(given, (str, Path)) else list(given)
        for name, given in stages.items()
    }
    cases = list({one.concept.concept_id: one.concept for one in next(iter(read.values()))}.values())
    rater = Rater(role)

    def stage(name: str, given: Sequence[Completion]) -> _Stage:
        answers = [tries.first for tries in answers_to(cases, given, role, repr(name))]
        return _Stage(name, answers, [rater.score(answer) for answer in answers])

    every = [stage(name, given) for name, given in read.items()]
    without = None
    if base is not None:
        without = stage("base", read_completions(base, role) if isinstance(base, (str, Path)) else base)
    findings = [_finding(one, None, None, max_tokens, margin, seed) for one in every[:1]]
    for before, one in itertools.pairwise(every):
        findings.append(_finding(one, before, without, max_tokens, margin, seed))
    return StageParity(
        role=role.name,
        contract=role.contract,
        cases=len(cases),
        stages=tuple(findings),
        passed=all(finding.fault is None for finding in findings),
        created_at=now(),
    )


def _finding(
    stage: _Stage, before: _Stage | None, base: _Stage | None, limit: int | None, margin: float, seed: int
) -> StageFinding:
    figures = {
        "stage": stage.name,
        "before": before.name if before else None,
        "n": len(stage.answers),
        "score_mean": statistics.fmean(stage.values.values()),
        "valid_share": statistics.fmean(score.valid for score in stage.scores),
        "cut_share": statistics.fmean(_is_cut(answer, limit) for answer in stage.answers),
        "same_answers": None,
        "agreement": None,
        "difference": None,
    }
    if before is None:
        return StageFinding.model_validate(figures)
    pairs = list(zip(stage.answers, before.answers, strict=True))
    difference = compare({stage.name: stage.values, before.name: before.values}, before.name, margin=margin, seed=seed)
    fault, detail = _fault(stage, before, base, difference[stage.name], limit)
    return StageFinding.model_validate(
        {
            **figures,
            "same_answers": statistics.fmean(one.text.strip() == other.text.strip() for one, other in pairs),
            "agreement": statistics.fmean(_agreement(one.text, other.text) for one, other in pairs),
            "difference": difference[stage.name],
            "fault": fault,
            "detail": detail,
        }
    )


def _fault(
    stage: _Stage, before: _Stage, base: _Stage | None, difference: Difference, limit: int | None
) -> tuple[str | None, str]:
    """(what is wrong with a stage, in words); (None, "") where nothing is."""
    if base is not None and (share := _share_of_base(stage, before, base)) >= _AS_GOOD_AS_EQUAL:
        return _said("no_op_merge", share=share)
    pairs = list(zip(stage.answers, before.answers, strict=True))
    going_on = statistics.fmean(
        _goes_on(one, other, limit) or (score.valid and _is_cut(one, limit) and not _is_cut(other, limit))
        for (one, other), score in zip(pairs, stage.scores, strict=True)
    )
    if going_on >= _MOSTLY:
        return _said("missing_stop", share=going_on, before=before.name)
    others = statistics.fmean(_agreement(one.text, other.text) < _OTHER for one, other in pairs)
    if others >= _MOSTLY and (why := _template_shows(pairs)):
        return _said("wrong_template", share=others, before=before.name, why=why)
    if difference.decision == "worse":
        return _said("quality_lost", mean=difference.mean, low=difference.low, high=difference.high, before=before.name)
    return None, ""


def _said(fault: str, **figures: object) -> tuple[str, str]:
    return fault, _SAYS[fault].format(**figures)


def _share_of_base(stage: _Stage, before: _Stage, base: _Stage) -> float:
    """The share of a stage's answers that are the base model's, where the stage before had another; 0 without any."""
    told_apart = [
        _agreement(one.text, other.text)
        for one, earlier, other in zip(stage.answers, before.answers, base.answers, strict=True)
        if _agreement(earlier.text, other.text) < _AS_GOOD_AS_EQUAL
    ]
    return statistics.fmean(value >= _AS_GOOD_AS_EQUAL for value in told_apart) if told_apart else 0.0


def _goes_on(one: Completion, before: Completion, limit: int | None) -> bool:
    """Whether an answer is the one before it, and then more."""
    text, said = one.text.strip(), before.text.strip()
    if not said or len(text) <= len(said):
        return False
    shared = _shared(text, said) / len(said)
    return shared >= _AS_GOOD_AS_EQUAL and (shared == 1.0 or _is_cut(one, limit)) and not _is_cut(before, limit)


def _template_shows(pairs: Sequence[tuple[Completion, Completion]]) -> str | None:
    """What shows that two stages were not asked in the same chat template; None where nothing does."""
    counted = [
        (one.usage.prompt_tokens, other.usage.prompt_tokens)
        for one, other in pairs
        if one.usage.prompt_tokens and other.usage.prompt_tokens
    ]
    apart = [one - other for one, other in counted if one != other]
    if counted and len(apart) / len(counted) >= _MOSTLY:
        return f"the prompts have {statistics.median(apart):+.0f} tokens (n = {len(counted)})"
    marked = sum(bool(_MARKER.search(one.text)) and not _MARKER.search(other.text) for one, other in pairs)
    if marked / len(pairs) >= _MOSTLY:
        return f"chat markers stand in {marked} of {len(pairs)} answers"
    return None


def _agreement(one: str, other: str) -> float:
    """The share of leading characters that two answers have in common, of the longer one."""
    one, other = one.strip(), other.strip()
    longest = max(len(one), len(other))
    return _shared(one, other) / longest if longest else 1.0


def _shared(one: str, other: str) -> int:
    """How many leading characters two texts have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _is_cut(answer: Completion, limit: int | None) -> bool:
    return answer.finish == "length" or (limit is not None and answer.usage.completion_tokens >= limit)
