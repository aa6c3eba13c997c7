"""A program's own streams with the other members of its circle, by name: each stream is a connected socket.

The consumer's program opens the circle at its daemon, and starts its members as commands in it. A program in a box is
told by its environment that it is a member. Both then do the same: `connect` to others, and `listen` for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from croft.client.local_api import not_running
from croft.compute.circle import HOME
from croft.compute.circle_messages import Connect, Connected, Incoming, Listen, NotConnected, ToMember
from croft.compute.worker_messages import DOORWAY_VARIABLE
from croft.control.work_messages import (
    CircleOpened,
    FromDaemon,
    JobFailed,
    OpenCircle,
    OpenToMember,
    PipeOpened,
    StreamWaits,
    TakeStream,
)
from croft.errors import ConnectionLost, CroftError, Unreachable, Usage, by_code
from croft.ports import PACKET_BYTES_MAX
from croft.wire import frames
from croft.wire.codec import Message, decode_union, encode

STEP = "circle"
FRAME_BYTES_MAX = 64 << 10

OnStream = Callable[[str, socket.socket], None]
"""Takes a stream that another member has opened: who, and a connected, non-blocking socket."""


class Member(Protocol):
    """One member of a circle, as its own program sees it."""

    async def connect(self, member: str) -> socket.socket:
        """A stream to another member: a connected, non-blocking socket. Raises NotFound, Refused, Unreachable, Busy."""
        ...

    def listen(self, on_stream: OnStream) -> None:
        """Lets others open streams to this one, from now on."""
        ...

    def close(self) -> None:
        """Ends the membership; streams that are open end with it. Idempotent."""
        ...


class HomeMember:
    """The consumer's program: the circle lasts until it is closed. `open` first, on the loop that is to serve it.

    Attributes:
        circle: its id, for `OpenCommandJob`.
    """

    def __init__(self, work_socket: Path) -> None:
        self._work_socket = work_socket
        self._connection: socket.socket | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._taking: set[asyncio.Task[None]] = set()
        self._on_stream: OnStream | None = None
        self.circle = ""
        self.name = HOME

    async def open(self) -> None:
        """Opens the circle. Raises Unreachable if the daemon is not running."""
        self._connection, opened = await self._ask(OpenCircle())
        assert isinstance(opened, CircleOpened), "the daemon answers what it was asked"
        self.circle = opened.circle
        self._hearing = asyncio.create_task(self._hear(self._connection), name="circle.hear")

    @property
    def is_open(self) -> bool:
        """Whether the circle lasts: it ends with `close`, and with the daemon."""
        return self._hearing is not None and not self._hearing.done()

    async def connect(self, member: str) -> socket.socket:
        """See `Member`."""
        connection, _ = await self._ask(OpenToMember(self.circle, member))
        return connection

    def listen(self, on_stream: OnStream) -> None:
        """See `Member`."""
        self._on_stream = on_stream

    def close(self) -> None:
        """See `Member`."""
        for task in (self._hearing, *self._taking):
            if task is not None:
                task.cancel()
        if self._connection is not None:
            # The daemon knows at once; whoever reads here closes it, once it reads no more.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection = None

    async def _hear(self, connection: socket.socket) -> None:
        try:
            while True:
                message = await _receive(connection)
                assert isinstance(message, StreamWaits), "nothing else is said while a circle is open"
                task = asyncio.create_task(self._take(message), name="circle.take")
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)
        except (ConnectionLost, OSError):
            pass
        finally:
            connection.close()

    async def _take(self, waits: StreamWaits) -> None:
        with contextlib.suppress(CroftError, ConnectionLost):
            connection, _ = await self._ask(TakeStream(self.circle, waits.number))
            if self._on_stream is None:
                connection.close()
            else:
                self._on_stream(waits.sender, connection)

    async def _ask(self, opening: Message) -> tuple[socket.socket, CircleOpened | PipeOpened]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(connection, str(self._work_socket))
            await loop.sock_sendall(connection, frames.frame(encode(opening)))
            answer = await _receive(connection)
            assert isinstance(answer, CircleOpened | PipeOpened), "the daemon answers what it was asked"
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise not_running() from None
        except (ConnectionLost, OSError) as lost:
            connection.close()
            raise Unreachable(f"the daemon ended while it was asked: {lost}", remedy="Start it: `croft up`.") from None
        except BaseException:
            connection.close()
            raise
        return connection, answer


class BoxMember:
    """A program in a box, started as a member of a circle. Made on the loop that is to serve it."""

    def __init__(self) -> None:
        number = os.environ.get(DOORWAY_VARIABLE)
        if number is None:
            raise Usage("this program is no member of a circle", remedy="It is to be started in a box, as one.")
        self._doorway = socket.socket(fileno=os.dup(int(number)))
        self._doorway.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[socket.socket]] = {}
        self._on_stream: OnStream | None = None
        self._is_closed = False
        self._loop.add_reader(self._doorway, self._read)

    async def connect(self, member: str) -> socket.socket:
        """See `Member`."""
        if self._is_closed:
            raise Unreachable("the peer that lends this box has gone")
        number = next(self._numbers)
        asked = self._asked[number] = self._loop.create_future()
        try:
            self._say(Connect(number, member))
            stream: socket.socket = await asked
            return stream
        finally:
            del self._asked[number]

    def listen(self, on_stream: OnStream) -> None:
        """See `Member`."""
        self._on_stream = on_stream
        self._say(Listen())

    def close(self) -> None:
        """See `Member`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._doorway)
        self._doorway.close()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(Unreachable("the peer that lends this box has gone"))

    def _say(self, message: Message) -> None:
        # A handful of packets of some bytes: they fit, or the peer is stuck for good.
        try:
            self._doorway.send(encode(message))
        except OSError as error:
            raise Unreachable(f"the peer that lends this box does not listen: {error.strerror}") from None

    def _read(self) -> None:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._doorway, PACKET_BYTES_MAX, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet, descriptors = b"", []
        if not packet:
            self.close()
            return
        streams = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        for stream in streams:
            stream.setblocking(False)
        message: ToMember = decode_union(packet, ToMember, step="doorway")
        match message:
            case Connected(number) if (asked := self._asked.get(number)) is not None and not asked.done():
                asked.set_result(streams.pop())
            case NotConnected(number, code, text, remedy) if (asked := self._asked.get(number)) is not None:
                if not asked.done():
                    asked.set_exception(by_code(code, text, remedy))
            case Incoming(member) if self._on_stream is not None:
                self._on_stream(member, streams.pop())
            case _:
                pass
        for stream in streams:
            stream.close()


async def _receive(connection: socket.socket) -> Any:
    size = int.from_bytes(await _exactly(connection, frames.HEADER_BYTES), "big")
    assert size <= FRAME_BYTES_MAX, "the daemon says little about circles"
    message: FromDaemon = decode_union(await _exactly(connection, size), FromDaemon, step=STEP)
    if isinstance(message, JobFailed):
        raise by_code(message.code, message.message, message.remedy)
    return message


async def _exactly(connection: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        part = await loop.sock_recv(connection, size - len(data))
        if not part:
            raise ConnectionLost("the daemon hung up")
        data += part
    return data
