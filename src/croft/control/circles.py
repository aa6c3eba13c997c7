"""The local API's side of circles: a program's own streams, each a connection to the work socket of its own."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import TYPE_CHECKING

from croft.control.work_messages import CircleOpened, OpenToMember, PipeOpened, StreamWaits, TakeStream
from croft.errors import NotFound
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.compute.circles import Circles
    from croft.ports import Stream

CIRCLE_BYTES = 16


class CircleDesk:
    """The circles of this machine's programs."""

    def __init__(self, circles: Circles) -> None:
        self._circles = circles
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[str, int], asyncio.Future[Stream]] = {}

    async def serve_circle(self, messages: MessageStream) -> None:
        """Keeps a circle open until its program hangs up."""
        circle = secrets.token_hex(CIRCLE_BYTES)

        async def let_in(sender: str) -> Stream:
            number = next(self._numbers)
            waiting = self._waiting[circle, number] = asyncio.get_running_loop().create_future()
            try:
                messages.post(StreamWaits(number, sender))
                stream: Stream = await waiting
                return stream
            finally:
                del self._waiting[circle, number]

        with self._circles.founded(circle, let_in):
            messages.post(CircleOpened(circle))
            while await messages.receive() is not None:
                pass

    async def serve_opened(self, opening: OpenToMember, messages: MessageStream, program: Stream) -> None:
        """Joins the program's connection to a member. Raises NotFound, Refused, Unreachable, Busy."""

        async def near() -> Stream:
            messages.post(PipeOpened())
            await messages.flush()
            return program

        await self._circles.join(self._circles.home(opening.circle), opening.member, near)

    async def serve_taken(self, opening: TakeStream, messages: MessageStream, program: Stream) -> None:
        """Gives the program's connection to the stream that waits for it, and stays until that has ended."""
        waiting = self._waiting.get((opening.circle, opening.number))
        if waiting is None or waiting.done():
            raise NotFound(f"no stream {opening.number} waits", remedy="It was given up, or is taken.")
        taken = _Taken(program)
        waiting.set_result(taken)
        messages.post(PipeOpened())
        await messages.flush()
        taken.is_ready.set()
        await taken.is_over.wait()


class _Taken:
    """A program's connection that somebody else carries, once the program knows; tells when it has been dropped."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.is_ready = asyncio.Event()
        self.is_over = asyncio.Event()

    async def read(self, size_bytes_max: int) -> bytes:
        await self.is_ready.wait()
        return await self._stream.read(size_bytes_max)

    async def write(self, data: bytes | memoryview) -> None:
        await self.is_ready.wait()
        await self._stream.write(data)

    async def finish(self) -> None:
        await self.is_ready.wait()
        await self._stream.finish()

    def abort(self) -> None:
        self.is_over.set()
