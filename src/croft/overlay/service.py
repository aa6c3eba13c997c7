"""The overlay's shell: runs links and membership, keeps what must outlive a restart, and answers who is here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import msgspec

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import CommunityId, PeerId, short
from croft.overlay import membership as core
from croft.overlay.link import Link
from croft.overlay.links import Links
from croft.overlay.membership import Member
from croft.overlay.messages import Digest, Load, Records
from croft.overlay.passport import Lends, Membership, Own, PeerPassport, describe, open_descriptor
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Connection, Database, Stream, Transport

log = logging.getLogger(__name__)

TICK_S = 1.0
LOAD_EVERY_TICKS = 2
ADDRESSES_EVERY_TICKS = 5
RENEW_EVERY_S = 86_400.0
NOTICE_DIGEST = "members.digest"
NOTICE_RECORDS = "members.records"
NOTICE_LOAD = "load"


@dataclass(slots=True)
class Seen:
    """What is known of a peer beyond its descriptor."""

    load: Load | None = None
    seen_at: float = 0.0


class Overlay:
    """Who is in this peer's communities, and the live links to them."""

    def __init__(
        self,
        own: Own,
        transport: Transport,
        database: Database,
        clock: Clock,
        lends: Callable[[], Lends],
        load: Callable[[], Load],
        *,
        on_key_used_elsewhere: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self.own = own
        self._transport = transport
        self._database = database
        self._clock = clock
        self._lends = lends
        self._load = load
        self._on_key_used_elsewhere = on_key_used_elsewhere
        self._core = core.Membership(own.peer, own.instance)
        self.passport = PeerPassport(own, clock.now, self._communities_of)
        self.links = Links(transport, self.passport)
        self._seen: dict[PeerId, Seen] = {}
        self._unsaved: dict[tuple[CommunityId, PeerId], Member | None] = {}
        self._sequence = 0
        self._described: tuple[tuple[str, ...], Lends] | None = None
        self._described_at = 0.0
        self._dials: asyncio.TaskGroup | None = None
        self.links.on_up(self._link_up)
        self.links.on_down(self._link_down)
        self.links.on_notice(NOTICE_DIGEST, self._digest)
        self.links.on_notice(NOTICE_RECORDS, self._records)
        self.links.on_notice(NOTICE_LOAD, self._heard_load)

    # --- questions ---------------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Every known device once, this one first even if it is in no community, then by name."""
        by_peer = {member.peer: member for member in self._core.members()}
        if self.own.peer not in by_peer:
            alone = Membership(CommunityId(""), "", ())
            now = self._clock.now()
            by_peer[self.own.peer] = describe(
                self.own, alone, self._lends(), list(self._transport.addresses()), now=now, sequence=0
            )
        return sorted(by_peer.values(), key=lambda m: (m.peer != self.own.peer, m.name, m.peer))

    def communities(self) -> list[Membership]:
        """The communities that this peer is in."""
        return list(self.passport.memberships.values())

    def community_members(self, community: CommunityId) -> list[Member]:
        """The known members of one community, this peer among them."""
        return self._core.members(community)

    def communities_of(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities in which a device is known."""
        return self._communities_of(peer)

    def seen(self, peer: PeerId) -> Seen:
        """When a peer was last heard of, and how busy it was."""
        return self._seen.get(peer, Seen())

    def name_of(self, peer: PeerId) -> str:
        """What to call a peer."""
        if peer == self.own.peer:
            return self.own.name
        member = self._core.find(peer)
        return member.name if member else short(peer)

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """A stream to a member's handler. Raises Unreachable."""
        return await self.links.open_stream(peer, purpose)

    def addresses(self) -> Sequence[str]:
        """Where this peer may be reached."""
        return self._transport.addresses()

    async def dial(self, peer: PeerId, addresses: Sequence[str], protocol: bytes, timeout_s: float) -> Connection:
        """A connection of another protocol than that of members. Raises Unreachable."""
        return await self._transport.dial(peer, addresses, protocol, timeout_s)

    # --- changes -----------------------------------------------------------------------------------------------------

    async def enter(self, membership: Membership, records: Sequence[bytes] = ()) -> None:
        """Becomes a member: kept on disk before it counts. `records` of others may be invalid; those are left out."""
        row = (
            membership.community,
            membership.name,
            msgspec.msgpack.encode(membership.chain),
            self._clock.now(),
        )
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO membership VALUES (?, ?, ?, ?)", row).rowcount
        )
        self.passport.memberships[membership.community] = membership
        self._describe(membership)
        self._learn(None, records)
        # A newcomer that is killed now must know whom to dial when it comes back.
        await self._save_or_warn()

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""

        def read(db: sqlite3.Connection) -> tuple[list[tuple[str, str, bytes]], list[tuple[bytes, float]]]:
            memberships = db.execute("SELECT community, name, grant_chain FROM membership").fetchall()
            return memberships, db.execute("SELECT record, seen_at FROM known_member").fetchall()

        memberships, records = await self._database.run(read)
        for community, name, chain in memberships:
            tokens = msgspec.msgpack.decode(chain, type=tuple[bytes, ...])
            membership = Membership(CommunityId(community), name, tokens)
            self.passport.memberships[membership.community] = membership
        known = [(member, seen_at) for record, seen_at in records for member in self._open([record])]
        # Our next word must count more than our last one, also if the clock was set back in between.
        self._sequence = max((m.sequence for m, _ in known if m.peer == self.own.peer), default=0)
        for membership in self.communities():
            self._describe(membership)
        for member, seen_at in known:
            if member.peer != self.own.peer:
                self._seen.setdefault(member.peer, Seen()).seen_at = seen_at
                self._perform(self._core.handle(core.RecordsReceived(None, [member], self._clock.now())))
        self._unsaved = {key: member for key, member in self._unsaved.items() if key[1] == self.own.peer}

    async def serve(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._dials = tasks
            try:
                tasks.create_task(self._tick(), name="overlay.tick")
                await self.links.serve()
            finally:
                self._dials = None

    async def save(self) -> None:
        """Writes changed records to disk."""
        if not self._unsaved:
            return
        changed, self._unsaved = self._unsaved, {}
        rows = [
            (community, peer, member.record, self.seen(peer).seen_at)
            for (community, peer), member in changed.items()
            if member is not None
        ]
        gone = [key for key, member in changed.items() if member is None]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO known_member VALUES (?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM known_member WHERE community = ? AND peer = ?", gone)

        try:
            await self._database.run(write)
        except CroftError:
            self._unsaved = {**changed, **self._unsaved}
            raise

    # --- inside ------------------------------------------------------------------------------------------------------

    def _communities_of(self, peer: PeerId) -> frozenset[CommunityId]:
        return frozenset(member.community for member in self._core.members() if member.peer == peer)

    def _describe(self, membership: Membership) -> None:
        now = self._clock.now()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        lends, addresses = self._lends(), list(self._transport.addresses())
        self._described = (tuple(addresses), lends)
        self._described_at = now
        member = describe(self.own, membership, lends, addresses, now=now, sequence=self._sequence)
        self._perform(self._core.handle(core.OwnChanged(member)))

    def _describe_if_changed(self) -> None:
        present = (tuple(self._transport.addresses()), self._lends())
        is_old = self._clock.now() - self._described_at > RENEW_EVERY_S
        if present != self._described or is_old:
            for membership in self.communities():
                self._describe(membership)

    async def _tick(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(TICK_S)
            ticks += 1
            self._perform(self._core.handle(core.Tick(self._clock.now())))
            if ticks % LOAD_EVERY_TICKS == 0:
                self.tell_load()
            if ticks % ADDRESSES_EVERY_TICKS == 0:
                self._describe_if_changed()
            await self._save_or_warn()

    async def _save_or_warn(self) -> None:
        try:
            await self.save()
        except CroftError as error:
            log.warning("the member list is not saved, and will be tried again: %s", error.message)

    def tell_load(self) -> None:
        """Tells every linked member how busy this peer is."""
        body = encode(self._load())
        for link in self.links.all():
            link.notify(NOTICE_LOAD, body)

    def _link_up(self, link: Link) -> None:
        seen = self._seen.setdefault(link.peer, Seen())
        seen.seen_at = self._clock.now()
        self._perform(self._core.handle(core.LinkUp(link.peer, link.greeted.communities)))
        link.notify(NOTICE_LOAD, encode(self._load()))
        log.info("link to %s (%s) is up, %s", link.greeted.name, short(link.peer), link.connection.route().address)

    def _link_down(self, link: Link, reason: str) -> None:
        seen = self._seen.setdefault(link.peer, Seen())
        seen.seen_at = self._clock.now()
        seen.load = None
        log.info("link to %s (%s) is down: %s", link.greeted.name, short(link.peer), reason)
        self._perform(self._core.handle(core.LinkDown(link.peer, self._clock.now())))

    def _digest(self, link: Link, body: bytes) -> None:
        digest = decode(body, Digest, step="member digest")
        event = core.DigestReceived(link.peer, CommunityId(digest.community), digest.entries)
        self._perform(self._core.handle(event))

    def _records(self, link: Link, body: bytes) -> None:
        records = decode(body, Records, step="member records").records
        if len(records) > core.RECORDS_PER_NOTICE_MAX:
            raise PeerMisbehaved(f"{len(records)} records at once", step="member records")
        self._learn(link, records)

    def _learn(self, link: Link | None, records: Sequence[bytes]) -> None:
        members = self._open(records, link)
        sender = None if link is None else link.peer
        self._perform(self._core.handle(core.RecordsReceived(sender, members, self._clock.now())))

    def _open(self, records: Sequence[bytes], link: Link | None = None) -> list[Member]:
        # Flooding brings most records several times, and verifying one costs far more than finding it here.
        known = {member.record for member in self._core.members()}
        members: list[Member] = []
        for record in records:
            if record in known:
                continue
            try:
                members.append(open_descriptor(record, self.passport.memberships, self._clock.now()))
            except PeerMisbehaved as fault:
                # One bad record does not take the good ones with it; who sent it is named.
                log.warning("a record from %s is refused: %s", link.greeted.name if link else "disk or inviter", fault)
        return members

    def _heard_load(self, link: Link, body: bytes) -> None:
        seen = self._seen.setdefault(link.peer, Seen())
        seen.load = decode(body, Load, step="load")
        seen.seen_at = self._clock.now()

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.SendDigest(peer, community, entries):
                    self._notify(peer, NOTICE_DIGEST, encode(Digest(community, list(entries))))
                case core.SendRecords(peer, community, records):
                    self._notify(peer, NOTICE_RECORDS, encode(Records(community, list(records))))
                case core.Dial(peer, addresses):
                    if self._dials is None:
                        self._core.handle(core.DialFailed(peer, self._clock.now()))
                    else:
                        self._dials.create_task(self._dial(peer, addresses), name=f"overlay.dial.{short(peer)}")
                case core.Remember(member):
                    self._unsaved[(member.community, member.peer)] = member
                case core.Forget(community, peer):
                    self._unsaved[(community, peer)] = None
                case core.OwnKeyUsedElsewhere(addresses):
                    self._on_key_used_elsewhere(addresses)
                case _:
                    assert_never(effect)

    def _notify(self, peer: PeerId, topic: str, body: bytes) -> None:
        if link := self.links.get(peer):
            link.notify(topic, body)

    async def _dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            await self.links.ensure(peer, addresses)
        except CroftError as error:
            log.debug("dialling %s failed: %s", short(peer), error.message)
            self._perform(self._core.handle(core.DialFailed(peer, self._clock.now())))
