"""The nodes of the list of files: from this disk if they are here, else from their holders."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from croft.ports import Database
from croft.storage.contents import Reading
from croft.storage.file_list import Load
from croft.storage.formats import Child, Node, decode_node

NODES_KEPT: Final = 16
NODES_AT_ONCE: Final = 64


class NodeStore:
    """Loads nodes; the last ones are remembered."""

    def __init__(self, database: Database, reading: Reading) -> None:
        self._database = database
        self._reading = reading
        self._last: dict[bytes, Node] = {}

    async def load(self, child: Child) -> Node:
        """One node. Raises Unreachable, Failed."""
        key = child.content.key
        if (known := self._last.get(key)) is not None:
            return known
        sql = "SELECT plain FROM storage_node WHERE content = ?"
        row = await self._database.run(lambda db: db.execute(sql, (key,)).fetchone())
        plain = await self._reading.whole(child.content) if row is None else row[0]
        node = self._last[key] = decode_node(plain)
        if len(self._last) > NODES_KEPT:
            del self._last[next(iter(self._last))]
        if row is None:
            pair, sql = (key, plain), "INSERT OR REPLACE INTO storage_node VALUES (?, ?)"
            await self._database.run(lambda db: db.execute(sql, pair).rowcount)
        return node

    def loading(self, leaves: Sequence[Child]) -> Load:
        """Loads these one after the other: from the second on, many of them are read from the disk at once."""
        plains: dict[bytes, bytes] = {}
        is_first = True

        async def load(child: Child) -> Node:
            nonlocal is_first
            key = child.content.key
            if not is_first and key not in plains:
                at = bisect_left(leaves, child.first, key=lambda leaf: leaf.first)
                keys = [leaf.content.key for leaf in leaves[at : at + NODES_AT_ONCE]]
                sql = f"SELECT content, plain FROM storage_node WHERE content IN ({','.join('?' * len(keys))})"
                plains.update(await self._database.run(lambda db: db.execute(sql, keys).fetchall()))
            is_first = False
            plain = plains.pop(key, None)
            return await self.load(child) if plain is None else decode_node(plain)

        return load
