"""The Product Owner metric as a DSPy metric, on a sound answer and on an empty one.

    python examples/metric.py

DSPy calls a metric as `metric(example, prediction, trace)`; `product_owner_metric` is one as it stands. dspy is
not needed here: any object or mapping with these fields will do.
"""

from types import SimpleNamespace
from typing import Any

import yaml

from po_distill import product_owner_metric
from po_distill.plugins import load


def good_enough(example: Any, prediction: Any, trace: Any = None) -> bool:
    """For optimizers that keep a demonstration on any truthy value: 0.0875 is truthy, and not worth learning."""
    return product_owner_metric(example, prediction, trace) >= 0.85


role = load("roles", "product_owner")()
concept = role.generate_concepts(1, seed=7)[0]
example = SimpleNamespace(requirements_yaml=concept.requirements_yaml)

documents = role.parse(role.answer_by_rules(concept)).documents
sound = SimpleNamespace(**{name: yaml.safe_dump(document) for name, document in documents.items()})
empty = SimpleNamespace(product_vision="", product_owner_review="")

for name, prediction in (("sound", sound), ("empty", empty)):
    value = product_owner_metric(example, prediction)
    print(f"{name}: {value:.4f}, good enough: {good_enough(example, prediction)}")
