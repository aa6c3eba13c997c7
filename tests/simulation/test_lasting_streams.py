"""Streams that outlive their connections, between whole peers on virtual time."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from croft.errors import ConnectionLost
from croft.ports import Stream
from croft.sim.world import World
from support.worlds import Play

PURPOSE = "test.lasting"


def noise(size: int) -> bytes:
    return Random(size).randbytes(size)


async def two(world: World, handler: object) -> tuple[str, str]:
    """Two linked peers, of which the second serves streams of PURPOSE by `handler`."""
    one, other = await world.unite(2)
    for name in (one, other):
        world[name].parts.overlay.links.on_stream(PURPOSE, handler, lasts=True)  # type: ignore[arg-type]
    await asyncio.sleep(15)
    return one, other


async def open_stream(world: World, one: str, other: str) -> Stream:
    return await world[one].parts.overlay.open_stream(world[other].peer, PURPOSE)


async def read_all(stream: Stream) -> bytes:
    parts = []
    while part := await stream.read(1 << 20):
        parts.append(part)
    return b"".join(parts)


async def echo(_: object, stream: Stream) -> None:
    """Sends everything back, in pieces."""
    while part := await stream.read(50_000):
        await stream.write(part)
    await stream.finish()


def test_a_stream_goes_on_after_its_connection_was_lost_and_every_byte_arrives_once(play: Play) -> None:
    async def story(world: World) -> None:
        one, other = await two(world, echo)
        stream = await open_stream(world, one, other)
        sent = noise(3_000_000)

        async def send() -> None:
            for at in range(0, len(sent), 10_000):
                await stream.write(sent[at : at + 10_000])
                await asyncio.sleep(0.05)
            await stream.finish()

        sending = asyncio.create_task(send())
        reading = asyncio.create_task(read_all(stream))
        for _ in range(2):
            await asyncio.sleep(2)
            world.partition([one], [other])
            await asyncio.sleep(6)
            world.heal()
        assert await asyncio.wait_for(reading, 60) == sent
        await sending

    play(story)


def test_a_dead_path_is_noticed_within_four_seconds_while_bytes_wait(play: Play) -> None:
    async def story(world: World) -> None:
        one, other = await two(world, echo)
        stream = await open_stream(world, one, other)
        await stream.write(b"before")
        assert await stream.read(100) == b"before"
        link = world[one].parts.overlay.links.get(world[other].peer)
        assert link is not None
        world.partition([one], [other])
        cut_at = world.now
        await stream.write(b"after")
        await link.ended.wait()
        assert world.now - cut_at < 4.5
        world.heal()
        assert await asyncio.wait_for(stream.read(100), 10) == b"after"
        stream.abort()

    play(story)


def test_a_stream_ends_if_no_other_connection_comes_in_time(play: Play) -> None:
    async def story(world: World) -> None:
        one, other = await two(world, echo)
        stream = await open_stream(world, one, other)
        await stream.write(b"x")
        assert await stream.read(1) == b"x"
        world.partition([one], [other])
        await stream.write(b"y")
        began = world.now
        with pytest.raises(ConnectionLost):
            await stream.read(10)
        assert world.now - began < 25

    play(story)


def test_a_stream_to_a_peer_that_started_anew_ends(play: Play) -> None:
    async def story(world: World) -> None:
        one, other = await two(world, echo)
        stream = await open_stream(world, one, other)
        await stream.write(b"x")
        assert await stream.read(1) == b"x"
        await world.restart(other)
        await stream.write(b"y")
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(stream.read(10), 30)

    play(story)


def test_aborting_reaches_the_other_side_at_once(play: Play) -> None:
    async def story(world: World) -> None:
        ended = asyncio.Event()

        async def wait_for_the_end(_: object, stream: Stream) -> None:
            with pytest.raises(ConnectionLost):
                while await stream.read(10):
                    pass
            ended.set()

        one, other = await two(world, wait_for_the_end)
        stream = await open_stream(world, one, other)
        await stream.write(b"x")
        await asyncio.sleep(1)
        stream.abort()
        with pytest.raises(ConnectionLost):
            await stream.read(1)
        await asyncio.wait_for(ended.wait(), 3)

    play(story)


def test_a_reader_that_does_not_read_stops_the_writer(play: Play) -> None:
    async def story(world: World) -> None:
        never = asyncio.Event()

        async def hold(_: object, stream: Stream) -> None:
            await never.wait()

        one, other = await two(world, hold)
        stream = await open_stream(world, one, other)
        written = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(20):
                while True:
                    await stream.write(bytes(1 << 20))
                    written += 1 << 20
        assert written < 20 << 20
        never.set()
        stream.abort()

    play(story)
