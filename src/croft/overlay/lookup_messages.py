"""Wire messages of lookups: bodies of calls. Only add: new fields need a default."""

from __future__ import annotations

from collections.abc import Sequence

from croft.wire.codec import Message

CALL_FIND = "lookup.find"
CALL_KEEP = "lookup.keep"

RECORDS_MAX = 64
NEAREST_MAX = 16


class Provision(Message, frozen=True):
    """The signer has what `key` names; `sequence` is in milliseconds of wall time. Travels signed by the device."""

    community: str
    key: str
    sequence: int


class Find(Message, frozen=True):
    """Asks who has `key`; with `wants_nearer`, also for members that are near to it."""

    community: str
    key: str
    wants_nearer: bool = False


class Found(Message, frozen=True):
    """Signed provisions of the key, signed descriptors of members that are near to it, and those of the providers."""

    provisions: list[bytes]
    nearer: list[bytes]
    providers: Sequence[bytes] = ()


class Keep(Message, frozen=True):
    """Asks to keep signed provisions of the sender for others, and its signed descriptor."""

    community: str
    provisions: list[bytes]
    provider: bytes = b""


class Kept(Message, frozen=True):
    """How many of them are kept."""

    count: int
