"""Keeps one warm box per lease for Python tasks, and hands its answers to the session that asked.

How long a box is kept after its last session, the lease says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from croft.compute.worker_messages import (
    CancelChunk,
    ChunkDone,
    ChunkResults,
    FromWorker,
    FunctionFailed,
    LoadFunction,
    Ready,
    RunChunk,
)
from croft.errors import ConnectionLost, Failed, PeerMisbehaved
from croft.model.ids import TwinId
from croft.model.lease import Usage
from croft.wire.codec import Message, decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Box, BoxSpec, Sandbox

log = logging.getLogger(__name__)

START_TIMEOUT_S = 20.0
FUNCTION_CACHE_BYTES_MAX = 256 << 20

Deliver = Callable[[Message], None]


@dataclass(slots=True)
class _Waiting:
    """A chunk that the box runs for a session."""

    session_chunk: int
    function: bytes
    deliver: Deliver


@dataclass(slots=True)
class TaskBox:
    """One lease's warm box."""

    lease: int
    twin: TwinId
    box: Box
    messages: MessageStream
    loaded: set[bytes] = field(default_factory=set)
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
            self.messages.post(RunChunk(number, chunk.function, chunk.arguments, chunk.task_s_max))
        return number

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
                            waiting.deliver(ChunkResults(waiting.session_chunk, outcomes))
                    case ChunkDone(number, elapsed_s):
                        if waiting := self.waiting.pop(number, None):
                            waiting.deliver(ChunkDone(waiting.session_chunk, elapsed_s))
                    case FunctionFailed(digest):
                        self._fail_function(digest, message)
                    case _:
                        pass
        except (ConnectionLost, PeerMisbehaved) as fault:
            log.warning("the box of twin %s: %s", self.twin, fault)
        finally:
            # The sessions end with it: their consumers run again elsewhere what has no outcome.
            self.ended.set()
            self.waiting.clear()

    def _fail_function(self, digest: bytes, message: FunctionFailed) -> None:
        told: list[Deliver] = []
        for number in [n for n, waiting in self.waiting.items() if waiting.function == digest]:
            waiting = self.waiting.pop(number)
            if waiting.deliver not in told:
                told.append(waiting.deliver)
                waiting.deliver(message)
            waiting.deliver(ChunkDone(waiting.session_chunk, 0.0))


class BoxPool:
    """All warm boxes of this peer."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
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
        box = await self._sandbox.open(spec)
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
            raise Failed(
                f"the box did not start: {usage.death or fault or 'no answer'}", remedy="See the peer's log."
            ) from None
        except BaseException:
            await messages.close()
            await box.close()
            raise
        task_box = TaskBox(lease, twin, box, messages)
        self._tasks.create_task(task_box.listen(), name=f"box.{twin[:8]}")
        return task_box

    async def _close(self, lease: int) -> None:
        box = self._boxes.pop(lease, None)
        if box is not None:
            used = await box.box.close()
            await box.messages.close()
            usage = Usage(cpu_s=used.cpu_s, memory_peak_bytes=used.memory_peak_bytes, death=used.death)
            self._usage[lease] = self._usage.get(lease, Usage()) + usage
