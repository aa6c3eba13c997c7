"""Small things that are kept beside the files: what backups there are and when they run, what links there are.

Remembered on this disk too, so that they can be told while no holder is up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping

from croft.ports import Database
from croft.storage.formats import Version
from croft.storage.service import Storage


class KeptRecords:
    """Reads them. What is remembered counts only while the list of files has the same content under the same name."""

    def __init__(self, storage: Storage, database: Database) -> None:
        self._storage = storage
        self._database = database

    async def below(self, prefix: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
        """Those whose name begins so: (name, bytes). Raises Unreachable, Failed, Refused."""
        async for name, version in self._storage.kept(prefix):
            yield name, await self.read(name, version)

    async def find(self, name: bytes) -> bytes | None:
        """The one of this name. Raises Unreachable, Failed, Refused."""
        async for found, version in self._storage.kept(name):
            if found == name:
                return await self.read(name, version)
        return None

    async def remember(self, records: Mapping[bytes, tuple[bytes, bytes]], gone: Collection[bytes] = ()) -> None:
        """Names with the key of their content and their bytes; those that are `gone` need not be remembered."""
        rows = [(name, *record) for name, record in records.items()]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM backup_record WHERE name = ?", [(name,) for name in gone])
            db.executemany("INSERT OR REPLACE INTO backup_record VALUES (?, ?, ?)", rows)

        if rows or gone:
            await self._database.run(write)

    async def read(self, name: bytes, version: Version) -> bytes:
        """What is kept under a name, as `Storage.kept` has it. Raises Unreachable, Failed."""
        assert version.content is not None, "what is kept has a content"
        key, sql = version.content.key, "SELECT data FROM backup_record WHERE name = ? AND content = ?"
        row = await self._database.run(lambda db: db.execute(sql, (name, key)).fetchone())
        if row is not None:
            known: bytes = row[0]
            return known
        data = b"".join([bytes(piece) async for piece in self._storage.read(version.content)])
        await self.remember({name: (key, data)})
        return data
