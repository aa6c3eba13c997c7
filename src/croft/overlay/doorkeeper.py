"""Decides who is kept out whatever their grants say: people whom the owner blocked, devices that their owner revoked,
and members whom their community removed.

Asked by whatever lets something of another peer in: the hello, a dial, a record, a joiner. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from croft.errors import Refused
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay.contacts import ContactBook

BLOCKED = "blocked"
REVOKED = "revoked"


class Standing(Protocol):
    """What communities themselves say of who is a member."""

    def refusal(self, community: CommunityId, twin: TwinId, path: Sequence[TwinId]) -> Refused | None:
        """Why somebody is none in spite of a valid grant, in words for them; `path`: who let whom in, by that grant."""
        ...

    def is_out(self, community: CommunityId, twin: TwinId) -> bool:
        """Whether somebody was removed, or left."""
        ...


class EverybodyStands:
    """Communities that remove nobody."""

    def refusal(self, community: CommunityId, twin: TwinId, path: Sequence[TwinId]) -> Refused | None:
        """Nobody is refused."""
        return None

    def is_out(self, community: CommunityId, twin: TwinId) -> bool:
        """Nobody is."""
        return False


class Doorkeeper:
    """Knows who is kept out. `standing` is told by whoever keeps the communities' state."""

    def __init__(self, contacts: ContactBook) -> None:
        self._contacts = contacts
        self.standing: Standing = EverybodyStands()
        self._revoked: dict[tuple[PeerId, TwinId], float] = {}

    def revoke(self, peer: PeerId, twin: TwinId, at: float) -> None:
        """Keeps a device out as one of this twin's, for ever. A twin has a say over its own devices only."""
        self._revoked[peer, twin] = at

    def is_revoked(self, peer: PeerId, twin: TwinId) -> bool:
        """Whether the twin said that the device is its no more."""
        return (peer, twin) in self._revoked

    def admit(self, peer: PeerId, twin: TwinId) -> None:
        """Raises Refused, in words for the one who is kept out."""
        if self.is_revoked(peer, twin):
            raise _refused(
                REVOKED,
                "this device was revoked by its owner",
                "Its owner adds it anew from a fresh home: croft device add",
            )
        if self._contacts.is_blocked(twin):
            raise _refused(
                BLOCKED,
                "the owner of this peer has blocked you",
                "Only that owner can undo it.",
            )

    def seek(self, peer: PeerId, twin: TwinId, name: str) -> None:
        """Raises Refused, in words for this machine's owner, if nothing is to be asked of that peer."""
        if self.is_revoked(peer, twin):
            raise _refused(REVOKED, f"{name} ({short(peer)}) was revoked by its owner", "Use another device.")
        if self._contacts.is_blocked(twin):
            raise _refused(
                BLOCKED, f"{name} ({short(peer)}) is blocked here", f"Undo it: croft contacts unblock {name}"
            )


def _refused(code: str, message: str, remedy: str) -> Refused:
    refusal = Refused(message, remedy=remedy)
    refusal.code = code
    return refusal
