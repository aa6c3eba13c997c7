"""A Unix-socket connection as a stream of bytes."""

from __future__ import annotations

import asyncio

from croft.errors import ConnectionLost


class SocketStream:
    """A Unix-socket connection as `croft.ports.Stream`; after a cancelled `write`, only `abort` is left."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_finished = False

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes; `b""` at the end."""
        try:
            return await self._reader.read(size_bytes_max)
        except OSError as error:
            raise ConnectionLost(f"the local connection ended: {error.strerror}") from None

    async def write(self, data: bytes | memoryview) -> None:
        """All of `data`, with back-pressure."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise ConnectionLost(f"the local connection ended: {error.strerror}") from None

    async def finish(self) -> None:
        """Half-closes: the other side reads the end."""
        self._is_finished = True
        try:
            self._writer.write_eof()
        except OSError as error:
            raise ConnectionLost(f"the local connection ended: {error.strerror}") from None

    def abort(self) -> None:
        """Drops both directions. Idempotent. What was written to a stream that is over both ways still arrives."""
        if self._is_finished and self._reader.at_eof():
            self._writer.close()
        else:
            self._writer.transport.abort()
