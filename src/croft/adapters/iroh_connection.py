"""Streams and connections over QUIC: `croft.ports.Stream` and `croft.ports.Connection` on the iroh wheel.

Whatever may be cancelled loses no data, because a native await is never cancelled but kept and picked up by the next
call.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from iroh import iroh_ffi as iroh

from croft.adapters import iroh_endpoint
from croft.adapters.iroh_paths import Paths
from croft.adapters.native_calls import NativeCall
from croft.errors import ConnectionLost
from croft.model.ids import PeerId, short
from croft.ports import Route

T = TypeVar("T")

READ_BYTES_MIN = 64 << 10
READ_BYTES_MAX = 1 << 20
WRITE_BYTES_MAX = 1 << 20
READY_IN_A_ROW_MAX = 32
"""After so many calls that were ready at once the event loop gets a turn: a busy stream starves nobody."""
STREAMS_MAX = 512
"""Streams that the other side may have open at once on one connection."""
CONNECTION_WINDOW_BYTES = 64 << 20
"""What the other side may send on one connection, all streams together, before this side has read it."""
REASON_BYTES_MAX = 1_000
CODE_ABORTED = 3

_CLOSED_BY_PEER = re.compile(r"closed by peer: (?P<reason>.*) \(code \d+\)", re.DOTALL)
_BARE_CLOSE = re.compile(r"closed by peer: \d+")


def keep(call: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Starts a native call that outlives the cancellation of whoever waits for it."""
    task = asyncio.create_task(call, name=name)
    task.add_done_callback(_mark_retrieved)
    return task


def _mark_retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


async def settled(task: asyncio.Task[Any]) -> None:
    """Waits until `task` is done and never cancels it."""
    if not task.done():
        await asyncio.wait({task})


class IrohStream:
    """One QUIC stream; see `croft.ports.Stream`."""

    def __init__(self, native: Any, connection: IrohConnection) -> None:
        self._sender = native.send()
        self._receiver = native.recv()
        self._connection = connection
        self._buffer = b""
        self._position = 0
        self._read_bytes = READ_BYTES_MIN
        self._reading: NativeCall[bytes] | None = None
        self._writing: NativeCall[None] | None = None
        self._ready_in_a_row = 0
        self._unsent = memoryview(b"")
        self._is_at_end = False
        self._is_finished = False
        self._is_aborted = False
        connection.holds(self)

    async def read(self, size_bytes_max: int) -> bytes:
        """Some bytes, at most `size_bytes_max`; `b""` once the other side has finished.

        Raises:
            ConnectionLost: the stream was aborted by either side, or the connection is gone.
        """
        assert size_bytes_max > 0
        if self._position == len(self._buffer):
            received = await self._receive()
            if len(received) <= size_bytes_max:
                return received
            self._buffer, self._position = received, 0
        start = self._position
        part = self._buffer[start : start + size_bytes_max]
        self._position = start + len(part)
        if self._position == len(self._buffer):
            self._buffer, self._position = b"", 0
        return part

    async def _receive(self) -> bytes:
        if self._is_aborted:
            raise self._connection.lost("read", "the stream was aborted here")
        if self._is_at_end:
            return b""
        if self._reading is None:
            self._reading = NativeCall(self._receiver.read(self._read_bytes))
        call = self._reading
        await self._settled(call)
        self._reading = None
        received: bytes = self._outcome(call, "read")
        self._is_at_end = not received
        # The binding allocates as much as is asked for, so only busy streams ask for much.
        self._read_bytes = READ_BYTES_MAX if len(received) == self._read_bytes else READ_BYTES_MIN
        if len(received) > READ_BYTES_MIN:
            self._read_bytes = READ_BYTES_MAX
        return received

    async def _settled(self, call: NativeCall[Any]) -> None:
        if not call.is_done:
            self._ready_in_a_row = 0
            await call.settled()
            return
        self._ready_in_a_row += 1
        if self._ready_in_a_row >= READY_IN_A_ROW_MAX:
            self._ready_in_a_row = 0
            await asyncio.sleep(0)

    def _outcome(self, call: NativeCall[T], step: str) -> T:
        if self._is_aborted:
            raise self._connection.lost(step, "the stream was aborted here")
        try:
            return call.result()
        except iroh.IrohError as error:
            raise self._connection.lost(step, iroh_endpoint.cause(error)) from None

    async def write(self, data: bytes | memoryview) -> None:
        """Hands over all of `data`, waiting while the other side does not keep up. Raises ConnectionLost."""
        assert not self._is_finished, "nothing may be written after finish"
        await self._settle_write()
        if not len(data):
            return
        if isinstance(data, bytes) and len(data) <= WRITE_BYTES_MAX:
            call = self._sender.write_all(data)
        else:
            self._unsent = memoryview(data).cast("B")
            call = self._write_pieces()
        self._writing = NativeCall(call)
        try:
            await self._settle_write()
        except asyncio.CancelledError:
            # The caller may now change its buffer, and the rest still goes out as it was.
            self._unsent = memoryview(bytes(self._unsent))
            raise

    async def _write_pieces(self) -> None:
        while self._unsent:
            piece = bytes(self._unsent[:WRITE_BYTES_MAX])
            self._unsent = self._unsent[WRITE_BYTES_MAX:]
            await self._sender.write_all(piece)

    async def _settle_write(self) -> None:
        """Waits for the write in progress, which may be one whose caller was cancelled."""
        if self._is_aborted:
            raise self._connection.lost("write", "the stream was aborted here")
        call = self._writing
        if call is None:
            return
        await self._settled(call)
        self._outcome(call, "write")
        if self._writing is call:
            self._writing = None

    async def finish(self) -> None:
        """Half-closes: the other side reads `b""` after the last byte. Idempotent. Raises ConnectionLost."""
        await self._settle_write()
        if self._is_finished:
            return
        # Asked before, not after: a side that has read the end may close at once, and then nothing went wrong here.
        if self._connection.is_closed:
            raise self._connection.lost("finish", "the connection is closed")
        self._is_finished = True
        self._writing = NativeCall(self._sender.finish())
        await self._settle_write()

    def abort(self) -> None:
        """Drops both directions at once, without waiting; the other side sees ConnectionLost. Idempotent."""
        if self._is_aborted:
            return
        self._is_aborted = True
        if self._is_finished and self._is_at_end:
            return  # what was written is still on its way, and the other side shall have it
        self._connection.in_background(self._reset(), "iroh.reset")
        self._buffer, self._position = b"", 0
        for call in (self._reading, self._writing):
            if call is not None:
                call.cancel()  # its data is to be dropped; while it lasts it holds the native stream's lock
        self._reading = self._writing = None

    def release(self) -> None:
        """Lets go of the native stream, which keeps the endpoint's port taken; only once that is closed."""
        self._is_aborted = True
        self._sender = self._receiver = None

    async def _reset(self) -> None:
        with contextlib.suppress(iroh.IrohError):
            await self._sender.reset(CODE_ABORTED)
        with contextlib.suppress(iroh.IrohError):
            await self._receiver.stop(CODE_ABORTED)


class IrohConnection:
    """One QUIC connection; see `croft.ports.Connection`."""

    def __init__(self, native: Any, *, is_dialler: bool, forget: Callable[[IrohConnection], None]) -> None:
        native.set_max_concurrent_bi_streams(STREAMS_MAX)
        native.set_max_concurrent_uni_streams(0)
        native.set_receive_window(CONNECTION_WINDOW_BYTES)
        self._native = native
        self._remote = PeerId(str(native.remote_id()))
        self._protocol = bytes(native.alpn())
        self._is_dialler = is_dialler
        self._forget = forget
        self._paths = Paths()
        self._reason: str | None = None
        self._accepting: NativeCall[Any] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._streams: weakref.WeakSet[IrohStream] = weakref.WeakSet()
        self._ending = keep(native.closed(), "iroh.closed")
        self._ending.add_done_callback(self._ended)

    @property
    def remote(self) -> PeerId:
        return self._remote

    @property
    def protocol(self) -> bytes:
        return self._protocol

    @property
    def is_dialler(self) -> bool:
        return self._is_dialler

    @property
    def is_closed(self) -> bool:
        return self._native is None or self._close_reason() is not None

    async def open_stream(self) -> IrohStream:
        """A new stream; the other side sees it once something is written. Raises ConnectionLost."""
        if self.is_closed:
            raise self.lost("open a stream", "the connection is closed")
        # Cancelling this one is harmless: a stream without a byte in it is unknown to the other side.
        try:
            native = await self._native.open_bi()
        except iroh.IrohError as error:
            raise self.lost("open a stream", iroh_endpoint.cause(error)) from None
        return IrohStream(native, self)

    async def accept_stream(self) -> IrohStream:
        """The next stream that the other side opened; safe to cancel. Raises ConnectionLost once closed."""
        while True:
            if self._accepting is None:
                if self._native is None:
                    raise self.lost("accept a stream", "the connection is closed")
                self._accepting = NativeCall(self._native.accept_bi())
            call = self._accepting
            await call.settled()
            if self._accepting is not call:
                continue  # another waiter took it
            self._accepting = None
            try:
                return IrohStream(call.result(), self)
            except iroh.IrohError as error:
                raise self.lost("accept a stream", iroh_endpoint.cause(error)) from None

    def route(self) -> Route:
        """The selected path and what the connection has moved so far. iroh tells round trips in whole ms."""
        return self._paths.route(self._native.paths() if self._native is not None else [])

    def close(self, code: int, reason: str) -> None:
        """Closes at once; `reason` (at most 1,000 bytes) reaches the other side. Idempotent."""
        if self.is_closed:
            return
        self._reason = reason
        self._native.close(code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore").encode())
        self._forget(self)

    async def wait_closed(self) -> str:
        """Returns the reason once the connection is closed, by whichever side or by the network."""
        await settled(self._ending)
        return self._close_reason() or "closed"

    def lost(self, step: str, why: str) -> ConnectionLost:
        """What a waiter on this connection gets to see."""
        return ConnectionLost(f"{short(self._remote)}: {step}: {self._close_reason() or _plain(why)}")

    def in_background(self, call: Coroutine[Any, Any, None], name: str) -> None:
        task = keep(call, name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def holds(self, stream: IrohStream) -> None:
        """Remembers a stream of this connection for `release`."""
        self._streams.add(stream)

    def release(self) -> None:
        """Lets go of everything native, which keeps the endpoint's port taken; only once that is closed."""
        self._close_reason()
        self._native = None
        for stream in list(self._streams):
            stream.release()

    def _close_reason(self) -> str | None:
        if self._reason is None and self._native is not None:
            cause: str | None = self._native.close_reason()
            if cause is not None:
                self._reason = _cause(cause)
        return self._reason

    def _ended(self, _: asyncio.Task[str]) -> None:
        self._close_reason()
        self._forget(self)


def _cause(text: str) -> str:
    """The reason as the closing side gave it, or what the network says."""
    by_peer = _CLOSED_BY_PEER.fullmatch(text)
    if by_peer:
        return iroh_endpoint.printable(by_peer["reason"])
    if _BARE_CLOSE.fullmatch(text):
        return "closed by the other side"
    return iroh_endpoint.printable(text)


def _plain(why: str) -> str:
    if why.startswith(("Reset(", "Stopped(")):
        return "the other side aborted the stream"
    return iroh_endpoint.printable(why)
