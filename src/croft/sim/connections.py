"""Simulated connections and streams; see `croft.ports.Connection` and `croft.ports.Stream`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from croft.errors import ConnectionLost
from croft.model.ids import PeerId, short
from croft.ports import Route, RouteKind

Way = tuple[RouteKind, str]
"""How packets travel now, and by what address."""

WINDOW_BYTES = 1_250_000
"""What a stream takes before its writer waits for the reader; measured on the real transport."""
SEGMENT_BYTES = 64 << 10
CREDIT_BYTES = WINDOW_BYTES // 4
HEADER_BYTES = 40
ACCEPTED_MAX = 256
REASON_BYTES_MAX = 1_000

ABORTED_HERE = "the stream was aborted here"
ABORTED_THERE = "the other side aborted the stream"


class Signal:
    """Wakes whoever waits. What has changed is for the woken to find out."""

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def fire(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class Pipe:
    """One direction of a connection: what is sent arrives in order, late, and not while the link is cut."""

    def __init__(
        self,
        delay_s: Callable[[int], float],
        is_cut: Callable[[], bool],
        hold: Callable[[Pipe], None],
        way: Callable[[], Way],
    ) -> None:
        self._delay_s = delay_s
        self._is_cut = is_cut
        self._hold = hold
        self.way = way
        self._queue: deque[tuple[float, Callable[[], None]]] = deque()
        self._last_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_held = False
        self.last_delay_s = delay_s(0)
        self.sent_bytes = 0
        self.relayed_bytes = 0

    def send(self, arrive: Callable[[], None], size_bytes: int = 0) -> None:
        """Calls `arrive` when the packet gets to the other side."""
        self.sent_bytes += size_bytes + HEADER_BYTES
        if self.way()[0] is RouteKind.RELAYED:
            self.relayed_bytes += size_bytes + HEADER_BYTES
        self.last_delay_s = self._delay_s(size_bytes + HEADER_BYTES)
        self._last_at = max(self._last_at, asyncio.get_running_loop().time() + self.last_delay_s)
        self._queue.append((self._last_at, arrive))
        self._schedule()

    def resume(self) -> bool:
        """Sends once more what was held, if the link works again, and says whether it does."""
        if self._is_cut():
            return False
        self._is_held = False
        at = asyncio.get_running_loop().time() + self._delay_s(0)
        self._queue = deque((max(at, due), arrive) for due, arrive in self._queue)
        self._last_at = max(self._last_at, at)
        self._schedule()
        return True

    def drop(self) -> None:
        """Nothing that is under way arrives any more."""
        self._queue.clear()

    def _schedule(self) -> None:
        if self._queue and self._timer is None and not self._is_held:
            self._timer = asyncio.get_running_loop().call_at(self._queue[0][0], self._due)

    def _due(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._queue and self._queue[0][0] <= now:
            if self._is_cut():
                self._is_held = True
                self._hold(self)
                return
            _, arrive = self._queue.popleft()
            arrive()
        self._schedule()


class SimulatedStream:
    """One end of a stream. Its bytes move by themselves, so cancelling whoever waits changes nothing."""

    def __init__(self, number: int, connection: SimulatedConnection) -> None:
        self.number = number
        self._connection = connection
        self._changed = Signal()
        self._inbox = bytearray()
        self._outbox = memoryview(b"")
        self._in_flight_bytes = 0
        self._read_bytes = 0
        self._is_far_finished = False
        self._is_finishing = False
        self._is_finish_sent = False
        self._failure: str | None = None

    async def read(self, size_bytes_max: int) -> bytes:
        assert size_bytes_max > 0
        while True:
            self._check("read")
            if self._inbox:
                part = bytes(self._inbox[:size_bytes_max])
                del self._inbox[:size_bytes_max]
                self._give_credit(len(part))
                return part
            if self._is_far_finished:
                return b""
            await self._changed.wait()

    async def write(self, data: bytes | memoryview) -> None:
        assert not self._is_finishing, "nothing may be written after finish"
        await self._drained("write")
        self._outbox = memoryview(bytes(data))
        self._pump()
        await self._drained("write")

    async def finish(self) -> None:
        await self._drained("finish")
        self._is_finishing = True
        self._pump()

    def abort(self) -> None:
        if self._failure is None:
            self._connection.tell(lambda far: far.stream_aborted(self.number))
            self.fail(ABORTED_HERE)

    def fail(self, why: str) -> None:
        """Ends both directions; what was not read is gone."""
        if self._failure is None:
            self._failure = why
            self._inbox.clear()
            self._outbox = memoryview(b"")
            self._connection.forget_stream(self)
            self._changed.fire()

    def arrived(self, data: bytes) -> None:
        """Bytes from the other end."""
        self._inbox += data
        self._changed.fire()

    def far_finished(self) -> None:
        """The other end will send no more."""
        self._is_far_finished = True
        self._changed.fire()
        self._forget_if_over()

    def credited(self, size_bytes: int) -> None:
        """The other end has read that much."""
        self._in_flight_bytes -= size_bytes
        self._pump()

    def _check(self, step: str) -> None:
        if self._failure is not None:
            raise self._connection.lost(step, self._failure)

    async def _drained(self, step: str) -> None:
        self._check(step)
        while self._outbox:
            await self._changed.wait()
            self._check(step)

    def _pump(self) -> None:
        """Sends what the window allows."""
        while self._outbox and self._in_flight_bytes < WINDOW_BYTES:
            size = min(SEGMENT_BYTES, WINDOW_BYTES - self._in_flight_bytes)
            piece, self._outbox = bytes(self._outbox[:size]), self._outbox[size:]
            self._in_flight_bytes += len(piece)
            self._connection.tell(_data(self.number, piece), len(piece))
        if not self._outbox:
            if self._is_finishing and not self._is_finish_sent:
                self._is_finish_sent = True
                self._connection.tell(lambda far: far.stream_finished(self.number))
                self._forget_if_over()
            self._changed.fire()

    def _give_credit(self, size_bytes: int) -> None:
        self._read_bytes += size_bytes
        if self._read_bytes >= CREDIT_BYTES:
            amount, self._read_bytes = self._read_bytes, 0
            self._connection.tell(lambda far: far.stream_credited(self.number, amount))

    def _forget_if_over(self) -> None:
        if self._is_finish_sent and self._is_far_finished:
            self._connection.forget_stream(self)


def _data(number: int, piece: bytes) -> Callable[[SimulatedConnection], None]:
    return lambda far: far.stream_data(number, piece)


class Owner(Protocol):
    """What an end needs of the transport that it belongs to."""

    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> list[str]: ...

    def forget(self, connection: SimulatedConnection) -> None: ...


class SimulatedConnection:
    """One end of a connection. `joined` gives it the other one."""

    def __init__(self, local: Owner, remote: Owner, protocol: bytes, outgoing: Pipe, *, is_dialler: bool) -> None:
        self._local = local
        self._remote = remote.peer_id
        self._protocol = protocol
        self._is_dialler = is_dialler
        self._outgoing = outgoing
        self._far: SimulatedConnection | None = None
        self._streams: dict[int, SimulatedStream] = {}
        self._next_number = 0 if is_dialler else 1
        self._last_seen = -1
        self._waiting: deque[SimulatedStream] = deque()
        self._changed = Signal()
        self._reason: str | None = None
        self.is_far_gone = False

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
        """Whether this end has ended."""
        return self._reason is not None

    @property
    def far(self) -> SimulatedConnection:
        """The other end."""
        assert self._far is not None
        return self._far

    def joined(self, far: SimulatedConnection) -> None:
        """Makes the two ends one connection."""
        self._far = far

    async def open_stream(self) -> SimulatedStream:
        self._check("open a stream")
        stream = SimulatedStream(self._next_number, self)
        self._streams[stream.number] = stream
        self._next_number += 2
        return stream

    async def accept_stream(self) -> SimulatedStream:
        while True:
            self._check("accept a stream")
            if self._waiting:
                return self._waiting.popleft()
            await self._changed.wait()

    def route(self) -> Route:
        if self.is_closed:
            return Route(RouteKind.UNKNOWN)
        out, back = self._outgoing, self.far._outgoing
        round_trip_s = out.last_delay_s + back.last_delay_s
        kind, address = out.way()
        return Route(
            kind, address, round_trip_s, out.sent_bytes, back.sent_bytes, out.relayed_bytes, back.relayed_bytes
        )

    def close(self, code: int, reason: str) -> None:
        if not self.is_closed:
            told = reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore")
            self.tell(lambda far: far.ended(told or "closed by the other side"))
            self.ended(reason)

    async def wait_closed(self) -> str:
        while not self.is_closed:
            await self._changed.wait()
        return self._reason or "closed"

    def ended(self, reason: str) -> None:
        """This end is over, for whatever reason. Idempotent."""
        if self.is_closed:
            return
        self._reason = reason
        for stream in list(self._streams.values()):
            stream.fail(reason)
        self._waiting.clear()
        self._changed.fire()
        self._local.forget(self)

    def vanished(self) -> None:
        """This end's host is gone; nothing of what it sent arrives, and the other end is not told."""
        self._outgoing.drop()
        self.far.is_far_gone = True
        self.ended("this host crashed")

    def lost(self, step: str, why: str) -> ConnectionLost:
        """What a waiter on this connection gets to see."""
        return ConnectionLost(f"{short(self._remote)}: {step}: {self._reason or why}")

    def tell(self, what: Callable[[SimulatedConnection], None], size_bytes: int = 0) -> None:
        """Sends something to the other end, which may be over when it arrives."""
        if self.is_closed:
            return

        def arrive() -> None:
            if not self.far.is_closed:
                what(self.far)

        self._outgoing.send(arrive, size_bytes)

    # --- what arrives from the other end ------------------------------------------------------------------

    def stream_data(self, number: int, data: bytes) -> None:
        stream = self._stream(number)
        if stream is not None:
            stream.arrived(data)

    def stream_finished(self, number: int) -> None:
        stream = self._stream(number)
        if stream is not None:
            stream.far_finished()

    def stream_credited(self, number: int, size_bytes: int) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.credited(size_bytes)

    def stream_aborted(self, number: int) -> None:
        stream = self._stream(number)
        if stream is not None:
            stream.fail(ABORTED_THERE)

    def forget_stream(self, stream: SimulatedStream) -> None:
        """It is over in both directions, or aborted."""
        self._streams.pop(stream.number, None)

    def _check(self, step: str) -> None:
        if self.is_closed:
            raise self.lost(step, "the connection is closed")

    def _stream(self, number: int) -> SimulatedStream | None:
        """The stream of that number, new ones included; None for one that is over here."""
        is_theirs = number % 2 == (1 if self._is_dialler else 0)
        if is_theirs and number > self._last_seen:
            # Numbers of a side may skip: a stream is visible only once something was written.
            self._last_seen = number
            stream = SimulatedStream(number, self)
            self._streams[number] = stream
            self._waiting.append(stream)
            self._changed.fire()
        return self._streams.get(number)
