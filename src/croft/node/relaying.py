"""What this peer lends as a relay, and which relays of others it may use: offers in, a relay process out.

One relay serves all communities that it is offered to. It runs as long as there is an offer; a relay that dies is
started again, and the owner told (see `supervisor`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from croft.errors import CroftError, Failed, NotFound, Refused
from croft.identity.by_member import Signatory
from croft.ledger.offer import OFFER_KIND, RENEW_EVERY_S, Offer, What, make_offer, open_offer
from croft.model.ids import CommunityId, PeerId
from croft.overlay.gossip import Kind
from croft.overlay.paths import host_of_url, relay_urls
from croft.overlay.records import Claim, Limits
from croft.overlay.relay_choice import Relay
from croft.overlay.relay_pass import make_pass
from croft.ports import RelayRates, RelayUsage

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.membership import Member
    from croft.overlay.paths import Paths
    from croft.overlay.service import Overlay
    from croft.ports import Clock, Database, RelayHost, RunningRelay

log = logging.getLogger(__name__)

TICK_S: Final = 0.5
SAVE_EVERY_S: Final = 10.0
PORT_SETTING: Final = "relay port"
OFFERS_MAX: Final = Limits(records_max=4_096, per_origin_max=8)
PASSES_MAX: Final = 2


@dataclass(frozen=True, slots=True)
class OwnOffer:
    """A relay that this peer's owner offers: bytes per second in all and per client, and to which communities."""

    amount: float
    per_client: float | None
    communities: tuple[CommunityId, ...]
    created_at: float


class Relaying:
    """This peer as a relay, and as a client of relays."""

    def __init__(
        self,
        overlay: Overlay,
        paths: Paths,
        host: RelayHost,
        database: Database,
        clock: Clock,
        *,
        port: int = 0,
    ) -> None:
        self._overlay = overlay
        self._paths = paths
        self._host = host
        self._database = database
        self._clock = clock
        self._wanted_port = port
        self._own: OwnOffer | None = None
        self._changed = asyncio.Event()
        self._running: RunningRelay | None = None
        self._past: dict[PeerId, RelayUsage] = {}
        self._kept_port = 0
        self._published: tuple[OwnOffer, tuple[str, ...], float] | None = None
        overlay.records.register(Kind(OFFER_KIND, verify=_verify, is_kept=False, limits=OFFERS_MAX))

    # --- questions ---------------------------------------------------------------------------------------------------

    @property
    def own(self) -> OwnOffer | None:
        """What is offered here."""
        return self._own

    @property
    def connected(self) -> int:
        """How many peers are connected to the relay here."""
        return self._running.connected if self._running is not None else 0

    def places(self) -> list[str]:
        """Where the relay here is to be had; none while it does not run."""
        if self._running is None or not self._running.port:
            return []
        return relay_urls(self._paths.addresses(), self._running.port)

    def usage(self) -> Mapping[PeerId, RelayUsage]:
        """What the relay here has passed on for each peer, over all runs."""
        running = self._running.usage() if self._running is not None else {}
        return {peer: _sum(self._past.get(peer), running.get(peer)) for peer in {**self._past, **running}}

    def offers(self) -> list[Offer]:
        """All offers that are known and stand, own ones among them."""
        offers = [entry.claim.value for entry in self._overlay.records.entries(OFFER_KIND)]
        return [offer for offer in offers if isinstance(offer, Offer) and offer.amount > 0]

    def passes(self, invitation: str, expires_at: float) -> list[tuple[str, str]]:
        """For a newcomer: relays by which this peer is reached, each with a pass."""
        own = self._overlay.own
        return [
            (relay.url, make_pass(own.device, bytes.fromhex(relay.peer), invitation, expires_at))
            for relay, _ in self._paths.known_relays()[:PASSES_MAX]
        ]

    # --- changes -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""

        def read(
            db: sqlite3.Connection,
        ) -> tuple[list[tuple[float, float | None, bytes, float]], list[tuple[str, int, int, int]], object]:
            offers = db.execute(
                "SELECT amount, per_client, communities, created_at FROM offer WHERE what = ?", (What.RELAY,)
            ).fetchall()
            usage = db.execute("SELECT peer, received_bytes, sent_bytes, dropped_frames FROM relay_usage").fetchall()
            port = db.execute("SELECT value FROM setting WHERE name = ?", (PORT_SETTING,)).fetchone()
            return offers, usage, port

        offers, usage, port = await self._database.run(read)
        for amount, per_client, communities, created_at in offers:
            named = tuple(CommunityId(community) for community in json.loads(communities))
            self._own = OwnOffer(amount, per_client, named, created_at)
        self._past = {PeerId(peer): RelayUsage(*counts) for peer, *counts in usage}
        if isinstance(port, tuple):
            self._kept_port = int(port[0])

    async def offer(self, amount: float, per_client: float | None, communities: Sequence[CommunityId]) -> OwnOffer:
        """Offers this peer as a relay, in place of what it offered before; on disk before it counts."""
        offer = OwnOffer(amount, per_client, tuple(communities), self._clock.now())
        row = (What.RELAY, amount, per_client, json.dumps(communities).encode(), offer.created_at)
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO offer VALUES (?, ?, ?, ?, ?)", row).rowcount
        )
        former, self._own = self._own, offer
        for community in former.communities if former is not None else ():
            if community not in offer.communities:
                self._publish(community, 0.0, [])
        self._published = None
        self._changed.set()
        return offer

    async def withdraw(self) -> OwnOffer:
        """Offers nothing any more; whoever uses the relay is cut off. Raises NotFound."""
        offer = self._own
        if offer is None:
            raise NotFound("this peer offers no relay", remedy="See what it offers: `croft offer list`.")
        await self._database.run(lambda db: db.execute("DELETE FROM offer WHERE what = ?", (What.RELAY,)).rowcount)
        self._own = None
        for community in offer.communities:
            self._publish(community, 0.0, [])
        self._published = None
        self._changed.set()
        return offer

    async def serve(self) -> None:
        """Runs the relay while there is an offer, and keeps the choice of relays in line with what others offer."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_offers(), name="relaying.offers")
            tasks.create_task(self._run(), name="relaying.run")

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _watch_offers(self) -> None:
        told: list[Relay] | None = None
        while True:
            relays = self._usable()
            if relays != told:
                self._paths.offered(relays)
                told = relays
            await asyncio.sleep(TICK_S)

    def _usable(self) -> list[Relay]:
        """Relays of others, at hosts that are their owners' own: nobody makes this peer dial somebody else."""
        relays: dict[str, Relay] = {}
        for offer in self.offers():
            if offer.what != What.RELAY or offer.peer == self._overlay.own.peer:
                continue
            members = self._overlay.community_members(offer.community)
            own = [member for member in members if member.peer == offer.peer]
            hosts = {address.rpartition(":")[0].strip("[]") for member in own for address in member.addresses}
            for url in offer.places:
                if host_of_url(url) in hosts:
                    relays[url] = Relay(url, offer.peer)
        return list(relays.values())

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            offer = self._own
            if offer is None:
                await self._changed.wait()
                continue
            await self._run_relay(offer)

    async def _run_relay(self, offer: OwnOffer) -> None:
        port = self._wanted_port or self._kept_port
        rates = RelayRates(offer.amount or None, offer.per_client)
        own = self._overlay.own.peer
        try:
            relay = await self._host.start(own, port, rates)
        except Failed:
            if self._wanted_port or not port:
                raise
            relay = await self._host.start(own, 0, rates)
        self._running = relay
        log.info("relaying at %s", ", ".join(self.places()) or f"port {relay.port}")
        ended = asyncio.create_task(relay.ended(), name="relaying.ended")
        try:
            await self._keep_port(relay.port)
            await self._attend(offer, relay, ended)
        finally:
            ended.cancel()
            await relay.stop()
            self._past = dict(self.usage())
            self._running = None
            await self._save()
        if ended.done() and not ended.cancelled():
            raise Failed(f"the relay ended: {ended.result()}")

    async def _attend(self, offer: OwnOffer, relay: RunningRelay, ended: asyncio.Task[str]) -> None:
        admitted: frozenset[PeerId] | None = None
        saved_at = self._clock.now()
        while self._own is offer and not ended.done():
            members = self._admitted(offer)
            if members != admitted:
                relay.admit(sorted(members))
                admitted = members
            self._announce(offer)
            if self._clock.now() - saved_at > SAVE_EVERY_S:
                saved_at = self._clock.now()
                await self._save()
            changed = asyncio.create_task(self._changed.wait(), name="relaying.changed")
            try:
                await asyncio.wait({changed, ended}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    def _admitted(self, offer: OwnOffer) -> frozenset[PeerId]:
        members = [m for community in offer.communities for m in self._overlay.community_members(community)]
        own = self._overlay.own.peer
        return frozenset(m.peer for m in members if m.peer != own and self._is_welcome(m))

    def _is_welcome(self, member: Member) -> bool:
        try:
            self._overlay.door.admit(member.peer, member.twin)
        except Refused:
            return False
        return True

    def _announce(self, offer: OwnOffer) -> None:
        """Publishes the offer when it is new, its places have changed, or the last record grows old."""
        places, now = tuple(self.places()), self._clock.now()
        if self._published is not None:
            published, at, when = self._published
            if published is offer and at == places and 0 <= now - when < RENEW_EVERY_S:
                return
        self._published = (offer, places, now)
        for community in offer.communities:
            self._publish(community, offer.amount, places)

    def _publish(self, community: CommunityId, amount: float, places: Sequence[str]) -> None:
        membership = self._overlay.passport.memberships.get(community)
        if membership is None:
            return
        own, records = self._overlay.own, self._overlay.records
        offerer = Signatory(own.device, own.certificate, community, membership.chain)
        record = make_offer(
            offerer, What.RELAY, amount, places, now=self._clock.now(), sequence=records.next_sequence()
        )
        records.publish(OFFER_KIND, community, record)

    async def _keep_port(self, port: int) -> None:
        if port != self._kept_port:
            self._kept_port = port
            row = (PORT_SETTING, str(port).encode())
            await self._database.run(
                lambda db: db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", row).rowcount
            )

    async def _save(self) -> None:
        now = self._clock.now()
        rows = [(peer, u.received_bytes, u.sent_bytes, u.dropped_frames, now) for peer, u in self.usage().items()]
        sql = (
            "INSERT INTO relay_usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (peer) DO UPDATE SET received_bytes = "
            "excluded.received_bytes, sent_bytes = excluded.sent_bytes, dropped_frames = excluded.dropped_frames"
        )
        try:
            await self._database.run(lambda db: db.executemany(sql, rows).rowcount)
        except CroftError as error:
            log.warning("what was relayed is not saved, and will be tried again: %s", error.message)


def _verify(community: CommunityId, record: bytes, now: float) -> Claim:
    offer = open_offer(community, record, now)
    return Claim(offer.key, offer.peer, offer.sequence, offer.expires_at, offer)


def _sum(one: RelayUsage | None, other: RelayUsage | None) -> RelayUsage:
    one, other = one or RelayUsage(), other or RelayUsage()
    return replace(
        one,
        received_bytes=one.received_bytes + other.received_bytes,
        sent_bytes=one.sent_bytes + other.sent_bytes,
        dropped_frames=one.dropped_frames + other.dropped_frames,
    )
