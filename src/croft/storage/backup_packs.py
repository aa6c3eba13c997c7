"""Lays chunks into packs, and takes them out again.

A pack is stored as any content: cut into segments wherever it may be, sealed, coded, given to holders. So nobody can
tell from sizes where chunks begin.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from croft.errors import Failed
from croft.ports import Clock, Entropy
from croft.storage.backup_formats import PACKS, TABLES, Blob, ChunkList, PackTable, Table
from croft.storage.backup_index import BackupIndex, Changes, IndexedPack, Place
from croft.storage.contents import BytesSource, Pending, Putting
from croft.storage.formats import FORMAT, Version, decode_stored
from croft.storage.kept_records import KeptRecords
from croft.storage.placement import Rule
from croft.storage.sealing import SEGMENT_BYTES
from croft.storage.service import HIDDEN, Storage
from croft.wire.codec import encode

PACK_BYTES: Final = 2 * SEGMENT_BYTES
BATCH_BYTES: Final = 256 << 20
"""So much counts at the latest once it is stored, and need not be sent again if the run is interrupted."""
PACKS_KEPT: Final = 6
TOKEN_BYTES: Final = 4


class PackWriter:
    """Stores chunks that are in no pack yet. An async context manager; what was not committed does not count.

    Bytes of files and listings of folders go to packs of their own, so that listings are read without the files.
    """

    def __init__(
        self,
        storage: Storage,
        records: KeptRecords,
        index: BackupIndex,
        prefix: bytes,
        rule: Rule,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._storage = storage
        self._records = records
        self._index = index
        self._prefix = prefix
        self._rule = rule
        self._clock = clock
        self._entropy = entropy
        self._putting: Putting | None = None
        self._open: dict[bool, bytearray] = {}
        self._laid: dict[bool, list[tuple[bytes, int]]] = {}
        self._fresh: set[bytes] = set()
        self._shipping: asyncio.Task[None] | None = None
        self._shipped: list[tuple[bytes, Pending, list[tuple[bytes, int]]]] = []
        self._batch_bytes = 0
        self.new_bytes = 0
        self.sent_bytes = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._shipping is not None:
            self._shipping.cancel()
            await asyncio.gather(self._shipping, return_exceptions=True)
        await self._close()

    @property
    def is_due(self) -> bool:
        """Whether so much is stored that it should be committed."""
        return self._batch_bytes >= BATCH_BYTES

    def is_fresh(self, chunk: bytes) -> bool:
        """Whether it was added since the last commit."""
        return chunk in self._fresh

    async def add(self, chunk: bytes, data: bytes | memoryview, *, is_listing: bool) -> None:
        """Adds one that is in no pack. Raises CroftError if holders refuse."""
        assert chunk not in self._fresh, "each chunk is added once"
        pack = self._open.setdefault(is_listing, bytearray())
        if pack and len(pack) + len(data) > PACK_BYTES:
            await self._ship(is_listing)
            pack = self._open.setdefault(is_listing, bytearray())
        pack += data
        self._laid.setdefault(is_listing, []).append((chunk, len(data)))
        self._fresh.add(chunk)
        self._batch_bytes += len(data)
        self.new_bytes += len(data)

    async def commit(
        self,
        records: Mapping[bytes, bytes] | None = None,
        *,
        gone: Collection[bytes] = (),
        removed: Collection[bytes] = (),
        seen: Changes | None = None,
    ) -> None:
        """Makes all that was added count, at once with `records`, which are kept under their names.

        `gone`: packs that are dropped; `removed`: other names. `seen`: what the index is to know besides. Raises
        CroftError: then nothing has changed.
        """
        for is_listing in sorted(self._open):
            await self._ship(is_listing)
        await self._shipped_all()
        putting = await self._current()
        table = self._prefix + TABLES + self._token()
        packs = [IndexedPack(name, table, chunks) for name, _, chunks in self._shipped]
        records = records or {}
        kept = {name: await putting.add(BytesSource(record)) for name, record in records.items()}
        if packs:
            listed = Table(
                FORMAT, [PackTable(pack.name.removeprefix(self._prefix), list(pack.chunks)) for pack in packs]
            )
            kept[table] = await putting.add(BytesSource(encode(listed)))
        await putting.finish()
        pending = {**kept, **{name: one for name, one, _ in self._shipped}}
        changes: dict[bytes, Version | None] = {
            name: Version(0, b"", 0.0, one.size, one.content) for name, one in pending.items()
        }
        changes.update(dict.fromkeys([*gone, *removed]))
        if changes:
            async with await self._storage.listing() as listing:
                await self._storage.keep(changes, listing)
            self.sent_bytes += listing.stored_bytes
        self.sent_bytes += putting.stored_bytes
        await self._close()
        told = seen or Changes()
        told.packs, told.gone = packs, gone
        await self._index.apply(told)
        await self._records.remember({name: (kept[name].content.key, record) for name, record in records.items()})
        self._shipped.clear()
        self._fresh.clear()
        self._batch_bytes = 0

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _current(self) -> Putting:
        if self._putting is None:
            self._putting = await self._storage.putting(self._rule).__aenter__()
        return self._putting

    async def _close(self) -> None:
        if self._putting is not None:
            await self._putting.__aexit__(None, None, None)
            self._putting = None

    async def _ship(self, is_listing: bool) -> None:
        """Sends a pack while the next one is filled."""
        data, chunks = self._open.pop(is_listing), self._laid.pop(is_listing)
        putting = await self._current()
        await self._shipped_all()
        name = self._prefix + PACKS + self._token()

        async def ship() -> None:
            self._shipped.append((name, await putting.add(BytesSource(memoryview(data))), chunks))

        self._shipping = asyncio.create_task(ship(), name="pack.ship")

    async def _shipped_all(self) -> None:
        if self._shipping is not None:
            await self._shipping
            self._shipping = None

    def _token(self) -> bytes:
        """Names of one time are neighbours in the list of files, so that few of its nodes change."""
        return b"%012x-%s" % (int(self._clock.now() * 1000), self._entropy.token(TOKEN_BYTES).hex().encode())


class PackReader:
    """Reads chunks; the last packs are remembered."""

    def __init__(self, storage: Storage, index: BackupIndex) -> None:
        self._storage = storage
        self._index = index
        self._packs: OrderedDict[bytes, asyncio.Task[bytes]] = OrderedDict()

    async def close(self) -> None:
        """Ends what is under way."""
        for task in self._packs.values():
            task.cancel()
        await asyncio.gather(*self._packs.values(), return_exceptions=True)

    async def chunk(self, place: Place) -> memoryview:
        """The bytes of a chunk. Raises Unreachable, Failed."""
        pack = memoryview(await self.pack(place.pack))
        if place.offset + place.size > len(pack):
            raise missing()
        return pack[place.offset : place.offset + place.size]

    async def pack(self, name: bytes) -> bytes:
        """All of a pack; many who want one share the way there. Raises Unreachable, Failed."""
        reading = self._packs.get(name)
        if reading is None or (reading.done() and (reading.cancelled() or reading.exception())):
            reading = self._packs[name] = asyncio.create_task(self._read(name), name="pack.read")
            while len(self._packs) > PACKS_KEPT and next(iter(self._packs.values())).done():
                self._packs.popitem(last=False)
        self._packs.move_to_end(name)
        return await asyncio.shield(reading)

    async def places(self, chunks: Sequence[bytes]) -> list[Place]:
        """Where each of them is. Raises Failed if one is nowhere."""
        found = await self._index.places(chunks)
        if any(chunk not in found for chunk in chunks):
            raise missing()
        return [found[chunk] for chunk in chunks]

    async def chunks_of(self, blob: Blob) -> list[bytes]:
        """All chunks of its bytes, however deep the list of them lies. Raises Unreachable, Failed."""
        return (await self.all_chunks(blob))[0]

    async def all_chunks(self, blob: Blob) -> tuple[list[bytes], list[bytes]]:
        """The chunks of its bytes, and those in which the lists of these lie. Raises Unreachable, Failed."""
        chunks, lists = blob.chunks, list[bytes]()
        for _ in range(blob.depth):
            lists += chunks
            chunks = decode_stored(await self._joined(chunks), ChunkList).chunks
        return chunks, lists

    async def whole(self, blob: Blob) -> bytes:
        """All bytes of one that is small. Raises Unreachable, Failed."""
        return await self._joined(await self.chunks_of(blob))

    async def _joined(self, chunks: Sequence[bytes]) -> bytes:
        return b"".join([await self.chunk(place) for place in await self.places(chunks)])

    async def _read(self, name: bytes) -> bytes:
        data = await self._storage.note(name.removeprefix(HIDDEN))
        if data is None:
            raise missing()
        return data


def missing() -> Failed:
    """A snapshot names a chunk that is in no pack."""
    return Failed("part of this backup is in no pack", remedy="See which files lack something: `croft backup verify`.")
