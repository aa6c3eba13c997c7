"""One connected socket of this machine as a stream; see `croft.ports.Stream`, and `LocalServices` for the difference.

Driven by the loop as plain sockets, because a tunnel's bytes pass through here: each read is one call that takes all
there is, each write one call that takes all it can, and nothing is copied in between.
"""

from __future__ import annotations

import asyncio
import errno
import socket

from croft.errors import ConnectionLost


class LocalStream:
    """One connection; once it is dropped, whoever is on the other side reads its end."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._is_read_to_end = False
        self._is_finished = False
        self._is_closed = False

    async def read(self, size_bytes_max: int) -> bytes:
        if self._is_closed:
            raise ConnectionLost("the local connection was dropped")
        try:
            data = await self._loop.sock_recv(self._socket, size_bytes_max)
        except OSError as error:
            raise ConnectionLost(f"the local connection ended: {error.strerror}") from None
        self._is_read_to_end = not data
        return data

    async def write(self, data: bytes | memoryview) -> None:
        if self._is_closed or self._is_finished:
            raise ConnectionLost("the local connection was dropped")
        try:
            await self._loop.sock_sendall(self._socket, data)
        except OSError as error:
            raise ConnectionLost(f"the local connection ended: {error.strerror}") from None

    async def finish(self) -> None:
        if self._is_finished or self._is_closed:
            return
        self._is_finished = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise ConnectionLost(f"the local connection ended: {error.strerror}") from None

    def abort(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._socket.close()
