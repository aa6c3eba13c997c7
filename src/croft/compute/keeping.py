"""Keeps the large results of others' tasks at this lender, and fetches what other lenders keep.

What is kept lies where calls of pipelines keep theirs, under the same bounds, for as long as the job has a session
here, and a little longer: a consumer that was only out of reach finds it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from blake3 import blake3

from croft.compute.boxes import TaskBox
from croft.compute.lending_terms import Held as HeldFiles
from croft.compute.messages import FetchBuffer, FetchStored, KeptResult
from croft.compute.worker_messages import (
    KEPT_BYTES_MIN,
    PART_BYTES,
    RESULT_BYTES_MAX,
    BufferPart,
    ChunkDone,
    ChunkResults,
    Outcome,
    ResultPart,
    Status,
)
from croft.errors import ConnectionLost, CroftError, PeerMisbehaved
from croft.model.ids import PeerId, TwinId
from croft.model.kept import Held
from croft.wire.codec import Message, encode

log = logging.getLogger(__name__)

LINGER_S: Final = 60.0
"""How long results of a job that has no session here any more are kept."""
TEND_EVERY_S: Final = 10.0
PARTS_AHEAD_MAX: Final = 8
"""What waits for the disk of one result."""


class Values(Protocol):
    """Where values are kept for those who know their tokens; see `croft.twins.kept_values`."""

    def room(self, keeper: str) -> int:
        """How many bytes it would still keep for a twin."""
        ...

    async def keep(self, keeper: str, parts: AsyncIterator[bytes], *, is_lasting: bool = True) -> Held:
        """Keeps a value; one that is not `is_lasting` goes with this run of the peer. Raises Busy, Failed."""
        ...

    def read(self, value: Held) -> AsyncIterator[bytes]:
        """Its bytes, from here or from the peer that keeps it. Raises NotFound, Unreachable, Failed."""
        ...

    async def release(self, tokens: Sequence[bytes]) -> None:
        """Drops what is here. Raises Failed."""
        ...


@dataclass(slots=True)
class _Shelf:
    """What is kept for one job."""

    sessions: int = 0
    tokens: set[bytes] = field(default_factory=set)
    left_at: float = 0.0


class Keeping:
    """All that is kept here for jobs. `values` is set before anybody is served."""

    values: Values

    def __init__(self, held: HeldFiles) -> None:
        self._held = held
        self._shelves: dict[str, _Shelf] = {}
        self._needless: asyncio.Queue[set[bytes]] = asyncio.Queue()

    async def serve(self) -> None:
        """Drops what is needless, until cancelled."""
        while True:
            tokens: set[bytes] = set()
            try:
                async with asyncio.timeout(TEND_EVERY_S):
                    tokens |= await self._needless.get()
            except TimeoutError:
                pass
            now = asyncio.get_running_loop().time()
            for job in [job for job, shelf in self._shelves.items() if not shelf.sessions]:
                if now - self._shelves[job].left_at > LINGER_S:
                    tokens |= self._shelves.pop(job).tokens
            try:
                await self.values.release(sorted(tokens))
            except CroftError as error:
                log.warning("results that nobody needs are not dropped: %s", error.message)

    def begin(self, job: str) -> None:
        """A job has a session here."""
        self._shelves.setdefault(job, _Shelf()).sessions += 1

    def end(self, job: str, *, is_over: bool) -> None:
        """A session has ended; `is_over`: and the job with it, as its consumer says."""
        shelf = self._shelves[job]
        shelf.sessions -= 1
        shelf.left_at = asyncio.get_running_loop().time()
        if not shelf.sessions and (is_over or not shelf.tokens):
            del self._shelves[job]
            self._needless.put_nowait(shelf.tokens)

    def has_room(self, twin: TwinId, size: int) -> bool:
        """Whether a result of so many bytes would be kept."""
        return self.values.room(twin) >= size

    async def keep(self, job: str, twin: TwinId, parts: AsyncIterator[bytes]) -> KeptResult:
        """Keeps a result. Raises Busy, Failed."""
        hasher = blake3()

        async def hashed() -> AsyncIterator[bytes]:
            async for part in parts:
                hasher.update(part)
                yield part

        held = await self.values.keep(twin, hashed(), is_lasting=False)
        shelf = self._shelves.get(job)
        if shelf is None:
            self._needless.put_nowait({held.token})
        else:
            shelf.tokens.add(held.token)
        return KeptResult(held.token, held.size, hasher.digest())

    def drop(self, job: str, tokens: Sequence[bytes]) -> None:
        """A consumer needs these results of its job no more."""
        shelf = self._shelves.get(job)
        if shelf is not None and (gone := shelf.tokens.intersection(tokens)):
            shelf.tokens -= gone
            self._needless.put_nowait(gone)

    async def fetch(self, session: int, box: TaskBox, wanted: FetchBuffer | FetchStored) -> bool:
        """Brings what another peer keeps, or this one, into a box. False if that cannot be had."""
        if box.share(session, wanted.digest):
            return True
        offset, is_named = 0, isinstance(wanted, FetchStored)
        try:
            async for piece in await self._pieces(box.twin, wanted):
                for at in range(0, len(piece), PART_BYTES):
                    part = BufferPart(wanted.digest, wanted.size, offset, bytes(piece[at : at + PART_BYTES]))
                    if not await box.put(session, part, encode(part), is_named=is_named):
                        return False
                    offset += len(part.data)
        except (CroftError, ConnectionLost) as lost:
            log.info("what a task of twin %s needs cannot be had: %s", box.twin[:10], lost)
            return False
        except PeerMisbehaved as fault:
            log.warning("what %s keeps for a task is not what it should be: %s", wanted.peer[:10], fault)
            return False
        return box.has_whole([wanted.digest])

    async def _pieces(self, twin: TwinId, wanted: FetchBuffer | FetchStored) -> AsyncIterator[bytes | memoryview]:
        """Where the bytes come from. Raises NotFound, Failed."""
        if isinstance(wanted, FetchStored):
            try:
                await self._held.check(twin, wanted.content)
            except CroftError:
                if not wanted.token:
                    raise
            else:
                return self._held.read(twin, wanted.content)
        return self.values.read(Held(PeerId(wanted.peer), wanted.token, wanted.size))


class _Writing:
    """A result on its way to the disk."""

    def __init__(self, keeping: Keeping, job: str, twin: TwinId) -> None:
        self._parts: asyncio.Queue[bytes] = asyncio.Queue(PARTS_AHEAD_MAX)
        self._keeping = asyncio.create_task(keeping.keep(job, twin, self._each()), name="tasks.keep")

    async def _each(self) -> AsyncIterator[bytes]:
        while part := await self._parts.get():
            yield part

    async def add(self, part: bytes) -> None:
        """Waits while the disk does not keep up; an empty part is the end."""
        putting = asyncio.create_task(self._parts.put(part), name="tasks.keep.put")
        try:
            await asyncio.wait({putting, self._keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()

    async def end(self, last: bytes) -> KeptResult:
        """Raises Busy, Failed."""
        await self.add(last)
        await self.add(b"")
        return await self._keeping

    async def stop(self) -> None:
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)


class Withheld:
    """The results of one session's chunks, of which large ones stay here where the consumer wishes that."""

    def __init__(self, keeping: Keeping, job: str, twin: TwinId) -> None:
        self._keeping = keeping
        self._job = job
        self._twin = twin
        self._chunks: set[int] = set()
        self._writing: dict[tuple[int, int], _Writing] = {}

    def begin(self, chunk: int) -> None:
        """Results of this chunk are to stay here."""
        self._chunks.add(chunk)

    def send(self, chunk: int) -> None:
        """Results of this chunk are to be sent; one that is being kept already is kept."""
        self._chunks.discard(chunk)

    async def passed(self, message: Message) -> Message | None:
        """What the consumer is told in place of what the box says; None: nothing."""
        match message:
            case ResultPart(chunk, task, offset, data):
                writing = self._writing.get((chunk, task))
                if offset == 0:
                    if writing is not None:
                        await self._writing.pop((chunk, task)).stop()
                    if chunk not in self._chunks or not self._keeping.has_room(self._twin, RESULT_BYTES_MAX):
                        return message
                    writing = self._writing[chunk, task] = _Writing(self._keeping, self._job, self._twin)
                if writing is None:
                    return message
                await writing.add(data)
                return None
            case ChunkResults(chunk, outcomes) if chunk in self._chunks or self._writing:
                return ChunkResults(chunk, [await self._outcome(chunk, *outcome) for outcome in outcomes])
            case ChunkDone(chunk):
                self._chunks.discard(chunk)
        return message

    async def _outcome(self, chunk: int, task: int, status: int, payload: bytes) -> Outcome:
        writing = self._writing.pop((chunk, task), None)
        if status != Status.OK:
            if writing is not None:
                await writing.stop()
            return task, status, payload
        if writing is None:
            is_large = chunk in self._chunks and len(payload) > KEPT_BYTES_MIN
            if not is_large or not self._keeping.has_room(self._twin, len(payload)):
                return task, status, payload
            writing = _Writing(self._keeping, self._job, self._twin)
        try:
            kept = await writing.end(payload)
        except CroftError as error:
            log.warning("a result is not kept: %s", error.message)
            return task, Status.LOST, b""
        return task, Status.KEPT, encode(kept)

    async def close(self) -> None:
        """What is not whole is dropped."""
        for writing in self._writing.values():
            await writing.stop()
        self._writing.clear()
