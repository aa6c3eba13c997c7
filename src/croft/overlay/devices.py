"""Keeps the devices of one twin together, and keeps out those that a twin revoked, wherever that becomes known.

Devices of one twin tell each other of which communities the twin is a member, whenever a link between them comes up:
what one of them joins, all of them are in.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from croft.errors import CroftError, NotFound, PeerMisbehaved, Refused, Usage
from croft.identity.certificates import clean_name
from croft.identity.grants import FOREVER, verify_chain
from croft.identity.revocations import Revoked, open_revocation, revoke
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay.gossip import Kind
from croft.overlay.passport import Membership
from croft.overlay.records import Claim, Entry, Limits
from croft.wire.codec import Message, decode, encode

if TYPE_CHECKING:
    from croft.identity.keys import SecretKey
    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Clock

log = logging.getLogger(__name__)

REVOCATION_KIND = "revocation"
REVOCATIONS_MAX = 4_096
REVOCATIONS_PER_TWIN_MAX = 64
NOTICE_MEMBERSHIPS = "own.memberships"
MEMBERSHIPS_MAX = 64
MEMBER_KIND = "member"
STEP = "own memberships"
NEEDS_KEY = "Do it on the device that holds your key: the one you began with. See `croft device list` there."


class OwnMemberships(Message, frozen=True):
    """Of which communities the twin is a member: (community, name, grant chain, the sender's own descriptor).

    `joined_at`: when the sender came into each of them; `left`: those that the sender has left, and when.
    """

    memberships: list[tuple[str, str, list[bytes], bytes]]
    joined_at: Sequence[float] = ()
    left: Sequence[tuple[str, float]] = ()


class Devices:
    """This twin's devices, and all that are revoked. Made before the overlay is loaded."""

    def __init__(self, overlay: Overlay, twin_key: SecretKey | None, clock: Clock) -> None:
        self._overlay = overlay
        self._twin_key = twin_key
        self._clock = clock
        overlay.records.register(
            Kind(
                REVOCATION_KIND,
                verify=_verify,
                on_new=self._learned,
                limits=Limits(REVOCATIONS_MAX, REVOCATIONS_PER_TWIN_MAX),
                outlives_membership=True,
            )
        )
        self.on_left: Callable[[CommunityId], None] = lambda community: None
        """Told of a community that the twin has left, which another device says."""
        self._heard_of: asyncio.Queue[tuple[Membership, bytes]] = asyncio.Queue(MEMBERSHIPS_MAX)
        overlay.links.on_notice(NOTICE_MEMBERSHIPS, self._heard)
        overlay.links.on_up(self._tell)

    @property
    def holds_key(self) -> bool:
        """Whether this device can certify, revoke and invite."""
        return self._twin_key is not None

    def revoked(self, twin: TwinId) -> list[Revoked]:
        """The devices of a twin that are known to be revoked."""
        found = {}
        for entry in self._overlay.records.entries(REVOCATION_KIND):
            revoked = entry.claim.value
            if isinstance(revoked, Revoked) and revoked.twin == twin:
                found[revoked.peer] = revoked
        return sorted(found.values(), key=lambda one: one.revoked_at)

    def records(self, community: CommunityId) -> list[bytes]:
        """All revocations of a community, of whomever, oldest first: in the same order at every member."""
        dated = []
        for entry in self._overlay.records.entries(REVOCATION_KIND, community):
            revoked = entry.claim.value
            assert isinstance(revoked, Revoked), "verified as one"
            dated.append((revoked.revoked_at, entry.claim.key, entry.record))
        return [record for _, _, record in sorted(dated)]

    async def revoke(self, peer: PeerId) -> Revoked:
        """Shuts a device of this twin out for ever, in every community; on disk when this returns.

        Raises Refused without the twin's key, Usage for this very device, NotFound if it is none of this twin's.
        """
        own = self._overlay.own
        if self._twin_key is None:
            raise Refused("this device does not hold your key, and can revoke none", remedy=NEEDS_KEY)
        if peer == own.peer:
            raise Usage(
                "this is the device that you are at, and it holds your key",
                remedy="If this key is in wrong hands, begin anew: a new home, and a new invitation.",
            )
        if self._overlay.twin_of(peer) != own.twin:
            raise NotFound(f"{short(peer)} is no device of yours", remedy="See `croft device list`.")
        now = self._clock.now()
        for membership in self._overlay.communities():
            record = revoke(self._twin_key, peer, membership.community, membership.chain, now)
            self._overlay.records.publish(REVOCATION_KIND, membership.community, record)
        await self._overlay.records.save()
        return Revoked(own.twin, peer, now)

    # --- memberships in common ---------------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tells the twin's other devices at once: there is a membership that they may not know of."""
        for link in self._overlay.links.all():
            self._tell(link)

    async def serve(self) -> None:
        """Becomes a member of what other devices of this twin are members of, until cancelled."""
        while True:
            membership, record = await self._heard_of.get()
            if membership.community in self._overlay.passport.memberships:
                continue
            try:
                await self._overlay.enter(membership, [record])
                log.info("a member of %s, which another device of yours has joined", membership.name)
            except CroftError as error:
                log.warning("not a member of %s yet: %s", membership.name, error.message)

    def _tell(self, link: Link) -> None:
        if link.greeted.twin != self._overlay.own.twin:
            return
        said, joined_at = [], []
        for one in self._overlay.communities()[:MEMBERSHIPS_MAX]:
            entry = self._overlay.records.get(MEMBER_KIND, one.community, self._overlay.own.peer)
            if entry is not None:
                said.append((str(one.community), one.name, list(one.chain), entry.record))
                joined_at.append(self._overlay.joined_at[one.community])
        newest = sorted(self._overlay.left_at.items(), key=lambda one: -one[1])
        left = [(str(community), at) for community, at in newest[:MEMBERSHIPS_MAX]]
        link.notify(NOTICE_MEMBERSHIPS, encode(OwnMemberships(said, joined_at, left)))

    def _heard(self, link: Link, body: bytes) -> None:
        twin = self._overlay.own.twin
        if link.greeted.twin != twin:
            raise PeerMisbehaved("memberships of somebody else", step=STEP)
        told = decode(body, OwnMemberships, step=STEP)
        said, joined_at = (
            told.memberships,
            dict(zip((one[0] for one in told.memberships), told.joined_at, strict=False)),
        )
        if max(len(said), len(told.left)) > MEMBERSHIPS_MAX:
            raise PeerMisbehaved(f"{max(len(said), len(told.left))} memberships at once", step=STEP)
        for left, at in told.left:
            if at > self._overlay.joined_at.get(CommunityId(left), math.inf):
                self.on_left(CommunityId(left))
        for community, name, chain, record in said:
            membership = Membership(CommunityId(community), clean_name(name), tuple(chain))
            if community in self._overlay.passport.memberships or self._heard_of.full():
                continue
            if joined_at.get(community, 0.0) <= self._overlay.left_at.get(membership.community, -math.inf):
                continue  # that device has not heard yet
            try:
                verify_chain(membership.community, chain, twin, self._clock.now())
            except Refused as refusal:
                raise PeerMisbehaved(f"a grant that does not hold: {refusal.message}", step=STEP) from None
            self._heard_of.put_nowait((membership, record))

    # --- revocations -------------------------------------------------------------------------------------------------

    def _learned(self, entry: Entry) -> None:
        revoked = entry.claim.value
        assert isinstance(revoked, Revoked), "verified as one"
        log.info("device %s was revoked by its owner %s", short(revoked.peer), short(revoked.twin))
        self._overlay.door.revoke(revoked.peer, revoked.twin, revoked.revoked_at)
        self._overlay.shut_out(revoked.peer, revoked.twin)


def _verify(community: CommunityId, record: bytes, now: float) -> Claim:
    revoked = open_revocation(record, community, now)
    # No clock has a say in it: one that is an hour wrong must not let a thief stay for an hour.
    return Claim(f"{revoked.twin}/{revoked.peer}", revoked.twin, 1, FOREVER, revoked)
