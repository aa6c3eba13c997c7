"""Decides who is in the communities of this peer. Sans-IO; members arrive verified, spread by `records`."""

from __future__ import annotations

from dataclasses import dataclass, field

from croft.model.ids import CommunityId, PeerId, TwinId

DEVICES_PER_TWIN_MAX = 64
GUESTS_MAX = 256
ADMITTED_PER_TWIN_MAX = 1_024
"""Members that one twin may have let in: more are somebody's attempt to be many."""


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
    labels: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    nat: str = ""
    path: tuple[TwinId, ...] = ()

    @property
    def inviter(self) -> TwinId | None:
        """Who let this member in; None for the founder."""
        return self.path[-2] if len(self.path) > 1 else None


class Membership:
    """The full view of every community this peer is in."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._members: dict[CommunityId, dict[PeerId, Member]] = {}
        self._guests: dict[PeerId, Member] = {}

    def members(self, community: CommunityId | None = None) -> list[Member]:
        """Known members, this peer among them; of one community or of all, a device in two named twice."""
        if community is not None:
            return list(self._members.get(community, {}).values())
        return [member for table in (*self._members.values(), self._guests) for member in table.values()]

    def find(self, peer: PeerId) -> Member | None:
        """A member by its device, from any shared community."""
        for table in self._members.values():
            if peer in table:
                return table[peer]
        return self._guests.get(peer)

    def communities_of(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities in which a device is known."""
        known = frozenset(community for community, table in self._members.items() if peer in table)
        return known or (frozenset([self._guests[peer].community]) if peer in self._guests else known)

    def has_room(self, member: Member) -> bool:
        """Whether a member that is new would be one too many of its twin, or of whoever let it in."""
        table = self._members.get(member.community, {})
        if member.peer in table or member.peer == self._own:
            return True
        devices = sum(1 for other in table.values() if other.twin == member.twin)
        admitted = sum(1 for other in table.values() if member.inviter and other.inviter == member.inviter)
        return devices < DEVICES_PER_TWIN_MAX and admitted < ADMITTED_PER_TWIN_MAX

    def take(self, member: Member) -> None:
        """A member's descriptor is new or changed; this peer's own as well."""
        self._members.setdefault(member.community, {})[member.peer] = member
        self._guests.pop(member.peer, None)

    def meet(self, member: Member) -> None:
        """Somebody who is not held in the view, but whom a search has found: known for as long as others are not."""
        if member.peer not in self._members.get(member.community, {}):
            self._guests.pop(member.peer, None)
            self._guests[member.peer] = member
            if len(self._guests) > GUESTS_MAX:
                del self._guests[next(iter(self._guests))]

    def remove(self, community: CommunityId, peer: PeerId) -> None:
        """A member's descriptor expired, or its community was left."""
        self._members.get(community, {}).pop(peer, None)

    def peers(self, community: CommunityId) -> list[PeerId]:
        """The devices in one community, this one among them."""
        return list(self._members.get(community, {}))

    def record_of(self, community: CommunityId, peer: PeerId) -> bytes | None:
        """A member's signed descriptor."""
        member = self._members.get(community, {}).get(peer)
        return member.record if member else None

    def others(self) -> dict[CommunityId, list[PeerId]]:
        """The members of each community but this peer."""
        return {c: [peer for peer in table if peer != self._own] for c, table in self._members.items()}
