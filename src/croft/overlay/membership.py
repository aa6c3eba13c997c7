"""Decides who is in the communities of this peer, whom to tell what, and whom to dial.

Every member knows every other (the full view); a record travels by flooding over live links, and a digest exchanged
when a link comes up finds what either side missed. Sans-IO: events go in, effects come out; records arrive verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from croft.model.ids import CommunityId, PeerId, TwinId

MEMBERS_MAX = 1024
"""Members known per community; records of more are not taken."""
RECORDS_PER_NOTICE_MAX = 64
RECORD_BYTES_PER_NOTICE_MAX = 512 << 10
REDIAL_FIRST_S = 1.0
REDIAL_MAX_S = 30.0
FORGET_AFTER_S = 30 * 86_400.0
CLOCK_AHEAD_S_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Member:
    """One device in one community, as its own verified descriptor says."""

    community: CommunityId
    peer: PeerId
    twin: TwinId
    name: str
    addresses: tuple[str, ...]
    sequence: int
    instance: bytes
    expires_at: float
    slots: int
    memory_bytes: int
    disk_bytes: int
    grade: str
    python: str
    machine: str
    version: str
    record: bytes = field(repr=False)


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OwnChanged:
    """This peer's own descriptor in a community is new."""

    member: Member


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is live; both sides are in these communities."""

    peer: PeerId
    communities: frozenset[CommunityId]


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link ended."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial that was asked for did not succeed."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class DigestReceived:
    """What a linked member knows."""

    sender: PeerId
    community: CommunityId
    entries: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class RecordsReceived:
    """Verified descriptors from a linked member, or from an inviter, or from disk (`sender` None)."""

    sender: PeerId | None
    members: Sequence[Member]
    now: float


@dataclass(frozen=True, slots=True)
class Left:
    """This peer is no longer in the community."""

    community: CommunityId


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time passed."""

    now: float


Event = OwnChanged | LinkUp | LinkDown | DialFailed | DigestReceived | RecordsReceived | Left | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendDigest:
    """Tell `peer` what we know."""

    peer: PeerId
    community: CommunityId
    entries: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SendRecords:
    """Give `peer` these descriptors."""

    peer: PeerId
    community: CommunityId
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to reach a member."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Remember:
    """A member is new or changed: keep its record."""

    member: Member


@dataclass(frozen=True, slots=True)
class Forget:
    """A member has not been heard of for long, or the community was left."""

    community: CommunityId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class OwnKeyUsedElsewhere:
    """Another machine announces itself under this peer's key."""

    addresses: tuple[str, ...]


Effect = SendDigest | SendRecords | Dial | Remember | Forget | OwnKeyUsedElsewhere


@dataclass(slots=True)
class _Redial:
    after: float = 0.0
    wait_s: float = REDIAL_FIRST_S
    is_under_way: bool = False


class Membership:
    """The full view of every community this peer is in."""

    def __init__(self, own: PeerId, instance: bytes) -> None:
        self._own = own
        self._instance = instance
        self._members: dict[CommunityId, dict[PeerId, Member]] = {}
        self._linked: dict[PeerId, frozenset[CommunityId]] = {}
        self._redials: dict[PeerId, _Redial] = {}

    def members(self, community: CommunityId | None = None) -> list[Member]:
        """Known members, this peer among them; of one community or of all, a device in two named twice."""
        tables = self._members.values() if community is None else [self._members.get(community, {})]
        return [member for table in tables for member in table.values()]

    def find(self, peer: PeerId) -> Member | None:
        """A member by its device, from any shared community."""
        for table in self._members.values():
            if peer in table:
                return table[peer]
        return None

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case OwnChanged(member):
                self._members.setdefault(member.community, {})[self._own] = member
                return [Remember(member), *self._flood([member], None)]
            case LinkUp(peer, communities):
                self._linked[peer] = communities
                self._redials.pop(peer, None)
                shared = sorted(communities & self._members.keys())
                return [SendDigest(peer, community, self._digest(community)) for community in shared]
            case LinkDown(peer, now):
                self._linked.pop(peer, None)
                self._redials[peer] = _Redial(after=now)
                return self._dial_due(now)
            case DialFailed(peer, now):
                redial = self._redials.setdefault(peer, _Redial())
                redial.after = now + redial.wait_s
                redial.wait_s = min(redial.wait_s * 2, REDIAL_MAX_S)
                redial.is_under_way = False
                return []
            case DigestReceived(sender, community, entries):
                return self._answer_digest(sender, community, entries)
            case RecordsReceived(sender, members, now):
                return self._take(sender, members, now)
            case Left(community):
                return [Forget(community, peer) for peer in self._members.pop(community, {})]
            case Tick(now):
                return [*self._expire(now), *self._dial_due(now)]
            case _:
                assert_never(event)

    def _digest(self, community: CommunityId) -> tuple[tuple[str, int], ...]:
        return tuple((member.peer, member.sequence) for member in self._members[community].values())

    def _answer_digest(
        self, sender: PeerId, community: CommunityId, entries: Sequence[tuple[str, int]]
    ) -> Sequence[Effect]:
        if community not in self._linked.get(sender, frozenset()):
            return []
        theirs = dict(entries)
        missing = [
            member
            for member in self._members.get(community, {}).values()
            if theirs.get(member.peer, -1) < member.sequence
        ]
        return self._send(sender, community, missing)

    def _send(self, peer: PeerId, community: CommunityId, members: Sequence[Member]) -> list[Effect]:
        notices: list[Effect] = []
        batch: list[bytes] = []
        size = 0
        for member in members:
            is_full = len(batch) >= RECORDS_PER_NOTICE_MAX or size + len(member.record) > RECORD_BYTES_PER_NOTICE_MAX
            if batch and is_full:
                notices.append(SendRecords(peer, community, tuple(batch)))
                batch, size = [], 0
            batch.append(member.record)
            size += len(member.record)
        if batch:
            notices.append(SendRecords(peer, community, tuple(batch)))
        return notices

    def _take(self, sender: PeerId | None, members: Sequence[Member], now: float) -> Sequence[Effect]:
        effects: list[Effect] = []
        fresh: list[Member] = []
        for member in members:
            if member.peer == self._own:
                # Our own words come back to us; another machine's words under our key do not.
                mine = self._members.get(member.community, {}).get(self._own)
                if mine and member.instance != self._instance and member.sequence > mine.sequence:
                    effects.append(OwnKeyUsedElsewhere(member.addresses))
                continue
            if self._is_news(member, sender, now):
                self._members[member.community][member.peer] = member
                effects.extend(self._widen(member))
                fresh.append(member)
                redial = self._redials.get(member.peer)
                if redial is not None and not redial.is_under_way:
                    # It started anew, perhaps elsewhere: no reason to wait longer.
                    del self._redials[member.peer]
                effects.append(Remember(member))
        return [*effects, *self._flood(fresh, sender), *self._dial_due(now)]

    def _widen(self, member: Member) -> list[Effect]:
        """Lets the link to a member serve one more community, which its record has proved that it is in."""
        communities = self._linked.get(member.peer)
        own = self._members[member.community].get(self._own)
        if communities is None or member.community in communities or own is None:
            return []
        self._linked[member.peer] = communities | {member.community}
        # Our own record first: the other side takes our digest only once it knows us there too.
        return [
            SendRecords(member.peer, member.community, (own.record,)),
            SendDigest(member.peer, member.community, self._digest(member.community)),
        ]

    def _is_news(self, member: Member, sender: PeerId | None, now: float) -> bool:
        table = self._members.get(member.community)
        is_of_sender = member.peer == sender
        if table is None or not (
            sender is None or is_of_sender or member.community in self._linked.get(sender, frozenset())
        ):
            return False
        if member.expires_at < now or member.sequence / 1000 > now + CLOCK_AHEAD_S_MAX:
            return False
        known = table.get(member.peer)
        if known is None:
            return len(table) < MEMBERS_MAX
        return member.sequence > known.sequence

    def _flood(self, members: Sequence[Member], sender: PeerId | None) -> list[Effect]:
        effects: list[Effect] = []
        for peer, communities in self._linked.items():
            for community in sorted(communities):
                news = [m for m in members if m.community == community and m.peer != peer and peer != sender]
                effects.extend(self._send(peer, community, news))
        return effects

    def _expire(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for community, table in self._members.items():
            gone = [
                peer
                for peer, member in table.items()
                if peer != self._own and peer not in self._linked and member.expires_at < now
            ]
            for peer in gone:
                del table[peer]
                self._redials.pop(peer, None)
                effects.append(Forget(community, peer))
        return effects

    def _dial_due(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for member in self.members():
            if member.peer == self._own or member.peer in self._linked:
                continue
            redial = self._redials.setdefault(member.peer, _Redial(after=now))
            if not redial.is_under_way and redial.after <= now:
                redial.is_under_way = True
                effects.append(Dial(member.peer, member.addresses))
        return effects
