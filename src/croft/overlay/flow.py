"""Joins a stream and datagrams until both sides are done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from croft.errors import ConnectionLost
from croft.wire import frames

if TYPE_CHECKING:
    from croft.ports import Stream

PIECE_BYTES_MAX = 512 << 10
DATAGRAM_BYTES_MAX = 65_507
"""What one UDP datagram over IPv4 can carry."""
FLOW_IDLE_S_MAX = 60.0
"""A UDP flow without a datagram either way for this long is over."""
WAITING_DATAGRAMS_MAX = 256
STEP = "datagrams"


class Flow:
    """One UDP flow over a stream: datagrams one way by `push`, the other way by `on_datagram`.

    Datagrams that the stream cannot take in time are dropped, as UDP may.
    """

    def __init__(self, stream: Stream, on_datagram: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._on_datagram = on_datagram
        self._waiting: list[bytes] = []
        self._has_waiting = asyncio.Event()
        self._moved = False

    def push(self, datagram: bytes) -> None:
        """Sends a datagram to the other side, or drops it."""
        if len(self._waiting) < WAITING_DATAGRAMS_MAX and len(datagram) <= DATAGRAM_BYTES_MAX:
            self._waiting.append(datagram)
            self._has_waiting.set()

    async def run(self) -> None:
        """Returns once the flow is idle, or either side has ended it. Raises PeerMisbehaved."""
        try:
            with suppress(ConnectionLost):
                await _first_of(self._send(), self._receive(), self._watch())
        finally:
            self._stream.abort()

    async def _send(self) -> None:
        while True:
            await self._has_waiting.wait()
            datagrams, self._waiting = self._waiting, []
            self._has_waiting.clear()
            self._moved = True
            await self._stream.write(frames.join(datagrams))

    async def _receive(self) -> None:
        reader = frames.FrameReader(DATAGRAM_BYTES_MAX, step=STEP)
        while data := await self._stream.read(PIECE_BYTES_MAX):
            self._moved = True
            for datagram in reader.feed(data):
                self._on_datagram(datagram)

    async def _watch(self) -> None:
        self._moved = True
        while self._moved:
            self._moved = False
            await asyncio.sleep(FLOW_IDLE_S_MAX)


async def _first_of(*works: Awaitable[None]) -> None:
    """Runs all until the first ends, then none any more. Raises what that one raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
