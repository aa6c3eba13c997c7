"""A Unix-socket connection as a stream of bytes for frames."""

from __future__ import annotations

import asyncio

from croft.errors import ConnectionLost


class SocketStream:
    """A Unix-socket connection as `croft.wire.message_stream.ByteStream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

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
