"""Wire messages about the paths between two peers. Only add: new fields need a default."""

from __future__ import annotations

from croft.wire.codec import Message

NOTICE_SEEN = "path.seen"
CALL_REACH = "path.reach"
MEASURE_PURPOSE = "path.measure"


class SeenAt(Message, frozen=True):
    """The sender sees the receiver at this `ip:port`, directly."""

    address: str


class ReachWanted(Message, frozen=True):
    """Asks whether the caller can be reached at `ip:port` by somebody to whom it has sent nothing."""

    address: str


class ReachAnswer(Message, frozen=True):
    """Whether it could."""

    is_reached: bool


class MeasureWanted(Message, frozen=True):
    """First frame of a stream of MEASURE_PURPOSE: send, or take, as much as goes for so many seconds."""

    seconds: float
    is_upload: bool


class Measured(Message, frozen=True):
    """What whoever took the bytes counted: so many within so many seconds, the start left out."""

    size_bytes: int
    seconds: float
