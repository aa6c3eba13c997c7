"""The loopback interface, real and simulated: both pass the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from croft.adapters.local_services import LoopbackServices
from croft.errors import ConnectionLost, Failed, Unreachable
from croft.ports import LocalServices, Stream
from croft.sim.local_services import SimulatedServices

MEGABYTE = 1 << 20
Story = Callable[[LocalServices], Awaitable[None]]


@pytest.fixture(params=["real", "simulated"])
def play(request: pytest.FixtureRequest) -> Callable[[Story], None]:
    def run(story: Story) -> None:
        async def main() -> None:
            async with asyncio.timeout(20):
                await story(LoopbackServices() if request.param == "real" else SimulatedServices())

        uvloop.run(main())

    return run


async def joined(local: LocalServices) -> tuple[Stream, Stream]:
    listener = await local.listen(0)
    accepting = asyncio.create_task(listener.accept())
    near = await local.connect(listener.port)
    far = await accepting
    listener.close()
    return near, far


async def all_of(stream: Stream) -> bytes:
    parts = []
    while part := await stream.read(MEGABYTE):
        parts.append(part)
    return b"".join(parts)


def test_bytes_pass_both_ways_and_each_side_ends_by_itself(play: Callable[[Story], None]) -> None:
    async def story(local: LocalServices) -> None:
        near, far = await joined(local)
        sent = bytes(range(256)) * 20_000
        reading = asyncio.create_task(all_of(far))
        await near.write(sent)
        await near.finish()
        assert await reading == sent
        await far.write(b"still here")
        await far.finish()
        assert await all_of(near) == b"still here"
        near.abort()
        far.abort()

    play(story)


def test_a_writer_waits_for_its_reader(play: Callable[[Story], None]) -> None:
    async def story(local: LocalServices) -> None:
        near, far = await joined(local)
        writing = asyncio.create_task(near.write(bytes(64 * MEGABYTE)))
        await asyncio.sleep(0.2)
        assert not writing.done()
        received = 0
        while received < 64 * MEGABYTE:
            received += len(await far.read(MEGABYTE))
        await writing
        near.abort()
        far.abort()

    play(story)


def test_a_connection_that_is_cut_short_is_no_end(play: Callable[[Story], None]) -> None:
    async def story(local: LocalServices) -> None:
        near, far = await joined(local)
        near.abort()
        near.abort()
        with pytest.raises(ConnectionLost):
            await all_of(far)
        far.abort()

    play(story)


def test_where_nothing_listens_nothing_answers(play: Callable[[Story], None]) -> None:
    async def story(local: LocalServices) -> None:
        listener = await local.listen(0)
        with pytest.raises(Failed):
            await local.listen(listener.port)
        listener.close()
        with pytest.raises(Unreachable):
            await local.connect(listener.port)

    play(story)


def test_datagrams_come_one_by_one_with_their_sender(play: Callable[[Story], None]) -> None:
    async def story(local: LocalServices) -> None:
        one, two = await local.datagrams(), await local.datagrams()
        one.send(b"a", two.port)
        one.send(b"b", two.port)
        one.send(bytes(9_000), two.port)
        assert [await two.receive() for _ in range(3)] == [
            (b"a", one.port),
            (b"b", one.port),
            (bytes(9_000), one.port),
        ]
        two.send(b"back", one.port)
        assert await one.receive() == (b"back", two.port)
        two.close()
        one.send(b"to nobody", two.port)
        one.send(b"to nobody", two.port)
        with pytest.raises(Failed):
            await local.datagrams(one.port)
        one.close()

    play(story)
