"""Answers searches: which members fit a query, and who has what a key names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from croft.control import schema
from croft.errors import CroftError, Usage
from croft.model.ids import PeerId
from croft.overlay.directory import GRADES, Listing, Query, fits_but_for_distance, search

if TYPE_CHECKING:
    from croft.node.assemble import Parts

MEASURED_MAX = 64
"""To so many peers without a link one is made, to find out how far they are."""
MEASURED_AT_ONCE = 8
MEASURE_S_MAX = 2.0
LOOK_EVERY_S = 0.01


class SearchDesk:
    """Fulfils `croft.control.find_app.Search`."""

    def __init__(self, parts: Parts, peers: Callable[[], list[schema.Peer]]) -> None:
        self._parts = parts
        self._peers = peers

    async def find_peers(self, wanted: schema.PeersWanted) -> list[schema.Peer]:
        """The members that are alive and have all that is wanted, most free processors first. Raises Usage."""
        query = _query(wanted)
        if query.round_trip_s is not None:
            near_enough = [one for one in self._listings().values() if fits_but_for_distance(query, one)]
            await self._measure([one.peer for one in near_enough if one.round_trip_s is None][:MEASURED_MAX])
        shown = {peer.peer: peer for peer in self._peers()}
        return [shown[one.peer] for one in search(query, self._listings().values())]

    async def find_key(self, wanted: schema.KeyWanted) -> schema.Located:
        """Who has what a key names. Raises Usage."""
        started = time.monotonic()
        found = await self._parts.overlay.finder.locate(wanted.key)
        shown = {peer.peer: peer for peer in self._peers()}
        return schema.Located(
            key=wanted.key,
            providers=[shown[peer] for peer in found.providers if peer in shown],
            asked=found.asked,
            hops=found.hops,
            took_s=time.monotonic() - started,
        )

    def provided(self) -> list[str]:
        """The keys that this peer provides."""
        return sorted(self._parts.overlay.finder.provided())

    async def provide(self, wanted: schema.KeyWanted) -> list[str]:
        """Provides one more. Raises Usage."""
        await self._parts.overlay.finder.provide(wanted.key)
        return self.provided()

    async def withdraw_key(self, wanted: schema.KeyWanted) -> list[str]:
        """Provides one less. Raises NotFound."""
        await self._parts.overlay.finder.withdraw(wanted.key)
        return self.provided()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _listings(self) -> dict[PeerId, Listing]:
        overlay, lender = self._parts.overlay, self._parts.lender
        listings: dict[PeerId, Listing] = {}
        for member in overlay.members():
            if not overlay.is_alive(member.peer) or overlay.contacts.is_blocked(member.twin):
                continue
            is_self = member.peer == overlay.own.peer
            link, load = overlay.links.get(member.peer), overlay.seen(member.peer).load
            listings[member.peer] = Listing(
                peer=member.peer,
                slots=member.slots,
                slots_busy=lender.slots_busy if is_self else load.slots_busy if load else 0,
                memory_bytes=member.memory_bytes,
                disk_bytes=member.disk_bytes,
                machine=member.machine,
                python=member.python,
                grade=member.grade,
                labels=member.labels,
                round_trip_s=0.0 if is_self else link.round_trip_s if link else None,
            )
        return listings

    async def _measure(self, peers: list[PeerId]) -> None:
        gate = asyncio.Semaphore(MEASURED_AT_ONCE)

        async def measure(peer: PeerId) -> None:
            async with gate:
                try:
                    async with asyncio.timeout(MEASURE_S_MAX):
                        link = await self._parts.overlay.link_to(peer)
                        link.used()
                        while link.round_trip_s is None and not link.is_closed:
                            await asyncio.sleep(LOOK_EVERY_S)
                except (CroftError, TimeoutError):
                    pass  # how far it is stays unknown, so it does not fit

        await asyncio.gather(*(measure(peer) for peer in peers))


def _query(wanted: schema.PeersWanted) -> Query:
    grade = wanted.grade.upper()
    if grade and (len(grade) != 1 or grade not in GRADES):
        raise Usage(f"`{wanted.grade}` is not an isolation grade", remedy="Write A, B, C or D.")
    return Query(
        cpus=wanted.cpus,
        memory_bytes=wanted.memory_bytes,
        disk_bytes=wanted.disk_bytes,
        round_trip_s=wanted.round_trip_s,
        machine=wanted.machine,
        python=wanted.python,
        grade=grade,
        labels=frozenset(wanted.labels),
    )
