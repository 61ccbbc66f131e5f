"""A budget in US dollars that is never passed: the most that a call can cost is reserved before it is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from po_distill.model_table import NANOUSD


@dataclass(frozen=True)
class Reservation:
    """An amount set aside for a call in flight."""

    nanousd: int


class BudgetSpentError(Exception):
    """The next call does not fit, and nothing that is in flight can make room for it."""


class Budget:
    """What may be spent in all, what was, and what is reserved. In whole nano-dollars.

    `charged_nanousd` is what earlier runs spent, calls in doubt at their full reservation. Without a limit it only
    counts.
    """

    def __init__(self, limit_usd: float | None, charged_nanousd: int) -> None:
        self.limit_nanousd = None if limit_usd is None else int(limit_usd * NANOUSD + 1e-3)
        self.charged_nanousd = charged_nanousd
        self.reserved_nanousd = 0
        self.spent = False  # a call did not fit: the run ends when what is in flight has ended
        self._changed = asyncio.Event()

    async def reserve(self, nanousd: int) -> Reservation:
        """Set the most that a call can cost aside, when there is room for it.

        Waits while calls in flight may turn out cheaper than was set aside for them. Raises BudgetSpentError.
        """
        while not self._fits(nanousd):
            if self.reserved_nanousd == 0:
                self.spent = True
            if self.spent:
                raise BudgetSpentError
            self._changed.clear()
            await self._changed.wait()
        self.reserved_nanousd += nanousd
        return Reservation(nanousd)

    def settle(self, reservation: Reservation, cost_nanousd: int | None) -> None:
        """Put the cost in the reservation's place; a cost that is not known (None) is all of it."""
        self.reserved_nanousd -= reservation.nanousd
        self.charged_nanousd += reservation.nanousd if cost_nanousd is None else cost_nanousd
        self._changed.set()

    def _fits(self, nanousd: int) -> bool:
        if self.limit_nanousd is None:
            return True
        return self.charged_nanousd + self.reserved_nanousd + nanousd <= self.limit_nanousd
