"""What both ends of a `shares/1` stream do with bytes: messages as frames, shares as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from croft.errors import ConnectionLost
from croft.ports import Stream

READ_BYTES_MAX: Final = 1 << 20
PAUSE_S: Final = 0.002
PAUSE_BELOW_BYTES: Final = 128 << 10
"""Whoever gets less than this in one reading, of much that is still to come, lets more of it come before the next one.
Each reading costs the same, however little it brings; network cards moderate their interrupts for the same reason."""
REST_BYTES_MAX: Final = 256 << 10
"""So little is read as it comes: what is asked for is about to be there, and somebody waits."""
STEP: Final = "shares"


async def raw_parts(stream: Stream, size: int) -> AsyncIterator[bytes]:
    """Just the next `size` bytes, as they come. Raises ConnectionLost."""
    left = size
    while left:
        part = await stream.read(min(left, READ_BYTES_MAX))
        if not part:
            raise ConnectionLost(f"{STEP}: the stream ended inside a share")
        left -= len(part)
        yield part
        if len(part) < PAUSE_BELOW_BYTES and left > REST_BYTES_MAX:
            await asyncio.sleep(PAUSE_S)


async def receive_raw(stream: Stream, size: int, into: memoryview | None = None) -> None:
    """Reads just `size` bytes into `into`, or past them. Raises ConnectionLost."""
    at = 0
    async for part in raw_parts(stream, size):
        if into is not None:
            into[at : at + len(part)] = part
        at += len(part)
