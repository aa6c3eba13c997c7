"""What every transport promises, as tests: both the real and the simulated one must pass all of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

import pytest

from croft.errors import ConnectionLost, Unreachable
from croft.model.ids import PeerId
from croft.ports import Connection, RelayAccess, RouteKind, Stream, Transport

T = TypeVar("T")
PROTOCOL = b"croft/test/1"
DIAL_S = 5.0


class World(Protocol):
    """Where a transport under test lives."""

    async def open(self, key: int, port: int = 0) -> Transport:
        """A transport whose secret key is made of `key`, on `port` or on one that is free."""
        ...

    def stranger(self, key: int) -> PeerId:
        """The id that a transport of `key` would have."""
        ...

    async def vanish(self, transport: Transport) -> None:
        """Ends a transport as a crash would if the world can do that, else by closing it."""
        ...

    def relay(self, *members: Transport) -> AbstractAsyncContextManager[RelayAccess]:
        """A relay for these, which nobody is in touch with yet."""
        ...


Run = Callable[[Callable[[World], Awaitable[None]]], None]


@dataclass
class Pair:
    """Two transports and the connection between them, seen from both sides."""

    dialler: Transport
    listener: Transport
    out: Connection
    into: Connection

    async def streams(self) -> tuple[Stream, Stream]:
        """One stream, from both ends; one byte has been through it."""
        near = await self.out.open_stream()
        await near.write(b"!")
        far = await self.into.accept_stream()
        assert await far.read(1) == b"!"
        return near, far


async def connect(dialler: Transport, listener: Transport) -> Pair:
    """Connects two transports."""
    accepting = asyncio.create_task(listener.accept())
    out = await dialler.dial(listener.peer_id, listener.addresses(), PROTOCOL, DIAL_S)
    into = await accepting
    assert into is not None
    return Pair(dialler, listener, out, into)


@asynccontextmanager
async def pair(world: World) -> AsyncIterator[Pair]:
    """Two connected transports, closed at the end."""
    dialler, listener = await world.open(1), await world.open(2)
    try:
        yield await connect(dialler, listener)
    finally:
        await dialler.close()
        await listener.close()


async def read_all(stream: Stream, size_bytes_max: int = 1 << 20) -> bytes:
    """Everything until the other side finishes."""
    parts = []
    while part := await stream.read(size_bytes_max):
        assert len(part) <= size_bytes_max
        parts.append(part)
    return b"".join(parts)


async def read_exactly(stream: Stream, size_bytes: int) -> bytes:
    """That many bytes."""
    received = b""
    while len(received) < size_bytes:
        part = await stream.read(size_bytes - len(received))
        assert part, "ended early"
        received += part
    return received


def noise(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that no compression or repetition could fake."""
    return Random(seed).randbytes(size_bytes)


async def within(awaitable: Awaitable[T], seconds: float = 10.0) -> T:
    """A test that hangs says where."""
    async with asyncio.timeout(seconds):
        return await awaitable


class TransportSuite:
    """Subclass it and provide the fixture `run`, which gives an async function a world."""

    def test_a_stream_carries_bytes_both_ways(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                await near.write(b"ping")
                assert await read_exactly(far, 4) == b"ping"
                await far.write(b"pong")
                assert await read_exactly(near, 4) == b"pong"

        run(story)

    def test_both_sides_know_who_is_there_and_who_dialled(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                assert two.out.remote == two.listener.peer_id != two.dialler.peer_id
                assert two.into.remote == two.dialler.peer_id
                assert (two.out.is_dialler, two.into.is_dialler) == (True, False)
                assert two.out.protocol == two.into.protocol == PROTOCOL
                route = two.out.route()
                assert route.kind is RouteKind.DIRECT
                assert route.address
                assert route.round_trip_s is not None

        run(story)

    def test_a_read_never_returns_more_than_asked(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                sent = noise(10_000)
                await near.write(sent)
                await near.finish()
                assert await within(read_all(far, 7)) == sent

        run(story)

    def test_a_big_transfer_arrives_intact(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                sent = noise(20 << 20)
                reading = asyncio.create_task(read_all(far))
                await near.write(memoryview(sent))
                await near.finish()
                received = await within(reading, 60)
                assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()

        run(story)

    def test_a_cancelled_read_loses_nothing(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                sent = noise(40_000)

                async def trickle() -> None:
                    for start in range(0, len(sent), 100):
                        await near.write(sent[start : start + 100])
                        await asyncio.sleep(0.0005)
                    await near.finish()

                writing = asyncio.create_task(trickle())
                received, cancelled, is_open = bytearray(), 0, True
                while is_open:
                    try:
                        part = await asyncio.wait_for(far.read(64), 0.0004)
                    except TimeoutError:
                        cancelled += 1
                        continue
                    received += part
                    is_open = bool(part)
                await writing
                assert cancelled > 0
                assert bytes(received) == sent

        run(story)

    def test_a_cancelled_write_goes_out_whole(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                sent = bytearray(noise(8 << 20))
                expected = bytes(sent) + b"end"
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(near.write(memoryview(sent)), 0.3)
                sent[:] = bytes(len(sent))  # the caller's buffer is its own again
                reading = asyncio.create_task(read_all(far))
                await near.write(b"end")
                await near.finish()
                assert await within(reading, 30) == expected

        run(story)

    def test_a_writer_waits_for_a_slow_reader(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                writing = asyncio.create_task(near.write(bytes(8 << 20)))
                await asyncio.sleep(0.5)
                assert not writing.done()
                assert len(await within(read_exactly(far, 8 << 20), 30)) == 8 << 20
                await within(writing)

        run(story)

    def test_a_cancelled_accept_loses_no_stream(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                count = 100

                async def open_them() -> None:
                    for number in range(count):
                        stream = await two.out.open_stream()
                        await stream.write(number.to_bytes(2, "big"))
                        await stream.finish()
                        await asyncio.sleep(0.001)

                opening = asyncio.create_task(open_them())
                seen: set[int] = set()
                cancelled = 0
                while len(seen) < count:
                    try:
                        stream = await asyncio.wait_for(two.into.accept_stream(), 0.0006)
                    except TimeoutError:
                        cancelled += 1
                        continue
                    seen.add(int.from_bytes(await within(read_all(stream)), "big"))
                await opening
                assert cancelled > 0
                assert seen == set(range(count))

        run(story)

    def test_a_cancelled_accept_loses_no_connection(self, run: Run) -> None:
        async def story(world: World) -> None:
            listener, dialler = await world.open(1), await world.open(2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listener.accept(), 0.01)
            out = await dialler.dial(listener.peer_id, listener.addresses(), PROTOCOL, DIAL_S)
            into = await within(listener.accept())
            assert into is not None
            assert into.remote == dialler.peer_id
            out.close(0, "")
            await dialler.close()
            await listener.close()

        run(story)

    def test_finish_closes_only_one_direction(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                await near.write(b"question")
                await near.finish()
                await near.finish()
                assert await within(read_all(far)) == b"question"
                assert await within(far.read(10)) == b""
                await far.write(b"answer")
                await far.finish()
                assert await within(read_all(near)) == b"answer"

        run(story)

    def test_abort_reaches_the_other_side_as_a_loss(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                reading = asyncio.create_task(near.read(10))
                await asyncio.sleep(0.05)
                near.abort()
                near.abort()
                with pytest.raises(ConnectionLost, match="aborted"):
                    await within(reading)
                with pytest.raises(ConnectionLost, match="aborted"):
                    await within(far.read(10))
                with pytest.raises(ConnectionLost, match="aborted"):
                    while True:
                        await within(far.write(b"into the void"))
                        await asyncio.sleep(0.01)
                again, _ = await two.streams()
                await again.write(b"the connection is well")

        run(story)

    def test_what_was_finished_arrives_although_its_writer_lets_go(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                await far.finish()
                assert await within(near.read(10)) == b""
                await near.write(bytes(1 << 20))
                await near.finish()
                near.abort()
                received = 0
                while part := await within(far.read(1 << 20)):
                    received += len(part)
                assert received == 1 << 20

        run(story)

    def test_the_reason_of_closing_is_visible_on_both_sides(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                near, far = await two.streams()
                reading = asyncio.create_task(far.read(10))
                accepting = asyncio.create_task(two.into.accept_stream())
                await asyncio.sleep(0.05)
                two.out.close(7, "gone fishing")
                two.out.close(8, "twice is fine")
                assert await within(two.out.wait_closed()) == "gone fishing"
                assert await within(two.into.wait_closed()) == "gone fishing"
                for waiter in (reading, accepting):
                    with pytest.raises(ConnectionLost, match=rf"{two.dialler.peer_id[:10]}.*gone fishing"):
                        await within(waiter)
                for call in (near.write(b"x"), near.read(1), two.out.open_stream(), two.into.accept_stream()):
                    with pytest.raises(ConnectionLost, match="gone fishing"):
                        await within(call)

        run(story)

    def test_closing_the_transport_tells_the_other_side(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                await within(two.dialler.close())
                assert "shutting down" in await within(two.into.wait_closed())

        run(story)

    def test_accept_returns_none_for_ever_after_close(self, run: Run) -> None:
        async def story(world: World) -> None:
            transport = await world.open(1)
            waiting = [asyncio.create_task(transport.accept()) for _ in range(3)]
            await asyncio.sleep(0.05)
            await within(transport.close())
            assert await within(asyncio.gather(*waiting)) == [None, None, None]
            assert await within(transport.accept()) is None
            with pytest.raises(Unreachable, match="shutting down"):
                await transport.dial(world.stranger(9), ["127.0.0.1:9"], PROTOCOL, 1.0)
            await transport.close()

        run(story)

    def test_dialling_nobody_is_unreachable_within_the_deadline(self, run: Run) -> None:
        async def story(world: World) -> None:
            transport = await world.open(1)
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unreachable, match=world.stranger(9)[:10]):
                await transport.dial(world.stranger(9), ["127.0.0.1:9"], PROTOCOL, 0.5)
            assert asyncio.get_running_loop().time() - started < 2.0
            for useless in ([], ["nonsense"], ["0.0.0.0:0"], ["example.org:5"]):
                with pytest.raises(Unreachable, match="no address"):
                    await transport.dial(world.stranger(9), useless, PROTOCOL, 0.5)
            await transport.close()

        run(story)

    def test_a_cancelled_dial_leaves_the_transport_well(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, listener = await world.open(1), await world.open(2)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(dialler.dial(world.stranger(9), ["127.0.0.1:9"], PROTOCOL, DIAL_S), 0.05)
            two = await connect(dialler, listener)
            await two.streams()
            await dialler.close()
            await listener.close()

        run(story)

    def test_a_peer_with_another_key_is_refused(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, listener = await world.open(1), await world.open(2)
            with pytest.raises(Unreachable, match="another peer"):
                await dialler.dial(world.stranger(9), listener.addresses()[:1], PROTOCOL, DIAL_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(listener.accept(), 0.1)
            await dialler.close()
            await listener.close()

        run(story)

    def test_a_stale_address_that_is_now_anothers_does_not_hide_the_right_one(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, wrong, right = await world.open(1), await world.open(2), await world.open(3)
            mixed = [*wrong.addresses(), *dialler.addresses(), *right.addresses()]
            connection = await dialler.dial(right.peer_id, mixed, PROTOCOL, DIAL_S)
            assert connection.remote == right.peer_id
            for transport in (dialler, wrong, right):
                await transport.close()

        run(story)

    def test_a_protocol_that_nobody_speaks_is_unreachable(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, listener = await world.open(1), await world.open(2)
            with pytest.raises(Unreachable, match="protocol"):
                await dialler.dial(listener.peer_id, listener.addresses(), b"croft/other/1", DIAL_S)
            await dialler.close()
            await listener.close()

        run(story)

    def test_a_peer_cannot_dial_itself(self, run: Run) -> None:
        async def story(world: World) -> None:
            transport = await world.open(1)
            with pytest.raises(Unreachable):
                await transport.dial(transport.peer_id, transport.addresses(), PROTOCOL, 1.0)
            await transport.close()

        run(story)

    def test_a_restarted_peer_can_be_dialled_at_the_same_port(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, listener = await world.open(1), await world.open(2)
            two = await connect(dialler, listener)
            port = int(listener.addresses()[-1].rpartition(":")[2])
            await world.vanish(listener)
            reborn = await world.open(2, port)
            again = await within(connect(dialler, reborn), 20)
            await again.streams()
            assert await within(two.out.wait_closed())
            await dialler.close()
            await reborn.close()

        run(story)

    def test_a_restarted_peer_can_be_dialled_at_another_port(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, listener = await world.open(1), await world.open(2)
            await connect(dialler, listener)
            await world.vanish(listener)
            reborn = await world.open(2)
            again = await within(connect(dialler, reborn), 20)
            await again.streams()
            await dialler.close()
            await reborn.close()

        run(story)

    def test_a_redial_closes_the_older_connection(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                again = await connect(two.dialler, two.listener)
                assert "replaced" in await within(two.out.wait_closed())
                assert "replaced" in await within(two.into.wait_closed())
                await again.streams()

        run(story)

    def test_many_streams_run_side_by_side(self, run: Run) -> None:
        async def story(world: World) -> None:
            async with pair(world) as two:
                count = 200

                async def echo() -> None:
                    async with asyncio.TaskGroup() as tasks:
                        for _ in range(count):
                            stream = await two.into.accept_stream()
                            tasks.create_task(answer(stream))

                async def answer(stream: Stream) -> None:
                    await stream.write(await read_all(stream))
                    await stream.finish()

                async def ask(number: int) -> bytes:
                    stream = await two.out.open_stream()
                    await stream.write(noise(5_000, number))
                    await stream.finish()
                    return await read_all(stream)

                serving = asyncio.create_task(echo())
                answers = await within(asyncio.gather(*(ask(number) for number in range(count))), 60)
                assert answers == [noise(5_000, number) for number in range(count)]
                await serving

        run(story)

    def test_a_peer_is_reached_by_a_relay_when_none_of_its_addresses_is_known(self, run: Run) -> None:
        async def story(world: World) -> None:
            dialler, listener = await world.open(1), await world.open(2)
            async with world.relay(dialler, listener) as relay:
                assert list(listener.relays()) == []
                await listener.use_relays([relay])
                await within(_until(lambda: list(listener.relays()) == [relay.url]))
                accepting = asyncio.create_task(listener.accept())
                out = await dialler.dial(listener.peer_id, [], PROTOCOL, DIAL_S, [relay])
                into = await within(accepting)
                assert into is not None and into.remote == dialler.peer_id
                near, far = await Pair(dialler, listener, out, into).streams()
                await near.write(noise(300_000))
                assert await within(read_exactly(far, 300_000)) == noise(300_000)
                route = out.route()
                assert 300_000 < route.sent_bytes >= route.relayed_sent_bytes
                await listener.use_relays([])
                await within(_until(lambda: not listener.relays()))
            await dialler.close()
            await listener.close()

        run(story)

    def test_an_address_that_others_see_is_among_the_peer_s_own_until_it_is_taken_back(self, run: Run) -> None:
        async def story(world: World) -> None:
            transport = await world.open(1)
            await transport.add_address("198.51.100.7:4001")
            await transport.add_address("198.51.100.7:4001")
            await transport.add_address("no address")
            await within(_until(lambda: "198.51.100.7:4001" in transport.addresses()))
            assert list(transport.addresses()).count("198.51.100.7:4001") == 1
            await transport.remove_address("198.51.100.7:4001")
            await transport.remove_address("198.51.100.7:4001")
            await within(_until(lambda: "198.51.100.7:4001" not in transport.addresses()))
            await transport.close()

        run(story)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)
