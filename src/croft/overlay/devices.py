"""Revokes devices of this twin, and keeps out those that any twin revoked, wherever that becomes known."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from croft.errors import NotFound, Refused, Usage
from croft.identity.grants import FOREVER
from croft.identity.revocations import Revoked, open_revocation, revoke
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay.gossip import Kind
from croft.overlay.records import Claim, Entry, Limits

if TYPE_CHECKING:
    from croft.identity.keys import SecretKey
    from croft.overlay.service import Overlay
    from croft.ports import Clock

log = logging.getLogger(__name__)

REVOCATION_KIND = "revocation"
REVOCATIONS_MAX = 4_096
REVOCATIONS_PER_TWIN_MAX = 64
NEEDS_KEY = "Do it on the device that holds your key: the one you began with. See `croft device list` there."


class Devices:
    """The devices of twins, as far as they are revoked. Made before the overlay is loaded."""

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
            )
        )

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
