"""Wire messages of `wheels/1` streams, on which peers fetch wheels from each other, and what a builder's box says.

Only add: new fields need a default, tags are for ever.
"""

from __future__ import annotations

from croft.wire.codec import Message

WHEELS_PURPOSE = "wheels/1"
WHEEL_PART_BYTES = 1 << 20


class GetWheel(Message, frozen=True, tag=191):
    """Asks for a wheel by its BLAKE3 digest: answered by `WheelPart`… `WheelEnd`, or by `WheelMissing`.

    One at a time; the stream ends when the asker closes it. Who knows a digest may have the wheel.
    """

    digest: bytes


class WheelPart(Message, frozen=True, tag=192):
    """The next bytes of the wheel, at most WHEEL_PART_BYTES."""

    data: bytes


class WheelEnd(Message, frozen=True, tag=193):
    """The wheel is complete."""


class WheelMissing(Message, frozen=True, tag=194):
    """It is not here."""


WheelAnswer = WheelPart | WheelEnd | WheelMissing


class Built(Message, frozen=True, tag=195):
    """The box's folder holds the environment. `files` and `size_bytes`: what was unpacked."""

    files: int
    size_bytes: int


class NotBuilt(Message, frozen=True, tag=196):
    """It does not, because of this wheel. `is_damaged`: the wheel is not what its digest says."""

    wheel: str
    reason: str
    is_damaged: bool = False


BuilderAnswer = Built | NotBuilt
