"""Where the chunks of one backup lie, on this disk: made anew from the tables at holders wherever it is lost.

It takes no memory, however many chunks there are.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from croft.ports import Database
from croft.storage.pruning import PackUse


class Mark(enum.IntEnum):
    """What a snapshot needs a chunk for."""

    BYTES = 1
    LISTING = 2


@dataclass(frozen=True, slots=True)
class Place:
    """A range of a pack."""

    pack: bytes
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class IndexedPack:
    """A pack, the table that tells of it, and its chunks, (id, size), as they lie in it."""

    name: bytes
    table: bytes
    chunks: Sequence[tuple[bytes, int]]


@dataclass(slots=True)
class Changes:
    """What changes at once. `seen`: what was found in folders; `forgotten`: folders that are no more, and all below.

    `seen_for`: the number of the snapshot that has just what was seen; 0: none has; None: as it is.
    """

    packs: Sequence[IndexedPack] = ()
    gone: Collection[bytes] = ()
    seen: dict[bytes, bytes] = field(default_factory=dict)
    forgotten: list[bytes] = field(default_factory=list)
    seen_for: int | None = None


class BackupIndex:
    """Of one store. Made by `open`."""

    def __init__(self, database: Database, store: int) -> None:
        self._database = database
        self._store = store

    @classmethod
    async def open(cls, database: Database, prefix: bytes) -> BackupIndex:
        """The index of the store of this prefix, empty if there is none yet."""

        def find(db: sqlite3.Connection) -> int:
            db.execute("INSERT OR IGNORE INTO backup_store (prefix) VALUES (?)", (prefix,))
            row: tuple[int] = db.execute("SELECT number FROM backup_store WHERE prefix = ?", (prefix,)).fetchone()
            return row[0]

        return cls(database, await database.run(find))

    async def places(self, chunks: Iterable[bytes]) -> dict[bytes, Place]:
        """Where these are; those that are nowhere are left out."""
        wanted = list(chunks)
        sql = (
            "SELECT backup_pack.name, offset, backup_chunk.size FROM backup_chunk JOIN backup_pack ON number = pack "
            "WHERE backup_chunk.store = ? AND chunk = ?"
        )

        def look(db: sqlite3.Connection) -> dict[bytes, Place]:
            found = ((chunk, db.execute(sql, (self._store, chunk)).fetchone()) for chunk in wanted)
            return {chunk: Place(*row) for chunk, row in found if row is not None}

        return await self._database.run(look)

    async def known(self, chunks: Iterable[bytes]) -> set[bytes]:
        """Those that are in some pack."""
        wanted, sql = list(chunks), "SELECT 1 FROM backup_chunk WHERE store = ? AND chunk = ?"

        def look(db: sqlite3.Connection) -> set[bytes]:
            return {chunk for chunk in wanted if db.execute(sql, (self._store, chunk)).fetchone() is not None}

        return await self._database.run(look)

    async def packs(self) -> dict[bytes, bytes]:
        """The packs, and the table that tells of each."""
        sql = "SELECT name, in_table FROM backup_pack WHERE store = ?"
        return dict(await self._database.run(lambda db: db.execute(sql, (self._store,)).fetchall()))

    async def stored_bytes(self) -> int:
        """What all packs hold."""
        sql = "SELECT coalesce(sum(size), 0) FROM backup_pack WHERE store = ?"
        row = await self._database.run(lambda db: db.execute(sql, (self._store,)).fetchone())
        return int(row[0])

    async def seen(self, folders: Sequence[bytes]) -> dict[bytes, bytes]:
        """What was seen in these folders last, as far as it is known."""
        sql = "SELECT record FROM backup_seen WHERE store = ? AND path = ?"

        def look(db: sqlite3.Connection) -> dict[bytes, bytes]:
            found = ((path, db.execute(sql, (self._store, path)).fetchone()) for path in folders)
            return {path: row[0] for path, row in found if row is not None}

        return await self._database.run(look)

    async def seen_for(self) -> int:
        """The number of the snapshot that has just what was seen; 0: none."""
        sql = "SELECT seen_for FROM backup_store WHERE number = ?"
        row = await self._database.run(lambda db: db.execute(sql, (self._store,)).fetchone())
        return int(row[0]) if row is not None else 0

    async def apply(self, changes: Changes) -> None:
        """All of it or nothing. A chunk in several packs is where the last one of them has it."""
        await self._database.run(lambda db: self._apply(db, changes))

    def _apply(self, db: sqlite3.Connection, changes: Changes) -> None:
        store = self._store
        for pack in changes.packs:
            size = sum(size for _, size in pack.chunks)
            row = (store, pack.name, pack.table, size)
            db.execute("INSERT OR IGNORE INTO backup_pack (store, name, in_table, size) VALUES (?, ?, ?, ?)", row)
            sql = "SELECT number FROM backup_pack WHERE store = ? AND name = ?"
            (number,) = db.execute(sql, (store, pack.name)).fetchone()
            laid: list[tuple[int, bytes, int, int, int]] = []
            offset = 0
            for chunk, length in pack.chunks:
                laid.append((store, chunk, number, offset, length))
                offset += length
            sql = "INSERT OR REPLACE INTO backup_chunk (store, chunk, pack, offset, size) VALUES (?, ?, ?, ?, ?)"
            db.executemany(sql, laid)
        for name in changes.gone:
            sql = "SELECT number FROM backup_pack WHERE store = ? AND name = ?"
            for (number,) in db.execute(sql, (store, name)).fetchall():
                db.execute("DELETE FROM backup_chunk WHERE pack = ?", (number,))
                db.execute("DELETE FROM backup_pack WHERE number = ?", (number,))
        for path in changes.forgotten:
            below = (store, path, path + b"/", path + b"0")
            db.execute("DELETE FROM backup_seen WHERE store = ? AND (path = ? OR path > ? AND path < ?)", below)
        seen = [(store, path, record) for path, record in changes.seen.items()]
        db.executemany("INSERT OR REPLACE INTO backup_seen VALUES (?, ?, ?)", seen)
        if changes.seen_for is not None:
            db.execute("UPDATE backup_store SET seen_for = ? WHERE number = ?", (changes.seen_for, store))

    # --- what snapshots need -----------------------------------------------------------------------------------------

    async def clear_marks(self) -> None:
        """Nothing is known to be needed."""
        sql = "UPDATE backup_chunk SET mark = 0 WHERE store = ? AND mark <> 0"
        await self._database.run(lambda db: db.execute(sql, (self._store,)).rowcount)

    async def mark(self, chunks: Iterable[bytes], mark: Mark) -> int:
        """Some snapshot needs these; returns how many of them are in no pack."""
        rows = [(int(mark), self._store, chunk) for chunk in chunks]

        def write(db: sqlite3.Connection) -> int:
            sql = "UPDATE backup_chunk SET mark = ? WHERE store = ? AND chunk = ?"
            return sum(db.execute(sql, row).rowcount == 0 for row in rows)

        return await self._database.run(write)

    async def uses(self) -> list[PackUse]:
        """Each pack, and how much of it is marked."""
        sql = (
            "SELECT number, backup_pack.size, coalesce(sum(backup_chunk.size * (mark > 0)), 0) FROM backup_pack "
            "LEFT JOIN backup_chunk ON pack = number WHERE backup_pack.store = ? GROUP BY number ORDER BY number"
        )
        rows = await self._database.run(lambda db: db.execute(sql, (self._store,)).fetchall())
        return [PackUse(*row) for row in rows]

    async def names(self, numbers: Sequence[int]) -> list[bytes]:
        """What packs are called."""
        sql = "SELECT name FROM backup_pack WHERE number = ?"
        return await self._database.run(lambda db: [db.execute(sql, (one,)).fetchone()[0] for one in numbers])

    async def marked_chunks(self, pack: int) -> list[tuple[bytes, Mark]]:
        """The chunks of a pack that some snapshot needs, as they lie in it."""
        sql = "SELECT chunk, mark FROM backup_chunk WHERE pack = ? AND mark > 0 ORDER BY offset"
        rows = await self._database.run(lambda db: db.execute(sql, (pack,)).fetchall())
        return [(chunk, Mark(mark)) for chunk, mark in rows]

    async def chunks_of(self, pack: bytes) -> list[tuple[bytes, Place]]:
        """All chunks that are looked for in a pack."""
        sql = (
            "SELECT chunk, offset, backup_chunk.size FROM backup_chunk JOIN backup_pack ON number = pack "
            "WHERE backup_pack.store = ? AND name = ? ORDER BY offset"
        )
        rows = await self._database.run(lambda db: db.execute(sql, (self._store, pack)).fetchall())
        return [(chunk, Place(pack, offset, size)) for chunk, offset, size in rows]

    async def drop(self) -> None:
        """Forgets all of it."""

        def write(db: sqlite3.Connection) -> None:
            for table in ("backup_chunk", "backup_pack", "backup_seen"):
                db.execute(f"DELETE FROM {table} WHERE store = ?", (self._store,))
            db.execute("UPDATE backup_store SET seen_for = 0 WHERE number = ?", (self._store,))

        await self._database.run(write)
