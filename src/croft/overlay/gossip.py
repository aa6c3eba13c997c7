"""Spreads signed records among members: the shell of `records`. Other rooms register their kinds here.

A kind's owner gives a function that verifies a record and says what it claims; everything else (announcing, fetching,
comparing, expiry, bounds, the disk) is the same for all kinds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay import records as core
from croft.overlay.record_messages import NOTICE_RECORDS, RECORDS_PER_PUSH_MAX, Push, RecordMessage
from croft.overlay.records import STEP, Claim, Entry, Limits
from croft.wire.codec import decode_union, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.link import Link
    from croft.overlay.links import Links
    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

LIMITS = Limits(records_max=16_384, per_origin_max=64)

Verify = Callable[[CommunityId, bytes, float], Claim | None]
"""What a record claims, given its community and the time. Raises PeerMisbehaved unless every part of it holds.

None: it may be valid, but nothing here needs it, or what is needed to judge it has not come yet.
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of record.

    Attributes:
        verify: see `Verify`. on_new, on_gone: told of each record that is held anew, own ones too, or no more.
        on_overtaken: told when others hold a newer record by this device than this run of it has made; without it,
            such a record is taken back.
        is_kept: whether it outlives a restart. limits: per community.
        outlives_membership: whether it counts although the twin whom it is of was removed from the community.
    """

    name: str
    verify: Verify
    on_new: Callable[[Entry], None] = lambda _: None
    on_gone: Callable[[Entry], None] = lambda _: None
    on_overtaken: Callable[[Entry], None] | None = None
    is_kept: bool = True
    limits: Limits = LIMITS
    outlives_membership: bool = False


class Records:
    """All records that this peer holds, and their spread. Register every kind before `load`."""

    def __init__(self, own: PeerId, links: Links, database: Database, clock: Clock) -> None:
        self._core = core.RecordStore(own)
        self._own = own
        self._links = links
        self._database = database
        self._clock = clock
        self._kinds: dict[str, Kind] = {}
        self._unsaved: dict[tuple[str, CommunityId, str], bytes | None] = {}
        self._sequence = 0
        self.is_out: Callable[[CommunityId, TwinId], bool] = lambda community, twin: False
        """Whether a twin was removed from a community, or left it."""
        links.on_notice(NOTICE_RECORDS, self._heard)

    # --- what others use ---------------------------------------------------------------------------------------------

    def register(self, kind: Kind) -> None:
        """Makes a kind known."""
        self._kinds[kind.name] = kind
        self._core.allow(kind.name, kind.limits)

    def publish(self, kind: str, community: CommunityId, record: bytes) -> Entry:
        """Spreads a record that this peer has made and signed; on disk within seconds, or after `save`."""
        now = self._clock.now()
        claim = self._kinds[kind].verify(community, record, now)
        assert claim is not None, "our own records can be judged here"
        entry = Entry.of(kind, community, claim, record)
        self._sequence = max(self._sequence, entry.claim.sequence)
        self._perform(self._core.handle(core.Published(entry, now)))
        return entry

    def next_sequence(self) -> int:
        """For the next record: milliseconds of wall time, and above all of this peer's own before it."""
        self._sequence = max(self._sequence + 1, int(self._clock.now() * 1000))
        return self._sequence

    def raise_sequence(self, sequence: int) -> None:
        """Makes the next sequence a higher one than this."""
        self._sequence = max(self._sequence, sequence)

    def entries(self, kind: str, community: CommunityId | None = None) -> list[Entry]:
        """Held records of a kind, of one community or of all."""
        return self._core.entries(kind, community)

    def get(self, kind: str, community: CommunityId, key: str) -> Entry | None:
        """The record of that key."""
        return self._core.get(kind, community, key)

    def drop(self, entry: Entry) -> None:
        """Holds a record no more; only for what this peer judges not worth its room."""
        self._perform(self._core.handle(core.Dropped(entry)))

    def drop_departed(self, community: CommunityId) -> None:
        """Drops what is of members who were removed, or left."""
        for kind in self._kinds.values():
            for entry in self._core.entries(kind.name, community):
                if self._is_out(kind, community, entry.claim):
                    self.drop(entry)

    def hold_partly(self, kind: str, community: CommunityId) -> None:
        """From now on this peer holds only some records of a kind, those that its `verify` lets pass."""
        self._core.hold_partly(kind, community)

    def enter(self, community: CommunityId) -> None:
        """Begins to hold records of a community."""
        self._core.enter(community)

    def leave(self, community: CommunityId) -> None:
        """Forgets all of a community."""
        self._perform(self._core.handle(core.Left(community)))

    def learn(self, community: CommunityId, records: Sequence[tuple[str, bytes]], source: str = "an inviter") -> None:
        """Takes in records that came by another way than a link; those that are not valid are left out."""
        self._take(None, source, community, records)

    # --- the disk ----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""

        def read(db: sqlite3.Connection) -> list[tuple[str, str, bytes]]:
            return db.execute("SELECT kind, community, record FROM record ORDER BY rowid").fetchall()

        for kind, community, record in await self._database.run(read):
            self._take(None, "disk", CommunityId(community), [(kind, record)])
        self._unsaved.clear()

    async def save(self) -> None:
        """Writes changed records to disk. Raises Failed, and keeps them to be written later."""
        if not self._unsaved:
            return
        changed, self._unsaved = self._unsaved, {}
        rows = [(*key, record) for key, record in changed.items() if record is not None]
        gone = [key for key, record in changed.items() if record is None]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", rows)
            db.executemany("DELETE FROM record WHERE kind = ? AND community = ? AND key = ?", gone)

        try:
            await self._database.run(write)
        except CroftError:
            self._unsaved = {**changed, **self._unsaved}
            raise

    # --- what the overlay feeds --------------------------------------------------------------------------------------

    def link_up(self, peer: PeerId, communities: frozenset[CommunityId], introduction: Sequence[Entry] = ()) -> None:
        """A link serves these communities. `introduction` goes first: it shows the other side that we belong."""
        if link := self._links.get(peer):
            for entry in introduction:
                link.notify(NOTICE_RECORDS, encode(Push(entry.community, [(entry.kind, entry.record)])))
        self._perform(self._core.handle(core.LinkUp(peer, communities)))

    def link_down(self, peer: PeerId) -> None:
        """A link ended."""
        self._core.handle(core.LinkDown(peer))

    def shares(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities that the link to `peer` serves."""
        return self._core.shares(peer)

    def tick(self) -> None:
        """Some time passed."""
        self._perform(self._core.handle(core.Tick(self._clock.now())))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _heard(self, link: Link, body: bytes) -> None:
        message: RecordMessage = decode_union(body, RecordMessage, step=STEP)
        if not isinstance(message, Push):
            self._perform(self._core.handle(core.MessageReceived(link.peer, message, self._clock.now())))
            return
        if len(message.records) > RECORDS_PER_PUSH_MAX:
            raise PeerMisbehaved(f"{len(message.records)} records at once", step=STEP)
        self._take(link.peer, link.greeted.name, CommunityId(message.community), message.records)

    def _take(
        self, sender: PeerId | None, source: str, community: CommunityId, records: Sequence[tuple[str, bytes]]
    ) -> None:
        now = self._clock.now()
        entries: list[Entry] = []
        for name, record in records:
            kind = self._kinds.get(name)
            if kind is None:
                continue
            try:
                claim = kind.verify(community, record, now)
            except PeerMisbehaved as fault:
                # One bad record does not take the good ones with it; who sent it is named.
                log.warning("a record from %s is refused: %s", source, fault)
                continue
            if claim is not None and not self._is_out(kind, community, claim):
                entries.append(Entry.of(name, community, claim, record))
                if claim.origin == self._own and sender is None:
                    # Our next word must count more than our last one, also if the clock was set back in between.
                    self._sequence = max(self._sequence, claim.sequence)
        self._perform(self._core.handle(core.Received(sender, entries, now)))

    def _is_out(self, kind: Kind, community: CommunityId, claim: Claim) -> bool:
        twin = getattr(claim.value, "twin", None)
        return twin is not None and not kind.outlives_membership and self.is_out(community, twin)

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Send(peer, message):
                    if link := self._links.get(peer):
                        link.notify(NOTICE_RECORDS, encode(message))
                case core.Learned(entry):
                    self._mark(entry, entry.record)
                    self._kinds[entry.kind].on_new(entry)
                case core.Gone(entry):
                    self._mark(entry, None)
                    self._kinds[entry.kind].on_gone(entry)
                case core.Overtaken(entry):
                    self._sequence = max(self._sequence, entry.claim.sequence)
                    self._overtaken(entry)
                case _:
                    assert_never(effect)

    def _overtaken(self, entry: Entry) -> None:
        handler = self._kinds[entry.kind].on_overtaken
        if handler is None:
            self._perform(self._core.handle(core.Received(None, [entry], self._clock.now())))
        else:
            handler(entry)

    def _mark(self, entry: Entry, record: bytes | None) -> None:
        if self._kinds[entry.kind].is_kept:
            self._unsaved[entry.kind, entry.community, entry.claim.key] = record
