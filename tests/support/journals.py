"""Journals for tests: on a simulated disk, on virtual time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import TypeVar

from croft.compute.journal import Entry, Journal
from croft.compute.journal_messages import JobSpec
from croft.model.ids import JobId, PeerId, TwinId
from croft.sim import virtual_time
from croft.sim.machine import SimulatedClock, SimulatedDisk

T = TypeVar("T")

SPEC = JobSpec("squares", "3.11", [], [])
TWIN, OWN = TwinId("twin"), PeerId("own")


@contextlib.asynccontextmanager
async def serving(disk: SimulatedDisk) -> AsyncIterator[Journal]:
    """A journal that writes to this disk until the end of the block, which comes like a crash."""
    journal = Journal(disk.open_database(), SimulatedClock())
    writing = asyncio.create_task(journal.serve())
    try:
        yield journal
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def filled(journal: Journal, tasks: int, *, size: int = 1) -> Entry:
    """A running job of so many tasks."""
    entry = await journal.create(JobId("1234567890abcdef"), SPEC, TWIN, OWN)
    journal.add_function(entry.number, b"f", b"pickled")
    journal.add_tasks(entry.number, b"f", 0, [bytes(size)] * tasks)
    journal.set_running(entry.number)
    await journal.settle()
    found = await journal.find(entry.id)
    assert found is not None
    return found


def run(story: Callable[[], Awaitable[T]]) -> T:
    """Runs a coroutine on virtual time."""

    async def main(_: Random) -> T:
        return await story()

    return virtual_time.run(main, seed=1, limit_virtual_s=10_000)
