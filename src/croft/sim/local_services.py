"""A simulated machine's loopback interface; see `croft.ports.LocalServices`."""

from __future__ import annotations

import asyncio
import itertools

from croft.errors import Failed, Unreachable
from croft.overlay.loopback import LoopbackStream, pipe

FIRST_FREE_PORT = 32_768
WAITING_MAX = 512


class SimulatedListener:
    """See `croft.ports.Listener`."""

    def __init__(self, machine: SimulatedServices, port: int) -> None:
        self._machine = machine
        self._port = port
        self.incoming: asyncio.Queue[LoopbackStream] = asyncio.Queue()

    @property
    def port(self) -> int:
        return self._port

    async def accept(self) -> LoopbackStream:
        return await self.incoming.get()

    def close(self) -> None:
        if self._machine.listeners.get(self._port) is self:
            del self._machine.listeners[self._port]
        while not self.incoming.empty():
            self.incoming.get_nowait().abort()


class SimulatedDatagrams:
    """See `croft.ports.Datagrams`."""

    def __init__(self, machine: SimulatedServices, port: int) -> None:
        self._machine = machine
        self._port = port
        self.waiting: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue(WAITING_MAX)

    @property
    def port(self) -> int:
        return self._port

    async def receive(self) -> tuple[bytes, int]:
        return await self.waiting.get()

    def send(self, datagram: bytes, port: int) -> None:
        other = self._machine.sockets.get(port)
        if other is not None and not other.waiting.full() and self._machine.sockets.get(self._port) is self:
            other.waiting.put_nowait((datagram, self._port))

    def close(self) -> None:
        if self._machine.sockets.get(self._port) is self:
            del self._machine.sockets[self._port]


class SimulatedServices:
    """One machine's ports."""

    def __init__(self) -> None:
        self.listeners: dict[int, SimulatedListener] = {}
        self.sockets: dict[int, SimulatedDatagrams] = {}
        self._free = itertools.count(FIRST_FREE_PORT)

    async def connect(self, port: int) -> LoopbackStream:
        listener = self.listeners.get(port)
        if listener is None:
            raise Unreachable(f"nothing answers on port {port} of this machine")
        near, far = pipe()
        listener.incoming.put_nowait(far)
        return near

    async def listen(self, port: int) -> SimulatedListener:
        port = port or next(self._free)
        if port in self.listeners:
            raise Failed(f"cannot listen on port {port} of this machine: it is taken")
        listener = self.listeners[port] = SimulatedListener(self, port)
        return listener

    async def datagrams(self, port: int = 0) -> SimulatedDatagrams:
        port = port or next(self._free)
        if port in self.sockets:
            raise Failed(f"cannot listen on port {port} of this machine: it is taken")
        made = self.sockets[port] = SimulatedDatagrams(self, port)
        return made
