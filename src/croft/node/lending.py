"""Lends when the owner's rules say so, and no more when they do not: the shell of `compute.lending_time`."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Callable, Mapping

from croft.compute.lending_time import LendingTime, Verdict
from croft.errors import Refused
from croft.ledger.leasing import LeaseBook
from croft.model.amounts import CPU, Amounts
from croft.model.hours import Hours
from croft.model.ids import TwinId
from croft.ports import Clock, Database

LOOK_EVERY_S = 1.0
PAUSE_SETTING = "lend.paused_until"
OFFER = "settings"
"""The one offer: what the settings lend, to every member."""


class LendingHours:
    """`load` before `serve`. `lend` is told how many slots are lent, in all and by offer."""

    def __init__(
        self,
        leases: LeaseBook,
        database: Database,
        clock: Clock,
        most: Amounts,
        hours: Hours | None,
        minute_of_day: Callable[[], int],
    ) -> None:
        self._leases = leases
        self._most = most
        self.lend: Callable[[int, Mapping[str, int]], None] = lambda slots, offers: None
        self._database = database
        self._clock = clock
        self._time = LendingTime(most[CPU], hours)
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
        amounts = self._most.with_(cpu=verdict.slots)
        self._leases.offer({OFFER: amounts}, amounts)
        self.lend(verdict.slots, {OFFER: verdict.slots})

    def standing_for(self, twin: TwinId) -> tuple[str, ...]:
        """See `croft.compute.lender.Offers`."""
        verdict = self.now
        if verdict.slots == 0:
            raise Refused(f"this peer lends nothing now: {verdict.reason}", remedy="Ask its owner, or use others.")
        return (OFFER,)
