"""What the journals of simulated machines say of a job."""

from __future__ import annotations

import asyncio

from croft.model.ids import JobId
from croft.sim.world import World
from croft.wire.values import decode_value


async def results(world: World, name: str, job: JobId) -> list[object]:
    """All results of a job that is over, as this machine's journal has them. Asserts that each is there once."""
    journal = world[name].parts.jobs.durable.journal
    entry = await journal.find(job)
    assert entry is not None and entry.state == "ended", entry
    values: list[object] = []
    while part := await journal.outcomes_after(entry.number, len(values), in_order=True):
        values += [decode_value(outcome.payload) for outcome in part]
    assert entry.done == entry.tasks == len(values) and not entry.failed
    return values


async def over(world: World, name: str, job: JobId, *, within_s: float) -> None:
    """Waits until a machine's journal says that a job is over."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                run = world[name].run
                entry = await run.parts.jobs.durable.journal.find(job) if run else None
                if entry is not None and entry.is_over:
                    return
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise AssertionError(f"{name} has not ended the job in {within_s:g} s: {entry}") from None
