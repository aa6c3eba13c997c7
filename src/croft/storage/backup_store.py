"""One backup as it is stored: its definition, its snapshots, and the packs in which their bytes lie.

One device writes a store, so that nothing that it counts on is dropped by another one; every device of the owner reads
it. Reading and dropping exclude each other, writing is done by one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from croft.errors import CroftError, NotFound
from croft.ports import Clock, Database, Entropy
from croft.storage.backup_formats import (
    PACKS,
    SNAPSHOTS,
    TABLES,
    Blob,
    Definition,
    Kind,
    Listing,
    SnapshotRecord,
    StoreName,
    Table,
    snapshot_name,
)
from croft.storage.backup_index import BackupIndex, Changes, IndexedPack, Mark
from croft.storage.backup_packs import PACK_BYTES, PackReader, PackWriter, missing
from croft.storage.chunking import PURPOSE, Chunker
from croft.storage.contents import BytesSource
from croft.storage.formats import Version, decode_stored
from croft.storage.kept_records import KeptRecords
from croft.storage.placement import Rule
from croft.storage.pruning import plan
from croft.storage.service import HIDDEN, Storage
from croft.wire.codec import encode

log = logging.getLogger(__name__)

NOTHING_MOVED: Final[Mapping[bytes, Version]] = {}


@dataclass(frozen=True, slots=True)
class Pruned:
    """What pruning did. `freed_bytes`: of packs that are gone, less what moved to new ones."""

    packs_dropped: int = 0
    packs_rewritten: int = 0
    freed_bytes: int = 0


class BackupStore:
    """Made by `open`. Every method raises CroftError if holders cannot be reached."""

    def __init__(
        self, storage: Storage, records: KeptRecords, index: BackupIndex, chunker: Chunker, name: StoreName
    ) -> None:
        self._storage = storage
        self._records = records
        self.index = index
        self.chunker = chunker
        self.name = name
        self.writing = asyncio.Lock()
        self._readers = 0
        self._is_dropped = False
        self._is_read = asyncio.Condition()

    @classmethod
    async def open(cls, storage: Storage, database: Database, name: StoreName) -> BackupStore:
        """A store, which need not exist yet. Raises Refused if the owner's key is not here."""
        chunker = Chunker(await storage.secret_for(PURPOSE))
        records = KeptRecords(storage, database)
        return cls(storage, records, await BackupIndex.open(database, name.prefix), chunker, name)

    # --- what there is -----------------------------------------------------------------------------------------------

    async def define(self, definition: Definition, rule: Rule) -> None:
        """Keeps what is backed up."""
        await self._keep({self.name.definition: encode(definition)}, rule)

    async def snapshot(self, number: int) -> SnapshotRecord:
        """One of them. Raises NotFound."""
        data = await self._records.find(snapshot_name(self.name.prefix, number))
        if data is None:
            raise NotFound(
                f"there is no snapshot {number} of `{self.name.name}`",
                remedy=f"See which there are: `croft backup snapshots {self.name.name}`.",
            )
        return decode_stored(data, SnapshotRecord)

    async def numbers(self) -> list[int]:
        """The numbers of the snapshots, oldest first."""
        prefix = self.name.prefix + SNAPSHOTS
        return [int(name.removeprefix(prefix)) async for name, _ in self._storage.kept(prefix)]

    async def packs(self) -> AsyncIterator[tuple[bytes, Version]]:
        """Every pack."""
        async for name, version in self._storage.kept(self.name.prefix + PACKS):
            yield name, version

    async def stored_bytes(self) -> int:
        """What all packs hold, before they are coded, as far as this device knows."""
        return await self.index.stored_bytes()

    # --- reading and writing -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[PackReader]:
        """Reads packs, none of which is dropped meanwhile."""
        async with self._is_read:
            await self._is_read.wait_for(lambda: not self._is_dropped)
            self._readers += 1
        reader = PackReader(self._storage, self.index)
        try:
            yield reader
        finally:
            await reader.close()
            async with self._is_read:
                self._readers -= 1
                self._is_read.notify_all()

    def writer(self, rule: Rule, clock: Clock, entropy: Entropy) -> PackWriter:
        """Writes packs; hold `writing`."""
        return PackWriter(self._storage, self._records, self.index, self.name.prefix, rule, clock, entropy)

    async def look_again(self) -> None:
        """Brings the index up to what holders keep, unless somebody writes and has done so."""
        if not self.writing.locked():
            async with self.writing:
                await self.refresh()

    async def refresh(self) -> None:
        """Brings the index up to what holders keep: packs that it does not know, and those that are no more.

        Hold `writing`.
        """
        kept = {name async for name, _ in self.packs()}
        known = await self.index.packs()
        if kept == known.keys():
            return
        tables = set(known.values())
        fresh: list[IndexedPack] = []
        async for name, _ in self._storage.kept(self.name.prefix + TABLES):
            if name in tables and not kept - known.keys():
                continue
            data = await self._storage.note(name.removeprefix(HIDDEN))
            if data is not None:
                listed = [(self.name.prefix + one.pack, one.chunks) for one in decode_stored(data, Table).packs]
                fresh += [IndexedPack(pack, name, chunks) for pack, chunks in listed if pack in kept - known.keys()]
        gone = known.keys() - kept
        await self.index.apply(Changes(packs=fresh, gone=gone, seen_for=0 if gone else None))

    async def listing(self, reader: PackReader, blob: Blob) -> Listing:
        """What is in a folder of a snapshot."""
        return decode_stored(await reader.whole(blob), Listing)

    # --- forgetting --------------------------------------------------------------------------------------------------

    async def forget(self, numbers: Sequence[int], rule: Rule) -> None:
        """Drops snapshots; what only they needed goes with the next `prune`."""
        prefix = self.name.prefix + SNAPSHOTS
        wanted = set(numbers)
        names = [name async for name, _ in self._storage.kept(prefix) if int(name.removeprefix(prefix)) in wanted]
        await self._keep({}, rule, removed=names)

    async def remove(self, rule: Rule) -> None:
        """Drops all of it; holders free the room at the next collection. Hold `writing`."""
        async with self._dropping():
            names = [name async for name, _ in self._storage.kept(self.name.prefix + b"/")]
            await self._keep({}, rule, removed=[*names, self.name.definition])
            await self.index.drop()

    async def move(self, name: StoreName, definition: Definition, rule: Rule) -> None:
        """Gives all of it another name, in one change of the list: another device goes on with it. Hold `writing`.

        Nothing is sent but what says so. The index of that device is made from the tables, as one that was lost.
        """
        async with self._dropping():
            kept = {old: version async for old, version in self._storage.kept(self.name.prefix + b"/")}
            moved = {name.prefix + old.removeprefix(self.name.prefix): version for old, version in kept.items()}
            removed = [*kept, self.name.definition]
            await self._keep({name.definition: encode(definition)}, rule, removed=removed, moved=moved)
            await self.index.drop()

    async def prune(self, rule: Rule, clock: Clock, entropy: Entropy) -> Pruned:
        """Drops packs that no snapshot needs, and moves what lives out of those that are mostly dead. Hold `writing`.

        Each change of the list is whole: what is killed midway has lost nothing, and goes on from there next time.
        Raises Failed if something that a snapshot needs is nowhere: then nothing is dropped.
        """
        await self.refresh()
        async with self.reading() as reader:
            await self._mark(reader)
        uses = await self.index.uses()
        todo = plan(uses, PACK_BYTES)
        if not todo.drop and not todo.rewrite:
            return Pruned()
        async with self._dropping() as reader, self.writer(rule, clock, entropy) as writer:
            gone = list(todo.drop)
            rewritten = 0
            for number in todo.rewrite:
                if not await self._move(number, reader, writer):
                    continue
                rewritten += 1
                gone.append(number)
                if writer.is_due:
                    await writer.commit(gone=await self.index.names(gone))
                    gone = []
            names = await self.index.names(gone)
            await writer.commit(gone=names, removed=await self._tables_without(names))
        before = sum(use.size_bytes for use in uses)
        after = sum(use.size_bytes for use in await self.index.uses())
        return Pruned(len(todo.drop), rewritten, max(0, before - after))

    async def _move(self, number: int, reader: PackReader, writer: PackWriter) -> bool:
        """Adds what lives in a pack to new ones; whether it could be read."""
        marked = await self.index.marked_chunks(number)
        places = await reader.places([chunk for chunk, _ in marked])
        try:
            if places:
                await reader.chunk(places[0])
        except CroftError as error:
            log.info("a pack of %s stays as it is: %s", self.name.name, error.message)
            return False
        for (chunk, mark), place in zip(marked, places, strict=True):
            await writer.add(chunk, await reader.chunk(place), is_listing=mark is Mark.LISTING)
        return True

    async def _mark(self, reader: PackReader) -> None:
        await self.index.clear_marks()
        visited: set[bytes] = set()
        lacking = 0
        for number in await self.numbers():
            waiting = [(await self.snapshot(number)).tree]
            while waiting:
                tree = waiting.pop()
                digest = self.chunker.name(encode(tree))
                if digest not in visited:
                    visited.add(digest)
                    lacking += await self._mark_folder(reader, tree, waiting)
        if lacking:
            raise missing()

    async def _mark_folder(self, reader: PackReader, tree: Blob, waiting: list[Blob]) -> int:
        listed, lists = await reader.all_chunks(tree)
        needed: list[bytes] = []
        for node in (await self.listing(reader, tree)).nodes:
            if node.kind == Kind.FOLDER and node.blob is not None:
                waiting.append(node.blob)
            elif node.blob is not None:
                chunks, above = await reader.all_chunks(node.blob)
                needed += chunks
                lists += above
        return await self.index.mark(needed, Mark.BYTES) + await self.index.mark([*listed, *lists], Mark.LISTING)

    async def _tables_without(self, gone: Sequence[bytes]) -> list[bytes]:
        """Tables that tell of no pack any more, once these are gone."""
        needed = {table for pack, table in (await self.index.packs()).items() if pack not in set(gone)}
        return [name async for name, _ in self._storage.kept(self.name.prefix + TABLES) if name not in needed]

    @contextlib.asynccontextmanager
    async def _dropping(self) -> AsyncIterator[PackReader]:
        """Once nobody reads, until this is over."""
        async with self._is_read:
            self._is_dropped = True
            try:
                await self._is_read.wait_for(lambda: self._readers == 0)
            except BaseException:
                self._is_dropped = False
                raise
        reader = PackReader(self._storage, self.index)
        try:
            yield reader
        finally:
            await reader.close()
            async with self._is_read:
                self._is_dropped = False
                self._is_read.notify_all()

    async def _keep(
        self,
        records: Mapping[bytes, bytes],
        rule: Rule,
        *,
        removed: Sequence[bytes] = (),
        moved: Mapping[bytes, Version] = NOTHING_MOVED,
    ) -> None:
        if not records and not removed:
            return
        async with self._storage.putting(rule) as putting:
            pending = {name: await putting.add(BytesSource(data)) for name, data in records.items()}
            await putting.finish()
            changes: dict[bytes, Version | None] = {
                name: Version(0, b"", 0.0, one.size, one.content) for name, one in pending.items()
            }
            changes.update(moved)
            changes.update(dict.fromkeys(removed))
            async with await self._storage.listing() as listing:
                await self._storage.keep(changes, listing)
        told = {name: (one.content.key, records[name]) for name, one in pending.items()}
        await self._records.remember(told, removed)
