"""A local connection as a stream: what was written arrives, also when the stream is dropped right after its end."""

from __future__ import annotations

import asyncio
import socket

import pytest
import uvloop

from croft.control.socket_stream import SocketStream

PIECE = bytes(range(256)) * 128


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_was_written_before_the_end_arrives_though_the_stream_is_dropped(new_loop: object) -> None:
    async def story() -> None:
        near, far = socket.socketpair()
        far.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=near)
        stream, written = SocketStream(reader, writer), bytearray()
        while not writer.transport.get_write_buffer_size():  # type: ignore[attr-defined]  # a write transport
            await stream.write(PIECE)
            written += PIECE
        far.shutdown(socket.SHUT_WR)
        assert await stream.read(1) == b""

        await stream.finish()
        stream.abort()

        loop, heard = asyncio.get_running_loop(), bytearray()
        while part := await loop.sock_recv(far, 1 << 16):
            heard += part
        far.close()
        assert heard == written

    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        runner.run(story())
