"""Looks whether everything that a backup has can be restored: by what holders prove, or by reading all of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from croft.errors import CroftError
from croft.ports import Offload
from croft.storage.backup_formats import Blob, Kind, Node
from croft.storage.backup_index import Place
from croft.storage.backup_packs import PackReader
from croft.storage.backup_store import BackupStore
from croft.storage.formats import Part

DAMAGED_NAMED_MAX: Final = 100


@dataclass(slots=True)
class Verified:
    """What was found. See `croft.control.backup_schema.BackupVerified`."""

    snapshots: int = 0
    packs: int = 0
    missing: int = 0
    margin: int | None = None
    short: int = 0
    read_bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def margin_of(parts: Collection[Part], short: Mapping[bytes, int]) -> int:
    """How many more holders may be lost of what lies in these parts. `short`: shares that are left, by stripe."""
    return min((short.get(part.stripe.id, part.stripe.n) - part.stripe.k for part in parts), default=0)


class Verifying:
    """Of one store: `look`, then `read` if that is wanted, then `walk`. `found` says what came of it."""

    def __init__(self, store: BackupStore, reader: PackReader, offload: Offload) -> None:
        self._store = store
        self._reader = reader
        self._offload = offload
        self.found = Verified()
        self._bad: set[bytes] = set()

    async def look(self, short: Mapping[bytes, int]) -> None:
        """What a look at the holders says of the packs. `short`: stripes that lack shares, and how many they have."""
        async for _, version in self._store.packs():
            self.found.packs += 1
            if version.content is None:
                continue
            stripes = version.content.parts
            margin = margin_of(stripes, short)
            self.found.margin = margin if self.found.margin is None else min(margin, self.found.margin)
            self.found.short += any(part.stripe.id in short for part in stripes)

    async def read(self, tell: Callable[[int, int], None]) -> None:
        """Reads every pack, and checks every chunk in it. Raises CroftError if the list cannot be read."""
        async for pack, version in self._store.packs():
            chunks = await self._store.index.chunks_of(pack)
            try:
                data = memoryview(await self._reader.pack(pack))
            except CroftError:
                self._bad.update(chunk for chunk, _ in chunks)
                continue
            self._bad.update(await self._offload.run(self._wrong_in, data, chunks))
            self.found.read_bytes += version.size
            tell(self.found.packs, self.found.read_bytes)

    async def walk(self) -> None:
        """Goes through all snapshots, and names what lacks a chunk. Raises CroftError."""
        visited: set[bytes] = set()
        for number in await self._store.numbers():
            record = await self._store.snapshot(number)
            self.found.snapshots += 1
            await self._walk(record.tree, f"@{number}", visited)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _wrong_in(self, data: memoryview, chunks: Collection[tuple[bytes, Place]]) -> list[bytes]:
        name = self._store.chunker.name
        return [chunk for chunk, place in chunks if name(data[place.offset : place.offset + place.size]) != chunk]

    async def _walk(self, tree: Blob, shown: str, visited: set[bytes]) -> None:
        waiting = [(tree, shown)]
        while waiting:
            blob, path = waiting.pop()
            digest = self._store.chunker.name(b"".join(blob.chunks))
            if digest in visited:
                continue
            visited.add(digest)
            try:
                nodes = (await self._store.listing(self._reader, blob)).nodes
            except CroftError as error:
                self.found.missing += 1
                self._name(f"{path}: all that is in it: {error.message}")
                continue
            await self._check_files(nodes, path)
            waiting += [
                (node.blob, _below(path, node)) for node in nodes if node.kind == Kind.FOLDER and node.blob is not None
            ]

    async def _check_files(self, nodes: Sequence[Node], path: str) -> None:
        needed: dict[int, list[bytes]] = {}
        for number, node in enumerate(nodes):
            if node.kind == Kind.FOLDER or node.blob is None:
                continue
            try:
                chunks, lists = await self._reader.all_chunks(node.blob)
            except CroftError as error:
                self.found.missing += 1
                self._name(f"{_below(path, node)}: {error.message}")
                continue
            needed[number] = [*chunks, *lists]
        known = await self._store.index.known(dict.fromkeys(chunk for chunks in needed.values() for chunk in chunks))
        for number, chunks in needed.items():
            lacking = sum(chunk not in known for chunk in chunks)
            self.found.missing += lacking
            if lacking or not self._bad.isdisjoint(chunks):
                self._name(_below(path, nodes[number]))

    def _name(self, what: str) -> None:
        if len(self.found.damaged) < DAMAGED_NAMED_MAX:
            self.found.damaged.append(what)


def _below(path: str, node: Node) -> str:
    return f"{path}/{node.name.decode(errors='replace')}"
