"""What both ends of a `shares/1` stream do with bytes: messages as frames, shares as they are."""

from __future__ import annotations

from typing import Final

from croft.errors import ConnectionLost
from croft.ports import Stream

READ_BYTES_MAX: Final = 1 << 20
STEP: Final = "shares"


async def receive_raw(stream: Stream, size: int, into: memoryview | None = None) -> None:
    """Reads just `size` bytes into `into`, or past them. Raises ConnectionLost."""
    at = 0
    while at < size:
        part = await stream.read(min(size - at, READ_BYTES_MAX))
        if not part:
            raise ConnectionLost(f"{STEP}: the stream ended inside a share")
        if into is not None:
            into[at : at + len(part)] = part
        at += len(part)
