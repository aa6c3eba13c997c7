"""Records by which a twin says: this device is mine no more.

One is good for ever and in any order: there is nothing to undo it, and no clock decides whether it counts. It carries
the twin's own grant, so that it is held only where the twin is a member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from croft.errors import PeerMisbehaved, Refused
from croft.identity.grants import verify_chain
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id
from croft.wire.codec import Message
from croft.wire.envelope import open_signed, sign

KIND = "device revocation"
STEP = "revocation"


class DeviceRevocation(Message, frozen=True):
    """Signed by the twin. `revoked_at` in Unix seconds, for people to read."""

    peer: str
    community: str
    grant_chain: list[bytes]
    revoked_at: float


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a valid revocation says."""

    twin: TwinId
    peer: PeerId
    revoked_at: float


def revoke(twin: SecretKey, peer: PeerId, community: CommunityId, chain: Sequence[bytes], now: float) -> bytes:
    """The twin's revocation of a device, for one community."""
    return sign(twin.signer, KIND, DeviceRevocation(peer, community, list(chain), now))


def open_revocation(record: bytes, community: CommunityId, now: float) -> Revoked:
    """What the revocation says. Raises PeerMisbehaved unless a member's twin signed it for this community."""
    signer, revocation = open_signed(record, KIND, DeviceRevocation, step=STEP)
    if revocation.community != community or not is_key_id(revocation.peer):
        raise PeerMisbehaved("of another community, or of no device", step=STEP)
    try:
        verify_chain(community, revocation.grant_chain, TwinId(signer), now)
    except Refused as refusal:
        raise PeerMisbehaved(f"by {refusal.message}", step=STEP) from None
    return Revoked(TwinId(signer), PeerId(revocation.peer), revocation.revoked_at)
