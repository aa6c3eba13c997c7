"""Wire messages of `croft/join/1`, by which somebody who is no member yet comes in by an invitation.

One stream, opened by the joiner, one frame per message. By a line: `Redeem`, then `Admitted`, or `DeviceAdmitted` by a
line for a device, or `JoinRefused`. By a spoken code: `PakeStart`, `PakeAnswer`, `PakeConfirm`, then `Admitted`;
`JoinRefused` may come at any step. Only add: new fields need a default, tags are for ever.
"""

from __future__ import annotations

from croft.wire.codec import Message

JOIN_PROTOCOL = b"croft/join/1"
TO_INVITER_BYTES_MAX = 8 << 10
FROM_INVITER_BYTES_MAX = 4 << 20
"""The members' descriptors travel with `Admitted`."""
MEMBERS_MAX = 1_000


class Redeem(Message, frozen=True, tag=1):
    """Asks to be admitted by the token of a line. `certificate` says of which twin the joining device is."""

    token: bytes
    certificate: bytes


class PakeStart(Message, frozen=True, tag=2):
    """Begins the proof of a spoken code: its number, and SPAKE2's first message."""

    nameplate: int
    message: bytes


class PakeAnswer(Message, frozen=True, tag=3):
    """SPAKE2's second message, and the community that the code is for."""

    message: bytes
    community: str


class PakeConfirm(Message, frozen=True, tag=4):
    """The joiner's proof that it knows the code; covers `certificate`."""

    confirmation: bytes
    certificate: bytes


class Admitted(Message, frozen=True, tag=5):
    """The newcomer is a member.

    Attributes:
        community, name: which one, and what it is called.
        grant_chain: the newcomer's own.
        certificate: the inviter's device certificate.
        members: signed descriptors of members, as many as fit.
        confirmation: after a spoken code, the inviter's proof that it knows the code too.
        clock: the inviter's wall time in Unix seconds, so that a clock that is wrong shows; 0 if not said.
    """

    community: str
    name: str
    grant_chain: list[bytes]
    certificate: bytes
    members: list[bytes]
    confirmation: bytes = b""
    clock: float = 0.0


class JoinRefused(Message, frozen=True, tag=6):
    """Not admitted.

    `code` is `invitation_wrong`, `invitation_used`, `invitation_expired`, `invitation_withdrawn` or
    `invitation_locked`; `busy`; or `join_broken` if the joiner did not keep to the protocol.
    """

    code: str
    message: str
    remedy: str = ""


class DeviceAdmitted(Message, frozen=True, tag=7):
    """The newcomer is a device of the inviter's twin. The twin's key does not travel.

    Attributes:
        certificate: the twin's, of the new device. inviter_certificate: that of the inviter's device.
        memberships: (community, name, the twin's grant chain, members' descriptors as many as fit).
        contacts: (twin, petname, trust, is blocked), as the owner noted them.
    """

    certificate: bytes
    inviter_certificate: bytes
    memberships: list[tuple[str, str, list[bytes], list[bytes]]]
    contacts: list[tuple[str, str, str, bool]]


ToInviter = Redeem | PakeStart | PakeConfirm
FromInviter = PakeAnswer | Admitted | DeviceAdmitted | JoinRefused
