"""Messages over a stream of bytes: frames in both directions, many small messages in few large writes.

The binding below is slow per call and fast per byte, so whatever is sent while a write is under way leaves with the
next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Protocol, Self

from croft.errors import ConnectionLost, PeerMisbehaved
from croft.wire import frames
from croft.wire.codec import Message, encode

READ_BYTES_MAX = 1 << 20
WRITE_BYTES_MAX = 1 << 20
UNSENT_BYTES_MAX = 4 << 20


class ByteStream(Protocol):
    """What a message stream runs over: `croft.ports.Stream` and `croft.ports.Box` both fit."""

    async def read(self, size_bytes_max: int) -> bytes: ...

    async def write(self, data: bytes | memoryview) -> None: ...


class MessageStream:
    """Sends and receives frames. Close it, or use it as a context manager: that stops the writer.

    `send` returns once the message is queued, and waits only while more than UNSENT_BYTES_MAX are unsent.
    `receive` returns one frame's payload, or None once the other side has finished between two frames.
    """

    def __init__(self, stream: ByteStream, *, step: str, frame_bytes_max: int = frames.FRAME_BYTES_MAX) -> None:
        self._stream = stream
        self._reader = frames.FrameReader(frame_bytes_max, step=step)
        self._received: deque[bytes] = deque()
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._has_unsent = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.sent_bytes = 0
        """Of messages, sent or queued so far."""
        self.received_bytes = 0
        self._failure: ConnectionLost | None = None
        self._writer: asyncio.Task[None] | None = None
        self._step = step

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def unsent_bytes(self) -> int:
        """What waits for the write under way to end."""
        return self._unsent_bytes

    async def close(self) -> None:
        """Stops the writer; what is still unsent is dropped, so `flush` first. Idempotent."""
        self._failure = self._failure or ConnectionLost(f"{self._step}: closed here")
        self._has_room.set()
        self._is_idle.set()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    def post(self, message: Message) -> None:
        """Queues a message without waiting. For messages whose number something else bounds."""
        self.post_encoded(encode(message))

    def post_encoded(self, payload: bytes) -> None:
        """The same for a message that is encoded already."""
        if self._failure is not None:
            raise self._failure
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_out(), name=f"{self._step}.write")
        self._unsent.append(payload)
        self._unsent_bytes += len(payload)
        self.sent_bytes += len(payload)
        self._is_idle.clear()
        self._has_unsent.set()
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            self._has_room.clear()

    async def send(self, message: Message) -> None:
        """Queues a message, and waits while the other side does not keep up. Raises ConnectionLost."""
        await self.send_encoded(encode(message))

    async def send_encoded(self, payload: bytes) -> None:
        """The same for a message that is encoded already."""
        self.post_encoded(payload)
        if not self._has_room.is_set():
            await self._has_room.wait()
            if self._failure is not None:
                raise self._failure

    async def flush(self) -> None:
        """Waits until everything queued has been handed to the stream below. Raises ConnectionLost."""
        await self._is_idle.wait()
        if self._failure is not None:
            raise self._failure

    async def receive(self) -> bytes | None:
        """The next frame's payload; None at the end. Raises ConnectionLost, PeerMisbehaved. Safe to cancel."""
        while not self._received:
            data = await self._stream.read(READ_BYTES_MAX)
            if not data:
                if self._reader.is_empty:
                    return None
                raise ConnectionLost(f"{self._step}: the stream ended inside a frame")
            self.received_bytes += len(data)
            self._received.extend(self._reader.feed(data))
        return self._received.popleft()

    async def _write_out(self) -> None:
        try:
            while True:
                await self._has_unsent.wait()
                payloads, self._unsent, self._unsent_bytes = self._unsent, [], 0
                self._has_unsent.clear()
                self._has_room.set()
                for piece in _pieces(payloads):
                    await self._stream.write(piece)
                if not self._unsent:
                    self._is_idle.set()
        except ConnectionLost as lost:
            self._failure = lost
        except Exception as error:
            # A bug below; whoever waits for room must not wait for ever because of it.
            self._failure = ConnectionLost(f"{self._step}: writing failed: {error!r}")
            raise
        finally:
            self._has_room.set()
            self._is_idle.set()


async def send_alone(stream: ByteStream, message: Message) -> None:
    """Sends one message on a stream that goes on as plain bytes. Raises ConnectionLost."""
    await stream.write(frames.frame(encode(message)))


async def receive_alone(stream: ByteStream, *, step: str, frame_bytes_max: int) -> bytes:
    """The payload of the next frame, and not a byte more is read. Raises ConnectionLost, PeerMisbehaved."""
    size = int.from_bytes(await _read_exactly(stream, frames.HEADER_BYTES, step), "big")
    if not 0 < size <= frame_bytes_max:
        raise PeerMisbehaved(f"frame of {size} bytes, limit is {frame_bytes_max}", step=step)
    return await _read_exactly(stream, size, step)


async def _read_exactly(stream: ByteStream, size: int, step: str) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.read(size - len(data))
        if not part:
            raise ConnectionLost(f"{step}: the stream ended inside a frame")
        data += part
    return data


def _pieces(payloads: list[bytes]) -> Iterator[bytes]:
    """The frames of `payloads`, joined into pieces of about WRITE_BYTES_MAX, each when it is asked for."""
    group: list[bytes] = []
    size = 0
    for payload in payloads:
        group.append(payload)
        size += len(payload)
        if size >= WRITE_BYTES_MAX:
            yield frames.join(group)
            group, size = [], 0
    if group:
        yield frames.join(group)
