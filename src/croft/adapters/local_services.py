"""The loopback interface of this machine; see `croft.ports.LocalServices`."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from croft.adapters.local_stream import LocalStream
from croft.errors import Failed, Unreachable

HOST = "127.0.0.1"
BACKLOG = 128
DATAGRAMS_WAITING_MAX = 512
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: whoever reads from a connection that was cut short sees that, and not an end."""


class TcpStream(LocalStream):
    """One TCP connection."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def abort(self) -> None:
        if not self._is_closed and not (self._is_read_to_end and self._is_finished):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        super().abort()


class TcpListener:
    """See `croft.ports.Listener`."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self._port: int = listening.getsockname()[1]

    @property
    def port(self) -> int:
        return self._port

    async def accept(self) -> TcpStream:
        connection, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        return TcpStream(connection)

    def close(self) -> None:
        self._socket.close()


class UdpSocket(asyncio.DatagramProtocol):
    """See `croft.ports.Datagrams`."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue(DATAGRAMS_WAITING_MAX)
        self._transport: Any = None
        self._port = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr[0] == HOST and not self._waiting.full():
            self._waiting.put_nowait((data, addr[1]))

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there, which is no reason to stop: it may start at any time."""

    @property
    def port(self) -> int:
        return self._port

    async def receive(self) -> tuple[bytes, int]:
        return await self._waiting.get()

    def send(self, datagram: bytes, port: int) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(datagram, (HOST, port))

    def close(self) -> None:
        self._transport.close()


class LoopbackServices:
    """See `croft.ports.LocalServices`."""

    async def connect(self, port: int) -> TcpStream:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (HOST, port))
        except OSError as error:
            connection.close()
            raise Unreachable(f"nothing answers on port {port} of this machine: {error.strerror}") from None
        except BaseException:
            connection.close()
            raise
        return TcpStream(connection)

    async def listen(self, port: int) -> TcpListener:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((HOST, port))
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            raise _taken(port, error) from None
        return TcpListener(listening)

    async def datagrams(self, port: int = 0) -> UdpSocket:
        try:
            _, made = await asyncio.get_running_loop().create_datagram_endpoint(UdpSocket, (HOST, port))
        except OSError as error:
            raise _taken(port, error) from None
        return made


def _taken(port: int, error: OSError) -> Failed:
    return Failed(
        f"cannot listen on port {port} of this machine: {error.strerror}",
        remedy="Name another local port, or none, and a free one is taken.",
    )
