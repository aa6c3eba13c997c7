"""A simulated machine: its clock, chance, disk and processor."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from random import Random
from typing import TypeVar

from croft.adapters.sqlite_database import prepare, transact
from croft.errors import Failed

T = TypeVar("T")

EPOCH_S = 1_750_000_000.0
"""Wall time at the start of every run."""
COMMIT_S = 0.002
"""What a durable commit takes."""


class SimulatedClock:
    """Virtual time as wall time, wrong by `skew_s` and by `drift` seconds per second."""

    def __init__(self, skew_s: float = 0.0, drift: float = 0.0) -> None:
        self.skew_s = skew_s
        self.drift = drift

    def now(self) -> float:
        return EPOCH_S + asyncio.get_running_loop().time() * (1 + self.drift) + self.skew_s


class SimulatedOwner:
    """What a machine's owner does with it; see `croft.ports.OwnersMachine`."""

    def __init__(self) -> None:
        self.share = 0.0
        self.has_mains = True

    def busy(self, lent_cpu_s: float) -> float:
        return self.share

    def is_on_battery(self) -> bool:
        return not self.has_mains


class SimulatedEntropy:
    """Chance and secrets from a seed."""

    def __init__(self, seed: int | str | bytes) -> None:
        self._random = Random(seed)

    def token(self, size_bytes: int) -> bytes:
        return self._random.randbytes(size_bytes)

    def random(self) -> Random:
        return Random(self._random.getrandbits(64))


class SimulatedDisk:
    """Holds a database over crashes of the peer that uses it, and fails when told to.

    Attributes:
        failure: raised by every transaction while set, which is then rolled back; None for a healthy disk.
        commits: transactions committed so far.
    """

    def __init__(self) -> None:
        self.failure: Failed | None = None
        self.commits = 0
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        prepare(self.connection, "the simulated disk")

    def open_database(self) -> SimulatedDatabase:
        """What the peer gets to use. One at a time: a new one means that the old one's peer is gone."""
        return SimulatedDatabase(self)


class SimulatedDatabase:
    """SQLite in memory with the transactions of the real one; see `croft.ports.Database`."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self._disk = disk
        self._turn = asyncio.Lock()
        self._is_closed = False

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        assert not self._is_closed, "the database is closed"
        async with self._turn:
            # Time passes before and after the work, so that a crash can fall on either side of it.
            await asyncio.sleep(COMMIT_S / 2)
            result = transact(self._disk.connection, self._guarded(work), "the simulated disk")
            self._disk.commits += 1
            await asyncio.sleep(COMMIT_S / 2)
        return result

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
        def guarded(connection: sqlite3.Connection) -> T:
            result = work(connection)
            if self._disk.failure is not None:
                raise self._disk.failure
            return result

        return guarded

    async def close(self) -> None:
        self._is_closed = True


class InlineOffload:
    """Does the work at once, and lets `virtual_s` pass for it; see `croft.ports.Offload`."""

    def __init__(self, virtual_s: float = 0.0) -> None:
        self._virtual_s = virtual_s

    async def run(self, work: Callable[..., T], *args: object) -> T:
        await asyncio.sleep(self._virtual_s)
        return work(*args)
