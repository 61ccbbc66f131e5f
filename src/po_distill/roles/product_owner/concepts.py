"""Concepts with their requirements, made offline with the truth planted in them, or varied from given ones.

A concept says what the product needs and what is out of scope. Its requirements cover the needs,
but for planted gaps (needs without a requirement) and planted conflicts (requirements for what
is out of scope). A conflict makes the right status `misaligned`, else a gap makes it
`needs_adjustment`, else it is `aligned`. There can be several of each: where one need in seven is a
gap, a small student learns to say that every need is covered.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import yaml

from po_distill import safe_yaml
from po_distill.errors import InputError, UnreadableYAMLError
from po_distill.records import Concept
from po_distill.roles.product_owner.prompt import NO_VISION
from po_distill.roles.product_owner.scoring import REQUIREMENT_SECTIONS, STATUSES
from po_distill.roles.product_owner.vocabulary import (
    ASKS,
    AUDIENCES,
    FEATURES,
    LIMITS,
    PRIORITIES,
    PRODUCTS,
    QUALITIES,
    REGIONS,
)

# tier -> needs, exclusions, qualities, limits
_TIERS = {"simple": (2, 1, 1, 0), "medium": (3, 1, 1, 1), "complex": (4, 2, 2, 1)}

_GAP_BESIDE_CONFLICT = 0.3  # how often a misaligned concept has a gap too

_PHRASINGS = (
    "{product} for {audience} in {region}. It needs {needs}. Out of scope: {exclusions}.",
    "{product} that helps {audience} in {region}. Must have: {needs}. Must not have: {exclusions}.",
    "{product} made for {audience} in {region}. It requires {needs}. It excludes {exclusions}.",
)


def generate_concepts(count: int, seed: int) -> list[Concept]:
    """`count` distinct concepts; equal arguments give equal concepts, and a larger count the same first ones.

    Statuses and tiers take turns, so every run of nine has each of their pairs once. Raises
    InputError where `count` is not positive.
    """
    if count < 1:
        raise InputError(f"{count} concepts cannot be generated.", "Ask for at least one: --count 228.")
    made: list[Concept] = []
    seen: set[str] = set()
    attempt = 0
    while len(made) < count:
        rng = random.Random(f"{seed}/{attempt}")  # noqa: S311 - repeatable, not secret
        attempt += 1
        status = STATUSES[len(made) % 3]
        tier = tuple(_TIERS)[len(made) // 3 % 3]
        concept = _generate_one(rng, f"PO-{seed}-{len(made) + 1:05d}", tier, status)
        if concept.concept not in seen:
            seen.add(concept.concept)
            made.append(concept)
    return made


def _generate_one(rng: random.Random, concept_id: str, tier: str, status: str) -> Concept:
    need_count, exclusion_count, quality_count, limit_count = _TIERS[tier]
    features = rng.sample(FEATURES, need_count + exclusion_count)
    needs, exclusions = features[:need_count], features[need_count:]
    gaps: list[str] = []
    if status == "needs_adjustment":
        gaps = rng.sample(needs, rng.randint(1, need_count - 1))
    elif status == "misaligned" and rng.random() < _GAP_BESIDE_CONFLICT:
        gaps = [rng.choice(needs)]
    conflicts = rng.sample(exclusions, rng.randint(1, exclusion_count)) if status == "misaligned" else []
    asked = [need for need in needs if need not in gaps] + conflicts
    rng.shuffle(asked)
    product, audience, region = rng.choice(PRODUCTS), rng.choice(AUDIENCES), rng.choice(REGIONS)
    text = rng.choice(_PHRASINGS).format(
        product=product, audience=audience, region=region, needs=listed(needs), exclusions=listed(exclusions)
    )
    requirements = {
        "title": product,
        "description": f"{product} for {audience}",
        "functional_requirements": _requirements(rng, "FR", [rng.choice(ASKS).format(name) for name in asked]),
        "non_functional_requirements": _requirements(rng, "NFR", rng.sample(QUALITIES, quality_count)),
        "constraints": _requirements(rng, "C", rng.sample(LIMITS, limit_count)),
    }
    return Concept(
        concept_id=concept_id,
        concept=text,
        requirements_yaml=_yaml(requirements),
        tier=tier,
        planted_label=status,
        metadata={"source": "generated", "planted_gaps": list(gaps), "planted_conflicts": list(conflicts)},
    )


def _requirements(rng: random.Random, prefix: str, descriptions: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"id": f"{prefix}{number:03d}", "description": description, "priority": rng.choice(PRIORITIES)}
        for number, description in enumerate(descriptions, start=1)
    ]


def listed(items: Sequence[str]) -> str:
    """Items as English lists them: "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _yaml(document: dict[str, Any]) -> str:
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=2**20)


# --- variations of given concepts ---------------------------------------------------------------


def vary_concepts(given: Sequence[Concept], count: int, seed: int, labels: Sequence[str] = ()) -> list[Concept]:
    """The given concepts, then as many distinct variations in turn as make `count`, or as many as there are.

    A variation adds what its status needs: a need with a requirement, a need without one, or an
    exclusion that a new requirement contradicts; it also reorders the requirements. A variation
    with a requirement for its need keeps the original's planted label, as it adds nothing that
    could be wrong. `labels` are the statuses that are wanted, in turn: an original whose own status is worse is
    passed over for them. Ids are `<id>-v<number>`; `metadata.varied_from` names the original,
    `metadata.group` its text, so that a split keeps the family together.

    Raises InputError where there is nothing to vary or a requirements document is no mapping.
    """
    if not given:
        raise InputError("There are no concepts to vary.", "Give a file with at least one concept.")
    if count < len(given):
        raise InputError(
            f"{len(given)} concepts were given, and only {count} are asked for.",
            "Ask for at least as many: variations are added to the given ones.",
        )
    made = list(given)
    seen = {(concept.concept, concept.requirements_yaml) for concept in given}
    taken = {concept.concept_id for concept in given}
    versions = dict.fromkeys(taken, 1)
    attempt = turn = in_vain = 0
    while len(made) < count and in_vain < _MOST_IN_VAIN:
        number = len(made) - len(given)
        if labels:
            status = labels[number % len(labels)]
            original, turn = _next_original(given, turn, status)
        else:
            status = STATUSES[(number + number // len(given)) % 3]
            original = given[number % len(given)]
        rng = random.Random(f"{seed}/{original.concept_id}/{attempt}")  # noqa: S311 - repeatable, not secret
        attempt += 1
        version = versions[original.concept_id] + 1
        while f"{original.concept_id}-v{version}" in taken:
            version += 1
        concept = _vary_one(rng, original, version, status)
        in_vain += 1
        if (concept.concept, concept.requirements_yaml) not in seen:
            seen.add((concept.concept, concept.requirements_yaml))
            versions[original.concept_id] = version
            made.append(concept)
            in_vain = 0
    return made


_MOST_IN_VAIN = 500  # tries without a new variation: there are no more


def _next_original(given: Sequence[Concept], turn: int, status: str) -> tuple[Concept, int]:
    """The next concept that a variation can make to be of a status, and the turn after it."""
    rank = STATUSES.index(status)
    for step in range(len(given)):
        concept = given[(turn + step) % len(given)]
        if concept.planted_label not in STATUSES or STATUSES.index(concept.planted_label) <= rank:
            return concept, turn + step + 1
    return given[turn % len(given)], turn + 1


def _vary_one(rng: random.Random, original: Concept, version: int, status: str) -> Concept:
    document = safe_yaml.load(original.requirements_yaml, what=f"the requirements of {original.concept_id}")
    if not isinstance(document, dict):
        raise InputError(
            f"The requirements of {original.concept_id} are no YAML mapping, so they cannot be varied.",
            "Correct them, or leave that concept out.",
        )
    mentioned = f"{original.concept} {original.requirements_yaml}".lower()
    feature = rng.choice([name for name in FEATURES if name not in mentioned] or list(FEATURES))
    sentence = f"Out of scope: {feature}." if status == "misaligned" else f"It also needs {feature}."
    section = document.get("functional_requirements")
    asks = list(section) if isinstance(section, list) else []
    if status != "needs_adjustment":
        asks.append(
            {
                "id": _free_identifier(document),
                "description": rng.choice(ASKS).format(feature),
                "priority": rng.choice(PRIORITIES),
            }
        )
    rng.shuffle(asks)
    return original.model_copy(
        update={
            "concept_id": f"{original.concept_id}-v{version}",
            "concept": f"{original.concept.rstrip()} {sentence}",
            "requirements_yaml": _yaml({**document, "functional_requirements": asks}),
            "planted_label": original.planted_label if status == "aligned" else _worse(original.planted_label, status),
            "metadata": {
                **original.metadata,
                "source": "varied",
                "varied_from": original.concept_id,
                "group": original.metadata.get("group", original.concept),
            },
        }
    )


def _worse(first: str | None, second: str) -> str:
    """The worse of two statuses: a planted conflict outweighs any gap. A label that is no status says nothing."""
    return max(first if first in STATUSES else second, second, key=STATUSES.index)


def _free_identifier(document: dict[str, Any]) -> str:
    numbers = [
        int(match[1])
        for section in REQUIREMENT_SECTIONS
        for item in document.get(section) or ()
        if isinstance(item, dict) and (match := re.fullmatch(r"FR-?(\d+)", str(item.get("id", ""))))
    ]
    return f"FR{max(numbers, default=0) + 1:03d}"


# --- concepts out of prompts --------------------------------------------------------------------

_SECTION = re.compile(r"^(?:#+[ \t]*)?(CONCEPT|EXISTING_VISION|REQUIREMENTS|OUTPUT)[ \t]*+:?[ \t]*+$", re.MULTILINE)


def read_labelled_prompt(text: str) -> Concept | None:
    """The concept in a prompt of labelled sections; None where it has no CONCEPT or REQUIREMENTS.

    Text behind the requirements ("Respond only with ...") is left out paragraph by paragraph until
    what remains is a YAML mapping.
    """
    parts = _SECTION.split(text)
    sections = {label: body.strip() for label, body in zip(parts[1::2], parts[2::2], strict=True)}
    concept, requirements = sections.get("CONCEPT"), sections.get("REQUIREMENTS")
    if not concept or not requirements:
        return None
    vision = sections.get("EXISTING_VISION")
    return Concept(
        concept_id="prompt",
        concept=concept,
        requirements_yaml=_leading_mapping(requirements),
        existing_vision=None if vision in (None, "", NO_VISION) else vision,
    )


_MOST_READ = 200_000  # characters of candidates: a prompt of many paragraphs would be read again for each


def _leading_mapping(text: str) -> str:
    candidate, read = text, 0
    while candidate and (read := read + len(candidate)) <= _MOST_READ:
        try:
            if isinstance(safe_yaml.load(candidate), dict):
                return candidate
        except UnreadableYAMLError:
            pass
        candidate = candidate.rpartition("\n\n")[0]
    return text
