"""How many calls are in flight: a sliding window that the server's answers widen and narrow.

It begins with a share of what it may have and widens by one with every answer (slow start) until the server slows us
down for the first time. From then on it is judged round by round, a round being the time that an answer takes: the
share of slowed sends narrows it gently, by half of that share (as DCTCP does, Alizadeh et al., SIGCOMM 2010); a round
without widens it by a quarter. A share of a tenth is taken for noise, not for a limit. Sends are spaced then, so that
a quota that holds few at a time is used up evenly. Where nothing but refusals comes, all calls wait, longer each time.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal

Outcome = Literal["answered", "slowed", "failed"]

_NOISE = 0.1  # this share of slowed sends says nothing about a limit
_MOST_WIDER = 0.25  # of the window, after a round without more than noise
_IN_A_ROW = 4  # the least number of refusals on end that means something
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 60.0
_FIRST_ROUND_S = 1.0  # until an answer says how long one takes
_SPACING_GAIN = 1.25  # sends are spaced for so much more than the window lets through


class Window:
    """Lets calls in, `most` at a time at most, fewer where the server slows them down.

    `requests_per_minute` and `tokens_per_minute` are limits of ours, kept by spacing the sends evenly. Those who
    come again after a failure go before those who come for the first time.
    """

    def __init__(
        self,
        most: int,
        *,
        first_share: float = 0.5,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        self.most = most
        self.size = float(max(1, math.ceil(most * first_share)))
        self.in_flight = 0
        self._slow_start = True
        self._ends = self._slowed = 0  # of this round
        self._round_began = clock()
        self._answer_s: float | None = None  # how long an answer takes, smoothed
        self._refused_in_a_row = 0
        self._wider_by = 1.0  # after the next round without more than noise
        self._pause_s, self._paused_until, self._next_send_at = 0.0, 0.0, 0.0
        self._waiting: tuple[deque[asyncio.Future[None]], ...] = (deque(), deque())  # again, first time
        self._spacings = [
            _Spacing(limit / 60.0, clock, sleep) for limit in (requests_per_minute, tokens_per_minute) if limit
        ]
        self._has_requests_limit = bool(requests_per_minute)
        self._clock, self._sleep, self._chance = clock, sleep, chance or random.Random()  # noqa: S311 - jitter

    async def enter(self, tokens: int, *, again: bool = False) -> None:
        """Wait for a place; `tokens` is what the call may take of a tokens-per-minute limit."""
        queue = self._waiting[0 if again else 1]
        if self.in_flight >= int(self.size) or (queue and not again):
            place = asyncio.get_running_loop().create_future()
            queue.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._give_back()  # it was handed to us while we were being cancelled
                elif place in queue:
                    queue.remove(place)
                raise
        else:
            self.in_flight += 1
        try:
            for spacing, amount in zip(self._spacings, (1, tokens)[not self._has_requests_limit :], strict=False):
                await spacing.take(amount)
            if (wait_s := self._spaced() - self._clock()) > 0:
                await self._sleep(wait_s)
            while (wait_s := self._paused_until - self._clock()) > 1e-6:
                await self._sleep(wait_s)
        except BaseException:
            self._give_back()
            raise

    def leave(self, outcome: Outcome, *, took_s: float = 0.0, retry_after_s: float | None = None) -> None:
        """Give the place back, and say how the call went and how long it took."""
        self._note(outcome, took_s, retry_after_s)
        self._give_back()

    def hold(self, wait_s: float) -> None:
        """Let nobody in for so long."""
        self._paused_until = max(self._paused_until, self._clock() + wait_s)

    def _spaced(self) -> float:
        """When the next send may leave; the one after it so much later that the window is spread over an answer."""
        turn = max(self._clock(), self._next_send_at)
        if not self._slow_start:
            self._next_send_at = turn + (self._answer_s or _FIRST_ROUND_S) / (self.size * _SPACING_GAIN)
        return turn

    def _give_back(self) -> None:
        self.in_flight -= 1
        for queue in self._waiting:
            while queue and self.in_flight < int(self.size):
                place = queue.popleft()
                if not place.done():
                    self.in_flight += 1
                    place.set_result(None)

    def _note(self, outcome: Outcome, took_s: float, retry_after_s: float | None) -> None:
        if outcome == "failed":
            return
        self._ends += 1
        if outcome == "answered":
            self._refused_in_a_row, self._pause_s = 0, 0.0
            self._answer_s = took_s if self._answer_s is None else self._answer_s + 0.1 * (took_s - self._answer_s)
            if self._slow_start:
                self.size = min(self.size + 1.0, float(self.most))
        else:
            self._slowed += 1
            self._refused_in_a_row += 1
            if retry_after_s:
                self.hold(min(retry_after_s, _LONGEST_PAUSE_S))
            # So many refusals with no answer between them are no noise, even while the first answers are awaited.
            if self._refused_in_a_row >= max(self.size / 2.0, _IN_A_ROW):
                self._slow_start = False
            # What is in flight was not refused, as a refusal comes at once: only without it nothing gets through.
            if self._refused_in_a_row >= max(self.size, _IN_A_ROW) and self.in_flight - 1 <= self.size / 8.0:
                self._pause()
        if self._clock() - self._round_began >= (self._answer_s or _FIRST_ROUND_S):
            self._end_round()

    def _end_round(self) -> None:
        # A refusal comes at once, an answer late: what is still in flight was not refused.
        sends = self._slowed + max(self._ends - self._slowed, self.in_flight - 1)
        # What of the share chance alone does not explain: two standard deviations of that many trials.
        beyond = self._slowed / sends - _NOISE - 2.0 * math.sqrt(_NOISE * (1.0 - _NOISE) / sends)
        if beyond > 0.0:
            self._slow_start = False
            self._wider_by = 1.0
            self.size = max(self.size * (1.0 - beyond / 2.0), 1.0)
        elif not self._slow_start:
            self.size = min(self.size + self._wider_by, float(self.most))
            self._wider_by = min(2.0 * self._wider_by, max(1.0, self.size * _MOST_WIDER))
        self._ends = self._slowed = 0
        self._round_began = self._clock()

    def _pause(self) -> None:
        """Nothing but refusals since the window was gone through: let nobody in for a while."""
        self._refused_in_a_row = 0
        self._pause_s = min(max(2.0 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self.hold(self._pause_s * (0.75 + 0.5 * self._chance.random()))


class _Spacing:
    """So many units a second, evenly: a bucket that holds two seconds' worth and may run into debt."""

    def __init__(
        self, per_second: float, clock: Callable[[], float], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._per_second, self._clock, self._sleep = per_second, clock, sleep
        self._free_at = clock() - 2.0

    async def take(self, amount: float) -> None:
        now = self._clock()
        self._free_at = max(self._free_at, now - 2.0) + amount / self._per_second
        if (wait_s := self._free_at - amount / self._per_second - now) > 0:
            await self._sleep(wait_s)
