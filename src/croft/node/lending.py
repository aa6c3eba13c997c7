"""Lends what the owner offers while it stands, and no more while it does not: offers and rules in, leases out.

One place says what is lent: the offer that the settings make, and those that the owner made besides. The lender asks
here whose work may run, the book of leases how much there is.
"""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from typing import Protocol

from croft.compute.live_boxes import LiveBoxes
from croft.compute.owners_rules import OwnersRules, Rules
from croft.errors import Refused
from croft.ledger.leasing import LeaseBook
from croft.ledger.own_offers import MEMBERS, Asker, OwnOffer, OwnOffers, largest
from croft.model.amounts import BOX, CPU, Amounts
from croft.model.hours import parse_when, show_when
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.model.lease import Lease
from croft.ports import Clock, Database, OwnersMachine

LOOK_EVERY_S = 1.0
PAUSE_SETTING = "lend.paused_until"
BOXES_MAX = 32
"""Of others' work, warm ones among them."""


class Consumer(Protocol):
    """Who asks; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...

    @property
    def communities(self) -> frozenset[CommunityId]: ...


class Lending:
    """`load` before `serve`. `lend` is told how many slots are lent, in all and by offer.

    `is_friend` tells whom the owner noted and trusts; `minute_of_week` counts from Monday, local midnight.
    """

    def __init__(
        self,
        leases: LeaseBook,
        database: Database,
        clock: Clock,
        machine: OwnersMachine,
        live: LiveBoxes,
        rules: Rules,
        settings: OwnOffer,
        own: TwinId,
        is_friend: Callable[[TwinId], bool],
        minute_of_week: Callable[[], int],
    ) -> None:
        self._leases = leases
        self._database = database
        self._clock = clock
        self._own = own
        self._is_friend = is_friend
        self._minute_of_week = minute_of_week
        self._machine = machine
        self._live = live
        self._rules = OwnersRules(rules)
        self._next_number = 1
        self._applied: dict[str, Amounts] = {}
        self.offers = OwnOffers(settings)
        self.lend: Callable[[int, Mapping[str, int]], None] = lambda slots, offers: None

    # --- questions ---------------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Mapping[str, Amounts]:
        """What each offer lends at this moment; nothing while the owner's rules forbid it."""
        return self._applied

    @property
    def most(self) -> Amounts:
        """What is lent in all while every offer stands."""
        return largest(offer.lent for offer in self.offers.all())

    @property
    def told_to_members(self) -> Amounts:
        """What this peer's descriptors say: what every member may use, and of processors, what may be used now."""
        for_members = {offer.name: offer.lent for offer in self.offers.all() if MEMBERS in offer.to}
        may_come = not self._rules.refusal(self._clock.now())
        standing = [lent for name, lent in self._applied.items() if name in for_members and may_come]
        return largest(for_members.values()).with_(cpu=largest(standing)[CPU])

    @property
    def now(self) -> Amounts:
        """What is lent in all at this moment to whoever comes."""
        return Amounts() if self._rules.refusal(self._clock.now()) else largest(self._applied.values())

    @property
    def reason(self) -> str:
        """Why no processors are lent now; empty while some are."""
        if not self.most[CPU]:
            return "no processors are lent"
        forbidden = self._rules.refusal(self._clock.now())
        return forbidden or ("" if self.now[CPU] else f"lent only at {self.offers.hours()}")

    @property
    def paused_until(self) -> float | None:
        """Unix seconds, infinite for a pause without end; None if lending is not paused."""
        return self._rules.paused_until if self._rules.paused_until > self._clock.now() else None

    def standing_for(self, consumer: Consumer) -> tuple[str, ...]:
        """See `croft.compute.lending_terms.Offers`."""
        forbidden = self._rules.refusal(self._clock.now())
        if forbidden:
            raise Refused(f"this peer lends nothing now: {forbidden}", remedy="Try later, or use others.")
        asker = Asker(consumer.twin, consumer.communities, consumer.twin == self._own, self._is_friend(consumer.twin))
        return self.offers.standing_for(asker, self._minute_of_week())

    def places(self, lease: Lease) -> Mapping[str, str]:
        """See `croft.compute.lending_terms.Offers`."""
        places = self.offers.places()
        return {name: places[name] for name in lease.amounts if name in places}

    # --- changes -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in the owner's offers, and a pause, which outlives a restart. Raises Failed."""

        def read(db: sqlite3.Connection) -> tuple[tuple[bytes] | None, list[tuple[int, str, str, str, str, float]]]:
            paused = db.execute("SELECT value FROM setting WHERE name = ?", (PAUSE_SETTING,)).fetchone()
            offers = db.execute(
                "SELECT number, lent, recipients, hours, places, created_at FROM own_offer ORDER BY number"
            ).fetchall()
            return paused, offers

        paused, rows = await self._database.run(read)
        self._rules.paused_until = float(paused[0]) if paused else 0.0
        for number, lent, to, hours, places, created_at in rows:
            when = parse_when(hours) if hours else None
            named = tuple(json.loads(places).items())
            offer = OwnOffer(str(number), Amounts.of(json.loads(lent)), tuple(json.loads(to)), when, named, created_at)
            self.offers.add(offer)
            self._next_number = number + 1
        self.apply()

    async def offer(self, offer: OwnOffer) -> OwnOffer:
        """One more offer, which gets a number; on disk before it counts. Raises Busy, Failed."""
        numbered = OwnOffer(str(self._next_number), offer.lent, offer.to, offer.when, offer.places, self._clock.now())
        self.offers.add(numbered)
        row = (
            self._next_number,
            json.dumps(dict(numbered.lent.pairs)),
            json.dumps(numbered.to),
            "" if numbered.when is None else show_when(numbered.when),
            json.dumps(dict(numbered.places)),
            numbered.created_at,
        )
        self._next_number += 1
        try:
            await self._database.run(lambda db: db.execute("INSERT INTO own_offer VALUES (?, ?, ?, ?, ?, ?)", row))
        except BaseException:
            self.offers.remove(numbered.name)
            raise
        self.apply()
        return numbered

    async def withdraw(self, name: str) -> OwnOffer:
        """Takes an offer back: sessions of tasks under it end. Raises NotFound, Refused."""
        offer = self.offers.remove(name)
        await self._database.run(lambda db: db.execute("DELETE FROM own_offer WHERE number = ?", (int(name),)))
        self.apply()
        return offer

    async def pause(self, for_s: float | None) -> None:
        """Lends nothing for a time, or until `resume`. Tasks of others go elsewhere at once. Raises Failed."""
        await self._set(math.inf if for_s is None else self._clock.now() + for_s)

    async def resume(self) -> None:
        """Lends again. Raises Failed."""
        await self._set(0.0)

    async def serve(self) -> None:
        """Runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            busy = self._machine.busy(self._live.cpu_s())
            self._rules.seen(busy, self._machine.is_on_battery(), loop.time())
            if self._rules.is_holding != self._live.is_held:
                await self._live.hold(self._rules.is_holding)
            self.apply()
            await asyncio.sleep(LOOK_EVERY_S)

    def apply(self) -> None:
        """Lends what stands at this moment."""
        is_over = bool(self._rules.end(self._clock.now(), asyncio.get_running_loop().time()))
        standing = {} if is_over else self.offers.standing(self._minute_of_week())
        if standing == self._applied:
            return
        self._applied = standing
        total = largest(standing.values())
        self._leases.offer(standing, Amounts.of({**dict(total.pairs), BOX: BOXES_MAX}))
        self.lend(total[CPU], {name: lent[CPU] for name, lent in standing.items()})

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _set(self, paused_until: float) -> None:
        row = (PAUSE_SETTING, repr(paused_until).encode())

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", row)

        await self._database.run(write)
        self._rules.paused_until = paused_until
        self.apply()
