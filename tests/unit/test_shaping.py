"""Streams under limits: as slow as they are to be, and otherwise streams like any other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from croft.errors import ConnectionLost
from croft.model.ids import PeerId
from croft.overlay.loopback import LoopbackStream, pipe
from croft.overlay.pacing import Direction, Limit
from croft.overlay.shaping import ShapedStream, Shaping
from croft.sim import virtual_time
from croft.sim.machine import SimulatedDisk

RATE = 100_000.0
BOB = PeerId("bob")
Story = Callable[[Shaping, ShapedStream, LoopbackStream], Awaitable[None]]


def play(story: Story, *limits: Limit) -> None:
    async def main(_: Random) -> None:
        shaping = Shaping(SimulatedDisk().open_database(), lambda: 0)
        for limit in limits:
            await shaping.add(limit)
        near, far = pipe()
        shaped = shaping.shape(near, BOB, "tunnel/1", False)
        assert isinstance(shaped, ShapedStream)
        await story(shaping, shaped, far)

    virtual_time.run(main)


async def all_of(stream: LoopbackStream | ShapedStream) -> bytes:
    parts = []
    while part := await stream.read(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_what_is_written_takes_as_long_as_the_limit_says_and_arrives_whole() -> None:
    async def story(_: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        sent = bytes(range(256)) * 1_000
        loop = asyncio.get_running_loop()
        began = loop.time()
        reading = asyncio.create_task(all_of(far))
        await near.write(sent)
        await near.finish()
        assert await reading == sent
        assert len(sent) / RATE <= loop.time() - began <= 1.2 * len(sent) / RATE

    play(story, Limit(0, RATE))


def test_what_is_read_is_held_back_and_then_given_whole() -> None:
    async def story(_: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        sent = bytes(range(256)) * 1_000
        loop = asyncio.get_running_loop()
        began = loop.time()
        await far.write(sent)
        await far.finish()
        assert await all_of(near) == sent
        assert len(sent) / RATE <= loop.time() - began <= 1.2 * len(sent) / RATE

    play(story, Limit(0, RATE))


def test_a_cancelled_read_leaves_its_bytes_for_the_next() -> None:
    async def story(_: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        sent = bytes(range(256)) * 100
        await far.write(sent)
        await far.finish()
        received = b""
        while True:
            try:
                async with asyncio.timeout(0.03):
                    part = await near.read(1_000)
            except TimeoutError:
                continue
            if not part:
                break
            received += part
        assert received == sent

    play(story, Limit(0, RATE))


def test_a_cancelled_write_still_goes_out_whole_and_before_the_next() -> None:
    async def story(_: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        first, second = b"a" * 20_000, b"b" * 5_000
        reading = asyncio.create_task(all_of(far))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await near.write(first)
        await near.write(second)
        await near.finish()
        assert await reading == first + second

    play(story, Limit(0, RATE))


def test_a_limit_set_later_holds_for_streams_that_run_and_one_removed_does_not() -> None:
    async def story(shaping: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        loop = asyncio.get_running_loop()

        async def took() -> float:
            began = loop.time()
            await near.write(bytes(200_000))
            received = 0
            while received < 200_000:
                received += len(await far.read(1 << 20))
            return loop.time() - began

        assert await took() == 0.0
        limit = await shaping.add(Limit(0, RATE))
        assert await took() >= 1.9
        waiting = asyncio.create_task(took())
        await asyncio.sleep(0.5)
        await shaping.remove(limit.number)
        assert await waiting <= 0.6
        assert await took() == 0.0

    play(story)


def test_a_limit_on_something_else_changes_nothing() -> None:
    async def story(_: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        began = asyncio.get_running_loop().time()
        await near.write(bytes(500_000))
        await far.write(bytes(500_000))
        await near.read(1 << 20)
        assert asyncio.get_running_loop().time() == began

    play(
        story,
        Limit(0, RATE, peer=PeerId("cyd")),
        Limit(0, RATE, purpose="tasks"),
    )


def test_limits_outlive_a_restart() -> None:
    async def main(_: Random) -> None:
        disk = SimulatedDisk()
        first = Shaping(disk.open_database(), lambda: 0)
        await first.add(Limit(0, RATE, BOB, "tunnel", Direction.UP))
        await first.add(Limit(0, 2 * RATE))
        await first.remove(2)
        again = Shaping(disk.open_database(), lambda: 0)
        await again.load()
        assert again.limits() == [Limit(1, RATE, BOB, "tunnel", Direction.UP)]
        assert again.is_limited

    virtual_time.run(main)


def test_an_aborted_stream_ends_whoever_waits() -> None:
    async def story(_: Shaping, near: ShapedStream, far: LoopbackStream) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await near.write(bytes(100_000))
        near.abort()
        with pytest.raises(ConnectionLost):
            while True:
                await far.read(1_000)

    play(story, Limit(0, RATE))
