"""Looks after the data of others while they are away, as their delegate: each round as `tending` does it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import PeerId, TwinId
from croft.ports import Database, Offload
from croft.storage.contents import Reading
from croft.storage.formats import FORMAT, Bounds, Stripe, StripeList, decode_stored
from croft.storage.head_book import spread_heads
from croft.storage.messages import Watch
from croft.storage.permits import bearers
from croft.storage.placement import BoundedStripe, Place, Rule, bounds_of, rule_of
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers
from croft.storage.tending import Report, Tending, Ward, together
from croft.storage.transfer import Network, Receiving
from croft.wire.codec import decode

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
SETTLE_S: Final = 6.0
"""Once peers have come or gone and no other did for so long, it is time for a round."""
UNSETTLED_S_MAX: Final = 60.0
START_S: Final = 20.0
ROUND_EVERY_S: Final = 1_800.0
ROUND_S_PER_PEER: Final = 1.0
"""Among many somebody always comes or goes: rounds on that account are so far apart."""
LIST_BYTES: Final = 32 << 20
STEP: Final = "watch"


class Watchman:
    """Says when it is time for a round: some time after the start, when peers have come or gone, and now and then."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._seen: tuple[PeerId, ...] = ()
        self._changed_at = self._due_at = asyncio.get_running_loop().time() + START_S
        self._went_at = 0.0

    def now(self) -> None:
        """There is something to do."""
        self._due_at = min(self._due_at, asyncio.get_running_loop().time())

    async def something_to_do(self) -> None:
        """Returns when it is time."""
        loop = asyncio.get_running_loop()
        while True:
            alive = tuple(sorted(self._network.alive()))
            if alive != self._seen:
                self._seen = alive
                self._changed_at = max(self._changed_at, loop.time())
                again_at = self._went_at + ROUND_S_PER_PEER * len(alive)
                self._due_at = min(self._due_at, max(self._changed_at + SETTLE_S, again_at))
            is_settled = self._changed_at + SETTLE_S <= loop.time() or self._due_at + UNSETTLED_S_MAX <= loop.time()
            if self._due_at <= loop.time() and is_settled:
                self._went_at = loop.time()
                self._due_at = loop.time() + ROUND_EVERY_S
                return
            await asyncio.sleep(LOOK_EVERY_S)


class Wards:
    """Everybody's data that this peer looks after."""

    def __init__(
        self, own: PeerId, network: Network, holders: Holders, tending: Tending, database: Database, offload: Offload
    ) -> None:
        self._own = own
        self._network = network
        self._holders = holders
        self._tending = tending
        self._database = database
        self._offload = offload
        self._lists: dict[bytes, tuple[bytes, list[tuple[Stripe, Rule]]]] = {}
        self._watchman: Watchman | None = None
        self.reports: dict[TwinId, Report] = {}
        """What the last round over each owner's data found."""
        self.rebuilt: dict[TwinId, int] = {}

    def told(self) -> None:
        """Somebody asked, or told of a change."""
        if self._watchman is not None:
            self._watchman.now()

    async def serve(self) -> None:
        """Goes its rounds until cancelled."""
        self._watchman = Watchman(self._network)
        while True:
            await self._watchman.something_to_do()
            for owner, device, record in await self._watched():
                try:
                    await self._look_after(owner, PeerId(device.hex()), decode(record, Watch, step=STEP))
                except (CroftError, PeerMisbehaved) as problem:
                    log.info("the data of %s is not looked after now: %s", owner.hex()[:10], problem)

    async def _watched(self) -> list[tuple[bytes, bytes, bytes]]:
        sql = "SELECT owner, device, record FROM watched ORDER BY owner, device"
        try:
            return await self._database.run(lambda db: db.execute(sql).fetchall())
        except CroftError as error:
            log.info("nobody's data is looked after now: %s", error.message)
            return []

    async def _look_after(self, owner: bytes, device: PeerId, watch: Watch) -> None:
        if not self._network.away_s(device):
            return  # its owner is up, and does it
        peers = bearers(watch.permit)
        before = peers[: peers.index(self._own)] if self._own in peers else peers
        if any(not self._network.away_s(peer) for peer in before):
            return  # another delegate, who comes first, does it
        reports = [await self._tending.round(ward) for ward in await self._wards(owner, device, watch)]
        report, twin = together(reports), TwinId(owner.hex())
        rule = rule_of(Bounds(watch.on, watch.never, watch.never_twins))
        places = [place for place in self._tending.places(owner) if place.peer != device]
        await spread_heads(owner, self._network, self._holders, places, rule, permit=watch.permit)
        self.reports[twin] = report
        self.rebuilt[twin] = self.rebuilt.get(twin, 0) + report.rebuilt
        if report.rebuilt:
            log.info("made %d lost shares of %s again", report.rebuilt, owner.hex()[:10])

    async def _wards(self, owner: bytes, device: PeerId, watch: Watch) -> list[Ward]:
        """What there is to look after, by where it may be; the list itself too."""
        key, listed = self._lists.get(owner, (b"", []))
        if key != watch.stripes.key:
            receiving = Receiving(owner, self._network, self._holders, self._offload, Buffers(LIST_BYTES), watch.permit)
            reading = Reading(receiving, self._offload)
            told = decode_stored(await reading.whole(watch.stripes), StripeList)
            parts = [*watch.stripes.parts, *await reading.parts(watch.stripes)]
            bounds = Bounds(watch.on, watch.never, watch.never_twins)
            listed = [*bounded(told, bounds), *((part.stripe, rule_of(bounds)) for part in parts)]
            self._lists[owner] = watch.stripes.key, listed
        by_rule: dict[Rule, dict[bytes, Stripe]] = {}
        for stripe, rule in listed:
            # The owner's device itself is away: nothing is brought there.
            by_rule.setdefault(replace(rule, never=(*rule.never, device)), {})[stripe.id] = stripe
        return [Ward(owner, list(stripes.values()), rule, watch.permit) for rule, stripes in by_rule.items()]


def bounded(told: StripeList, otherwise: Bounds) -> list[tuple[Stripe, Rule]]:
    """The stripes of a list, each with the rule for it. Raises PeerMisbehaved for one that does not fit together."""
    if not told.bounds:
        return [(stripe, rule_of(otherwise)) for stripe in told.stripes]
    if len(told.bounds_of) != len(told.stripes) or not all(0 <= at < len(told.bounds) for at in told.bounds_of):
        raise PeerMisbehaved("a list of stripes whose bounds do not fit", step=STEP)
    rules = [rule_of(one) for one in told.bounds]
    return [(stripe, rules[at]) for stripe, at in zip(told.stripes, told.bounds_of, strict=True)]


def list_of(stripes: Sequence[BoundedStripe]) -> StripeList:
    """What delegates are told of these."""
    rules = {rule: number for number, rule in enumerate(dict.fromkeys(rule for _, rule in stripes))}
    return StripeList(
        FORMAT,
        [stripe for stripe, _ in stripes],
        [bounds_of(rule) or Bounds([], [], []) for rule in rules],
        [rules[rule] for _, rule in stripes],
    )


def places_for(owner: bytes, own: TwinId, network: Network) -> list[Place]:
    """Who may hold something of an owner: this peer too, if it is somebody else's data."""
    others = list(network.places())
    return others if owner.hex() == own else [*others, network.own_place()]
