"""Concepts with a product vision and requirements, made offline with the truth planted in them, or varied.

A constraint names something that the product has to do without. Where a requirement needs just that, nothing can be
built (`infeasible`). Else, where a requirement leaves something to be decided, it `needs_clarification`; else it is
`feasible`. Other requirements need things that no constraint rules out, so that needing something is no sign by itself.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import yaml

from po_distill import safe_yaml
from po_distill.errors import InputError
from po_distill.records import Concept
from po_distill_architect.documents import FEASIBILITY
from po_distill_architect.scoring import FUNCTIONAL

# tier -> functional requirements, non-functional ones, constraints
_TIERS = {"simple": (1, 0, 1), "medium": (2, 1, 1), "complex": (3, 1, 2)}
_PRODUCTS = {
    "dog walking app": "dog owners", "school library": "pupils", "repair workshop planner": "mechanics",
    "community garden site": "gardeners", "language course": "learners", "museum guide": "visitors",
    "bakery shop": "customers", "car sharing service": "drivers", "clinic portal": "patients",
    "sports club site": "members", "farm market": "farmers", "tenant portal": "tenants", "choir planner": "singers",
    "coding club": "students", "food bank desk": "volunteers", "ferry timetable": "passengers",
}  # fmt: skip
_PLACES = (
    "Accra", "Bergen", "Chennai", "Da Nang", "Erfurt", "Fez", "Gdansk", "Hobart", "Izmir", "Jena", "Kyoto", "Lima",
    "Malaga", "Nantes", "Oulu", "Porto", "Quito", "Riga", "Split", "Turin", "Utrecht", "Vigo", "Windhoek", "York",
)  # fmt: skip
_WANTS = (
    "book an appointment", "cancel a booking", "compare offers", "download a report", "join a waiting list",
    "leave a review", "print a ticket", "search the catalogue", "share a photo", "track an order", "vote on proposals",
    "invite a friend", "swap a shift", "report a fault", "plan a route", "save a favourite", "rate a visit",
    "renew a contract",
)  # fmt: skip
_USES = {  # what a constraint may rule out -> a want that needs it
    "user accounts": "sign in with user accounts",
    "push notifications": "get reminders by push notifications",
    "location data": "sort results by location data",
    "a camera": "scan codes with a camera",
    "email": "receive receipts by email",
    "card payments": "settle fees by card payments",
    "cloud storage": "keep files in cloud storage",
    "voice input": "fill forms by voice input",
}
_OPEN = (
    "within a time to be decided",
    "in a format to be agreed",
    "for a period to be decided",
    "at a price to be set",
)
_QUALITIES = ("Answer within two seconds", "Work in three languages", "Keep records for ten years", "Meet WCAG 2.2 AA")
_VALUES = ("less time is lost", "nobody has to call", "work is easier to plan", "mistakes are found early")
_PRIORITIES = ("high", "medium", "low")


def generate_concepts(count: int, seed: int) -> list[Concept]:
    """`count` distinct concepts; equal arguments give equal concepts, a larger count the same first ones."""
    if count < 1:
        raise InputError(f"{count} concepts cannot be generated.", "Ask for at least one: --count 228.")
    made: dict[tuple[str, str], Concept] = {}
    for attempt in itertools.count():
        rng = random.Random(f"{seed}/{attempt}")
        number = len(made)
        label = FEASIBILITY[number % 3]
        concept = _generate_one(rng, f"AR-{seed}-{number + 1:05d}", tuple(_TIERS)[number // 3 % 3], label)
        made.setdefault((concept.concept, concept.requirements_yaml), concept)
        if len(made) == count:
            return list(made.values())
    raise AssertionError


def _generate_one(rng: random.Random, concept_id: str, tier: str, label: str) -> Concept:
    functional, qualities, limits = _TIERS[tier]
    product = rng.choice(tuple(_PRODUCTS))
    users = _PRODUCTS[product]
    things = rng.sample(tuple(_USES), limits + 1)
    excluded, allowed = things[:-1], things[-1]
    wants = rng.sample(_WANTS, functional)
    if label == "infeasible":
        wants[-1] = _USES[rng.choice(excluded)]
    elif rng.random() < 0.4:
        wants[-1] = _USES[allowed]
    asked = list(wants)
    if label == "needs_clarification" or (label == "infeasible" and functional > 1 and rng.random() < 0.2):
        asked[0] = f"{asked[0]} {rng.choice(_OPEN)}"
    rng.shuffle(asked)
    return Concept(
        concept_id=concept_id,
        concept=f"A {product} for {users} in {rng.choice(_PLACES)}.",
        requirements_yaml=_yaml(
            {
                FUNCTIONAL: _requirements(rng, "FR", [f"Let {users} {want}" for want in asked]),
                "non_functional_requirements": _requirements(rng, "NFR", rng.sample(_QUALITIES, qualities)),
                "constraints": _requirements(rng, "C", [f"Works without {thing}" for thing in excluded]),
            }
        ),
        existing_vision=_yaml(
            {
                "product_name": product.capitalize(),
                "target_users": [users],
                "value_proposition": [rng.choice(_VALUES)],
                "key_capabilities": wants,
            }
        ),
        tier=tier,
        planted_label=label,
        metadata={"source": "generated"},
    )


def _requirements(rng: random.Random, prefix: str, descriptions: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"id": f"{prefix}{number:03d}", "description": description, "priority": rng.choice(_PRIORITIES)}
        for number, description in enumerate(descriptions, start=1)
    ]


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=2**20)


# --- variations of given concepts ----------------------------------------------------------------

_MOST_IN_VAIN = 200  # tries without a new variation: there are no more


def vary_concepts(given: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()) -> list[Concept]:
    """The given concepts, then distinct variations of them in turn, `count` in all or as many as there are.

    A variation adds a requirement: a plain one, one that leaves something open, or one that a new constraint rules
    out. It is never more feasible than its original; for a wanted label an original that is too bad is passed over.
    """
    if not given:
        raise InputError("There are no concepts to vary.", "Give a file with at least one concept.")
    if count < len(given):
        raise InputError(f"{len(given)} concepts were given, {count} are asked for.", "Ask for at least as many.")
    made = list(given)
    seen = {(concept.concept, concept.requirements_yaml) for concept in given}
    taken = {concept.concept_id for concept in given}
    rng, in_vain, wanted = random.Random(seed), 0, labels or FEASIBILITY
    turns = itertools.cycle(given)
    while len(made) < count and in_vain < _MOST_IN_VAIN:
        label = wanted[(len(made) - len(given)) % len(wanted)]
        fit = (one for one in itertools.islice(turns, len(given)) if _rank(one.planted_label) <= _rank(label))
        concept = _vary_one(rng, next(fit, given[0]), label, taken)
        in_vain += 1
        if (concept.concept, concept.requirements_yaml) not in seen:
            seen.add((concept.concept, concept.requirements_yaml))
            taken.add(concept.concept_id)
            made.append(concept)
            in_vain = 0
    return made


def _rank(label: str | None) -> int:
    """How bad a label is; one that is unknown says nothing."""
    return FEASIBILITY.index(label) if label in FEASIBILITY else 0


def _vary_one(rng: random.Random, original: Concept, label: str, taken: set[str]) -> Concept:
    document = safe_yaml.load(original.requirements_yaml, what=f"the requirements of {original.concept_id}")
    if not isinstance(document, dict):
        raise InputError(f"The requirements of {original.concept_id} are no YAML mapping.", "Correct them.")
    mentioned = f"{original.requirements_yaml} {original.existing_vision or ''}".lower()
    thing = rng.choice([thing for thing in _USES if thing not in mentioned] or list(_USES))
    want = rng.choice([want for want in _WANTS if want not in mentioned] or list(_WANTS))
    if label == "infeasible":
        document = _added(rng, document, "constraints", "C", f"Works without {thing}")
        want = _USES[thing]
    elif label == "needs_clarification":
        want = f"{want} {rng.choice(_OPEN)}"
    document = _added(rng, document, FUNCTIONAL, "FR", f"Let users {want}")
    numbers = (f"{original.concept_id}-v{number}" for number in itertools.count(2))
    known = original.planted_label in FEASIBILITY
    worst = max(original.planted_label, label, key=_rank) if known else label
    return original.model_copy(
        update={
            "concept_id": next(name for name in numbers if name not in taken),
            "requirements_yaml": _yaml(document),
            # A plain requirement more says nothing of an original whose label nobody knows.
            "planted_label": worst if known or label != FEASIBILITY[0] else None,
            "metadata": {
                **original.metadata,
                "source": "varied",
                "varied_from": original.concept_id,
                "group": original.metadata.get("group", original.concept),
            },
        }
    )


def _added(rng: random.Random, document: dict[str, Any], section: str, prefix: str, text: str) -> dict[str, Any]:
    held = document.get(section)
    items = list(held) if isinstance(held, list) else []
    ids = {str(item.get("id")) for item in items if isinstance(item, dict)}
    free = next(name for number in itertools.count(1) if (name := f"{prefix}{number:03d}") not in ids)
    return {**document, section: [*items, {"id": free, "description": text, "priority": rng.choice(_PRIORITIES)}]}
