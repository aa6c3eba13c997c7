"""Room in memory that many share: whoever wants more than is free waits in line."""

from __future__ import annotations

import asyncio
from collections import deque


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
