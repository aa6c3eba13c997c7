"""Keeps one warm box per lease for Python tasks, and hands its answers to the session that asked.

How long a box is kept after its last session, the lease says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blake3 import blake3

from croft.compute.worker_messages import (
    BUFFER_BYTES_MAX,
    BufferPart,
    CancelChunk,
    ChunkDone,
    ChunkResults,
    DropBuffer,
    FromWorker,
    FunctionFailed,
    LoadFunction,
    Ready,
    ResultPart,
    RunChunk,
)
from croft.errors import ConnectionLost, Failed, PeerMisbehaved
from croft.model.ids import TwinId
from croft.model.lease import Usage
from croft.wire.codec import Message, decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.compute.live_boxes import LiveBoxes
    from croft.ports import Box, BoxSpec, BoxUsage

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
FUNCTION_CACHE_BYTES_MAX = 256 << 20

Deliver = Callable[[Message], Awaitable[None]]
"""Takes an answer of a box to the session that it is for; waits while that one's consumer does not keep up."""


def usage_of(used: BoxUsage) -> Usage:
    """What a box adds to what was used under its lease."""
    return Usage(used.cpu_s, used.memory_peak_bytes, death=used.death or used.limits)


@dataclass(slots=True)
class _Waiting:
    """A chunk that the box runs for a session."""

    session_chunk: int
    function: bytes
    deliver: Deliver


@dataclass(slots=True)
class _Buffer:
    """A buffer in a box: which sessions want it there, and how much of it has come from the one that fills it."""

    size: int
    filled_by: int
    hasher: blake3
    filled: int = 0
    sessions: set[int] = field(default_factory=set)

    @property
    def is_whole(self) -> bool:
        return self.filled == self.size


@dataclass(slots=True)
class TaskBox:
    """One lease's warm box."""

    lease: int
    twin: TwinId
    box: Box
    messages: MessageStream
    memory_bytes: int = 0
    loaded: set[bytes] = field(default_factory=set)
    buffers: dict[bytes, _Buffer] = field(default_factory=dict)
    waiting: dict[int, _Waiting] = field(default_factory=dict)
    next_chunk: int = 1
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_dead(self) -> bool:
        """Whether the box has ended; its sessions end too."""
        return self.ended.is_set()

    def run(self, chunk: RunChunk, function: LoadFunction, deliver: Deliver) -> int:
        """Starts a chunk; outcomes go to `deliver` under the session's own number. Returns the box's number."""
        number = self.next_chunk
        self.next_chunk += 1
        self.waiting[number] = _Waiting(chunk.chunk, chunk.function, deliver)
        # A box that has just died is noticed by its listener, which ends the chunk.
        with contextlib.suppress(ConnectionLost):
            if function.digest not in self.loaded:
                self.loaded.add(function.digest)
                self.messages.post(function)
            self.messages.post(RunChunk(number, chunk.function, chunk.arguments, chunk.task_s_max, chunk.buffers))
        return number

    async def put(self, session: int, part: BufferPart, payload: bytes, *, is_named: bool = False) -> bool:
        """Takes the next part of a buffer to the box, as it came in `payload`; False if there is no room for it.

        With `is_named`, the digest is a name, and others have checked the bytes. Raises PeerMisbehaved.
        """
        buffer = self.buffers.get(part.digest)
        if buffer is None:
            if not 0 < part.size <= BUFFER_BYTES_MAX:
                raise PeerMisbehaved(f"a buffer of {part.size} bytes, limit is {BUFFER_BYTES_MAX}", step="tasks")
            if sum(b.size for b in self.buffers.values()) + part.size > self.buffer_bytes_max:
                return False
            buffer = self.buffers[part.digest] = _Buffer(part.size, session, blake3())
        buffer.sessions.add(session)
        if buffer.filled_by != session:
            return True  # another session of the same consumer has brought it, or is about to
        if part.size != buffer.size or part.offset != buffer.filled or len(part.data) > buffer.size - buffer.filled:
            raise PeerMisbehaved("a part of a buffer that does not continue it", step="tasks")
        buffer.hasher.update(part.data)
        buffer.filled += len(part.data)
        if buffer.is_whole and not is_named and buffer.hasher.digest() != part.digest:
            raise PeerMisbehaved("a buffer that is not what its digest says", step="tasks")
        with contextlib.suppress(ConnectionLost):
            await self.messages.send_encoded(payload)
        return True

    def share(self, session: int, digest: bytes) -> bool:
        """Whether a buffer is here already, as others of the same consumer have brought it; then it stays for this."""
        buffer = self.buffers.get(digest)
        if buffer is None or not buffer.is_whole:
            return False
        buffer.sessions.add(session)
        return True

    @property
    def buffer_bytes_max(self) -> int:
        """What the box has room for, beside what its tasks need."""
        return self.memory_bytes * 3 // 4

    def has_whole(self, digests: Iterable[bytes]) -> bool:
        """Whether all of these buffers are in the box."""
        return all((buffer := self.buffers.get(digest)) is not None and buffer.is_whole for digest in digests)

    def drop(self, session: int, digests: Iterable[bytes]) -> None:
        """A session needs these no more; what none needs is forgotten, and so is what nobody will complete."""
        for digest in digests:
            buffer = self.buffers.get(digest)
            if buffer is None:
                continue
            buffer.sessions.discard(session)
            if not buffer.sessions or (buffer.filled_by == session and not buffer.is_whole):
                del self.buffers[digest]
                with contextlib.suppress(ConnectionLost):
                    self.messages.post(DropBuffer(digest))

    def cancel(self, number: int) -> None:
        """Kills a chunk; `ChunkDone` still comes."""
        if number in self.waiting and not self.is_dead:
            with contextlib.suppress(ConnectionLost):
                self.messages.post(CancelChunk(number))

    def forget(self, number: int) -> None:
        """Kills a chunk whose session is gone."""
        self.cancel(number)
        self.waiting.pop(number, None)

    async def listen(self) -> None:
        """Hands on what the worker says until the box ends."""
        try:
            while (payload := await self.messages.receive()) is not None:
                message: FromWorker = decode_union(payload, FromWorker, step="box")
                match message:
                    case ChunkResults(number, outcomes):
                        if waiting := self.waiting.get(number):
                            await waiting.deliver(ChunkResults(waiting.session_chunk, outcomes))
                    case ResultPart(number, task, offset, data):
                        if waiting := self.waiting.get(number):
                            await waiting.deliver(ResultPart(waiting.session_chunk, task, offset, data))
                    case ChunkDone(number, elapsed_s):
                        if waiting := self.waiting.pop(number, None):
                            await waiting.deliver(ChunkDone(waiting.session_chunk, elapsed_s))
                    case FunctionFailed(digest):
                        await self._fail_function(digest, message)
                    case _:
                        pass
        except (ConnectionLost, PeerMisbehaved) as fault:
            log.warning("the box of twin %s: %s", self.twin, fault)
        finally:
            # The sessions end with it: their consumers run again elsewhere what has no outcome.
            self.ended.set()
            self.waiting.clear()

    async def _fail_function(self, digest: bytes, message: FunctionFailed) -> None:
        told: list[Deliver] = []
        for number in [n for n, waiting in self.waiting.items() if waiting.function == digest]:
            waiting = self.waiting.pop(number)
            if waiting.deliver not in told:
                told.append(waiting.deliver)
                await waiting.deliver(message)
            await waiting.deliver(ChunkDone(waiting.session_chunk, 0.0))


class BoxPool:
    """All warm boxes of this peer."""

    def __init__(self, live: LiveBoxes) -> None:
        self._live = live
        self._boxes: dict[int, TaskBox] = {}
        self._starting: dict[int, asyncio.Lock] = {}
        self._functions: dict[TwinId, dict[bytes, LoadFunction]] = {}
        self._usage: dict[int, Usage] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def serve(self) -> None:
        """Runs the boxes' listeners; ends by cancellation, and the boxes with it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    await asyncio.Event().wait()
                finally:
                    self._tasks = None
        finally:
            for lease in list(self._boxes):
                await self._close(lease)

    def functions(self, twin: TwinId) -> dict[bytes, LoadFunction]:
        """The functions that a consumer has sent, by digest; bounded by forgetting the oldest."""
        return self._functions.setdefault(twin, {})

    def keep_function(self, twin: TwinId, function: LoadFunction) -> None:
        """Remembers a function for later sessions of the same consumer."""
        kept = self.functions(twin)
        kept[function.digest] = function
        while sum(len(f.pickled) for f in kept.values()) > FUNCTION_CACHE_BYTES_MAX and len(kept) > 1:
            del kept[next(iter(kept))]

    async def acquire(self, lease: int, twin: TwinId, make: Callable[[], BoxSpec]) -> TaskBox:
        """The lease's box, started if need be. Raises Failed."""
        async with self._starting.setdefault(lease, asyncio.Lock()):
            box = self._boxes.get(lease)
            if box is not None and box.is_dead:
                await self._close(lease)
                box = None
            if box is None:
                box = self._boxes[lease] = await self._start(lease, twin, make())
            return box

    async def close(self, lease: int) -> Usage:
        """Ends a lease's box, if it has one, and returns what all its boxes used."""
        await self._close(lease)
        self._starting.pop(lease, None)
        return self._usage.pop(lease, Usage())

    async def _start(self, lease: int, twin: TwinId, spec: BoxSpec) -> TaskBox:
        box = await self._live.open(spec)
        messages = MessageStream(box, step="box")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                payload = await messages.receive()
            ready = payload and decode_union(payload, FromWorker, step="box")
            if not isinstance(ready, Ready):
                raise ConnectionLost("the worker ended while it started")
            if self._tasks is None:
                raise ConnectionLost("this peer is shutting down")
        except (TimeoutError, ConnectionLost, PeerMisbehaved) as fault:
            await messages.close()
            usage = await box.close()
            self._live.closed(box)
            raise Failed(
                f"the box did not start: {usage.death or fault or 'no answer'}", remedy="See the peer's log."
            ) from None
        except BaseException:
            await messages.close()
            await box.close()
            self._live.closed(box)
            raise
        task_box = TaskBox(lease, twin, box, messages, spec.memory_bytes)
        self._tasks.create_task(task_box.listen(), name=f"box.{twin[:8]}")
        return task_box

    async def _close(self, lease: int) -> None:
        box = self._boxes.pop(lease, None)
        if box is not None:
            used = await box.box.close()
            self._live.closed(box.box)
            await box.messages.close()
            self._usage[lease] = self._usage.get(lease, Usage()) + usage_of(used)
