"""The simulated store of chunks promises what the real one does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from chunk_store_suite import ChunkStoreSuite

from croft.ports import ChunkStore
from croft.sim.chunk_store import SimulatedChunkStore


class SimulatedDisk:
    def __init__(self) -> None:
        self._store = SimulatedChunkStore()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ChunkStore]:
        yield self._store
        await self._store.close()

    def rot(self, owner: bytes, key: bytes, data: bytes) -> None:
        self._store.rot(owner, key)

    @asynccontextmanager
    async def fill(self) -> AsyncIterator[None]:
        roomy, self._store.capacity_bytes = self._store.capacity_bytes, await self._store.held_bytes()
        yield
        self._store.capacity_bytes = roomy


class TestSimulatedStore(ChunkStoreSuite):
    @pytest.fixture
    def disk(self) -> SimulatedDisk:
        return SimulatedDisk()
