"""Circles of whole simulated peers: who may open a stream to whom, and what ends when its member does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest

from croft.compute.circle import STREAMS_PER_MEMBER_MAX
from croft.compute.circle_messages import (
    CIRCLE_PURPOSE,
    Connect,
    Connected,
    Incoming,
    Listen,
    MemberStreamAnswer,
    NotConnected,
    OpenMemberStream,
)
from croft.compute.circles import Membership
from croft.compute.messages import Declined
from croft.control.work_messages import OpenCommandJob
from croft.errors import ConnectionLost, CroftError
from croft.overlay.loopback import pipe
from croft.ports import Stream
from croft.sim.doorway import SimulatedDoorway
from croft.sim.world import World
from croft.wire.codec import decode_union
from croft.wire.message_stream import receive_alone, send_alone
from support.worlds import Play

CIRCLE = "c1rc1e"
NUMBERS = count(1)


async def no_output(_: int, __: bytes) -> None:
    """Simulated members print nothing."""


async def no_start(_: str) -> None:
    """Nobody waits for it."""


async def seen(world: World, condition: Callable[[], bool], what: str) -> None:
    """Waits for a state."""
    await world.until(lambda: "" if condition() else f"not so: {what}", within_s=60.0)


class Program:
    """The consumer's program, and its members on other peers."""

    def __init__(self, world: World, name: str, membership: Membership, tasks: asyncio.TaskGroup) -> None:
        self.world = world
        self.name = name
        self.membership = membership
        self.tasks = tasks
        self.commands: list[asyncio.Task[None]] = []

    async def member(self, name: str, on: str, *, listens: bool = True) -> SimulatedDoorway:
        """Starts a member on a peer; what it does is up to the test."""
        boxes = self.world[on].sandbox.boxes
        before = len(boxes)
        only = [self.world[on].peer]
        opening = OpenCommandJob(["member"], {}, [], [], only, [], circle=CIRCLE, member=name)
        _, job = self.world[self.name].parts.jobs.command_job(opening)

        async def run() -> None:
            with contextlib.suppress(CroftError):  # how it ends is not told here
                await job.run(no_output, no_start)

        self.commands.append(self.tasks.create_task(run()))
        await seen(self.world, lambda: len(boxes) > before and name in self.membership.circle.places, f"{name} runs")
        doorway = boxes[-1].doorway
        assert doorway is not None
        if listens:
            doorway.say(Listen())
        return doorway


@contextlib.asynccontextmanager
async def program(world: World, name: str = "peer1", circle: str = CIRCLE) -> AsyncIterator[Program]:
    """A program of a peer that has opened a circle; streams to it are refused."""

    async def door(_: str) -> Stream:
        near, far = pipe()
        far.abort()
        return near

    with world[name].parts.circles.founded(circle, door) as membership:
        async with asyncio.TaskGroup() as tasks:
            made = Program(world, name, membership, tasks)
            yield made
            for command in made.commands:
                command.cancel()


async def connected(asker: SimulatedDoorway, target: str) -> Stream:
    """A stream that a member opens."""
    number = next(NUMBERS)
    asker.say(Connect(number, target))
    answer, stream = await asker.hear()
    assert answer == Connected(number), answer
    assert stream is not None
    return stream


async def incoming(doorway: SimulatedDoorway) -> tuple[str, Stream]:
    """A stream that is opened to a member, and by whom."""
    message, stream = await doorway.hear()
    assert isinstance(message, Incoming) and stream is not None, message
    return message.member, stream


async def refusal(asker: SimulatedDoorway, target: str) -> str:
    """Why a member gets no stream."""
    asker.say(Connect(next(NUMBERS), target))
    answer, _ = await asker.hear()
    assert isinstance(answer, NotConnected), answer
    return answer.message


async def heard(stream: Stream) -> bytes:
    parts = []
    while part := await stream.read(1 << 16):
        parts.append(part)
    return b"".join(parts)


async def ask(world: World, name: str, opening: OpenMemberStream, of: str) -> object:
    """What a peer answers to whoever asks it for a stream to a member."""
    stream = await world[name].parts.overlay.open_stream(world[of].peer, CIRCLE_PURPOSE)
    await send_alone(stream, opening)
    payload = await receive_alone(stream, step="test", frame_bytes_max=4096)
    stream.abort()
    return decode_union(payload, MemberStreamAnswer, step="test")


def test_members_on_two_peers_open_streams_to_one_another_and_half_close_them(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        async with program(world) as consumer:
            one = await consumer.member("one", on="peer2")
            two = await consumer.member("two", on="peer3")
            asked = await connected(one, "two")
            sender, served = await incoming(two)
            await asked.write(b"question")
            await asked.finish()
            question = await heard(served)
            await served.write(b"answer")
            await served.finish()

            assert (sender, question, await heard(asked)) == ("one", b"question", b"answer")

    play(story)


def test_members_on_one_peer_and_the_lending_consumer_itself_are_no_exception(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        async with program(world) as consumer:
            one = await consumer.member("one", on="peer1")
            two = await consumer.member("two", on="peer1")
            three = await consumer.member("three", on="peer2")
            for asker, target, name in ((one, two, "two"), (three, one, "one"), (two, three, "three")):
                asked = await connected(asker, name)
                _, served = await incoming(target)
                await asked.write(b"hello")
                assert await served.read(10) == b"hello"

    play(story)


def test_nobody_but_the_holder_of_a_member_speaks_for_it(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        async with program(world) as consumer:
            await consumer.member("one", on="peer2")
            two = await consumer.member("two", on="peer3")
            owner = world["peer1"].peer
            opening = OpenMemberStream(owner, CIRCLE, "one", "two")
            async with program(world, "peer4", "another"):
                stranger = await ask(world, "peer4", opening, of="peer3")
                to_the_consumer = await ask(world, "peer4", opening, of="peer1")
            other = await ask(world, "peer2", OpenMemberStream(owner, CIRCLE, "home", "two"), of="peer3")
            guess = await ask(world, "peer4", OpenMemberStream(world["peer4"].peer, CIRCLE, "home", "two"), of="peer3")

            refusals = (stranger, to_the_consumer, other)
            assert [(one.code, one.message) for one in refusals if isinstance(one, Declined)] == [
                ("refused", "you hold no `one` of this circle"),
                ("refused", "you hold no `one` of this circle"),
                ("refused", "you hold no `home` of this circle"),
            ]
            assert isinstance(guess, Declined) and guess.message == "nobody of that circle is here"
            assert await connected(two, "one")  # and who may, still can

    play(story)


def test_a_box_of_another_consumer_on_the_same_peers_reaches_nobody(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        async with program(world) as consumer, program(world, "peer4") as other:
            await consumer.member("one", on="peer2")
            await consumer.member("two", on="peer3")
            spy = await other.member("spy", on="peer2")

            # Even a circle of the same name is another one.
            assert "no `one` is in this circle" in await refusal(spy, "one")
            assert "no `two` is in this circle" in await refusal(spy, "two")

    play(story)


def test_lenders_that_cannot_reach_each_other_are_joined_by_the_consumer(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        async with program(world) as consumer:
            one = await consumer.member("one", on="peer2")
            two = await consumer.member("two", on="peer3")
            hosts = [world["peer2"].host], [world["peer3"].host]
            world.network.cut(*hosts)
            world.network.cut(*reversed(hosts))
            await asyncio.sleep(60)  # the link between them is dead for good
            asked = await connected(one, "two")
            sender, served = await incoming(two)
            await asked.write(b"by the consumer")

            assert (sender, await served.read(100)) == ("one", b"by the consumer")

    play(story)


def test_streams_end_with_the_box_and_with_the_circle(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        async with contextlib.AsyncExitStack() as stack:
            consumer = await stack.enter_async_context(program(world))
            one = await consumer.member("one", on="peer2")
            two = await consumer.member("two", on="peer3")
            stream = await connected(one, "two")
            await incoming(two)
            world["peer3"].sandbox.crash()
            with pytest.raises(ConnectionLost):
                while await stream.read(10):
                    pass
            await seen(world, lambda: "two" not in consumer.membership.circle.places, "two has left")
            assert "no `two` is in this circle" in await refusal(one, "two")
        await seen(world, lambda: not world["peer2"].sandbox.boxes, "its boxes are closed")
        assert await ask(
            world, "peer1", OpenMemberStream(world["peer1"].peer, CIRCLE, "home", "one"), of="peer2"
        ) == Declined("refused", "nobody of that circle is here")

    play(story)


def test_a_member_has_a_bounded_number_of_streams(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(1)
        async with program(world) as consumer:
            one = await consumer.member("one", on="peer1")
            two = await consumer.member("two", on="peer1")
            for _ in range(STREAMS_PER_MEMBER_MAX):
                await connected(one, "two")
                await incoming(two)

            assert f"`one` has {STREAMS_PER_MEMBER_MAX} streams open" in await refusal(one, "two")
            assert f"`two` has {STREAMS_PER_MEMBER_MAX} streams open" in await refusal(two, "two")

    play(story)


def test_who_does_not_listen_or_talks_nonsense_gets_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        async with program(world) as consumer:
            one = await consumer.member("one", on="peer2")
            deaf = await consumer.member("deaf", on="peer2", listens=False)
            mad = await consumer.member("mad", on="peer1")
            mad.say(OpenMemberStream("a", "b", "c", "d"))
            await asyncio.sleep(1)
            mad.say(Connect(1, "one"))

            assert "it does not listen" in await refusal(one, "deaf")
            assert (await incoming(one))[0] if await connected(deaf, "one") else False
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(30):
                    await mad.hear()

    play(story)


def test_who_does_not_read_holds_up_its_own_stream_and_no_other(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        async with program(world) as consumer:
            one = await consumer.member("one", on="peer2")
            two = await consumer.member("two", on="peer3")
            stuck, unread, said = await connected(one, "two"), (await incoming(two))[1], 0
            with pytest.raises(TimeoutError):
                while True:
                    async with asyncio.timeout(60):
                        await stuck.write(bytes(1 << 20))
                    said += 1 << 20
                    assert said < 64 << 20, "what waits on the way is bounded"
            other = await connected(one, "two")
            _, served = await incoming(two)
            await other.write(b"passes")
            assert await served.read(100) == b"passes"

            read = 0
            while read < said:
                read += len(await unread.read(1 << 20))

    play(story)
