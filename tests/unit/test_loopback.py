"""A stream to oneself behaves like one to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from croft.errors import ConnectionLost
from croft.overlay.loopback import BUFFER_BYTES_MAX, pipe
from croft.sim import virtual_time


def on_virtual_time(story: Callable[[], Awaitable[None]]) -> None:
    async def main(_: Random) -> None:
        await story()

    virtual_time.run(main)


def test_bytes_arrive_in_order_and_then_the_end() -> None:
    async def story() -> None:
        near, far = pipe()
        await near.write(b"one ")
        await near.write(memoryview(b"two"))
        await near.finish()
        assert await far.read(2) == b"on"
        assert await far.read(100) == b"e two"
        assert await far.read(100) == b""
        await far.write(b"back")
        assert await near.read(100) == b"back"

    on_virtual_time(story)


def test_a_writer_waits_for_a_reader_that_does_not_keep_up() -> None:
    async def story() -> None:
        near, far = pipe()
        writing = asyncio.create_task(near.write(bytes(BUFFER_BYTES_MAX)))
        await asyncio.sleep(1)
        assert not writing.done()
        await far.read(1)
        await writing

    on_virtual_time(story)


def test_a_cancelled_write_goes_out_whole_and_a_cancelled_read_loses_nothing() -> None:
    async def story() -> None:
        near, far = pipe()
        reading = asyncio.create_task(far.read(100))
        await asyncio.sleep(0)
        reading.cancel()
        writing = asyncio.create_task(near.write(bytes(3 * BUFFER_BYTES_MAX)))
        await asyncio.sleep(1)
        writing.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)
        await near.finish()
        size = 0
        while part := await far.read(1 << 20):
            size += len(part)
        assert size == 3 * BUFFER_BYTES_MAX

    on_virtual_time(story)


def test_an_abort_is_seen_by_whoever_waits_and_by_whoever_comes_later() -> None:
    async def story() -> None:
        near, far = pipe()
        reading = asyncio.create_task(far.read(1))
        writing = asyncio.create_task(far.write(bytes(2 * BUFFER_BYTES_MAX)))
        await asyncio.sleep(1)
        near.abort()
        near.abort()
        with pytest.raises(ConnectionLost):
            await reading
        with pytest.raises(ConnectionLost):
            await writing
        for late in (near.read(1), far.read(1), near.write(b"x"), far.write(b"x")):
            with pytest.raises(ConnectionLost):
                await late

    on_virtual_time(story)
