"""Chunks on this machine's disk; see `croft.ports.ChunkStore`. How they lie there: `croft.adapters.chunk_segments`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from croft.adapters.chunk_index import ChunkIndex
from croft.adapters.chunk_log import ChunkLog
from croft.adapters.chunk_segments import SEGMENT_BYTES_MAX
from croft.errors import Failed
from croft.ports import CHUNK_BYTES_MAX, CHUNK_KEY_BYTES, Chunk, Entropy

T = TypeVar("T")

GROUP_BYTES_MAX = 32 << 20
"""What one sync of the disk covers at most, unless a single call brings more."""
READERS = 4


class DiskChunkStore:
    """A folder of chunks. Made by `open`, ended by `close`; one at a time may have a folder open."""

    def __init__(self, chunks: ChunkLog, writer: ThreadPoolExecutor) -> None:
        self._log = chunks
        self._writer = writer
        self._readers = ThreadPoolExecutor(READERS, "croft.chunks.read")
        self._waiting: deque[tuple[Sequence[Chunk], asyncio.Future[None]]] = deque()
        self._is_putting = False
        self._is_closed = False

    @classmethod
    async def open(cls, folder: Path, entropy: Entropy, segment_bytes_max: int = SEGMENT_BYTES_MAX) -> DiskChunkStore:
        """Opens or makes it; after a crash, what the index does not know yet is read from the segments.

        Raises:
            Failed: the folder cannot be used, or a newer version of Croft has written it; then it is left as it was.
        """
        writer = ThreadPoolExecutor(1, "croft.chunks.write")
        make = partial(ChunkLog, folder, entropy.token, segment_bytes_max)
        try:
            return cls(await asyncio.get_running_loop().run_in_executor(writer, make), writer)
        except BaseException:
            writer.shutdown(wait=False)
            raise

    async def put(self, chunks: Sequence[Chunk]) -> None:
        assert not self._is_closed, "the store is closed"
        for chunk in chunks:
            assert len(chunk.owner) == len(chunk.key) == CHUNK_KEY_BYTES, "owners and keys have 32 bytes"
            assert len(chunk.data) <= CHUNK_BYTES_MAX, "a chunk is too large for a store"
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((chunks, done))
        self._put_next()
        await done

    async def read(self, owner: bytes, key: bytes, offset: int = 0, size_bytes: int | None = None) -> bytes:
        data = await self._ask(self._log.read, owner, key, offset, size_bytes)
        if data is None:
            await self._write(self._log.mark_damaged, owner, key)
            raise Failed(
                f"chunk {key.hex()[:16]} is damaged on the disk", remedy="It has to be fetched from elsewhere."
            )
        return data

    async def sizes(self, owner: bytes, keys: Sequence[bytes]) -> list[int | None]:
        def find(index: ChunkIndex) -> list[int | None]:
            found = [index.find(owner, key) for key in keys]
            return [None if held is None or held[1] else held[0].size for held in found]

        return await self._question(find)

    async def keys(self, owner: bytes, after: bytes = b"", count_max: int = 1000) -> list[tuple[bytes, int]]:
        return await self._question(lambda index: index.keys(owner, after, count_max))

    async def owners(self) -> list[bytes]:
        return await self._question(ChunkIndex.owners)

    async def delete(self, owner: bytes, keys: Sequence[bytes]) -> int:
        return await self._write(self._log.delete, owner, list(keys))

    async def held_bytes(self, owner: bytes | None = None) -> int:
        return await self._question(lambda index: index.held_bytes(owner))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, partial(self._readers.shutdown, cancel_futures=True))
        await loop.run_in_executor(self._writer, self._log.close)
        self._writer.shutdown()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _put_next(self) -> None:
        """Begins the next group, if none is under way; whoever comes meanwhile is in the one after it."""
        if self._is_putting or not self._waiting:
            return
        group: list[Chunk] = []
        calls: list[asyncio.Future[None]] = []
        size = 0
        while self._waiting and (not group or size + _size(self._waiting[0][0]) <= GROUP_BYTES_MAX):
            chunks, done = self._waiting.popleft()
            group += chunks
            calls.append(done)
            size += _size(chunks)
        self._is_putting = True
        loop = asyncio.get_running_loop()

        def end(written: Future[None]) -> None:
            loop.call_soon_threadsafe(self._put_ended, calls, written.exception())

        self._writer.submit(self._log.put, group).add_done_callback(end)

    def _put_ended(self, calls: list[asyncio.Future[None]], error: BaseException | None) -> None:
        self._is_putting = False
        for done in calls:
            if done.done():
                continue  # cancelled meanwhile
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        self._put_next()

    async def _write(self, work: Callable[..., T], *args: object) -> T:
        assert not self._is_closed, "the store is closed"
        return await asyncio.get_running_loop().run_in_executor(self._writer, work, *args)

    async def _ask(self, work: Callable[..., T], *args: object) -> T:
        assert not self._is_closed, "the store is closed"
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *args)

    async def _question(self, ask: Callable[[ChunkIndex], T]) -> T:
        return await self._ask(self._log.answer, ask)


def _size(chunks: Sequence[Chunk]) -> int:
    return sum(len(chunk.data) for chunk in chunks)
