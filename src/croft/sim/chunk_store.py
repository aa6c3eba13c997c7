"""A disk full of chunks that exists in memory alone; see `croft.ports.ChunkStore`."""

from __future__ import annotations

from collections.abc import Sequence

from croft.errors import Failed, NotFound
from croft.ports import CHUNK_BYTES_MAX, CHUNK_KEY_BYTES, Chunk


class SimulatedChunkStore:
    """What was put outlives `close`, as a disk does: hand the same one to a peer that starts again.

    `capacity_bytes` may be changed at any time, as an owner fills a disk.
    """

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.capacity_bytes = capacity_bytes
        self._chunks: dict[bytes, dict[bytes, bytes]] = {}
        self._damaged: set[tuple[bytes, bytes]] = set()

    async def put(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            assert len(chunk.owner) == len(chunk.key) == CHUNK_KEY_BYTES, "owners and keys have 32 bytes"
            assert len(chunk.data) <= CHUNK_BYTES_MAX, "a chunk is too large for a store"
            held = self._chunks.setdefault(chunk.owner, {})
            if chunk.key in held and (chunk.owner, chunk.key) not in self._damaged:
                continue
            if await self.held_bytes() + len(chunk.data) > self.capacity_bytes:
                raise Failed("the simulated disk is full", remedy="Free some space there, or lend less of it.")
            held[chunk.key] = bytes(chunk.data)
            self._damaged.discard((chunk.owner, chunk.key))

    async def read(self, owner: bytes, key: bytes, offset: int = 0, size_bytes: int | None = None) -> bytes:
        data = self._chunks.get(owner, {}).get(key)
        if data is None:
            raise NotFound(f"chunk {key.hex()[:16]} is not held here")
        part = data[offset:] if size_bytes is None else data[offset : offset + size_bytes]
        if (owner, key) in self._damaged and len(part) == len(data):
            raise Failed(
                f"chunk {key.hex()[:16]} is damaged on the disk", remedy="It has to be fetched from elsewhere."
            )
        return part

    async def sizes(self, owner: bytes, keys: Sequence[bytes]) -> list[int | None]:
        held = dict(await self.keys(owner, count_max=1 << 40))
        return [held.get(key) for key in keys]

    async def keys(self, owner: bytes, after: bytes = b"", count_max: int = 1000) -> list[tuple[bytes, int]]:
        whole = (
            (key, len(data))
            for key, data in sorted(self._chunks.get(owner, {}).items())
            if key > after and (owner, key) not in self._damaged
        )
        return [pair for pair, _ in zip(whole, range(count_max), strict=False)]

    async def owners(self) -> list[bytes]:
        return [owner for owner, held in self._chunks.items() if held]

    async def delete(self, owner: bytes, keys: Sequence[bytes]) -> int:
        held = self._chunks.get(owner, {})
        self._damaged.difference_update((owner, key) for key in keys)
        return sum(len(held.pop(key)) for key in keys if key in held)

    async def held_bytes(self, owner: bytes | None = None) -> int:
        owners = self._chunks if owner is None else [owner]
        return sum(len(data) for one in owners for data in self._chunks.get(one, {}).values())

    async def close(self) -> None:
        """Nothing to wait for."""

    def shares(self, owner: bytes) -> dict[bytes, bytes]:
        """What is held for an owner; whoever changes it makes a disk that lies."""
        return self._chunks.setdefault(owner, {})

    def rot(self, owner: bytes, key: bytes, byte: int = 0) -> None:
        """Flips a bit of what is held, as an old disk does."""
        data = bytearray(self._chunks[owner][key])
        data[byte] ^= 1
        self._chunks[owner][key] = bytes(data)
        self._damaged.add((owner, key))
