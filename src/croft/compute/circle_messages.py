"""What is said about streams between members of a circle. Only add: new fields need a default, tags are for ever.

Between peers, on a stream of `circle/1`: `OpenMemberStream`, then `MemberStreamOpened` or `Declined`; after that the
stream carries the bytes of the members as they are. On a command's stream, the consumer says `CircleRoster` as often as
it changes. By the doorway of a box: packets of one message each, with some of them one end of a stream.
"""

from __future__ import annotations

from croft.compute.messages import Declined
from croft.wire.codec import Message

CIRCLE_PURPOSE = "circle/1"
OPENING_BYTES_MAX = 4 << 10


# --- between peers ---------------------------------------------------------------------------------------------------


class OpenMemberStream(Message, frozen=True, tag=34):
    """Asks for a stream from a member that is with the asker to one that is with the asked. `owner`: the consumer."""

    owner: str
    circle: str
    sender: str
    target: str


class MemberStreamOpened(Message, frozen=True, tag=35):
    """What follows are the bytes of the members."""


MemberStreamAnswer = MemberStreamOpened | Declined


class CircleRoster(Message, frozen=True, tag=36):
    """Who is in the circle of a command, by name, and on which peer."""

    places: dict[str, str]


# --- by the doorway of a box, from the program -----------------------------------------------------------------------


class Listen(Message, frozen=True, tag=37):
    """From now on, others may open streams to it."""


class Connect(Message, frozen=True, tag=38):
    """Asks for a stream to a member; `number` is the asker's, for the answer."""

    number: int
    member: str


FromMember = Listen | Connect


# --- by the doorway of a box, to the program -------------------------------------------------------------------------


class Connected(Message, frozen=True, tag=39):
    """With it comes one end of the stream."""

    number: int


class NotConnected(Message, frozen=True, tag=40):
    """No stream; `code` as in `croft.errors`."""

    number: int
    code: str
    message: str
    remedy: str = ""


class Incoming(Message, frozen=True, tag=41):
    """With it comes one end of a stream that this member has opened."""

    member: str


ToMember = Connected | NotConnected | Incoming
