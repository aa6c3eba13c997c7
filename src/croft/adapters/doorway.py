"""How a box gets streams: a socket of packets, and with a packet one end of a pair of sockets; see `ports.Doorway`.

The kernel then does the rest: each stream has its own bounded buffer, waits for whoever is slow, and ends by half or
whole as any socket does. Nothing is multiplexed. What the program inside sends along, descriptors among it, is dropped.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from croft.adapters.local_stream import LocalStream
from croft.errors import ConnectionLost
from croft.ports import PACKET_BYTES_MAX


class SocketDoorway:
    """The peer's side of one box's doorway."""

    def __init__(self, outside: socket.socket) -> None:
        self._socket = outside
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_closed = False

    async def receive(self) -> bytes:
        while not self._is_closed:
            try:
                # Without room for it, what is sent along is dropped by the kernel; a longer packet is cut.
                return self._socket.recv(PACKET_BYTES_MAX)
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except OSError:
                break
        return b""

    async def send(self, packet: bytes) -> None:
        await self._send(packet, [])

    async def hand_over(self, packet: bytes) -> LocalStream:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await self._send(packet, [far.fileno()])
        except BaseException:
            near.close()
            raise
        finally:
            far.close()
        return LocalStream(near)

    def close(self) -> None:
        """Nothing passes any more; whoever waits is told. Idempotent. The socket itself is closed with the box."""
        self._is_closed = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def _send(self, packet: bytes, descriptors: list[int]) -> None:
        assert len(packet) <= PACKET_BYTES_MAX, "the sender keeps packets small"
        async with self._sending:
            while not self._is_closed:
                try:
                    socket.send_fds(self._socket, [packet], descriptors)
                    return
                except (BlockingIOError, InterruptedError):
                    await self._ready(self._loop.add_writer, self._loop.remove_writer)
                except OSError as error:
                    raise ConnectionLost(f"the doorway of the box is shut: {error.strerror}") from None
        raise ConnectionLost("the box has ended")

    async def _ready(self, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
        waiting = self._loop.create_future()
        self._waiting.add(waiting)
        add(self._socket, _wake, waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            remove(self._socket)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
