"""The overlay: who is here, and the way to each of them. It joins records, liveness and neighbourhood into one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from croft.errors import CroftError, NotFound, PeerMisbehaved, Refused, Unreachable
from croft.identity.certificates import Certified
from croft.identity.grants import verify_chain
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay import membership as core
from croft.overlay.contacts import ContactBook, Device, Names
from croft.overlay.doorkeeper import Doorkeeper
from croft.overlay.finder import Finder
from croft.overlay.gossip import Kind, Records
from croft.overlay.link import Link
from croft.overlay.links import Links
from croft.overlay.liveness import Liveness
from croft.overlay.membership import Member
from croft.overlay.messages import Load
from croft.overlay.neighbourhood import Neighbourhood
from croft.overlay.passport import Lends, Membership, Own, PeerPassport, describe, open_descriptor
from croft.overlay.presence import PRESENCE_KIND
from croft.overlay.records import Claim, Entry, Limits

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Connection, Database, Entropy, RelayAccess, Stream, Transport

log = logging.getLogger(__name__)

TICK_S = 1.0
TICK_S_MIN = 0.25
ADDRESSES_EVERY_TICKS = 1
RENEW_EVERY_S = 86_400.0
HEARD_SAVED_EVERY_S = 300.0
MEMBER_KIND = "member"
MEMBERS_MAX = 4_096
"""Up to so many members per community, everybody knows everybody; above, each knows as many and who is near to it."""


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
        entropy: Entropy,
        lends: Callable[[], Lends],
        load: Callable[[], Load],
        *,
        contacts: ContactBook | None = None,
        on_key_used_elsewhere: Callable[[Sequence[str]], None] = lambda _: None,
        on_clock_compared: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.own = own
        self._transport = transport
        self._database = database
        self._clock = clock
        self._lends = lends
        self._on_key_used_elsewhere = on_key_used_elsewhere
        self._on_clock_compared = on_clock_compared
        self._core = core.Membership(own.peer)
        self.contacts = contacts or ContactBook(own.twin)
        self.door = Doorkeeper(self.contacts)
        self._names = Names(self.contacts, own.peer)
        self.passport = PeerPassport(own, clock.now, self._core.communities_of, self.door, self._name_of_certified)
        self.links = Links(transport, self.passport)
        self.records = Records(own.peer, self.links, database, clock)
        self.records.is_out = lambda community, twin: self.door.standing.is_out(community, twin)
        self.joined_at: dict[CommunityId, float] = {}
        self.left_at: dict[CommunityId, float] = {}
        """When this peer came into its communities, and when it left others. Unix seconds."""
        self._seen: dict[PeerId, Seen] = {}
        self._seen_saved: dict[PeerId, float] = {}
        self._looks_soon = False
        self._described: tuple[tuple[str, ...], Lends] | None = None
        self._described_at = 0.0
        self.told_addresses: Callable[[], Sequence[str]] = transport.addresses
        self.relay_access: Callable[[Sequence[str]], Sequence[RelayAccess]] = lambda _: []
        self.doubt_relays: Callable[[Sequence[RelayAccess]], None] = lambda _: None
        self.links.on_up(self._link_up)
        self.links.on_down(self._link_down)
        self.records.register(
            Kind(
                MEMBER_KIND,
                verify=self._verify_member,
                on_new=self._member_learned,
                on_gone=self._member_gone,
                on_overtaken=self._own_member_overtaken,
                limits=Limits(2 * MEMBERS_MAX, 1),
            )
        )
        chance = entropy.random()
        self.neighbourhood = Neighbourhood(own.peer, self.links, clock, chance, self.link_to, self.twin_of)
        self.liveness = Liveness(
            own, self.links, self.records, self._core, clock, chance, load, self.link_to, Limits(2 * MEMBERS_MAX, 1)
        )
        self.finder = Finder(
            own,
            self.links,
            self._core,
            database,
            clock,
            call=lambda peer, method, body, deadline_s: self.call(peer, method, body, deadline_s=deadline_s),
            is_alive=self.is_alive,
            learn=lambda community, records: self.records.learn(
                community, [(MEMBER_KIND, record) for record in records], "a lookup"
            ),
            next_sequence=self.records.next_sequence,
            open_member=lambda record: self._open_member(record, clock.now()),
            shares=self.records.shares,
        )
        self.liveness.on_change = self.finder.changed
        self.view_max = MEMBERS_MAX
        self.finder.is_whole = self._is_whole

    # --- questions ---------------------------------------------------------------------------------------------------

    def members(self) -> list[Member]:
        """Every known device once, this one first even if it is in no community, then by name."""
        by_peer = {member.peer: member for member in self._core.members()}
        if self.own.peer not in by_peer:
            alone = Membership(CommunityId(""), "", ())
            now = self._clock.now()
            by_peer[self.own.peer] = describe(
                self.own, alone, self._lends(), list(self.addresses()), now=now, sequence=0
            )
        named = [replace(member, name=self.name_of(member.peer)) for member in by_peer.values()]
        return sorted(named, key=lambda m: (m.peer != self.own.peer, m.name, m.peer))

    def communities(self) -> list[Membership]:
        """The communities that this peer is in."""
        return list(self.passport.memberships.values())

    def community_members(self, community: CommunityId) -> list[Member]:
        """The known members of one community, this peer among them."""
        return self._core.members(community)

    def communities_of(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities in which a device is known."""
        return self._core.communities_of(peer)

    def shared_with(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities that the link to a peer serves."""
        return self.records.shares(peer)

    def seen(self, peer: PeerId) -> Seen:
        """When a peer was last heard of, and how busy it last said it is."""
        seen = self._seen.get(peer, Seen())
        if self.is_alive(peer):
            return Seen(self.liveness.load_of(peer), self._clock.now())
        return Seen(None, seen.seen_at)

    def is_alive(self, peer: PeerId) -> bool:
        """Whether a member is reached by a link, or others say that it lives."""
        if peer == self.own.peer or self.links.get(peer) is not None:
            return True
        if self.liveness.is_dead(peer):
            return False
        return any(self.records.shares(link.peer) & self.communities_of(peer) for link in self.links.all())

    def name_of(self, peer: PeerId) -> str:
        """What to call a peer: unlike every other one, and by the owner's petname if there is one."""
        if peer == self.own.peer:
            return self.own.name
        return self._names.of(peer) or short(peer)

    def self_name_of(self, peer: PeerId) -> str:
        """What a peer calls itself."""
        member = self._core.find(peer)
        return member.name if member else self.own.name if peer == self.own.peer else ""

    async def link_to(self, peer: PeerId) -> Link:
        """The link to a member, dialled if there is none. Raises NotFound, Unreachable, Refused."""
        if link := self.links.get(peer):
            return link
        member = self._core.find(peer)
        if member is not None:
            self.door.seek(peer, member.twin, self.name_of(peer))
        if member is None:
            raise NotFound(f"no member {short(peer)} is known here", remedy="See who is here: `croft peers`.")
        relays = self._relays_of(peer)
        try:
            return await self.links.ensure(peer, member.addresses, relays)
        except Unreachable:
            self.liveness.unreachable(peer)
            self.doubt_relays(relays)
            raise

    async def link_at(self, peer: PeerId, addresses: Sequence[str]) -> Link:
        """The link to a peer that was found at these addresses. Raises Unreachable, Refused."""
        if (twin := self.twin_of(peer)) is not None:
            self.door.seek(peer, twin, self.name_of(peer))
        return await self.links.ensure(peer, addresses)

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """A stream to a member's handler, over a link that is made if there is none. Raises Unreachable."""
        is_fresh = peer == self.own.peer
        while True:
            try:
                if not is_fresh:
                    is_fresh = self.links.get(peer) is None
                    await self.link_to(peer)
                return await self.links.open_stream(peer, purpose, lambda: self.link_to(peer))
            except Refused:
                raise
            except CroftError as error:
                # A link that was there may just have been closed by the other side, who did not need it.
                if is_fresh or self.links.get(peer) is not None:
                    raise Unreachable(error.message, remedy=error.remedy) from None

    async def call(self, peer: PeerId, method: str, body: bytes, *, deadline_s: float) -> bytes:
        """A member's answer, over a link that is made if there is none. Raises what `Link.call` raises."""
        return await (await self.link_to(peer)).call(method, body, deadline_s=deadline_s)

    def addresses(self) -> Sequence[str]:
        """Where this peer may be reached, as far as others are to be told."""
        return self.told_addresses()

    async def dial(
        self,
        peer: PeerId,
        addresses: Sequence[str],
        protocol: bytes,
        timeout_s: float,
        relays: Sequence[RelayAccess] = (),
    ) -> Connection:
        """A connection of another protocol than that of members. Raises Unreachable."""
        return await self._transport.dial(peer, addresses, protocol, timeout_s, relays)

    def _relays_of(self, peer: PeerId) -> Sequence[RelayAccess]:
        member = self._core.find(peer)
        return self.relay_access(member.relays) if member is not None else []

    # --- people ------------------------------------------------------------------------------------------------------

    def person_changed(self, twin: TwinId) -> None:
        """What the owner thinks of a person has changed: names are shown anew, and whoever is kept out now is cut."""
        devices = {member.peer for member in self._core.members() if member.twin == twin}
        devices |= {link.peer for link in self.links.all() if link.greeted.twin == twin}
        for peer in sorted(devices):
            if link := self.links.get(peer):
                link.greeted = replace(link.greeted, name=self.name_of(peer))
            try:
                self.door.admit(peer, twin)
            except Refused as refusal:
                self.links.cut(peer, refusal.message)
        for entry in self.records.entries(MEMBER_KIND):
            member = entry.claim.value
            if isinstance(member, Member) and member.twin == twin:
                # What came while a person was blocked counts now; and there is no reason to wait before dialling.
                self._member_learned(entry)

    def twin_of(self, peer: PeerId) -> TwinId | None:
        """Whose device a member is."""
        member = self._core.find(peer)
        return member.twin if member else self.own.twin if peer == self.own.peer else None

    def shut_out(self, peer: PeerId, twin: TwinId) -> None:
        """A device is its twin's no more: its link is cut, its descriptors are dropped."""
        self.person_changed(twin)
        for entry in self.records.entries(MEMBER_KIND):
            member = entry.claim.value
            if isinstance(member, Member) and member.peer == peer and member.twin == twin:
                self.records.drop(entry)

    def _name_of_certified(self, certified: Certified) -> str:
        return self._names.of(certified.peer) or certified.name

    # --- changes -----------------------------------------------------------------------------------------------------

    async def enter(self, membership: Membership, records: Sequence[bytes] = (), *, clock: float = 0.0) -> None:
        """Becomes a member: kept on disk before it counts.

        `records` of others may be invalid; those are left out. `clock` is the inviter's, 0 if it did not say it.
        """
        if clock > 0 and math.isfinite(clock):
            self._on_clock_compared(clock - self._clock.now())
        row = (
            membership.community,
            membership.name,
            msgspec.msgpack.encode(membership.chain),
            self._clock.now(),
        )
        await self._database.run(lambda db: _write_membership(db, row))
        self.joined_at[membership.community] = row[3]
        self.left_at.pop(membership.community, None)
        self.passport.memberships[membership.community] = membership
        self.records.enter(membership.community)
        self._describe(membership)
        self.liveness.say(membership.community)
        self.records.learn(membership.community, [(MEMBER_KIND, record) for record in records])
        # A newcomer that is killed now must know whom to dial when it comes back.
        await self._save_or_warn()

    async def leave(self, community: CommunityId, reason: str) -> None:
        """Is a member no more: links end, and nothing of the community is kept."""
        self.passport.memberships.pop(community, None)
        self.left_at[community] = now = self._clock.now()
        await self._database.run(lambda db: _write_departure(db, community, now))
        for link in self.links.all():
            if community in self.shared_with(link.peer):
                self.links.cut(link.peer, reason)
        self.records.leave(community)
        await self._save_or_warn()

    def standing_changed(self, community: CommunityId) -> None:
        """Some may be members no more: their links are cut, and what they said in the community is dropped."""
        standing = self.door.standing
        for entry in self.records.entries(MEMBER_KIND, community):
            member = entry.claim.value
            if not isinstance(member, Member) or member.peer == self.own.peer:
                continue
            if (out := standing.refusal(community, member.twin, member.path)) is not None:
                if community in self.shared_with(member.peer):
                    self.links.cut(member.peer, out.message)
                self.records.drop(entry)
        for link in self.links.all():
            if community in self.shared_with(link.peer) and standing.is_out(community, link.greeted.twin):
                self.links.cut(link.peer, "no member any more")
        self.records.drop_departed(community)

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""

        def read(
            db: sqlite3.Connection,
        ) -> tuple[list[tuple[str, str, bytes, float]], list[tuple[str, float]], list[tuple[str, float]]]:
            memberships = db.execute("SELECT community, name, grant_chain, joined_at FROM membership").fetchall()
            heard_of = db.execute("SELECT peer, seen_at FROM heard_of").fetchall()
            return memberships, heard_of, db.execute("SELECT community, left_at FROM left_community").fetchall()

        memberships, heard_of, left = await self._database.run(read)
        self.left_at = {CommunityId(community): left_at for community, left_at in left}
        for community, name, chain, joined_at in memberships:
            tokens = msgspec.msgpack.decode(chain, type=tuple[bytes, ...])
            membership = Membership(CommunityId(community), name, tokens)
            try:
                verify_chain(membership.community, tokens, self.own.twin, self._clock.now())
            except Refused as refusal:
                log.warning("not a member of %s any more: %s", name, refusal.message)
                continue
            self.passport.memberships[membership.community] = membership
            self.joined_at[membership.community] = joined_at
            self.records.enter(membership.community)
        await self.records.load()
        await self.finder.load()
        for membership in self.communities():
            self._describe(membership)
            self.liveness.say(membership.community)
        for peer, seen_at in heard_of:
            self._seen.setdefault(PeerId(peer), Seen()).seen_at = self._seen_saved[PeerId(peer)] = seen_at

    async def serve(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self.neighbourhood.tasks = self.liveness.tasks = self.finder.tasks = tasks
            try:
                tasks.create_task(self._tick(), name="overlay.tick")
                await self.links.serve()
            finally:
                self.neighbourhood.tasks = self.liveness.tasks = self.finder.tasks = None

    async def save(self) -> None:
        """Writes what changed to disk. Raises Failed."""
        await self.records.save()
        heard = [
            (p, s.seen_at)
            for p, s in self._seen.items()
            if abs(s.seen_at - self._seen_saved.get(p, 0.0)) > HEARD_SAVED_EVERY_S
        ]
        if not heard:
            return
        sql = "INSERT OR REPLACE INTO heard_of VALUES (?, ?)"
        await self._database.run(lambda db: db.executemany(sql, heard).rowcount)
        self._seen_saved.update(heard)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _describe(self, membership: Membership) -> None:
        now = self._clock.now()
        lends, addresses = self._lends(), list(self.addresses())
        self._described = (tuple(addresses), lends)
        self._described_at = now
        member = describe(self.own, membership, lends, addresses, now=now, sequence=self.records.next_sequence())
        self.records.publish(MEMBER_KIND, membership.community, member.record)

    def _describe_if_changed(self) -> None:
        present = (tuple(self.addresses()), self._lends())
        is_old = self._clock.now() - self._described_at > RENEW_EVERY_S
        if present != self._described or is_old:
            for membership in self.communities():
                self._describe(membership)

    async def _tick(self) -> None:
        ticks = 0
        while True:
            self.records.tick()
            self.liveness.tick()
            self.finder.tick()
            self._look_after_links()
            if ticks % ADDRESSES_EVERY_TICKS == 0:
                self._describe_if_changed()
            await self._save_or_warn()
            ticks += 1
            due_in_s = self.liveness.due_in_s
            await asyncio.sleep(TICK_S if due_in_s is None else min(max(due_in_s, TICK_S_MIN), TICK_S))

    async def _save_or_warn(self) -> None:
        try:
            await self.save()
        except CroftError as error:
            log.warning("the member list is not saved, and will be tried again: %s", error.message)

    def _link_up(self, link: Link) -> None:
        self._seen.setdefault(link.peer, Seen()).seen_at = self._clock.now()
        # It may take the place of another one, on which the other side was told of more: a new link begins anew.
        self.records.link_down(link.peer)
        self.records.link_up(link.peer, link.greeted.communities)
        for community in sorted(self._core.communities_of(link.peer)):
            # Whoever dialled may not have known that the other side is there too.
            self._serve_too(link.peer, community)
        self.neighbourhood.link_up(link.peer)
        self.liveness.link_up(link.peer)
        self._compare_clocks()
        log.info("link to %s (%s) is up, %s", link.greeted.name, short(link.peer), link.connection.route().address)

    def _link_down(self, link: Link, reason: str) -> None:
        self._seen.setdefault(link.peer, Seen()).seen_at = self._clock.now()
        log.info("link to %s (%s) is down: %s", link.greeted.name, short(link.peer), reason)
        self.records.link_down(link.peer)
        self.neighbourhood.link_down(link.peer)
        self.liveness.link_down(link.peer, is_orderly=link.is_resting)
        self._look_after_links()

    def _compare_clocks(self) -> None:
        """The clock of one other may be wrong; if those of most differ from ours, it is ours."""
        ahead = sorted(
            link.greeted.clock_ahead_s for link in self.links.all() if link.greeted.clock_ahead_s is not None
        )
        if ahead:
            self._on_clock_compared(ahead[len(ahead) // 2])

    def _look_soon(self) -> None:
        """Once for all that is learned at a time; not before links can be made."""
        if not self._looks_soon and self.neighbourhood.tasks is not None:
            self._looks_soon = True
            asyncio.get_running_loop().call_soon(self._look_after_links)

    def _look_after_links(self) -> None:
        self._looks_soon = False
        # Whoever is blocked is no company, neither when they are counted nor when links are sought.
        company = {
            community: [peer for peer in others if not self._is_blocked(peer)]
            for community, others in self._core.others().items()
        }
        self.neighbourhood.tick(company, self.liveness.dead())

    def _is_blocked(self, peer: PeerId) -> bool:
        member = self._core.find(peer)
        return member is not None and self.contacts.is_blocked(member.twin)

    # --- descriptors as records --------------------------------------------------------------------------------------

    def _is_whole(self, community: CommunityId) -> bool:
        """Whether this peer knows all members, as far as it can tell."""
        return len(self._core.peers(community)) < self.view_max

    def _open_member(self, record: bytes, now: float) -> Member:
        member = open_descriptor(record, self.passport.memberships, now)
        out = self.door.standing.refusal(member.community, member.twin, member.path)
        if out is not None and member.peer != self.own.peer:
            raise PeerMisbehaved(f"a descriptor of {short(member.twin)}: {out.message}", step="member record")
        return member

    def _verify_member(self, community: CommunityId, record: bytes, now: float) -> Claim | None:
        member = self._open_member(record, now)
        if member.community != community:
            raise PeerMisbehaved("a descriptor of another community", step="member record")
        if self.door.is_revoked(member.peer, member.twin):
            raise PeerMisbehaved("a descriptor of a device that its owner revoked", step="member record")
        if not self._is_whole(community) and community not in self._core.communities_of(member.peer):
            self.records.hold_partly(MEMBER_KIND, community)
            self.records.hold_partly(PRESENCE_KIND, community)
            if not self.finder.needs(community, member):
                return None
        if not self._core.has_room(member):
            raise PeerMisbehaved(f"one member too many of {short(member.twin)}", step="member record")
        return Claim(member.peer, member.peer, member.sequence, member.expires_at, member)

    def _member_learned(self, entry: Entry) -> None:
        member = entry.claim.value
        assert isinstance(member, Member), "verified as one"
        if self.contacts.is_blocked(member.twin) and self._core.find(member.peer):
            return  # held for the others, and not believed here
        self._names.learn(Device(member.peer, member.twin, member.name))
        self._core.take(member)
        self.finder.learned(member)
        self.liveness.heard(member.peer, member.sequence)
        self.neighbourhood.spoke_anew(member.peer)
        self._look_soon()
        self._serve_too(member.peer, member.community)

    def _serve_too(self, peer: PeerId, community: CommunityId) -> None:
        """A peer's record has proved that it is in a community too: the link to it serves one more."""
        own = self.records.get(MEMBER_KIND, community, self.own.peer)
        if own is not None and self.links.get(peer) and community not in self.records.shares(peer):
            self.records.link_up(peer, frozenset([community]), [own])

    def _member_gone(self, entry: Entry) -> None:
        peer = PeerId(entry.claim.key)
        self._core.remove(entry.community, peer)
        if self._core.find(peer) is None:
            self.liveness.forget(peer)
            self.finder.forget(peer)
            self._names.forget(peer)

    def _own_member_overtaken(self, entry: Entry) -> None:
        member = entry.claim.value
        assert isinstance(member, Member), "verified as one"
        if member.instance != self.own.instance:
            self._on_key_used_elsewhere(member.addresses)


def _write_membership(db: sqlite3.Connection, row: tuple[str, str, bytes, float]) -> None:
    db.execute("INSERT OR REPLACE INTO membership VALUES (?, ?, ?, ?)", row)
    db.execute("DELETE FROM left_community WHERE community = ?", row[:1])


def _write_departure(db: sqlite3.Connection, community: CommunityId, now: float) -> None:
    db.execute("DELETE FROM membership WHERE community = ?", (community,))
    db.execute("INSERT OR REPLACE INTO left_community VALUES (?, ?)", (community, now))
