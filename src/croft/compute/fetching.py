"""What the chunks of one session need of results that are kept elsewhere: fetched while they wait for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from croft.compute.boxes import TaskBox
from croft.compute.keeping import Keeping
from croft.compute.lender_streams import stopped
from croft.compute.messages import FetchBuffer, FetchStored
from croft.compute.worker_messages import BUFFER_BYTES_MAX, RunChunk
from croft.errors import PeerMisbehaved

FETCHES_MAX: Final = 10_000
"""Buffers that one session has fetched and may yet need."""
FETCHES_AT_ONCE: Final = 8
TOKEN_BYTES_MAX: Final = 64
DIGEST_BYTES: Final = 32
PEER_LENGTH_MAX: Final = 128

Ready = Callable[[RunChunk, Sequence[bytes]], None]
"""Takes a chunk whose buffers are there, but for those that cannot be had, by their digests."""


class Fetches:
    """One session's. `number` is the session's."""

    def __init__(self, keeping: Keeping, number: int, box: TaskBox) -> None:
        self._keeping = keeping
        self._number = number
        self._box = box
        self._fetches: dict[bytes, asyncio.Task[bool]] = {}
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._lost: set[bytes] = set()
        """What could not be had. Chunks that need it may be on their way, since who sent them knows it not yet."""

    def begin(self, wanted: FetchBuffer | FetchStored) -> None:
        """Begins to fetch a buffer. Raises PeerMisbehaved for what nobody keeps."""
        is_possible = 0 < wanted.size <= BUFFER_BYTES_MAX and len(wanted.digest) == DIGEST_BYTES
        is_kept = 0 < len(wanted.token) <= TOKEN_BYTES_MAX and 0 < len(wanted.peer) <= PEER_LENGTH_MAX
        if not is_possible or not (is_kept or (isinstance(wanted, FetchStored) and not wanted.token)):
            raise PeerMisbehaved("an impossible buffer to fetch", step="tasks")
        if wanted.digest in self._fetches or len(self._fetches) >= FETCHES_MAX:
            raise PeerMisbehaved("too many buffers to fetch, or one twice", step="tasks")
        self._lost.discard(wanted.digest)
        self._fetches[wanted.digest] = asyncio.create_task(self._fetch(wanted), name="tasks.fetch")

    def drop(self, digest: bytes) -> None:
        """A buffer is not needed any more, or could not be had."""
        self._lost.discard(digest)
        if fetching := self._fetches.pop(digest, None):
            fetching.cancel()
        self._box.drop(self._number, [digest])

    @property
    def lost(self) -> frozenset[bytes]:
        """What could not be had, since it was asked for last."""
        return frozenset(self._lost)

    def found(self, digest: bytes) -> None:
        """A buffer has come from its consumer after all."""
        self._lost.discard(digest)

    def hold(self, chunk: RunChunk, ready: Ready) -> None:
        """Calls `ready` once all that a chunk needs has come or cannot come: at once if nothing is on its way."""
        wanted = {digest for digests in chunk.buffers for digest in digests}
        if gone := sorted(wanted & self._lost):
            ready(chunk, gone)
            return
        fetches = {digest: self._fetches[digest] for digest in sorted(wanted) if digest in self._fetches}
        if all(fetch.done() for fetch in fetches.values()):
            self._end(chunk, fetches, ready)
        else:
            waiting = self._wait(chunk, fetches, ready)
            self._waiting[chunk.chunk] = asyncio.create_task(waiting, name="tasks.fetched")

    def forget(self, chunk: int) -> None:
        """A chunk is not wanted any more."""
        if waiting := self._waiting.pop(chunk, None):
            waiting.cancel()

    async def close(self) -> None:
        """Stops what is under way."""
        for task in (*self._waiting.values(), *self._fetches.values()):
            await stopped(task)

    async def _fetch(self, wanted: FetchBuffer | FetchStored) -> bool:
        async with self._turn:
            return await self._keeping.fetch(self._number, self._box, wanted)

    async def _wait(self, chunk: RunChunk, fetches: Mapping[bytes, asyncio.Task[bool]], ready: Ready) -> None:
        await asyncio.wait(fetches.values())
        del self._waiting[chunk.chunk]
        self._end(chunk, fetches, ready)

    def _end(self, chunk: RunChunk, fetches: Mapping[bytes, asyncio.Task[bool]], ready: Ready) -> None:
        lost = [digest for digest, fetch in fetches.items() if fetch.cancelled() or not fetch.result()]
        for digest in lost:
            if self._fetches.get(digest) is fetches[digest]:
                self.drop(digest)
                self._lost.add(digest)
        ready(chunk, lost)
