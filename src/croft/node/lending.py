"""Lends when the owner's rules say so, and no more when they do not: the shell of `compute.lending_time`."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable

from croft.compute.lender import Lender
from croft.compute.lending_time import LendingTime, Verdict
from croft.model.hours import Hours
from croft.ports import Clock, Database

LOOK_EVERY_S = 1.0
PAUSE_SETTING = "lend.paused_until"


class LendingHours:
    """`load` before `serve`."""

    def __init__(
        self,
        lender: Lender,
        database: Database,
        clock: Clock,
        slots: int,
        hours: Hours | None,
        minute_of_day: Callable[[], int],
    ) -> None:
        self._lender = lender
        self._database = database
        self._clock = clock
        self._time = LendingTime(slots, hours)
        self._minute_of_day = minute_of_day

    @property
    def now(self) -> Verdict:
        """What is lent at this moment, and why nothing is."""
        return self._time.at(self._clock.now(), self._minute_of_day())

    @property
    def paused_until(self) -> float | None:
        """Unix seconds, infinite for a pause without end; None if lending is not paused."""
        return self._time.paused_until if self._time.paused_until > self._clock.now() else None

    async def load(self) -> None:
        """A pause outlives a restart. Raises Failed."""
        kept = await self._database.run(
            lambda db: db.execute("SELECT value FROM setting WHERE name = ?", (PAUSE_SETTING,)).fetchone()
        )
        self._time.paused_until = float(kept[0]) if kept else 0.0
        self._apply()

    async def pause(self, for_s: float | None) -> None:
        """Lends nothing for a time, or until `resume`. Tasks of others go elsewhere at once. Raises Failed."""
        await self._set(math.inf if for_s is None else self._clock.now() + for_s)

    async def resume(self) -> None:
        """Lends again. Raises Failed."""
        await self._set(0.0)

    async def serve(self) -> None:
        """Runs until cancelled."""
        while True:
            self._apply()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _set(self, paused_until: float) -> None:
        row = (PAUSE_SETTING, repr(paused_until).encode())

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", row)

        await self._database.run(write)
        self._time.paused_until = paused_until
        self._apply()

    def _apply(self) -> None:
        verdict = self.now
        self._lender.lend(verdict.slots, verdict.reason)
