"""Decides who is in the communities of this peer, and whom to dial.

Every member knows every other (the full view); `records` spreads their descriptors. Sans-IO: events go in, effects come
out; members arrive verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from croft.model.ids import CommunityId, PeerId, TwinId

DEVICES_PER_TWIN_MAX = 64
ADMITTED_PER_TWIN_MAX = 1_024
"""Members that one twin may have let in: more are somebody's attempt to be many."""
REDIAL_FIRST_S = 1.0
REDIAL_MAX_S = 30.0


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


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Learned:
    """A member's descriptor is new or changed; this peer's own as well."""

    member: Member
    now: float


@dataclass(frozen=True, slots=True)
class Gone:
    """A member's descriptor expired, or its community was left."""

    community: CommunityId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is live."""

    peer: PeerId


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
class Tick:
    """Some time passed."""

    now: float


Event = Learned | Gone | LinkUp | LinkDown | DialFailed | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Try to reach a member."""

    peer: PeerId
    addresses: tuple[str, ...]


Effect = Dial


@dataclass(slots=True)
class _Redial:
    after: float = 0.0
    wait_s: float = REDIAL_FIRST_S
    is_under_way: bool = False


class Membership:
    """The full view of every community this peer is in."""

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._members: dict[CommunityId, dict[PeerId, Member]] = {}
        self._linked: dict[PeerId, None] = {}
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

    def communities_of(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities in which a device is known."""
        return frozenset(community for community, table in self._members.items() if peer in table)

    def has_room(self, member: Member) -> bool:
        """Whether a member that is new would be one too many of its twin, or of whoever let it in."""
        table = self._members.get(member.community, {})
        if member.peer in table or member.peer == self._own:
            return True
        devices = sum(1 for other in table.values() if other.twin == member.twin)
        admitted = sum(1 for other in table.values() if member.inviter and other.inviter == member.inviter)
        return devices < DEVICES_PER_TWIN_MAX and admitted < ADMITTED_PER_TWIN_MAX

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Learned(member, now):
                return self._learned(member, now)
            case Gone(community, peer):
                self._members.get(community, {}).pop(peer, None)
                if self.find(peer) is None:
                    self._redials.pop(peer, None)
                return []
            case LinkUp(peer):
                self._linked[peer] = None
                self._redials.pop(peer, None)
                return []
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
            case Tick(now):
                return self._dial_due(now)
            case _:
                assert_never(event)

    def _learned(self, member: Member, now: float) -> Sequence[Effect]:
        table = self._members.setdefault(member.community, {})
        table[member.peer] = member
        redial = self._redials.get(member.peer)
        if redial is not None and not redial.is_under_way:
            # It started anew, perhaps elsewhere: no reason to wait longer.
            del self._redials[member.peer]
        elif redial is not None and member.peer not in self._linked:
            # It is being dialled by what was known before, perhaps without the relay by which alone it can be reached.
            return [Dial(member.peer, member.addresses), *self._dial_due(now)]
        return self._dial_due(now)

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
