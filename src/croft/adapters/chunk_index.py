"""Where each chunk is: an index in SQLite beside the segments, which can be made anew from them.

A commit here is not synced to the disk. The index may be a little behind after a power cut, never torn (WAL): it
remembers up to where it has read the log, and what follows is read again. So a put costs one sync, that of its segment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from croft.adapters.chunk_segments import ALIGNMENT_BYTES, Found, Place, record_bytes

VERSION = 1
WRITER_CACHE_KIB = 8 << 10
READER_CACHE_KIB = 2 << 10
SCHEMA = """
CREATE TABLE chunk (
    owner BLOB NOT NULL, key BLOB NOT NULL,
    segment INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL,
    is_damaged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX chunk_place ON chunk (segment, offset);
CREATE TABLE owner (owner BLOB PRIMARY KEY, chunks INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE dying (
    segment INTEGER NOT NULL, offset INTEGER NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (segment, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE scanned (segment INTEGER PRIMARY KEY, size INTEGER NOT NULL) STRICT;
"""


class ChunkIndex:
    """One connection to the index. Every method raises sqlite3.Error if the file cannot be used or is damaged."""

    def __init__(self, path: Path, *, is_reader: bool = False) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB if is_reader else WRITER_CACHE_KIB}")
        if not is_reader and self._db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            # Another version's index tells nothing that the segments do not tell.
            with self.change():
                for (name,) in self._db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                    self._db.execute(f"DROP TABLE {name}")
                for statement in SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def change(self, *, is_synced: bool = False) -> Iterator[None]:
        """What is done inside is done whole or not at all; on the disk afterwards if it is to be synced."""
        self._db.execute(f"PRAGMA synchronous = {'FULL' if is_synced else 'NORMAL'}")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # --- questions ---------------------------------------------------------------------------------------------------

    def find(self, owner: bytes, key: bytes) -> tuple[Place, bool] | None:
        """Where a chunk is, and whether it is known to be damaged."""
        row = self._db.execute(
            "SELECT segment, offset, size, is_damaged FROM chunk WHERE owner = ? AND key = ?", (owner, key)
        ).fetchone()
        return row and (Place(*row[:3]), bool(row[3]))

    def keys(self, owner: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """Keys and sizes of whole chunks, ascending."""
        return self._db.execute(
            "SELECT key, size FROM chunk WHERE owner = ? AND key > ? AND NOT is_damaged ORDER BY key LIMIT ?",
            (owner, after, count_max),
        ).fetchall()

    def owners(self) -> list[bytes]:
        """For whom anything is held."""
        return [owner for (owner,) in self._db.execute("SELECT owner FROM owner WHERE chunks > 0")]

    def held_bytes(self, owner: bytes | None) -> int:
        """What one owner's records take, or all."""
        where, values = ("", ()) if owner is None else (" WHERE owner = ?", (owner,))
        return int(self._db.execute(f"SELECT COALESCE(SUM(bytes), 0) FROM owner{where}", values).fetchone()[0])

    def scanned(self, segment: int) -> int:
        """Up to which byte a segment has been read into the index."""
        row = self._db.execute("SELECT size FROM scanned WHERE segment = ?", (segment,)).fetchone()
        return int(row[0]) if row else 0

    def gap(self, place: Place) -> tuple[int, int | None]:
        """The bytes around a place that no record uses; the end is None where no record follows."""
        before = self._db.execute(
            "SELECT offset, size FROM chunk WHERE segment = ? AND offset < ? ORDER BY offset DESC LIMIT 1",
            (place.segment, place.offset),
        ).fetchone()
        after = self._db.execute(
            "SELECT offset FROM chunk WHERE segment = ? AND offset > ? ORDER BY offset LIMIT 1",
            (place.segment, place.offset),
        ).fetchone()
        return (Place(place.segment, *before).end if before else ALIGNMENT_BYTES), after and after[0]

    def is_empty(self, segment: int) -> bool:
        """Whether no chunk is left in a segment."""
        return self._db.execute("SELECT 1 FROM chunk WHERE segment = ? LIMIT 1", (segment,)).fetchone() is None

    def dying(self) -> list[Place]:
        """What is deleted, and whose room has not been given back."""
        return [Place(*row) for row in self._db.execute("SELECT segment, offset, size FROM dying").fetchall()]

    def segments(self) -> set[int]:
        """Those that the index speaks of."""
        sql = "SELECT segment FROM scanned UNION SELECT DISTINCT segment FROM chunk"
        return {number for (number,) in self._db.execute(sql)}

    # --- changes, to be made inside `change` -------------------------------------------------------------------------

    def add(self, found: Sequence[Found], segment: int, scanned_to: int) -> None:
        """Takes records in; each takes the place of an older one of the same owner and key."""
        for record in found:
            self.drop(record.owner, record.key, record.place)
            place = record.place
            self._db.execute(
                "INSERT OR REPLACE INTO chunk VALUES (?, ?, ?, ?, ?, 0)",
                (record.owner, record.key, place.segment, place.offset, place.size),
            )
            self._count(record.owner, 1, record_bytes(place.size))
        self._db.execute("INSERT OR REPLACE INTO scanned VALUES (?, ?)", (segment, scanned_to))

    def drop(self, owner: bytes, key: bytes, but: Place | None = None) -> Place | None:
        """Forgets a chunk and marks its room to be given back, unless it is where a new one is."""
        held = self.find(owner, key)
        if held is None:
            return None
        place = held[0]
        self._db.execute("DELETE FROM chunk WHERE owner = ? AND key = ?", (owner, key))
        self._count(owner, -1, -record_bytes(place.size))
        if place != but:
            self._db.execute("INSERT OR REPLACE INTO dying VALUES (?, ?, ?)", (place.segment, place.offset, place.size))
        return place

    def damaged(self, owner: bytes, key: bytes) -> None:
        """Remembers that a chunk is not what was put."""
        self._db.execute("UPDATE chunk SET is_damaged = 1 WHERE owner = ? AND key = ?", (owner, key))

    def died(self, places: Sequence[Place]) -> None:
        """Their room is given back."""
        self._db.executemany(
            "DELETE FROM dying WHERE segment = ? AND offset = ?", [(place.segment, place.offset) for place in places]
        )

    def forget_segment(self, segment: int) -> None:
        """The file is gone, with whatever it held."""
        for owner, size in self._db.execute("SELECT owner, size FROM chunk WHERE segment = ?", (segment,)).fetchall():
            self._count(owner, -1, -record_bytes(size))
        for table in ("chunk", "dying", "scanned"):
            self._db.execute(f"DELETE FROM {table} WHERE segment = ?", (segment,))

    def _count(self, owner: bytes, chunks: int, size_bytes: int) -> None:
        self._db.execute(
            "INSERT INTO owner VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET chunks = chunks + excluded.chunks, bytes = bytes + excluded.bytes",
            (owner, chunks, size_bytes),
        )
