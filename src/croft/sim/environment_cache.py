"""Wheels in memory; see `croft.compute.environments.Cache`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

from blake3 import blake3

from croft.errors import NotFound

CACHE_BYTES_MAX = 1 << 30


class SimulatedCache:
    """What a simulated machine keeps of wheels and environments, over crashes of its peer.

    Attributes:
        held: wheels by digest; a test may put others in their place.
        built: what was built here, in order.
    """

    def __init__(self) -> None:
        self.bytes_max = CACHE_BYTES_MAX
        self.held: dict[bytes, bytes] = {}
        self.built: list[bytes] = []

    @property
    def wheels(self) -> Path:
        return Path("/simulated/wheels")

    def put(self, data: bytes) -> bytes:
        """Keeps a wheel, as a program of its owner would; returns its digest."""
        digest = blake3(data).digest()
        self.held[digest] = data
        return digest

    def place(self, digest: bytes) -> Path:
        return self.wheels / digest.hex()

    def has(self, digest: bytes) -> bool:
        return digest in self.held

    async def read(self, digest: bytes, offset: int, size: int) -> bytes:
        if digest not in self.held:
            raise NotFound("a wheel is not here")
        return self.held[digest][offset : offset + size]

    async def keep(self, digest: bytes, parts: AsyncIterator[bytes]) -> bool:
        data = b"".join([part async for part in parts])
        if blake3(data).digest() != digest:
            return False
        self.held[digest] = data
        return True

    def drop(self, digest: bytes) -> None:
        self.held.pop(digest, None)

    def find(self, digest: bytes) -> Path | None:
        return Path("/simulated/built") / digest.hex() if digest in self.built else None

    async def adopt(self, digest: bytes, folder: Path) -> Path:
        self.built.append(digest)
        return Path("/simulated/built") / digest.hex()

    async def trim(self, used: Collection[str]) -> None:
        """It never runs full."""
