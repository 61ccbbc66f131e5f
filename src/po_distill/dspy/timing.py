"""One MIPROv2 optimization, timed with the old model and with the student."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from po_distill import plugins
from po_distill.dspy.optimizing import mipro
from po_distill.errors import PODistillError, SettingsError
from po_distill.metric import Metric
from po_distill.progress import Advance, progress
from po_distill.records import Concept, OptimizationTime, OptimizationTimes


def time_mipro(
    models: Mapping[str, dspy.LM],
    concepts: Sequence[Concept],
    *,
    prompt_model: dspy.LM,
    role: str = "product_owner",
    metric: str | Metric | None = None,
    min_score: float = 0.85,
    trials: int = 10,
    candidates: int = 4,
    validation: int = 20,
    num_ctx: int | None = None,
    seed: int = 9,
) -> OptimizationTimes:
    """How long MIPROv2 takes with each model, and what comes out, on the same examples, trials and instructions.

    The first `validation` concepts are evaluated on, the others are shown. Nothing is read from DSPy's cache. Raises
    SettingsError where there are too few concepts.
    """
    if len(concepts) < validation + 2:
        raise SettingsError(
            f"{len(concepts)} concepts are too few for {validation} to evaluate on and 2 to show.",
            "Give more concepts, or a smaller --validation.",
        )
    kind = plugins.load("roles", role)
    opened = kind(contract="dspy")
    examples = [_example(opened, concept) for concept in concepts]
    found = {}
    for name, lm in models.items():
        program = dspy.Predict(opened.signature())
        watch = _Watch(lm.model)
        optimizer = mipro(
            metric or role,
            prompt_model=prompt_model,
            task_model=lm.copy(cache=False, callbacks=[_Calls(watch)]),
            min_score=min_score,
            num_ctx=num_ctx,
            auto=None,
            num_candidates=candidates,
            seed=seed,
        )
        with _watching(watch, name, _calls(trials, validation)):
            best = optimizer.compile(
                program,
                trainset=examples[validation:],
                valset=examples[:validation],
                num_trials=trials,
                minibatch=False,
            )
        if watch.calls < _calls(trials, validation):  # DSPy takes an evaluation that broke off for a score of 0
            raise PODistillError(
                f"MIPROv2 asked {lm.model} {watch.calls} times in place of {_calls(trials, validation)} or more: an "
                "evaluation broke off.",
                "DSPy wrote above why; where the model fails, fewer --parallel calls or a larger --num-ctx may help.",
            )
        found[name] = watch.time(float(getattr(best, "score", 0.0)) / 100, optimizer.left_out)
    return OptimizationTimes(
        role=role,
        trials=trials,
        candidates=candidates,
        validation=validation,
        prompt_model=prompt_model.model,
        times=found,
    )


def _calls(trials: int, validation: int) -> int:
    """How often the task model is asked at least: by every trial and for the program as it was."""
    return (trials + 1) * validation


def _example(role: Any, concept: Concept) -> dspy.Example:
    """A concept as DSPy's example, with what the rules answer as its label where the role has some."""
    inputs, _ = role.metric_fields(concept, "")
    _, outputs = role.metric_fields(concept, role.answer_by_rules(concept))
    return dspy.Example(**inputs, **outputs).with_inputs(*inputs)


class _Watch(BaseCallback):  # type: ignore[misc]
    """What one optimization asked of its task model. Also DSPy's usage tracker while it runs."""

    def __init__(self, model: str) -> None:
        self._model, self._lock = model, threading.Lock()
        self.advance: Advance = lambda *_, **__: None
        self.calls = self.parse_errors = self.failed = 0
        self.prompt_tokens = self.completion_tokens = self.longest = 0
        self.duration_s = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Watch:
        return self  # DSPy gives each thread a copy of its usage tracker

    def on_adapter_parse_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """Called by DSPy after an answer was read, or was not."""
        with self._lock:
            self.parse_errors += isinstance(exception, AdapterParseError)

    def count(self, *, failed: bool) -> None:
        """A call of the task model has ended."""
        with self._lock:
            self.calls += 1
            self.failed += failed
            self.advance()

    def add_usage(self, lm: str, usage: Mapping[str, Any]) -> None:
        """Called by DSPy with the tokens of each call that was not cached."""
        if lm != self._model:
            return
        with self._lock:
            asked = int(usage.get("prompt_tokens") or 0)
            self.prompt_tokens += asked
            self.completion_tokens += int(usage.get("completion_tokens") or 0)
            self.longest = max(self.longest, asked)

    def time(self, score: float, left_out: int) -> OptimizationTime:
        """The record."""
        return OptimizationTime(
            model=self._model,
            duration_s=self.duration_s,
            calls=self.calls,
            failed=self.failed,
            parse_errors=self.parse_errors,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            longest_prompt=self.longest,
            score=min(max(score, 0.0), 1.0),
            left_out=left_out,
        )


class _Calls(BaseCallback):  # type: ignore[misc]
    """Of the task model alone: the model that writes instructions is not timed by its calls."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """Called by DSPy after each call."""
        self._watch.count(failed=exception is not None)


@contextlib.contextmanager
def _watching(watch: _Watch, name: str, calls: int) -> Iterator[None]:
    # DSPy prints what it does; standard output is the caller's.
    with (
        progress(f"MIPROv2 with {name}", calls, "calls") as watch.advance,
        contextlib.redirect_stdout(sys.stderr),
        dspy.context(callbacks=[watch], usage_tracker=watch),
    ):
        started = time.monotonic()
        yield
        watch.duration_s = time.monotonic() - started
