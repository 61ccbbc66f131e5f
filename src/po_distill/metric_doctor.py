"""What a metric does with answers that are known: whether a score of it can be trusted, and how it can be gamed.

Nothing is asked of a model: the sound answers are those of the role's own rules.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from po_distill.interfaces import Role
from po_distill.metric import Fields, Metric
from po_distill.records import Concept, MetricCheck, MetricCheckup

_SOUND, _EMPTY = 0.85, 0.1
_FILLER = "x"
_TIMED_S = 0.2
_GARBAGE = ("", " ", "][", "a: b: c", "- x\n- y", "{", "null", "7", "\x00", "key: " + "[" * 60)
_WRONG_TYPES: tuple[Any, ...] = (None, 7, 1.5, True, [], {}, ["x"], {"a": 1}, b"bytes")


class _Tried(NamedTuple):
    """What came of one call: a value, or what was raised."""

    value: float | None
    raised: str | None


def check_metric(name: str, metric: Metric, role: Role, *, concepts: int = 5) -> MetricCheckup:
    """Try a metric of DSPy's form on sound, empty, content-free and broken answers. Raises nothing that it raises."""
    cases = role.generate_concepts(concepts, seed=1)
    trial = _Trial(metric, role)
    checks = [
        *_sound_and_empty(trial, cases),
        _half(trial, cases),
        *_renamed(trial, cases[0]),
        _broken("wrong_types", "fields of another type", trial, cases[0], _WRONG_TYPES),
        _broken("garbage", "texts that hold no document", trial, cases[0], _GARBAGE),
        _deterministic(trial, cases),
        _with_trace(trial, cases[0]),
    ]
    free, gameable = _content_free(trial, cases)
    return MetricCheckup(
        metric=name,
        role=role.name,
        checks=(*checks, *free),
        passed=all(check.passed is not False for check in checks),
        gameable=gameable,
        seconds_per_call=_seconds(trial, cases[0]),
    )


class _Trial:
    """Calls a metric, whatever it does."""

    def __init__(self, metric: Metric, role: Role) -> None:
        self.metric, self.role = metric, role

    def fields(self, concept: Concept, text: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.role.metric_fields(concept, text)

    def on(self, concept: Concept, text: str) -> _Tried:
        return self.call(*self.fields(concept, text))

    def call(self, example: Mapping[str, Any], prediction: Mapping[str, Any], *more: Any) -> _Tried:
        try:
            value = float(self.metric(Fields(example), Fields(prediction), *more))
        except Exception as error:  # a user's metric may raise anything
            return _Tried(None, f"{type(error).__name__}: {str(error)[:120]}")
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            return _Tried(None, f"it says {value}, which is no number of 0 to 1")
        return _Tried(value, None)


def _sound_and_empty(trial: _Trial, cases: Sequence[Concept]) -> Iterator[MetricCheck]:
    sound = [trial.on(case, trial.role.answer_by_rules(case)) for case in cases]
    yield _checked("known_good", sound, min, lambda value: value > _SOUND, f"sound answers score over {_SOUND}")
    empty = [trial.on(case, "") for case in cases]
    yield _checked("empty_answer", empty, max, lambda value: value < _EMPTY, f"an empty answer scores under {_EMPTY}")


def _half(trial: _Trial, cases: Sequence[Concept]) -> MetricCheck:
    sound = [trial.role.answer_by_rules(case) for case in cases]
    whole = [trial.on(case, text).value or 0.0 for case, text in zip(cases, sound, strict=True)]
    half = [trial.on(case, text[: len(text) // 2]) for case, text in zip(cases, sound, strict=True)]
    least = min(whole)
    return _checked(
        "half_an_answer", half, max, lambda value: value < least, "half an answer scores less than a whole one"
    )


def _renamed(trial: _Trial, case: Concept) -> Iterator[MetricCheck]:
    example, prediction = trial.fields(case, trial.role.answer_by_rules(case))
    sound = trial.call(example, prediction)
    tried = trial.call(example, {f"other_{name}": value for name, value in prediction.items()})
    if tried.raised is not None:
        detail = f"a prediction with renamed fields is an error: {tried.raised}"
        yield MetricCheck(check="renamed_fields", passed=True, value=None, detail=detail)
    elif tried.value == sound.value:
        detail = "it says the same of a prediction without the fields: it does not read them"
        yield MetricCheck(check="renamed_fields", passed=False, value=tried.value, detail=detail)
    else:
        detail = "renamed fields lower the score without an error: check it before every run that costs something"
        yield MetricCheck(check="renamed_fields", passed=None, value=tried.value, detail=detail)


def _broken(check: str, what: str, trial: _Trial, case: Concept, values: Sequence[Any]) -> MetricCheck:
    example, prediction = trial.fields(case, trial.role.answer_by_rules(case))
    tried = [trial.call(example, {**prediction, name: value}) for name in prediction for value in values] + [
        trial.call(dict.fromkeys(example, value), prediction) for value in values
    ]
    raised = [one.raised for one in tried if one.raised is not None]
    detail = (
        f"{len(raised)} of {len(tried)} calls with {what} break it: {raised[0]}" if raised else f"{what} are scored"
    )
    highest = max((one.value for one in tried if one.value is not None), default=None)
    return MetricCheck(check=check, passed=not raised, value=highest, detail=detail)


def _deterministic(trial: _Trial, cases: Sequence[Concept]) -> MetricCheck:
    for case in cases:
        text = trial.role.answer_by_rules(case)
        said = {trial.on(case, text) for _ in range(3)}
        if len(said) > 1:
            detail = f"three calls on one answer say {', '.join(sorted(str(one.value) for one in said))}"
            return MetricCheck(check="determinism", passed=False, value=None, detail=detail)
    return MetricCheck(check="determinism", passed=True, value=None, detail="equal answers score alike")


def _with_trace(trial: _Trial, case: Concept) -> MetricCheck:
    tried = trial.call(*trial.fields(case, trial.role.answer_by_rules(case)), [])
    said = tried.raised or "it takes DSPy's third argument"
    return MetricCheck(check="trace_argument", passed=tried.raised is None, value=tried.value, detail=said)


# --- content-free answers -----------------------------------------------------------------------


def _content_free(trial: _Trial, cases: Sequence[Concept]) -> tuple[list[MetricCheck], float | None]:
    """What answers get that say nothing, and the largest share of a sound answer's score that one of them gets."""
    found, shares = [], []
    for check, what, empty in _EMPTIED:
        ratios, values = [], []
        for case in cases:
            text = trial.role.answer_by_rules(case)
            documents = _emptied(trial.role.parse(text).documents, empty, trial.role.labels)
            sound, tried = trial.on(case, text), trial.on(case, trial.role.canonical(documents))
            if sound.value and tried.value is not None:
                values.append(tried.value)
                ratios.append(min(1.0, tried.value / sound.value))
        if not values:
            continue
        mean, share = sum(values) / len(values), sum(ratios) / len(ratios)
        shares.append(share)
        detail = f"{what} gets {share:.2f} of a sound answer's score, over {len(values)} concepts"
        found.append(MetricCheck(check=check, passed=None, value=mean, detail=detail))
    return found, max(shares, default=None)


def _words_kept(text: str) -> str:
    return " ".join(_FILLER for _ in text.split())


def _letters_kept(text: str) -> str:
    return "".join(_FILLER if letter.isalpha() else letter for letter in text)


_EMPTIED: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("contentless_short", "an answer whose every text is one letter", lambda text: _FILLER),
    ("contentless_long", "an answer whose every word is one letter, as many words as before", _words_kept),
    ("contentless_shaped", "an answer whose letters are all the same, ids and numbers left out", _letters_kept),
)


def _emptied(value: Any, empty: Callable[[str], str], labels: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _emptied(held, empty, labels) for name, held in value.items()}
    if isinstance(value, list):
        return [_emptied(item, empty, labels) for item in value]
    return empty(value) if isinstance(value, str) and value not in labels else value


# --- small things -------------------------------------------------------------------------------


def _checked(
    check: str,
    tried: Sequence[_Tried],
    worst: Callable[[Sequence[float]], float],
    holds: Callable[[float], bool],
    what: str,
) -> MetricCheck:
    raised = [one.raised for one in tried if one.raised is not None]
    if raised:
        return MetricCheck(check=check, passed=False, value=None, detail=f"{len(raised)} of {len(tried)}: {raised[0]}")
    value = worst([one.value for one in tried if one.value is not None])
    said = f"{what}: {'the worst' if len(tried) > 1 else 'it'} is {value:.3f}, n = {len(tried)}"
    return MetricCheck(check=check, passed=holds(value), value=value, detail=said)


def _seconds(trial: _Trial, case: Concept) -> float:
    """Seconds of a call on a sound answer, the median of as many as fit into a moment."""
    fields = trial.fields(case, trial.role.answer_by_rules(case))
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < _TIMED_S and len(taken) < 100):
        started = time.perf_counter()
        trial.call(*fields)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]
