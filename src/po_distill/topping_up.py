"""Which concepts are added to the given ones, so that so many accepted answers of each class come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from po_distill.errors import SettingsError
from po_distill.interfaces import Role
from po_distill.records import Concept

_MOST_ROUNDS = 8
_LEAST_YIELD = 0.2  # a round never asks for more than five times what is missing


class TopUp:
    """Plans rounds of variations until `target` answers are accepted, by class as `mix` wants them.

    `mix` maps classes to shares that sum to 1; without one, all classes of the role get the same. A class of which
    the given concepts yield more than its share keeps what it has.
    """

    def __init__(
        self, role: Role, given: Sequence[Concept], target: int, mix: Mapping[str, float] | None, seed: int
    ) -> None:
        self._role, self._given, self._seed = role, given, seed
        self._wanted = planned_classes(role, target, mix)
        self._labels: list[str] = []  # of all variations so far, in order
        self._rounds = 0
        self._before: Mapping[str, int] = {}

    def missing(self, accepted: Mapping[str, int]) -> dict[str, int]:
        """How many accepted answers of each class are missing."""
        gaps = {label: count - accepted.get(label, 0) for label, count in self._wanted.items()}
        return {label: gap for label, gap in gaps.items() if gap > 0}

    def next_round(self, accepted: Mapping[str, int], asked: int) -> list[Concept]:
        """The next variations, given what was accepted of what was asked; empty where that is it.

        That is: nothing is missing, the last round brought nothing, or eight rounds were made.
        """
        missing = self.missing(accepted)
        barren = self._rounds > 0 and sum(accepted.values()) == sum(self._before.values())
        if not missing or barren or self._rounds >= _MOST_ROUNDS:
            return []
        self._rounds += 1
        self._before = dict(accepted)
        share = max(sum(accepted.values()) / asked, _LEAST_YIELD) if asked else 1.0
        more = {label: round(count / share + 0.49) for label, count in missing.items()}
        start = len(self._labels)
        self._labels += _in_turns(more)
        # Equal beginnings give equal variations, so each round adds to the one before.
        made = self._role.vary_concepts(self._given, len(self._given) + len(self._labels), self._seed, self._labels)
        return made[len(self._given) + start :]


def planned_classes(role: Role, target: int, mix: Mapping[str, float] | None) -> dict[str, int]:
    """How many of each class make up the target: shares by the largest remainders. Raises SettingsError."""
    shares = dict(mix) if mix else {label: 1.0 / len(role.labels) for label in role.labels}
    unknown = sorted(set(shares) - set(role.labels))
    if unknown:
        raise SettingsError(
            f"The role {role.name} has no class {unknown[0]!r}.", f"Its classes: {', '.join(role.labels)}."
        )
    total = sum(shares.values())
    if not (all(share >= 0 for share in shares.values()) and abs(total - 1.0) <= 0.001):  # NaN passes neither
        raise SettingsError(
            f"The shares of the mix sum to {total:g}, or one is below 0.", "Give shares of 0 or more that sum to 1."
        )
    shares = {label: share / total for label, share in shares.items()}  # 0.333 three times is meant as thirds
    counts = {label: int(target * share + 1e-9) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (counts[label] - target * shares[label], label))
    for label in by_remainder[: target - sum(counts.values())]:
        counts[label] += 1
    return counts


def _in_turns(counts: Mapping[str, int]) -> list[str]:
    """The labels, each as often as it counts, spread evenly."""
    places = [((number + 0.5) / count, label) for label, count in counts.items() for number in range(count)]
    return [label for _, label in sorted(places)]
