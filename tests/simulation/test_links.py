"""Links over the simulated network: one per pair, authenticated before anything else is read, and dead ones noticed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from croft.errors import Busy, ConnectionLost, CroftError, Failed, PeerMisbehaved, Refused, TimedOut, Unreachable
from croft.identity import grants
from croft.identity.certificates import certify
from croft.identity.keys import SecretKey, community_key, twin_key
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.contacts import ContactBook
from croft.overlay.control_stream import CALLS_SERVED_MAX
from croft.overlay.doorkeeper import Doorkeeper
from croft.overlay.link import Link
from croft.overlay.links import GREETING_TIMEOUT_S, GREETINGS_MAX, STREAMS_PER_LINK_MAX, Links
from croft.overlay.messages import (
    PROTOCOL,
    Call,
    Greeting,
    Heartbeat,
    Hello,
    Notice,
    Rejected,
    StreamHeader,
)
from croft.overlay.passport import Membership, Own, PeerPassport
from croft.ports import Connection, Stream
from croft.sim import virtual_time
from croft.sim.network import SimulatedNetwork, SimulatedTransport
from croft.wire import frames
from croft.wire.codec import Message, decode_union, encode
from croft.wire.message_stream import MessageStream
from support.worlds import repeat, seeds

ROOT = community_key(b"r" * 32, b"")
COMMUNITY = CommunityId(ROOT.public)
FOUNDER = twin_key(b"founder".ljust(32))
CHAIN = grants.found(ROOT, TwinId(FOUNDER.public))
NOW = 1_700_000_000.0

Run = Callable[[Callable[["Town"], Awaitable[Any]]], Any]


@dataclass
class Inhabitant:
    """A peer that has links and nothing else."""

    name: str
    transport: SimulatedTransport
    passport: PeerPassport
    links: Links
    serving: asyncio.Task[None]
    ups: list[PeerId]
    downs: list[tuple[PeerId, str]]

    @property
    def peer(self) -> PeerId:
        return self.transport.peer_id

    async def to(self, other: Inhabitant) -> Link:
        await asyncio.sleep(0)  # its links may only just have been told to run
        return await self.links.ensure(other.peer, other.transport.addresses())


class Town:
    """Inhabitants on one network."""

    def __init__(self, random: Random) -> None:
        self.network = SimulatedNetwork(random)
        self.inhabitants: list[Inhabitant] = []
        self._instances = itertools.count()

    def settle(
        self, name: str, *, is_member: bool = True, prepare: Callable[[Links], None] = lambda _: None
    ) -> Inhabitant:
        device, twin = SecretKey(name.encode().ljust(32)), twin_key(f"twin of {name}".encode().ljust(32))
        peer = PeerId(device.public)
        certificate = certify(twin, peer, name, NOW)
        own = Own(device, peer, TwinId(twin.public), name, certificate, f"run {next(self._instances)}".encode())
        passport = PeerPassport(own, lambda: NOW, lambda _: frozenset([COMMUNITY]), Doorkeeper(ContactBook(own.twin)))
        chain = grants.admit(FOUNDER, CHAIN, COMMUNITY, own.twin) if is_member else CHAIN
        passport.memberships[COMMUNITY] = Membership(COMMUNITY, "town", tuple(chain))
        transport = self.network.open(name, device.raw, [PROTOCOL])
        links = Links(transport, passport)
        prepare(links)
        ups: list[PeerId] = []
        downs: list[tuple[PeerId, str]] = []
        links.on_up(lambda link: ups.append(link.peer))
        links.on_down(lambda link, reason: downs.append((link.peer, reason)))
        serving = asyncio.create_task(links.serve(), name=f"{name}.links")
        inhabitant = Inhabitant(name, transport, passport, links, serving, ups, downs)
        self.inhabitants.append(inhabitant)
        return inhabitant

    async def crash(self, inhabitant: Inhabitant) -> None:
        inhabitant.transport.crash(is_loud=False)
        inhabitant.serving.cancel()
        await asyncio.gather(inhabitant.serving, return_exceptions=True)

    async def end(self) -> None:
        for inhabitant in self.inhabitants:
            inhabitant.serving.cancel()
            (result,) = await asyncio.gather(inhabitant.serving, return_exceptions=True)
            assert isinstance(result, asyncio.CancelledError | None), result
        left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not left, f"tasks that outlive their peers: {sorted(left)}"


@pytest.fixture(params=seeds(), ids=lambda seed: f"seed{seed}")
def run(request: pytest.FixtureRequest) -> Run:
    def start(story: Callable[[Town], Awaitable[Any]]) -> Any:
        async def main(random: Random) -> Any:
            town = Town(random)
            result = await story(town)
            await town.end()
            return result

        try:
            return virtual_time.run(main, seed=request.param)
        except BaseException as error:
            error.add_note(f"To repeat it: {repeat(request.node.nodeid, request.param)}")
            raise

    return start


def now() -> float:
    return asyncio.get_running_loop().time()


def one_link(anna: Inhabitant, bert: Inhabitant) -> Link:
    """The link between two, which both must see as one connection."""
    here, there = anna.links.get(bert.peer), bert.links.get(anna.peer)
    assert here is not None
    assert there is not None
    assert getattr(here.connection, "far", None) is there.connection
    assert not here.is_closed
    return here


# --- one link per pair -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead_s", [0.0, 0.003, 0.01, 0.02, 0.04, 0.07])
def test_two_that_dial_each_other_end_with_one_link(run: Run, lead_s: float) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        first = asyncio.create_task(anna.to(bert))
        await asyncio.sleep(lead_s)
        await asyncio.gather(first, bert.to(anna), return_exceptions=True)
        await asyncio.sleep(1)
        if anna.links.get(bert.peer) is None:
            # A dial closes what came before it. Then neither may keep a half, and the next dial works.
            assert bert.links.get(anna.peer) is None
            await anna.to(bert)
            await asyncio.sleep(1)
        one_link(anna, bert)
        assert len(anna.links.all()) == len(bert.links.all()) == 1

    run(story)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_dial_in_place_of_a_link_that_only_the_other_side_lost_is_no_double_dial(run: Run, lost: int) -> None:
    async def story(town: Town) -> None:
        # Of two that dial at once, the connection that `keeper` dialled stays.
        keeper, loser = sorted((town.settle("anna"), town.settle("bert")), key=lambda one: one.peer)
        old = await keeper.to(loser)
        elsewhere = town.network.open("elsewhere", loser.name.encode().ljust(32), [PROTOCOL])
        connection = await elsewhere.dial(keeper.peer, keeper.transport.addresses(), PROTOCOL, 5)
        await say(connection, replace(loser.passport.hello(frozenset([COMMUNITY])), lost=lost))
        await asyncio.sleep(1)

        assert old.is_closed == (lost == 1)
        assert (keeper.links.get(loser.peer) is old) == (lost == 0)
        connection.close(0, "bye")

    run(story)


def test_a_peer_says_in_its_hello_how_many_links_it_has_lost(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        for lost in range(3):
            link = await bert.to(anna)
            await asyncio.sleep(1)
            seen = anna.links.get(bert.peer)
            assert seen is not None
            assert seen.greeted.lost == lost
            link.give_up()
            await asyncio.sleep(1)

    run(story)


def test_many_callers_of_one_peer_share_one_dial(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        links = await asyncio.gather(*(anna.to(bert) for _ in range(20)))
        assert len(set(map(id, links))) == 1
        assert bert.ups == [anna.peer]

    run(story)


def test_a_restarted_peer_replaces_its_old_link_and_nobody_sees_it_down(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        await anna.to(bert)
        await town.crash(anna)
        town.inhabitants.remove(anna)
        again = town.settle("anna")
        await again.to(bert)
        await asyncio.sleep(1)
        one_link(again, bert)
        assert bert.downs == []
        assert bert.ups == [anna.peer, anna.peer]

    run(story)


def test_a_silent_peer_is_noticed_within_ten_seconds(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        await anna.to(bert)
        await asyncio.sleep(7.3)
        await town.crash(bert)
        crashed_at = now()
        while not anna.downs:
            await asyncio.sleep(0.1)
        assert now() - crashed_at <= 10.1
        assert "nothing heard" in anna.downs[0][1]
        assert anna.links.get(bert.peer) is None

    run(story)


# --- strangers -------------------------------------------------------------------------------------------------------


def test_a_stranger_is_refused_with_the_reason_and_a_remedy(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, eve = town.settle("anna"), town.settle("eve", is_member=False)
        with pytest.raises(Refused, match="somebody else") as caught:
            await eve.to(anna)
        assert "croft invite" in caught.value.remedy
        assert anna.ups == []

    run(story)


async def dialled(town: Town, target: Inhabitant) -> Connection:
    """A connection by somebody who speaks bytes of its own."""
    transport = town.network.open("mallory", b"m" * 32, [PROTOCOL])
    return await transport.dial(target.peer, target.transport.addresses(), PROTOCOL, 5)


async def say(connection: Connection, *messages: Message) -> Stream:
    stream = await connection.open_stream()
    await stream.write(b"".join(frames.frame(encode(message)) for message in messages))
    return stream


def test_nothing_that_a_stranger_says_beside_its_hello_is_read(run: Run) -> None:
    async def story(town: Town) -> None:
        heard: list[object] = []

        async def ping(link: Link, body: bytes) -> bytes:
            heard.append(body)
            return body

        async def work(consumer: object, stream: Stream) -> None:
            heard.append(consumer)

        def prepare(links: Links) -> None:
            links.on_call("ping", ping)
            links.on_notice("topic", lambda link, body: heard.append(body))
            links.on_stream("work", work)

        anna, eve = town.settle("anna", prepare=prepare), town.settle("eve", is_member=False)
        connection = await dialled(town, anna)
        hello = eve.passport.hello(frozenset([COMMUNITY]))
        stream = await say(connection, hello, Call(1, "ping", 5.0, b""), Notice("topic", b""))
        await say(connection, StreamHeader("work"))
        async with MessageStream(stream, step="test") as messages:
            answer: Greeting = decode_union(await messages.receive() or b"", Greeting, step="test")
            assert isinstance(answer, Rejected)
            assert "another device" in answer.message
            assert await messages.receive() is None
        connection.close(0, "bye")
        await asyncio.sleep(20)
        assert heard == []

    run(story)


@pytest.mark.parametrize(
    "opening",
    [
        b"",
        b"\0\0\0\x05junk!",
        frames.frame(encode(Heartbeat(1))),
        frames.frame(encode(Call(1, "ping", 5.0, b""))),
        frames.frame(bytes(100_000)),
        (1 << 31).to_bytes(4, "big"),
        frames.frame(encode(Hello(1, b"", [], b"")))[:-3],
    ],
    ids=["nothing", "junk", "a heartbeat", "a call", "large", "huge", "a part"],
)
def test_what_is_no_hello_ends_the_connection_in_time(run: Run, opening: bytes) -> None:
    async def story(town: Town) -> None:
        anna = town.settle("anna")
        connection = await dialled(town, anna)
        stream = await connection.open_stream()
        if opening:
            await stream.write(opening)
        await connection.wait_closed()
        assert now() < GREETING_TIMEOUT_S + 1
        assert anna.ups == []

    run(story)


def test_a_hello_that_trickles_in_is_not_waited_for(run: Run) -> None:
    async def story(town: Town) -> None:
        anna = town.settle("anna")
        connection = await dialled(town, anna)
        stream = await connection.open_stream()

        async def trickle() -> None:
            for byte in frames.frame(bytes(60_000)):
                await stream.write(bytes([byte]))
                await asyncio.sleep(0.5)

        trickling = asyncio.create_task(trickle())
        await connection.wait_closed()
        assert now() < GREETING_TIMEOUT_S + 1
        await asyncio.gather(trickling, return_exceptions=True)

    run(story)


def test_a_listener_that_says_nothing_is_told_of_as_unreachable(run: Run) -> None:
    async def story(town: Town) -> None:
        anna = town.settle("anna")
        mute = town.network.open("mute", b"q" * 32, [PROTOCOL])
        await asyncio.sleep(0)
        with pytest.raises(Unreachable, match="no hello"):
            await anna.links.ensure(mute.peer_id, mute.addresses())
        assert now() < GREETING_TIMEOUT_S + 1

    run(story)


def test_a_crowd_at_the_door_is_bounded_and_members_get_in_after_it(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        crowd = [
            await town.network.open(f"host{number}", number.to_bytes(32, "big"), [PROTOCOL]).dial(
                anna.peer, anna.transport.addresses(), PROTOCOL, 5
            )
            for number in range(1, GREETINGS_MAX + 20)
        ]
        await asyncio.gather(*(connection.wait_closed() for connection in crowd))
        await bert.to(anna)
        one_link(anna, bert)

    run(story)


# --- calls and notices -----------------------------------------------------------------------------------------------


def with_methods(links: Links) -> None:
    """`echo`, `wait`, and three ways to fail."""

    async def echo(link: Link, body: bytes) -> bytes:
        return body

    async def wait(link: Link, body: bytes) -> bytes:
        await asyncio.sleep(float(body))
        return b"waited"

    async def fail(link: Link, body: bytes) -> bytes:
        raise Failed("the disk is full", remedy="Free some space.")

    async def blame(link: Link, body: bytes) -> bytes:
        raise PeerMisbehaved("nonsense", step="blame")

    for name, method in (("echo", echo), ("wait", wait), ("fail", fail), ("blame", blame)):
        links.on_call(name, method)


async def pair(town: Town) -> tuple[Inhabitant, Inhabitant, Link]:
    anna, bert = town.settle("anna"), town.settle("bert", prepare=with_methods)
    return anna, bert, await anna.to(bert)


def test_calls_are_answered_each_with_its_own_answer(run: Run) -> None:
    async def story(town: Town) -> None:
        _, _, link = await pair(town)
        bodies = [str(number).encode() for number in range(100)]
        assert await asyncio.gather(*(link.call("echo", body, deadline_s=5) for body in bodies)) == bodies

    run(story)


def test_a_failure_comes_with_its_class_its_words_and_its_remedy(run: Run) -> None:
    async def story(town: Town) -> None:
        _, _, link = await pair(town)
        with pytest.raises(Failed, match="the disk is full") as caught:
            await link.call("fail", b"", deadline_s=5)
        assert caught.value.remedy == "Free some space."
        with pytest.raises(CroftError, match="nonsense"):
            await link.call("blame", b"", deadline_s=5)
        with pytest.raises(CroftError, match="no method `dance`"):
            await link.call("dance", b"", deadline_s=5)
        assert await link.call("echo", b"still here", deadline_s=5) == b"still here"

    run(story)


def test_a_call_ends_at_its_deadline_on_both_sides(run: Run) -> None:
    async def story(town: Town) -> None:
        _, bert, link = await pair(town)
        started = now()
        with pytest.raises(TimedOut):
            await link.call("wait", b"100", deadline_s=3)
        assert now() - started == pytest.approx(3, abs=0.1)
        await asyncio.sleep(1)
        there = bert.links.all()[0]
        assert there._serving == {}

    run(story)


def test_a_cancelled_call_stops_its_handler(run: Run) -> None:
    async def story(town: Town) -> None:
        _, bert, link = await pair(town)
        calling = asyncio.create_task(link.call("wait", b"100", deadline_s=500))
        await asyncio.sleep(1)
        there = bert.links.all()[0]
        assert len(there._serving) == 1
        calling.cancel()
        await asyncio.sleep(1)
        assert there._serving == {}

    run(story)


def test_more_calls_than_the_limit_are_answered_busy(run: Run) -> None:
    async def story(town: Town) -> None:
        _, _, link = await pair(town)
        calls = [link.call("wait", b"1", deadline_s=5) for _ in range(CALLS_SERVED_MAX + 10)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert results.count(b"waited") == CALLS_SERVED_MAX
        assert sum(isinstance(result, Busy) for result in results) == 10

    run(story)


def test_calls_fail_at_once_when_their_link_ends(run: Run) -> None:
    async def story(town: Town) -> None:
        _, bert, link = await pair(town)
        calling = asyncio.create_task(link.call("wait", b"100", deadline_s=500))
        await asyncio.sleep(1)
        bert.links.all()[0].close(0, "going")
        with pytest.raises(Unreachable, match="bert"):
            await calling
        assert now() < 3
        with pytest.raises(Unreachable):
            await link.call("echo", b"", deadline_s=5)

    run(story)


@pytest.mark.parametrize("deadline_s", [float("nan"), float("inf"), -1.0, 1e300])
def test_a_senseless_deadline_does_no_harm(run: Run, deadline_s: float) -> None:
    async def story(town: Town) -> None:
        _, bert, link = await pair(town)
        link._post(Call(1_000, "wait", deadline_s, b"2"))
        await asyncio.sleep(5)
        assert await link.call("echo", b"x", deadline_s=5) == b"x"
        assert bert.links.all()[0]._serving == {}

    run(story)


def test_notices_arrive_in_order_and_unknown_ones_are_ignored(run: Run) -> None:
    async def story(town: Town) -> None:
        heard: list[bytes] = []
        anna = town.settle("anna")
        bert = town.settle("bert", prepare=lambda links: links.on_notice("topic", lambda _, body: heard.append(body)))
        link = await anna.to(bert)
        for number in range(50):
            link.notify("topic", str(number).encode())
            link.notify("unheard of", b"")
        await asyncio.sleep(1)
        assert heard == [str(number).encode() for number in range(50)]

    run(story)


def test_a_member_that_breaks_the_protocol_loses_its_link_and_can_come_again(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert, link = await pair(town)
        link._post(Call(7, "wait", 100.0, b"100"))
        link._post(Call(7, "wait", 100.0, b"100"))
        await asyncio.sleep(1)
        assert [peer for peer, _ in bert.downs] == [anna.peer]
        assert "twice" in bert.downs[0][1]
        await anna.to(bert)
        one_link(anna, bert)

    run(story)


def test_a_member_that_asks_and_never_reads_is_dropped(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert", prepare=with_methods)
        connection = await anna.transport.dial(bert.peer, bert.transport.addresses(), PROTOCOL, 5)
        stream = await say(connection, anna.passport.hello(frozenset([COMMUNITY])))

        async def flood() -> None:
            for number in itertools.count():
                await stream.write(frames.frame(encode(Call(number, "echo", 5.0, bytes(500_000)))))

        flooding = asyncio.create_task(flood())
        reason = await connection.wait_closed()
        assert "does not read" in reason
        await asyncio.gather(flooding, return_exceptions=True)

    run(story)


# --- streams ---------------------------------------------------------------------------------------------------------


def test_streams_go_to_their_handler_and_others_are_dropped(run: Run) -> None:
    async def story(town: Town) -> None:
        async def shout(consumer: Any, stream: Stream) -> None:
            data = await stream.read(100)
            await stream.write(consumer.name.encode() + b" said " + data)
            await stream.finish()
            await stream.read(1)

        anna = town.settle("anna")
        bert = town.settle("bert", prepare=lambda links: links.on_stream("shout", shout))
        await anna.to(bert)
        for links, expected in ((anna.links, b"anna said hi"), (bert.links, b"bert said hi")):
            stream = await links.open_stream(bert.peer, "shout")
            await stream.write(b"hi")
            assert await stream.read(100) == expected
            stream.abort()
        nowhere = await anna.links.open_stream(bert.peer, "nowhere")
        with pytest.raises(ConnectionLost, match="abort"):
            await nowhere.read(1)

    run(story)


def test_streams_beyond_the_limit_are_dropped_and_the_link_lives(run: Run) -> None:
    async def story(town: Town) -> None:
        async def hold(consumer: object, stream: Stream) -> None:
            await stream.read(1)

        anna = town.settle("anna")
        bert = town.settle("bert", prepare=lambda links: (links.on_stream("hold", hold), with_methods(links))[0])
        link = await anna.to(bert)
        streams = [await anna.links.open_stream(bert.peer, "hold") for _ in range(STREAMS_PER_LINK_MAX + 5)]
        await asyncio.sleep(1)
        assert len([stream for stream in streams if stream._failure]) == 5  # type: ignore[attr-defined]  # simulated
        assert await link.call("echo", b"x", deadline_s=5) == b"x"

    run(story)


def test_a_stream_to_nobody_is_unreachable(run: Run) -> None:
    async def story(town: Town) -> None:
        anna, bert = town.settle("anna"), town.settle("bert")
        with pytest.raises(Unreachable):
            await anna.links.open_stream(bert.peer, "work")

    run(story)
