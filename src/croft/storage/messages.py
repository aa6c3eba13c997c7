"""Wire messages of `shares/1` streams, between whoever owns data and whoever holds it.

Every request is a frame, and has one answer, in the order of the requests. The bytes of a share follow their message
as they are. Only add: new fields need a default, tags are for ever.
"""

from __future__ import annotations

from typing import Final

import msgspec

from croft.errors import Failed, PeerMisbehaved
from croft.storage.formats import PEER_BYTES, Content, check_content
from croft.wire.codec import Message

SHARES_PURPOSE: Final = "shares/1"
REQUEST_BYTES_MAX: Final = 128 << 10
ANSWER_BYTES_MAX: Final = 1 << 20
SHARES_ASKED_MAX: Final = 1_000
SHARES_LISTED_MAX: Final = 10_000
OWNER_BYTES: Final = 32
WATCH_NAMES_MAX: Final = 1_024

# --- requests --------------------------------------------------------------------------------------------------------


class PutShare(Message, frozen=True, tag=1):
    """`size` bytes follow, to be kept for `owner`; answered by `Done` once they are on disk.

    `permit`: what lets somebody other than the owner do this.
    """

    owner: bytes
    share: bytes
    size: int
    permit: bytes = b""


class ReadShare(Message, frozen=True, tag=2):
    """Asks for whole leaves of a share: `size` bytes at `offset`, or all of it for a size of 0."""

    owner: bytes
    share: bytes
    offset: int = 0
    size: int = 0
    permit: bytes = b""


class FindShares(Message, frozen=True, tag=3):
    """Asks which of these are held; answered by `Found`."""

    owner: bytes
    shares: list[bytes]
    permit: bytes = b""


class ListShares(Message, frozen=True, tag=4):
    """Asks what is held for the asker, from the first share after `after` on; answered by `Listed`."""

    after: bytes = b""


class DropShares(Message, frozen=True, tag=5):
    """Gives these up; only their owner may. Answered by `Dropped`."""

    shares: list[bytes]


class PutHead(Message, frozen=True, tag=6):
    """The newest head of one of the owner's devices: `croft.storage.heads`; answered by `Done` once it is on disk.

    Refused where another one of its number, or a newer one, is there. `permit`: as of `PutShare`.
    """

    record: bytes
    permit: bytes = b""


class ReadHeads(Message, frozen=True, tag=7):
    """Asks for the heads of the asker's devices, or of those of `owner`; answered by `Heads`.

    `permit`: as of `PutShare`.
    """

    owner: bytes = b""
    permit: bytes = b""


class Watch(Message, frozen=True, tag=8):
    """Asks to look after the asker's data while the asker is away; answered by `Done` once it is on disk.

    `permit`: what lets the peer do so. `stripes`: a content that holds a `StripeList` of all that is to be kept.
    `on`, `never`: peers and people, as the owner's rule names them. Of one device, the highest `sequence` counts.
    """

    sequence: int
    permit: bytes
    stripes: Content
    on: list[bytes]
    never: list[bytes]
    never_twins: list[bytes]


class PutLink(Message, frozen=True, tag=9):
    """What a link of the asker's leads to: `croft.storage.links`; answered by `Done` once it is on disk."""

    record: bytes


class ReadLink(Message, frozen=True, tag=10):
    """Asks what a link leads to; only whom it names may know. Answered by `LinkRead`."""

    owner: bytes
    id: bytes


class PutProposal(Message, frozen=True, tag=11):
    """What the asker wrote by a link of somebody: `croft.storage.proposals`; answered by `Done` once it is on disk."""

    record: bytes


Request = (
    PutShare
    | ReadShare
    | FindShares
    | ListShares
    | DropShares
    | PutHead
    | ReadHeads
    | Watch
    | PutLink
    | ReadLink
    | PutProposal
)

# --- answers ---------------------------------------------------------------------------------------------------------


class Done(Message, frozen=True, tag=20):
    """It is on disk."""


class ShareFollows(Message, frozen=True, tag=21):
    """`size` bytes of the share follow; `proof` as `croft.storage.merkle.check` wants it, if they are a part of it."""

    size: int
    proof: list[bytes]


class Found(Message, frozen=True, tag=22):
    """The size of each share that was asked for; -1 for what is not held."""

    sizes: list[int]


class Listed(Message, frozen=True, tag=23):
    """Shares in ascending order, each with its size; fewer than SHARES_LISTED_MAX: these were the last.

    `held_bytes` is what the owner's shares take on the disk, `room_bytes` what else would be taken.
    """

    shares: list[tuple[bytes, int]]
    held_bytes: int
    room_bytes: int


class Dropped(Message, frozen=True, tag=24):
    """So much room is free again."""

    freed_bytes: int


class Heads(Message, frozen=True, tag=25):
    """The newest head of each of the owner's devices, as it was signed."""

    records: list[bytes]


class Declined(Message, frozen=True, tag=26):
    """The request is refused, or cannot be carried out; the stream goes on."""

    code: str
    message: str
    remedy: str = ""


class LinkRead(Message, frozen=True, tag=27):
    """The state of a link, as it was signed; and so what others wrote by it that its owner has not taken in."""

    record: bytes
    proposals: list[bytes] = msgspec.field(default_factory=list)


Answer = Done | ShareFollows | Found | Listed | Dropped | Heads | Declined | LinkRead


def check_watch(watch: Watch) -> None:
    """Raises PeerMisbehaved unless its numbers fit."""
    ids = [*watch.on, *watch.never, *watch.never_twins]
    is_sound = len(ids) <= WATCH_NAMES_MAX and all(len(one) == PEER_BYTES for one in ids)
    try:
        check_content(watch.stripes)
    except Failed as error:
        raise PeerMisbehaved(f"a watch over nothing: {error.message}", step="shares") from None
    if not is_sound or not 0 < watch.sequence < 1 << 53:
        raise PeerMisbehaved("a watch whose numbers do not fit", step="shares")
