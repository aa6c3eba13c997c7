"""Permits: by which an owner lets others read its shares, or rebuild them, without any key of what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from croft.errors import Refused
from croft.identity.keys import SecretKey
from croft.identity.signed import SignedByDevice, open_by_device, sign_by_device
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.wire.codec import Message, decode
from croft.wire.envelope import open_signed

PERMIT_KIND: Final = "storage.permit"
PERMIT_BYTES_MAX: Final = 16 << 10
LIFETIME_S: Final = 90 * 86_400.0
PEERS_MAX: Final = 64
STEP: Final = "storage permit"


class Permit(Message, frozen=True):
    """Signed by a device of the owner. `peers`, `twins`, `communities`: who may read shares; `peers` may put them too,
    if `may_put`. `expires_at` in Unix seconds.
    """

    owner: bytes
    device: bytes
    peers: list[bytes]
    twins: list[bytes]
    communities: list[bytes]
    may_put: bool
    expires_at: float


class Bearer(Protocol):
    """Who asks, and may show a permit; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...

    @property
    def communities(self) -> frozenset[CommunityId]: ...


def sign_permit(device: SecretKey, certificate: bytes, permit: Permit) -> bytes:
    """The bytes of a permit, as its bearer shows them."""
    return sign_by_device(device, certificate, PERMIT_KIND, permit)


def bearers(data: bytes) -> list[PeerId]:
    """The peers that a permit names, in its order. Raises PeerMisbehaved for what is no permit."""
    signed = decode(data, SignedByDevice, step=STEP)
    return [PeerId(peer.hex()) for peer in open_signed(signed.record, PERMIT_KIND, Permit, step=STEP)[1].peers]


def open_permit(data: bytes) -> Permit:
    """The permit, whose every signature holds. Raises PeerMisbehaved."""
    return open_by_device(data, PERMIT_KIND, Permit, bytes_max=PERMIT_BYTES_MAX, what="a permit", step=STEP)


def check_permit(data: bytes, owner: bytes, bearer: Bearer, now: float, *, puts: bool) -> None:
    """Raises Refused unless the owner lets the bearer do this; PeerMisbehaved for what is no permit."""
    if not data:
        raise Refused("only their owner, and whom the owner lets, may have these shares")
    permit = open_permit(data)
    if permit.owner != owner:
        raise Refused("this permit is for the shares of somebody else")
    if permit.expires_at < now:
        raise Refused("this permit has expired", remedy="Ask the owner of the data for a new one.")
    is_named = _has(permit.peers, [bearer.peer])
    may_read = is_named or _has(permit.twins, [bearer.twin]) or _has(permit.communities, list(bearer.communities))
    if not (is_named and permit.may_put if puts else may_read):
        raise Refused("the owner of these shares does not let you do that", remedy="Ask them for a link of your own.")


def _has(named: Sequence[bytes], ids: Sequence[str]) -> bool:
    return any(one.hex() in ids for one in named)
