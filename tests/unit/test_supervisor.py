"""Services are started again, also those whose parts fail inside a TaskGroup; bugs and cancellation end them."""

from __future__ import annotations

import asyncio

import pytest

from croft.node.health import Health
from croft.node.supervisor import supervise


def test_a_service_whose_part_fails_is_started_again() -> None:
    starts = []

    async def part() -> None:
        raise OSError("gone")

    async def serve() -> None:
        starts.append(1)
        if len(starts) == 3:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(part())
            tasks.create_task(asyncio.sleep(60))

    health = Health()
    asyncio.run(asyncio.wait_for(supervise("relay", serve, health), 10))
    assert len(starts) == 3
    assert health.warnings() == []


def test_a_bug_is_not_started_again() -> None:
    async def serve() -> None:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        asyncio.run(supervise("relay", serve, Health()))


def test_what_is_cancelled_ends_with_its_parts() -> None:
    ended = []

    async def serve() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    async def main() -> None:
        task = asyncio.create_task(supervise("relay", serve, Health()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == [1]
