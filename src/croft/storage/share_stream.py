"""What both ends of a `shares/1` stream do with bytes: messages as frames, shares as they are."""

from __future__ import annotations

import asyncio
from collections import deque
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


class Room:
    """Bytes that may be in memory at once; whoever wants some waits in line."""

    def __init__(self, size_bytes: int) -> None:
        self._free = self._size = size_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size_bytes: int) -> None:
        """Returns once there is room; `give` it back. More than there is at all counts as all."""
        wanted = min(size_bytes, self._size)
        if not self._waiting and wanted <= self._free:
            self._free -= wanted
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(wanted)
            raise

    def give(self, size_bytes: int) -> None:
        """Gives back what was taken."""
        self._free += min(size_bytes, self._size)
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= wanted
                turn.set_result(None)
