"""A metric of the user's own, named by dotted path, in place of the role's.

It has DSPy's form: `metric(example, prediction, trace=None) -> float` in 0..1, with the fields that the role gives
(`Role.metric_fields`), readable as attributes and as keys.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

from po_distill import plugins
from po_distill.errors import PODistillError, SettingsError
from po_distill.interfaces import Role
from po_distill.records import Concept, Score

Metric = Callable[..., Any]

_SOUND, _EMPTY = 0.85, 0.1


class Fields(dict[str, Any]):
    """Named values, as attributes and as keys: what DSPy's Example and Prediction are to a metric."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def load_metric(path: str) -> Metric:
    """The function that `package.module:function` names, or the plugin of that name (`po_distill.metrics`).

    Raises SettingsError or PluginError where there is none.
    """
    if ":" not in path and path in plugins.names("metrics"):
        plugin: Metric = plugins.load("metrics", path)
        return plugin
    module, colon, name = path.partition(":")
    fix = "Name a function of a module on the Python path: package.module:function."
    if not colon or not module or not name:
        raise SettingsError(f"The metric {path!r} is no dotted path.", fix)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise SettingsError(f"The metric {path!r} does not load: {type(error).__name__}: {error}.", fix) from error
    if not callable(found):
        raise SettingsError(f"The metric {path!r} is a {type(found).__name__}, no function.", fix)
    metric: Metric = found
    return metric


def value_of(metric: Metric, role: Role, concept: Concept, text: str) -> float:
    """What the metric says of an answer. Raises SettingsError where it breaks or says no number of 0 to 1."""
    example, prediction = role.metric_fields(concept, text)
    try:
        value = float(metric(Fields(example), Fields(prediction)))
    except Exception as error:
        raise SettingsError(
            f"The metric broke on the answer to {concept.concept_id}: {type(error).__name__}: {error}.",
            f"It gets an example with {', '.join(example)} and a prediction with {', '.join(prediction)}; it has to "
            "return a number, whatever they hold.",
        ) from error
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise SettingsError(f"The metric says {value} of the answer to {concept.concept_id}.", "Scores are 0 to 1.")
    return value


def score(role: Role, metric: Metric | None, concept: Concept, text: str) -> Score:
    """The role's score of an answer, its value by `metric` where one is given."""
    found = role.score(concept, text)
    if metric is None:
        return found
    return found.model_copy(update={"value": value_of(metric, role, concept, text)})


def self_test(role: Role, metric: Metric | None) -> None:
    """Raise PODistillError unless the metric tells a sound answer (over 0.85) from an empty one (under 0.1).

    Before the first paid call: a metric that a renamed field has broken rejects everything that was paid for.
    """
    role.self_test()
    if metric is None:
        return
    concept = role.generate_concepts(1, seed=1)[0]
    sound = value_of(metric, role, concept, role.answer_by_rules(concept))
    empty = value_of(metric, role, concept, "")
    if sound <= _SOUND or empty >= _EMPTY:
        raise PODistillError(
            f"The metric's self-test failed: a sound answer scores {sound:.3f} (over {_SOUND} is wanted), an empty one "
            f"{empty:.3f} (under {_EMPTY}).",
            "Look at the fields that the metric reads; nothing was asked, and nothing was paid for.",
        )
