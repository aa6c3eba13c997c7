"""Finds who has what a key names, without an index server: the shell of `lookup` and `providers`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from croft.errors import CroftError, NotFound, PeerMisbehaved, Usage
from croft.model.ids import CommunityId, PeerId, short
from croft.overlay.lookup import BUCKET_MAX, KEEPERS, Contact, Lookup, nearest, place_of
from croft.overlay.lookup_messages import (
    CALL_FIND,
    CALL_KEEP,
    NEAREST_MAX,
    RECORDS_MAX,
    Find,
    Found,
    Keep,
    Kept,
)
from croft.overlay.membership import Member
from croft.overlay.providers import (
    KEY_LENGTH_MAX,
    LIFETIME_S,
    RENEW_AFTER_S,
    Provided,
    Providers,
    is_key,
    open_provision,
    sign_provision,
)
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.link import Link
    from croft.overlay.links import Links
    from croft.overlay.membership import Membership
    from croft.overlay.passport import Own
    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

ANSWER_S_MAX = 1.5
LOOKUP_S_MAX = 6.0
LOOK_EVERY_S = 0.1
PROVIDED_MAX = 4_096
LOOKED_AFTER_PER_TICK = 16
EXPIRE_EVERY_TICKS = 60
LOOK_AROUND_EVERY_S = 300.0
DESCRIPTOR_BYTES_MAX = 8 << 10
STEP = "lookup"


@dataclass(slots=True)
class Result:
    """What a search found. `asked`: how many peers; `hops`: how many answers one after the other."""

    providers: list[PeerId] = field(default_factory=list)
    asked: int = 0
    hops: int = 0


@dataclass(slots=True)
class _Kept:
    keepers: tuple[PeerId, ...] = ()
    at: float = 0.0
    generation: int = -1
    is_under_way: bool = False


class Finder:
    """Keeps and asks for statements of who has what."""

    def __init__(
        self,
        own: Own,
        links: Links,
        members: Membership,
        database: Database,
        clock: Clock,
        call: Callable[[PeerId, str, bytes, float], Awaitable[bytes]],
        is_alive: Callable[[PeerId], bool],
        learn: Callable[[CommunityId, Sequence[bytes]], None],
        next_sequence: Callable[[], int],
        open_member: Callable[[bytes], Member],
        shares: Callable[[PeerId], frozenset[CommunityId]],
    ) -> None:
        self._own = own
        self._members = members
        self._database = database
        self._clock = clock
        self._call = call
        self._is_alive = is_alive
        self._learn = learn
        self._next_sequence = next_sequence
        self._open = open_member
        self._shares = shares
        self._providers = Providers()
        self._contacts: dict[PeerId, Contact] = {}
        self._provided: dict[str, dict[CommunityId, _Kept]] = {}
        self._turn = 0
        self._generation = 0
        self._look_around_at = 0.0
        self.bucket_max = BUCKET_MAX
        self.tasks: asyncio.TaskGroup | None = None
        self.is_whole: Callable[[CommunityId], bool] = lambda _: True
        links.on_call(CALL_FIND, self._find)
        links.on_call(CALL_KEEP, self._keep)

    # --- what others use ---------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what this peer provides since an earlier run. Raises Failed."""

        def read(db: sqlite3.Connection) -> list[tuple[str]]:
            return db.execute("SELECT key FROM provided").fetchall()

        self._provided = {key: {} for (key,) in await self._database.run(read)}

    def provided(self) -> list[str]:
        """The keys that this peer provides."""
        return list(self._provided)

    async def provide(self, key: str) -> None:
        """Lets others find that this peer has what `key` names, until `withdraw`. Raises Usage, Failed."""
        _check_key(key)
        if len(self._provided) >= PROVIDED_MAX and key not in self._provided:
            raise Usage(f"this peer provides {PROVIDED_MAX} keys already", remedy="Withdraw some of them.")
        await self._database.run(lambda db: db.execute("INSERT OR IGNORE INTO provided VALUES (?)", (key,)).rowcount)
        kept = self._provided.setdefault(key, {})
        await asyncio.gather(*(self._store(key, c, kept.setdefault(c, _Kept())) for c in self._communities()))

    async def withdraw(self, key: str) -> None:
        """No longer provides a key; others forget it within two hours. Raises NotFound, Failed."""
        if self._provided.pop(key, None) is None:
            raise NotFound(f"this peer does not provide `{key}`", remedy="See what it provides: `croft provide`.")
        await self._database.run(lambda db: db.execute("DELETE FROM provided WHERE key = ?", (key,)).rowcount)

    async def locate(self, key: str) -> Result:
        """The peers that have what `key` names, this one first if it does. Raises Usage."""
        _check_key(key)
        result = Result([self._own.peer] if key in self._provided else [])
        searches = [self._search(community, key) for community in self._communities()]
        for found, lookup in await asyncio.gather(*searches):
            result.providers += [p.peer for p in found if p.peer not in result.providers and self._is_alive(p.peer)]
            result.asked += lookup.messages
            result.hops = max(result.hops, lookup.hops)
        return result

    # --- what the overlay feeds --------------------------------------------------------------------------------------

    def learned(self, member: Member) -> None:
        """A member is new or changed."""
        self.changed()
        self._contacts[member.peer] = Contact.of(member.peer, member.twin, member.path)

    def forget(self, peer: PeerId) -> None:
        """A peer is no member any more."""
        self._contacts.pop(peer, None)
        self.changed()

    def needs(self, community: CommunityId, member: Member) -> bool:
        """Whether a member that is one too many to know all is near, or at a distance of which few are known."""
        own = place_of(self._own.peer.encode())
        distance = (place_of(member.peer.encode()) ^ own).bit_length()
        known = (self._contacts[p] for p in self._members.peers(community) if p in self._contacts)
        return sum((contact.place ^ own).bit_length() == distance for contact in known) < self.bucket_max

    def changed(self) -> None:
        """Somebody came, went, died or came to life: others may be the keepers of what this peer provides."""
        self._generation += 1

    def tick(self) -> None:
        """Looks after some of what this peer provides: said anew in time, and to whoever keeps it now."""
        self._turn += 1
        now = self._clock.now()
        if self._turn % EXPIRE_EVERY_TICKS == 0:
            self._providers.expire(now)
        keys = list(self._provided)
        communities = self._communities()
        if self.tasks is not None and now >= self._look_around_at:
            self._look_around_at = now + LOOK_AROUND_EVERY_S
            for community in communities:
                if not self.is_whole(community):
                    self.tasks.create_task(self._look_around(community), name="lookup.around")
        for number in range(min(LOOKED_AFTER_PER_TICK, len(keys)) if self.tasks is not None else 0):
            key = keys[(self._turn * LOOKED_AFTER_PER_TICK + number) % len(keys)]
            for community in communities:
                kept = self._provided[key].setdefault(community, _Kept())
                if kept.is_under_way:
                    continue
                has_moved = kept.generation != self._generation and self.is_whole(community)
                if has_moved:
                    kept.generation = self._generation
                    has_moved = self._keepers(community, key) != kept.keepers
                if has_moved or now - kept.at > RENEW_AFTER_S:
                    kept.is_under_way = True
                    assert self.tasks is not None, "checked above"
                    self.tasks.create_task(self._store(key, community, kept), name="lookup.store")

    # --- searching ---------------------------------------------------------------------------------------------------

    def _communities(self) -> list[CommunityId]:
        return sorted(c for c in self._members.others() if self._own.peer in self._members.peers(c))

    def _alive(self, community: CommunityId) -> list[Contact]:
        return [self._contacts[p] for p in self._members.peers(community) if p in self._contacts and self._is_alive(p)]

    def _keepers(self, community: CommunityId, key: str) -> tuple[PeerId, ...]:
        return tuple(contact.peer for contact in nearest(place_of(key.encode()), self._alive(community)))

    async def _search(self, community: CommunityId, key: str) -> tuple[list[Provided], Lookup]:
        """Asks until somebody knows, or all keepers have said that they do not."""
        found: dict[PeerId, Provided] = {}

        def take(provided: Iterable[Provided]) -> bool:
            for one in provided:
                if one.peer not in found or found[one.peer].sequence < one.sequence:
                    found[one.peer] = one
            return any(self._is_alive(peer) for peer in found)

        lookup = Lookup.begin(place_of(key.encode()), self._alive(community), is_iterative=not self.is_whole(community))
        await self._drive(lookup, community, key, take)
        return sorted(found.values(), key=lambda p: -p.sequence), lookup

    async def _drive(
        self, lookup: Lookup, community: CommunityId, key: str, take: Callable[[list[Provided]], bool]
    ) -> None:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + LOOKUP_S_MAX
        running: dict[asyncio.Task[tuple[list[Provided], list[Contact]] | None], PeerId] = {}
        try:
            while loop.time() < ends_at:
                for contact in lookup.to_ask(loop.time()):
                    asking = self._ask(contact.peer, community, key, wants_nearer=lookup.is_iterative)
                    running[asyncio.create_task(asking, name=f"lookup.{short(contact.peer)}")] = contact.peer
                if not running:
                    return
                done, _ = await asyncio.wait(running, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: running[task]):
                    answer, peer = task.result(), running.pop(task)
                    if answer is None:
                        lookup.failed(peer)
                        continue
                    provided, nearer = answer
                    lookup.answered(peer, nearer)
                    if take(provided):
                        return
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _ask(
        self, peer: PeerId, community: CommunityId, key: str, *, wants_nearer: bool
    ) -> tuple[list[Provided], list[Contact]] | None:
        if peer == self._own.peer:
            return self._providers.of(community, key, self._clock.now()), []
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                answer = await self._call(peer, CALL_FIND, encode(Find(community, key, wants_nearer)), ANSWER_S_MAX)
            found = decode(answer, Found, step=STEP)
            if max(len(found.provisions), len(found.providers)) > RECORDS_MAX or len(found.nearer) > NEAREST_MAX:
                raise PeerMisbehaved("an answer of too many records", step=STEP)
            for descriptor in found.providers:
                self._meet(community, descriptor)
            provided = [open_provision(community, record, self._clock.now()) for record in found.provisions]
        except (CroftError, TimeoutError) as error:
            log.debug("%s did not answer a lookup: %s", short(peer), error)
            return None
        except PeerMisbehaved as fault:
            log.warning("peer %s, asked for a key: %s", short(peer), fault)
            return None
        members = frozenset(self._members.peers(community))
        self._learn(community, found.nearer)
        fresh = [self._contacts[p] for p in self._members.peers(community) if p not in members and p in self._contacts]
        return [one for one in provided if one.key == key and self._is_member(community, one.peer)], fresh

    def _is_member(self, community: CommunityId, peer: PeerId) -> bool:
        return community in self._members.communities_of(peer)

    async def _look_around(self, community: CommunityId) -> None:
        """Gets to know who is near, by searching for this peer itself."""
        own = self._own.peer
        lookup = Lookup.begin(place_of(own.encode()), self._alive(community), is_iterative=True)
        await self._drive(lookup, community, own, lambda _: False)

    def _meet(self, community: CommunityId, descriptor: bytes) -> None:
        """Gets to know a provider that this peer's view does not hold."""
        member = self._open(descriptor)
        if member.community == community:
            self._members.meet(member)

    async def _store(self, key: str, community: CommunityId, kept: _Kept) -> None:
        try:
            record = sign_provision(self._own.device, community, key, self._next_sequence())
            keepers = self._keepers(community, key)
            if not self.is_whole(community):
                lookup = Lookup.begin(place_of(key.encode()), self._alive(community), is_iterative=True)
                await self._drive(lookup, community, key, lambda _: False)
                keepers = tuple(contact.peer for contact in lookup.found())
            await asyncio.gather(*(self._give(peer, community, record) for peer in keepers))
            kept.keepers, kept.at = keepers, self._clock.now()
        finally:
            kept.is_under_way = False

    async def _give(self, peer: PeerId, community: CommunityId, record: bytes) -> None:
        if peer == self._own.peer:
            self._providers.keep(open_provision(community, record, self._clock.now()))
            return
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                own = self._members.record_of(community, self._own.peer) or b""
                await self._call(peer, CALL_KEEP, encode(Keep(community, [record], own)), ANSWER_S_MAX)
        except (CroftError, TimeoutError) as error:
            log.debug("%s does not keep a provision: %s", short(peer), error)

    # --- answering ---------------------------------------------------------------------------------------------------

    async def _find(self, link: Link, body: bytes) -> bytes:
        asked = decode(body, Find, step=STEP)
        community = CommunityId(asked.community)
        if not is_key(asked.key) or community not in self._shares(link.peer):
            raise PeerMisbehaved("a lookup of no key, or in another community", step=STEP)
        kept = self._providers.of(community, asked.key, self._clock.now())[:RECORDS_MAX]
        descriptors = [p.descriptor for p in kept if p.descriptor] if asked.wants_nearer else []
        nearer: list[bytes] = []
        if asked.wants_nearer:
            for contact in nearest(place_of(asked.key.encode()), self._alive(community), NEAREST_MAX):
                if contact.peer != link.peer and (record := self._members.record_of(community, contact.peer)):
                    nearer.append(record)
        return encode(Found([provided.record for provided in kept], nearer, descriptors))

    async def _keep(self, link: Link, body: bytes) -> bytes:
        wanted = decode(body, Keep, step=STEP)
        community = CommunityId(wanted.community)
        if len(wanted.provisions) > RECORDS_MAX or community not in self._shares(link.peer):
            raise PeerMisbehaved("too many provisions, or in another community", step=STEP)
        count = 0
        for record in wanted.provisions:
            provided = open_provision(community, record, self._clock.now())
            if provided.peer != link.peer or len(wanted.provider) > DESCRIPTOR_BYTES_MAX:
                raise PeerMisbehaved("a provision of somebody else, or a huge descriptor", step=STEP)
            count += self._providers.keep(replace(provided, descriptor=wanted.provider))
        return encode(Kept(count))


def _check_key(key: str) -> None:
    if not is_key(key):
        raise Usage(
            f"`{key[:KEY_LENGTH_MAX]}` cannot be looked up",
            remedy=f"A key is up to {KEY_LENGTH_MAX} printable letters.",
        )


assert RENEW_AFTER_S * 2 < LIFETIME_S and KEEPERS > 1
