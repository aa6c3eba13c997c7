"""Decides who is kept out whatever their grants say: people whom the owner blocked, devices that their owner revoked.

Asked by whatever lets something of another peer in: the hello, a dial, a record, a joiner. Sans-IO.
"""

from __future__ import annotations

from croft.errors import Refused
from croft.model.ids import PeerId, TwinId, short
from croft.overlay.contacts import ContactBook

BLOCKED = "blocked"


class Doorkeeper:
    """Knows who is kept out. `own` is this peer's twin, which is never blocked."""

    def __init__(self, contacts: ContactBook) -> None:
        self._contacts = contacts

    def admit(self, peer: PeerId, twin: TwinId) -> None:
        """Raises Refused, in words for the one who is kept out."""
        if self._contacts.is_blocked(twin):
            raise _refused(
                BLOCKED,
                "the owner of this peer has blocked you",
                "Only that owner can undo it.",
            )

    def seek(self, peer: PeerId, twin: TwinId, name: str) -> None:
        """Raises Refused, in words for this machine's owner, if nothing is to be asked of that peer."""
        if self._contacts.is_blocked(twin):
            raise _refused(
                BLOCKED, f"{name} ({short(peer)}) is blocked here", f"Undo it: croft contacts unblock {name}"
            )


def _refused(code: str, message: str, remedy: str) -> Refused:
    refusal = Refused(message, remedy=remedy)
    refusal.code = code
    return refusal
