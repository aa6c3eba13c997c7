"""Decides which signed records to hold, to whom to announce them, and how two peers find what either of them lacks.

A record is known by (kind, community, key); the highest version wins and expired ones go. What is new is announced over
live links by 16 bytes, and asked for by whoever lacks it, so that a record crosses each peer's links once (the lazy
push of Plumtree, Leitão et al. 2007). When a link comes up, and now and then afterwards, both ends compare digests of
ranges and exchange only what differs (anti-entropy, Demers et al. 1987). Sans-IO; records arrive verified.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, assert_never

from blake3 import blake3

from croft.errors import PeerMisbehaved
from croft.model.ids import CommunityId, PeerId
from croft.overlay.record_messages import (
    HAVE_ENTRIES_MAX,
    RECORD_BYTES_PER_PUSH_MAX,
    RECORDS_PER_PUSH_MAX,
    WANTED_MAX,
    Branches,
    Have,
    Push,
    RecordMessage,
    Roots,
    Wanted,
)

T = TypeVar("T")

CLOCK_AHEAD_S_MAX = 600.0
"""A record may have been signed this far in our future; beyond, one of the two clocks is wrong."""
COMPARE_EVERY_S = 20.0
"""Between two comparisons with a linked peer; each time with the next one."""
ASK_AGAIN_S = 2.0
KINDS_MAX = 64
STEP = "records"
UPDATES_BURST = 8
UPDATES_PER_S = 0.5
"""One record may change this often in the long run; what comes faster waits for the next comparison."""
RANGES_FINE = 1024
ENTRIES_PER_RANGE = 16
VERSION_HASH_BITS = 16
HELD_PARTLY = -1
"""In place of a count: only some records of this kind are held."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a verified record says of itself.

    Attributes:
        key: what it is about; one record per kind, community and key. origin: whoever signed it, a device or a twin.
        sequence: milliseconds of wall time; the highest wins. expires_at: Unix seconds.
        value: the opened record, for whoever registered its kind.
    """

    key: str
    origin: str
    sequence: int
    expires_at: float
    value: object


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that is held."""

    kind: str
    community: CommunityId
    claim: Claim
    record: bytes = field(repr=False)
    slot: int = field(repr=False)
    version: int

    @staticmethod
    def of(kind: str, community: CommunityId, claim: Claim, record: bytes) -> Entry:
        """The entry of a verified record."""
        name = f"{kind}/{community}/{claim.key}".encode()
        slot = int.from_bytes(blake3(name).digest(length=8), "big")
        # Whoever signs two records of one sequence does not split the community: all keep the same one.
        tie = int.from_bytes(blake3(record).digest(length=VERSION_HASH_BITS // 8), "big")
        return Entry(kind, community, claim, record, slot, claim.sequence << VERSION_HASH_BITS | tie)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many records of a kind are held per community, and how many of them by one origin."""

    records_max: int
    per_origin_max: int


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Published:
    """This peer made a record."""

    entry: Entry
    now: float


@dataclass(frozen=True, slots=True)
class Received:
    """Verified records from a linked peer, or from an inviter or from disk (`sender` None)."""

    sender: PeerId | None
    entries: Sequence[Entry]
    now: float


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """A linked peer says what it has or wants."""

    sender: PeerId
    message: Roots | Branches | Have | Wanted
    now: float


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is live; both sides are in these communities. Also when they turn out to share one more."""

    peer: PeerId
    communities: frozenset[CommunityId]


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link ended."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Left:
    """This peer is no longer in the community."""

    community: CommunityId


@dataclass(frozen=True, slots=True)
class Dropped:
    """Whoever registered the kind no longer wants this record."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time passed."""

    now: float


Event = Published | Received | MessageReceived | LinkUp | LinkDown | Left | Dropped | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Put this on the link to `peer`."""

    peer: PeerId
    message: RecordMessage


@dataclass(frozen=True, slots=True)
class Learned:
    """A record is new here: keep it, and tell whoever registered its kind."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Gone:
    """A record is held no more: it expired, or its community was left."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Overtaken:
    """Others hold a newer record of this peer's own than it has made in this run."""

    entry: Entry


Effect = Send | Learned | Gone | Overtaken


@dataclass(slots=True)
class _Pace:
    left: float
    at: float


class _Shelf:
    """The records of one kind in one community, with a digest of each range of slots."""

    __slots__ = ("by_slot", "digests", "per_origin")

    def __init__(self) -> None:
        self.by_slot: dict[int, Entry] = {}
        self.digests: dict[int, int] = {}
        self.per_origin: dict[str, int] = {}

    def put(self, entry: Entry) -> None:
        self.remove(entry.slot)
        self.by_slot[entry.slot] = entry
        self.per_origin[entry.claim.origin] = self.per_origin.get(entry.claim.origin, 0) + 1
        self._toggle(entry)

    def remove(self, slot: int) -> None:
        entry = self.by_slot.pop(slot, None)
        if entry is None:
            return
        self._toggle(entry)
        left = self.per_origin[entry.claim.origin] - 1
        if left:
            self.per_origin[entry.claim.origin] = left
        else:
            del self.per_origin[entry.claim.origin]

    def digest(self, ranges: int) -> list[int]:
        """One digest for each of so many equal ranges."""
        folded = [0] * ranges
        for fine, digest in self.digests.items():
            folded[fine * ranges // RANGES_FINE] ^= digest
        return folded

    def within(self, ranges: int) -> list[list[Entry]]:
        """The entries of each range, by slot."""
        parted: list[list[Entry]] = [[] for _ in range(ranges)]
        for slot in sorted(self.by_slot):
            parted[(slot >> 54) * ranges // RANGES_FINE].append(self.by_slot[slot])
        return parted

    def _toggle(self, entry: Entry) -> None:
        fine = entry.slot >> 54
        mark = blake3(entry.slot.to_bytes(8, "big") + entry.version.to_bytes(12, "big")).digest(length=8)
        digest = self.digests.get(fine, 0) ^ int.from_bytes(mark, "big")
        if digest:
            self.digests[fine] = digest
        else:
            self.digests.pop(fine, None)


class RecordStore:
    """The records of every community that this peer is in."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._limits: dict[str, Limits] = {}
        self._shelves: dict[CommunityId, dict[str, _Shelf]] = {}
        self._partial: dict[tuple[CommunityId, str], None] = {}
        self._linked: dict[PeerId, frozenset[CommunityId]] = {}
        self._asked: dict[tuple[str, int], tuple[int, float]] = {}
        self._paces: dict[tuple[str, int], _Pace] = {}
        self._expiries: list[tuple[float, int, str, CommunityId]] = []
        self._compare_at = COMPARE_EVERY_S
        self._turn = 0

    def allow(self, kind: str, limits: Limits) -> None:
        """Makes a kind known; records of others are not taken."""
        assert kind not in self._limits, f"two owners of the records `{kind}`"
        self._limits[kind] = limits

    def hold_partly(self, kind: str, community: CommunityId) -> None:
        """From now on only some records of a kind are held, so that comparing all of them would never end."""
        self._partial[community, kind] = None

    def enter(self, community: CommunityId) -> None:
        """Begins to hold records of a community."""
        self._shelves.setdefault(community, {})

    def entries(self, kind: str, community: CommunityId | None = None) -> list[Entry]:
        """Held records of a kind, of one community or of all."""
        shelves = self._shelves.values() if community is None else [self._shelves.get(community, {})]
        return [entry for shelf in shelves if kind in shelf for entry in shelf[kind].by_slot.values()]

    def get(self, kind: str, community: CommunityId, key: str) -> Entry | None:
        """The record of that key."""
        slot = Entry.of(kind, community, Claim(key, "", 0, 0.0, None), b"").slot
        shelf = self._shelves.get(community, {}).get(kind)
        return shelf.by_slot.get(slot) if shelf else None

    def shares(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities that the link to `peer` serves."""
        return self._linked.get(peer, frozenset())

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Published(entry, now):
                self.enter(entry.community)
                self._hold(entry)
                return [Learned(entry), *self._announce([entry], None)]
            case Received(sender, entries, now):
                return self._take(sender, entries, now)
            case MessageReceived(sender, message, now):
                return self._heard(sender, message, now)
            case LinkUp(peer, communities):
                fresh = communities - self._linked.get(peer, frozenset())
                self._linked[peer] = communities | self._linked.get(peer, frozenset())
                return [Send(peer, self._roots(c)) for c in sorted(fresh & self._shelves.keys())]
            case LinkDown(peer):
                self._linked.pop(peer, None)
                return []
            case Left(community):
                shelves = self._shelves.pop(community, {})
                return [Gone(entry) for shelf in shelves.values() for entry in shelf.by_slot.values()]
            case Dropped(entry):
                self._shelf(entry.kind, entry.community).remove(entry.slot)
                return [Gone(entry)]
            case Tick(now):
                return [*self._expire(now), *self._compare(now)]
            case _:
                assert_never(event)

    # --- holding -----------------------------------------------------------------------------------------------------

    def _shelf(self, kind: str, community: CommunityId) -> _Shelf:
        return self._shelves[community].setdefault(kind, _Shelf())

    def _hold(self, entry: Entry) -> None:
        self._shelf(entry.kind, entry.community).put(entry)
        heapq.heappush(self._expiries, (entry.claim.expires_at, entry.slot, entry.kind, entry.community))
        self._asked.pop((entry.kind, entry.slot), None)

    def _take(self, sender: PeerId | None, entries: Sequence[Entry], now: float) -> list[Effect]:
        effects: list[Effect] = []
        fresh: list[Entry] = []
        for entry in entries:
            if not self._may_say(sender, entry) or not self._is_timely(entry, now):
                continue
            known = self._shelf(entry.kind, entry.community).by_slot.get(entry.slot)
            if entry.claim.origin == self._own and sender is not None:
                # Our own words come back to us; newer ones than we made are for their owner to judge.
                if known is None or entry.version > known.version:
                    effects.append(Overtaken(entry))
                continue
            if known is not None and entry.version <= known.version:
                continue
            if not self._has_room(entry, known) or not (sender is None or self._is_paced(entry, now)):
                continue
            self._hold(entry)
            fresh.append(entry)
            effects.append(Learned(entry))
        return [*effects, *self._announce(fresh, sender)]

    def _may_say(self, sender: PeerId | None, entry: Entry) -> bool:
        if entry.community not in self._shelves or entry.kind not in self._limits:
            return False
        return sender is None or entry.claim.origin == sender or entry.community in self.shares(sender)

    def _is_timely(self, entry: Entry, now: float) -> bool:
        return entry.claim.expires_at >= now and entry.claim.sequence / 1000 <= now + CLOCK_AHEAD_S_MAX

    def _has_room(self, entry: Entry, known: Entry | None) -> bool:
        if known is not None and known.claim.origin == entry.claim.origin:
            return True
        shelf, limits = self._shelf(entry.kind, entry.community), self._limits[entry.kind]
        if shelf.per_origin.get(entry.claim.origin, 0) >= limits.per_origin_max:
            return False
        return known is not None or len(shelf.by_slot) < limits.records_max

    def _is_paced(self, entry: Entry, now: float) -> bool:
        pace = self._paces.setdefault((entry.kind, entry.slot), _Pace(UPDATES_BURST, now))
        pace.left = min(UPDATES_BURST, pace.left + max(0.0, now - pace.at) * UPDATES_PER_S)
        pace.at = now
        if pace.left < 1:
            return False
        pace.left -= 1
        return True

    def _expire(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._expiries and self._expiries[0][0] < now:
            _, slot, kind, community = heapq.heappop(self._expiries)
            shelf = self._shelves.get(community, {}).get(kind)
            entry = shelf.by_slot.get(slot) if shelf else None
            if shelf is not None and entry is not None and entry.claim.expires_at < now:
                shelf.remove(slot)
                self._paces.pop((kind, slot), None)
                effects.append(Gone(entry))
        for key in [key for key, (_, at) in self._asked.items() if now - at > ASK_AGAIN_S]:
            del self._asked[key]
        return effects

    # --- telling -----------------------------------------------------------------------------------------------------

    def _announce(self, entries: Sequence[Entry], sender: PeerId | None) -> list[Effect]:
        effects: list[Effect] = []
        grouped: dict[tuple[CommunityId, str], list[Entry]] = {}
        for entry in entries:
            grouped.setdefault((entry.community, entry.kind), []).append(entry)
        for (community, kind), group in grouped.items():
            told = [peer for peer, shared in self._linked.items() if community in shared and peer != sender]
            for part in _parts(group, HAVE_ENTRIES_MAX):
                message = Have(community, kind, 0, 0, [(entry.slot, entry.version) for entry in part])
                effects.extend(Send(peer, message) for peer in told)
        return effects

    def _roots(self, community: CommunityId) -> Roots:
        shelves = self._shelves[community]
        kinds = [kind for kind in sorted(self._limits) if kind in shelves]
        roots = [
            (kind, 0, HELD_PARTLY)
            if (community, kind) in self._partial
            else (kind, shelves[kind].digest(1)[0], len(shelves[kind].by_slot))
            for kind in kinds
        ]
        return Roots(community, roots)

    def _compare(self, now: float) -> list[Effect]:
        if now < self._compare_at or not self._linked:
            return []
        self._compare_at = now + COMPARE_EVERY_S
        self._turn += 1
        peer = list(self._linked)[self._turn % len(self._linked)]
        return [Send(peer, self._roots(c)) for c in sorted(self._linked[peer] & self._shelves.keys())]

    def _heard(self, sender: PeerId, message: Roots | Branches | Have | Wanted, now: float) -> Sequence[Effect]:
        community = CommunityId(message.community)
        if community not in self.shares(sender) or community not in self._shelves:
            return []
        match message:
            case Roots(_, roots) if len(roots) <= KINDS_MAX:
                theirs = {kind: (digest, count) for kind, digest, count in roots if kind in self._limits}
                ours = self._shelves[community]
                kinds = sorted(theirs.keys() | (ours.keys() & self._limits.keys()))
                partly = {
                    k for k in kinds if (community, k) in self._partial or theirs.get(k, (0, 0))[1] == HELD_PARTLY
                }
                kinds = [kind for kind in kinds if kind not in partly]
                return [e for k in kinds for e in self._answer_root(sender, community, k, *theirs.get(k, (0, 0)))]
            case Branches(_, kind, digests) if kind in self._limits and _is_range_count(len(digests)):
                shelf = self._shelf(kind, community)
                ranges = len(digests)
                parted = shelf.within(ranges)
                differing = [n for n, d in enumerate(shelf.digest(ranges)) if d != digests[n]]
                return [Send(sender, _have(community, kind, ranges, n, parted[n])) for n in differing]
            case Have(_, kind, _, _, entries) if kind in self._limits and len(entries) <= HAVE_ENTRIES_MAX:
                return self._answer_have(sender, message, now)
            case Wanted(_, kind, slots) if kind in self._limits and len(slots) <= WANTED_MAX:
                shelf = self._shelf(kind, community)
                wanted = [shelf.by_slot[slot] for slot in slots if slot in shelf.by_slot]
                return self._push(sender, community, wanted)
            case Branches(_, kind) | Have(_, kind) | Wanted(_, kind) if kind not in self._limits:
                return []  # the sender knows more kinds than this version does
            case _:
                raise PeerMisbehaved(f"{type(message).__name__} over its bounds", step=STEP)

    def _answer_root(
        self, sender: PeerId, community: CommunityId, kind: str, digest: int, count: int
    ) -> Sequence[Effect]:
        shelf = self._shelf(kind, community)
        if shelf.digest(1)[0] == digest:
            return []
        ranges = _ranges_for(max(count, len(shelf.by_slot)))
        if ranges == 1:
            return [Send(sender, _have(community, kind, 1, 0, shelf.within(1)[0]))]
        return [Send(sender, Branches(community, kind, shelf.digest(ranges)))]

    def _answer_have(self, sender: PeerId, message: Have, now: float) -> Sequence[Effect]:
        community, kind = CommunityId(message.community), message.kind
        shelf = self._shelf(kind, community)
        theirs = dict(message.entries)
        effects: list[Effect] = []
        if message.ranges and _is_range_count(message.ranges) and 0 <= message.at < message.ranges:
            ours = shelf.within(message.ranges)[message.at]
            effects += self._push(sender, community, [e for e in ours if theirs.get(e.slot, -1) < e.version])
        wanted: list[int] = []
        for slot, version in message.entries:
            known = shelf.by_slot.get(slot)
            if known is not None and known.version >= version:
                continue
            asked = self._asked.get((kind, slot))
            if asked is not None and asked[0] >= version and now - asked[1] < ASK_AGAIN_S:
                continue
            self._asked[kind, slot] = (version, now)
            wanted.append(slot)
        effects += [Send(sender, Wanted(community, kind, part)) for part in _parts(wanted, WANTED_MAX)]
        return effects

    def _push(self, peer: PeerId, community: CommunityId, entries: Sequence[Entry]) -> list[Effect]:
        effects: list[Effect] = []
        batch: list[tuple[str, bytes]] = []
        size = 0
        for entry in entries:
            is_full = len(batch) >= RECORDS_PER_PUSH_MAX or size + len(entry.record) > RECORD_BYTES_PER_PUSH_MAX
            if batch and is_full:
                effects.append(Send(peer, Push(community, batch)))
                batch, size = [], 0
            batch.append((entry.kind, entry.record))
            size += len(entry.record)
        if batch:
            effects.append(Send(peer, Push(community, batch)))
        return effects


def _have(community: CommunityId, kind: str, ranges: int, at: int, entries: Sequence[Entry]) -> Have:
    return Have(community, kind, ranges, at, [(entry.slot, entry.version) for entry in entries[:HAVE_ENTRIES_MAX]])


def _ranges_for(count: int) -> int:
    ranges = 1
    while ranges < RANGES_FINE and count > ranges * ENTRIES_PER_RANGE * 2:
        ranges *= 4
    return ranges


def _is_range_count(number: int) -> bool:
    return number in (1, 4, 16, 64, 256, 1024)


def _parts(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[at : at + size]) for at in range(0, len(items), size)]
