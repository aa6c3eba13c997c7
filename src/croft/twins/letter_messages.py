"""Wire messages by which peers pass letters on. Only add: new fields need a default."""

from __future__ import annotations

from typing import Final

from croft.wire.codec import Message

CALL_OFFER: Final = "letters.offer"
CALL_GIVE: Final = "letters.give"

FEEDS_PER_OFFER_MAX: Final = 1_024
LETTERS_PER_GIVE_MAX: Final = 64
GIVE_BYTES_MAX: Final = 512 << 10


class Offered(Message, frozen=True):
    """What the sender keeps of one box: (device, first, last) of each unbroken part of a feed."""

    community: str
    to: str
    room: str
    feeds: list[tuple[str, int, int]]


class Wanted(Message, frozen=True):
    """What the receiver has not: a part of what was offered, or none of it."""

    feeds: list[tuple[str, int, int]]


class Given(Message, frozen=True):
    """Letters, in the order of their numbers, all of one box."""

    letters: list[bytes]


class Taken(Message, frozen=True):
    """How many were kept or had been before; `refusal` says why not all, if so."""

    count: int
    refusal: str = ""
