"""The rules that a dataset keeps to be fit for training: each with what breaks it, and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from po_distill.errors import SettingsError
from po_distill.plugins import nearest
from po_distill.records import RuleFinding

RARE = 0.1
"""The least share of a class: of a rarer one a student learns nothing, and the metric does not show it."""

NEAR_DUPLICATE = 0.9
"""The similarity from which two rows are duplicates. Variations of a concept have 0.6 to 0.9, unlike ones under 0.7."""

NEAR_LEAK = 0.8
"""The similarity from which a row counts as one that is held out."""

RULES: dict[str, str] = {
    "readable_rows": "every row holds a concept and an answer",
    "gate": "every row passes the gate: schema, classes, ids, actions, verdict, score",
    "duplicate_prompts": "no prompt has more than one row",
    "contradictory_prompts": "no prompt has answers of different classes",
    "near_duplicates": "no row is nearly another row of its class",
    "leaked_rows": "no row is in a held-out file",
    "rare_class": f"each class has at least {RARE:.0%} of the rows",
    "cut_rows": "no row is longer than the model is trained on",
    "foreign_prompts": "every prompt is the one that the role renders",
    "canonical_answers": "every answer is in the role's canonical form",
}
"""name -> what is kept"""

_BUILD = "Build the dataset from these rows: po-distill dataset --input {path}"


def check_allowed(allowed: Collection[str]) -> None:
    """Raise SettingsError where a name is no rule's."""
    for name in allowed:
        if name not in RULES:
            near = nearest(name, list(RULES))
            hint = f"Did you mean {near}? " if near else ""
            raise SettingsError(f"There is no rule {name!r}.", f"{hint}The rules: {', '.join(RULES)}.")


def findings(
    path: str,
    broken: Mapping[str, tuple[int, str]],
    where: Mapping[str, tuple[str, ...]],
    allowed: Collection[str],
    missing_command: str | None,
) -> Iterator[RuleFinding]:
    """Each rule with what was found. `broken` has (how many, detail) by rule, 0 where it is kept.

    A rule that is not in `broken` was not looked at, and is left out.
    """
    check_allowed(allowed)
    build = _BUILD.format(path=path)
    fixes = {
        "readable_rows": "Correct or delete the rows that are named.",
        "gate": build,
        "duplicate_prompts": build,
        "contradictory_prompts": build,
        "near_duplicates": build,
        "leaked_rows": f"{build} --held-out FILE",
        "rare_class": missing_command or "Have a teacher answer more concepts of that class: --target N --mix ...",
        "cut_rows": "Train with a longer --max-seq-len, or take those rows out.",
        "foreign_prompts": build,
        "canonical_answers": build,
    }
    for rule in RULES:
        if rule in broken:
            rows, detail = broken[rule]
            yield RuleFinding(
                rule=rule,
                rows=rows,
                detail=detail,
                fix=fixes[rule],
                where=where.get(rule, ()),
                allowed=rule in allowed,
            )


def rare_classes(labels: Collection[str], counts: Mapping[str, int]) -> dict[str, float]:
    """The classes under RARE, with their shares. A role with fewer than two classes has none."""
    total = sum(counts.get(label, 0) for label in labels)
    if len(labels) < 2 or not total:
        return {}
    shares = {label: counts.get(label, 0) / total for label in labels}
    return {label: share for label, share in shares.items() if share < RARE}
