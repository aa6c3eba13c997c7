"""A simulated doorway, see `croft.ports.Doorway`, whose program is the test: `say`, `hear`."""

from __future__ import annotations

import asyncio

from croft.compute.circle_messages import ToMember
from croft.errors import ConnectionLost
from croft.overlay.loopback import LoopbackStream, pipe
from croft.wire.codec import Message, decode_union, encode


class SimulatedDoorway:
    """Both sides of one doorway."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._heard: asyncio.Queue[tuple[ToMember, LoopbackStream | None]] = asyncio.Queue()
        self._is_over = False
        self._inside: list[LoopbackStream] = []

    async def receive(self) -> bytes:
        return await self._said.get()

    async def send(self, packet: bytes) -> None:
        self._hand(packet, None)

    async def hand_over(self, packet: bytes) -> LoopbackStream:
        near, far = pipe()
        self._hand(packet, far)
        return near

    def say(self, message: Message) -> None:
        """What the program says."""
        self._said.put_nowait(encode(message))

    async def hear(self) -> tuple[ToMember, LoopbackStream | None]:
        """What the program is told next, and the stream that comes with it."""
        return await self._heard.get()

    def end(self) -> None:
        """The program ends, and what it held with it."""
        self._is_over = True
        self._said.put_nowait(b"")
        for stream in self._inside:
            stream.abort()

    def _hand(self, packet: bytes, stream: LoopbackStream | None) -> None:
        if self._is_over:
            raise ConnectionLost("the box has ended")
        if stream is not None:
            self._inside.append(stream)
        self._heard.put_nowait((decode_union(packet, ToMember, step="simulated doorway"), stream))
