"""The overlay as storage wants to see it: who lends disk, how far away it is, and the way there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from croft.errors import CroftError, Refused
from croft.model.amounts import DISK
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.node.offering import OfferedHere
from croft.storage.placement import Place

if TYPE_CHECKING:
    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Stream
    from croft.twins.communities import Communities

log = logging.getLogger(__name__)

CALL_SECRET: Final = "storage.secret"
SECRET_S_MAX: Final = 5.0
UNLINKED_S: Final = 2.0
"""A peer to which a link is to be made first is asked after those that are linked: it may just have gone."""
DEAD_S: Final = 100.0


class KnownMembers:
    """Fulfils `croft.storage.proposals.Members`."""

    def __init__(self, overlay: Overlay, communities: Communities) -> None:
        self._overlay = overlay
        self._communities = communities

    def is_member(self, community: CommunityId, twin: TwinId) -> bool:
        """Whether somebody is a member of a community now, and no guest; False if it is not known here."""
        known = self._communities
        is_within = twin == self._overlay.own.twin or twin in known.members_of(community)
        is_ours = any(one.community == community for one in self._overlay.communities())
        return is_ours and is_within and community in known.serves(twin, frozenset([community]))

    def is_shut_out(self, device: bytes, twin: TwinId) -> bool:
        """Whether a device is its twin's no more, or the owner of this peer has blocked the twin."""
        overlay = self._overlay
        return overlay.door.is_revoked(PeerId(device.hex()), twin) or overlay.contacts.is_blocked(twin)


class StorageNetwork:
    """Fulfils `croft.storage.transfer.Network`."""

    def __init__(
        self, overlay: Overlay, offered_here: Callable[[], Mapping[PeerId, OfferedHere]], now: Callable[[], float]
    ) -> None:
        self._now = now
        self._began_at = now()
        self._overlay = overlay
        self._offered_here = offered_here

    def places(self) -> list[Place]:
        """Other peers that lend disk, dead ones too; what one person's devices hold may be lost at once."""
        overlay, offered, nothing = self._overlay, self._offered_here(), OfferedHere()
        found: list[Place] = []
        for member in overlay.members():
            disk = max(member.disk_bytes, offered.get(member.peer, nothing).amounts[DISK])
            if member.peer == overlay.own.peer or not disk or overlay.contacts.is_blocked(member.twin):
                continue
            found.append(Place(member.peer, member.name, member.twin, disk, overlay.is_alive(member.peer)))
        return found

    def own_place(self) -> Place:
        """This peer, as somebody sees it whose data it looks after."""
        own = self._overlay.own
        return Place(own.peer, own.name, own.twin, max(1, self._offered_here()[own.peer].amounts[DISK]), True)

    def has_other_devices(self) -> bool:
        """Whether the owner of this peer has others."""
        return bool(self._own_devices())

    async def secret_of_own_devices(self) -> bytes | None:
        """The secret of the owner's files, from another device of the owner; None if no such device has it now."""
        for peer in self._own_devices():
            try:
                return await self._overlay.call(peer, CALL_SECRET, b"", deadline_s=SECRET_S_MAX)
            except CroftError as error:
                log.info("%s does not tell the secret of the files: %s", self.name(peer), error.message)
        return None

    def tell_secret(self, secret: bytes | None) -> None:
        """Answers the owner's other devices, and nobody else, that ask for the secret of the files."""

        async def answer(link: Link, _: bytes) -> bytes:
            if link.greeted.twin != self._overlay.own.twin or secret is None:
                raise Refused("this is told to no other device")
            return secret

        self._overlay.links.on_call(CALL_SECRET, answer)

    def _own_devices(self) -> list[PeerId]:
        own = self._overlay.own
        return [m.peer for m in self._overlay.members() if m.twin == own.twin and m.peer != own.peer]

    def name(self, peer: PeerId) -> str:
        """What to call a peer."""
        return self._overlay.name_of(peer)

    def cost(self, peer: PeerId) -> float:
        """Of asking a peer: its round trip in seconds; DEAD_S if it seems to be dead."""
        if peer == self._overlay.own.peer:
            return 0.0
        if not self._overlay.is_alive(peer):
            return DEAD_S
        link = self._overlay.links.get(peer)
        return UNLINKED_S if link is None or link.round_trip_s is None else link.round_trip_s

    def alive(self) -> Sequence[PeerId]:
        """Every other peer that seems to live."""
        overlay = self._overlay
        return [m.peer for m in overlay.members() if m.peer != overlay.own.peer and overlay.is_alive(m.peer)]

    def away_s(self, peer: PeerId) -> float:
        """For how long a peer has not been heard of; 0 if it seems to live."""
        overlay = self._overlay
        if peer == overlay.own.peer or overlay.is_alive(peer):
            return 0.0
        # While this peer was off, it could not hear of anybody.
        return max(1.0, self._now() - max(self._began_at, overlay.seen(peer).seen_at))

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable, Refused."""
        return await self._overlay.open_stream(peer, purpose)
