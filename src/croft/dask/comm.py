"""The scheme `croft://CIRCLE/MEMBER` for Dask's connections: each is a stream of a circle, or stays in this process.

Large buffers go as they are: they are written from where they lie, and read into the memory in which they stay.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from distributed.comm.core import BaseListener, Comm, CommClosedError, Connector
from distributed.comm.inproc import InProc, Queue
from distributed.comm.registry import Backend, backends
from distributed.comm.tcp import MAX_BUFFER_SIZE, TCP, read_bytes_rw
from distributed.protocol.utils import unpack_frames
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream, StreamClosedError

from croft.client.circle import Member
from croft.compute.circle import HOME
from croft.dask import guard
from croft.errors import CroftError, PeerMisbehaved

log = logging.getLogger(__name__)

SCHEME = "croft"
FRAMES_BYTES_MAX = 64 << 30
SIZE = struct.Struct("Q")

HandleComm = Callable[[Comm], Awaitable[None] | None]


@dataclass(eq=False)
class Seat:
    """A member of a circle whose program this process is. `is_guarded`: workers of this circle are not trusted."""

    member: Member
    circle: str
    name: str
    is_guarded: bool
    listener: MemberListener | None = None

    @property
    def address(self) -> str:
        """Its own address."""
        return address_of(self.circle, self.name)

    @property
    def is_home(self) -> bool:
        """Whether it is the user's program."""
        return self.name == HOME


_seats: dict[str, Seat] = {}


def take_seat(seat: Seat) -> None:
    """From now on, addresses of its circle are known in this process."""
    _seats[seat.circle] = seat


def leave_seat(seat: Seat) -> None:
    """And no more. Idempotent."""
    _seats.pop(seat.circle, None)


def address_of(circle: str, member: str) -> str:
    """A member's address."""
    return f"{SCHEME}://{circle}/{member}"


def _find(location: str) -> tuple[Seat, str]:
    circle, _, member = location.partition("/")
    member = member.partition(":")[0]  # Dask gives a port to every address that it listens on
    seat = _seats.get(circle)
    if seat is None or not member:
        raise OSError(f"nobody here is in the circle of {SCHEME}://{location}")
    return seat, member


class MemberComm(TCP):  # type: ignore[misc]  # distributed is not typed
    """A stream to another member. What workers say to a guarded program passes `guard` on both sides."""

    def __init__(
        self,
        stream: IOStream,
        seat: Seat,
        peer: str,
        *,
        deserialize: bool,
        is_accepted: bool,
        allow_offload: bool = True,
    ) -> None:
        self._closed = False
        Comm.__init__(self, deserialize=deserialize)
        self._local_addr = seat.address
        self._peer_addr = address_of(seat.circle, peer)
        self.stream = stream
        self.allow_offload = allow_offload
        self._finalizer = weakref.finalize(self, self._get_finalizer())
        self._finalizer.atexit = False
        self._extra: dict[str, Any] = {}
        this = weakref.ref(self)

        def closed() -> None:
            comm = this()
            if comm is not None:
                comm._closed = True

        stream.set_close_callback(closed)
        self._reads_guarded = seat.is_guarded and seat.is_home
        self._is_home = seat.is_home
        self._writes_guarded = seat.is_guarded and peer == HOME
        self._is_accepted = is_accepted
        self._is_registered = False

    async def read(self, deserializers: Any = None) -> Any:
        """The next message. Raises CommClosedError."""
        if not self._reads_guarded:
            return await super().read(deserializers=deserializers)
        frames = await self._frames()
        try:
            message = guard.read(frames, deserialize=self.deserialize)
            if self._is_accepted:
                message = guard.admit(message, self._peer_addr, is_registered=self._is_registered)
                self._is_registered |= isinstance(message, dict) and message.get("op") == "register-worker"
        except PeerMisbehaved as fault:
            log.warning("the Dask worker at %s is cut off: %s", self._peer_addr, fault)
            self.abort()
            raise CommClosedError(f"{self._peer_addr}: {fault}") from None
        return message

    async def write(self, msg: Any, serializers: Any = None, on_error: str = "message") -> Any:
        """Sends a message. Raises CommClosedError."""
        if self._writes_guarded:
            msg = guard.lowered(msg)
        elif self._is_home:
            msg = guard.with_code(msg)
        return await super().write(msg, serializers=serializers, on_error=on_error)

    async def _frames(self) -> list[Any]:
        """The frames of the next message, as `TCP.read` reads them."""
        stream = self.stream
        if stream is None:
            raise CommClosedError(f"{self._peer_addr}: closed")
        try:
            (size,) = SIZE.unpack(await stream.read_bytes(SIZE.size))
            frames, sizes = unpack_frames(await _buffer(stream, size), partial=True)
            for size in sizes:
                frames.append(await _buffer(stream, size))
        except StreamClosedError as error:
            self.stream = None
            self._closed = True
            raise CommClosedError(f"{self._peer_addr}: {error}") from None
        except (struct.error, ValueError, IndexError, TypeError) as error:
            self.abort()
            raise CommClosedError(f"{self._peer_addr}: {error}") from None
        except BaseException:
            self.abort()
            raise
        return list(frames)


async def _buffer(stream: IOStream, size: int) -> Any:
    if size > min(FRAMES_BYTES_MAX, MAX_BUFFER_SIZE):
        raise ValueError(f"a message of {size} bytes")
    return await read_bytes_rw(stream, size)


class LocalComm(InProc):  # type: ignore[misc]  # distributed is not typed
    """Between the scheduler and a client of the same program: nothing is copied, workers' values are opened safely."""

    def __init__(self, seat: Seat, reads: Queue, writes: Queue, loop: IOLoop, *, deserialize: bool) -> None:
        self._opens = deserialize and seat.is_guarded
        super().__init__(
            seat.address, seat.address, reads, writes, loop, deserialize=deserialize and not seat.is_guarded
        )

    async def read(self, deserializers: Any = "ignored") -> Any:
        """The next message. Raises CommClosedError."""
        message = await super().read(deserializers)
        return guard.opened(message) if self._opens else message


class MemberListener(BaseListener):  # type: ignore[misc]  # distributed is not typed
    """Takes connections to a member of this process."""

    prefix = SCHEME

    def __init__(self, seat: Seat, handle: HandleComm, *, deserialize: bool, allow_offload: bool) -> None:
        super().__init__()
        self._seat = seat
        self._handle = handle
        self._deserialize = deserialize
        self._allow_offload = allow_offload
        self._opening: set[asyncio.Task[None]] = set()
        self.loop: IOLoop | None = None

    async def start(self) -> None:
        """Listens from now on."""
        if self._seat.listener is not None:
            raise OSError(f"{self._seat.address} listens already")
        self.loop = IOLoop.current()
        self._seat.listener = self
        self._seat.member.listen(self._take)

    def stop(self) -> None:
        """Takes no more."""
        if self._seat.listener is self:
            self._seat.listener = None

    @property
    def listen_address(self) -> str:
        """Where it listens."""
        return self._seat.address

    @property
    def contact_address(self) -> str:
        """Where it is reached."""
        return self._seat.address

    def take(self, comm: Comm) -> None:
        """Serves a connection; on the loop of the listener."""
        task = asyncio.ensure_future(self._serve(comm))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _take(self, sender: str, connection: socket.socket) -> None:
        if self._seat.listener is not self:
            connection.close()
            return
        stream = IOStream(connection, max_buffer_size=MAX_BUFFER_SIZE)
        self.take(
            MemberComm(
                stream,
                self._seat,
                sender,
                deserialize=self._deserialize,
                is_accepted=True,
                allow_offload=self._allow_offload,
            )
        )

    async def _serve(self, comm: Comm) -> None:
        try:
            await self.on_connection(comm)
        except OSError:
            return  # it hung up before it said who it is
        handling = self._handle(comm)
        if handling is not None:
            await handling


class MemberConnector(Connector):  # type: ignore[misc]  # distributed is not typed
    """Connects members."""

    async def connect(self, address: str, deserialize: bool = True, **_: Any) -> Comm:
        """A connection to a member. Raises OSError."""
        seat, name = _find(address)
        if name == seat.name:
            return _join_here(seat, deserialize=deserialize)
        try:
            connection = await seat.member.connect(name)
        except CroftError as error:
            raise OSError(f"{SCHEME}://{address}: {error.message}") from None
        stream = IOStream(connection, max_buffer_size=MAX_BUFFER_SIZE)
        return MemberComm(stream, seat, name, deserialize=deserialize, is_accepted=False)


def _join_here(seat: Seat, *, deserialize: bool) -> LocalComm:
    listener = seat.listener
    if listener is None or listener.loop is None:
        raise OSError(f"{seat.address} does not listen")
    there, back = Queue(), Queue()
    here, loop = IOLoop.current(), listener.loop
    loop.add_callback(
        lambda: listener.take(LocalComm(seat, there, back, here, deserialize=listener._deserialize)),
    )
    return LocalComm(seat, back, there, loop, deserialize=deserialize)


class CroftBackend(Backend):  # type: ignore[misc]  # distributed is not typed
    """See `distributed.comm.registry.Backend`."""

    def get_connector(self) -> MemberConnector:
        """Connects."""
        return MemberConnector()

    def get_listener(
        self, loc: str, handle_comm: HandleComm, deserialize: bool, allow_offload: bool = True, **_: Any
    ) -> MemberListener:
        """Listens. Raises OSError for what is not a member of this process."""
        seat, name = _find(loc)
        if name != seat.name:
            raise OSError(f"{SCHEME}://{loc} is not in this program")
        return MemberListener(seat, handle_comm, deserialize=deserialize, allow_offload=allow_offload)

    def get_address_host(self, loc: str) -> str:
        """What stands for the machine: the member, for no two of them are known to share one."""
        return loc.partition("/")[2]

    def resolve_address(self, loc: str) -> str:
        """Members have one address."""
        return loc

    def get_local_address_for(self, loc: str) -> str:
        """Where this process is reached in the same circle."""
        return _find(loc)[0].address


backends[SCHEME] = CroftBackend()
