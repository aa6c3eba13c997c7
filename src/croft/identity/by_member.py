"""What a device of a member signs for a community to keep: the message stands for itself.

It carries the certificate and the grant by which anybody in the community checks that a member made it, a sequence, of
which the highest counts, and when it expires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, cast

from croft.errors import PeerMisbehaved, Refused
from croft.identity.certificates import Certified, open_certificate
from croft.identity.grants import verify_chain
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, is_key_id
from croft.wire.envelope import open_signed

CLOCK_AHEAD_S_MAX: Final = 600.0
SEQUENCE_MAX: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class Signatory:
    """Who signs: a device, what its twin says of it, and its grant in the community."""

    device: SecretKey
    certificate: bytes
    community: CommunityId
    grant_chain: Sequence[bytes]


class ByMember(Protocol):
    """What such a message says at least. `sequence`: milliseconds of wall time; `expires_at`: Unix seconds."""

    @property
    def community(self) -> str: ...

    @property
    def grant_chain(self) -> list[bytes]: ...

    @property
    def certificate(self) -> bytes: ...

    @property
    def sequence(self) -> int: ...

    @property
    def expires_at(self) -> float: ...


M = TypeVar("M", bound=ByMember)


def open_by_member(
    record: bytes, kind: str, of: type[M], community: CommunityId, now: float, *, what: str, lifetime_s_max: float
) -> tuple[Certified, M]:
    """Whose device signed it, and the message. `what` names it. Raises PeerMisbehaved unless every part of it holds."""
    signer, opened = open_signed(record, kind, cast("type[Any]", of), step=kind)
    message: M = opened
    if message.community != community or not is_key_id(message.community):
        raise PeerMisbehaved(f"{what} for another community", step=kind)
    certified = open_certificate(message.certificate, step=kind)
    if certified.peer != signer:
        raise PeerMisbehaved(f"{what} that is not signed by the device it names", step=kind)
    if not 0 <= message.sequence <= SEQUENCE_MAX:
        raise PeerMisbehaved(f"{what} of an impossible sequence", step=kind)
    if not now < message.expires_at <= now + lifetime_s_max + CLOCK_AHEAD_S_MAX:
        raise PeerMisbehaved(f"{what} that has expired, or expires too late", step=kind)
    try:
        verify_chain(community, message.grant_chain, certified.twin, now)
    except Refused as refusal:
        raise PeerMisbehaved(f"{what} with {refusal.message}", step=kind) from None
    return certified, message
