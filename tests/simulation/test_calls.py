"""Calls of capabilities between whole simulated peers: who finds them, what faults do, and what a liar gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from croft.errors import ConnectionLost, NotFound
from croft.node.capabilities import CALL_TELL, Told
from croft.overlay.contacts import Trust
from croft.ports import Stream
from croft.sim.world import World
from croft.twins.call_client import OpenCall
from croft.twins.call_messages import (
    CALLS_OPEN_MAX,
    CALLS_PURPOSE,
    VALUE_PART_BYTES_MAX,
    ArgumentPart,
    AskCall,
    CallFailed,
    StopCall,
    ToCaller,
    ToProvider,
    ValuePart,
    WorkerReady,
    is_last,
)
from croft.twins.capability import CAPABILITY_KIND, Terms
from croft.twins.capability_book import Source
from croft.twins.consent import Verdict
from croft.wire.codec import decode_union, encode
from croft.wire.message_stream import MessageStream
from support.worlds import Play

SIGNATURE = json.dumps({"parameters": {"type": "object", "properties": {}}}).encode()


@dataclass
class Program:
    """What a machine's owner offers: it answers with the machine's name, after a while."""

    name: str
    takes_s: float = 0.0
    ran: int = 0
    stopped: list[int] = field(default_factory=list)

    async def run(self, arguments: Sequence[str], stream: Stream) -> None:
        async with MessageStream(stream, step="test") as messages:
            messages.post(WorkerReady())
            while (payload := await messages.receive()) is not None:
                message: ToProvider = decode_union(payload, ToProvider, step="test")
                if isinstance(message, AskCall):
                    self.ran += 1
                    await asyncio.sleep(self.takes_s)
                    messages.post(ValuePart(message.call, self.name.encode()))
                elif isinstance(message, StopCall):
                    self.stopped.append(message.call)


async def offer(
    world: World, name: str, *, to: str = "members", takes_s: float = 0.0, is_idempotent: bool = False
) -> Program:
    """Offers `name` at a machine."""
    program = Program(name, takes_s)
    world[name].programs.behaviour = program.run
    terms = Terms("name", SIGNATURE, is_idempotent=is_idempotent)
    source = Source(file="/able.py", function="name", python="/python")
    await world[name].parts.calling.book.offer(source, terms, [to], Verdict.AUTO, 1)
    return program


async def until(world: World, condition: Callable[[], bool], what: str) -> None:
    await world.until(lambda: "" if condition() else what, within_s=60)


async def known(world: World, at: str, count: int) -> None:
    """Waits until so many are known somewhere."""
    await until(world, lambda: len(world[at].parts.calling.capabilities.known()) == count, f"{count} known at {at}")


def begin(world: World, at: str, **asked: object) -> tuple[OpenCall, asyncio.Future[ToCaller]]:
    """Calls `name`; how it ended."""
    ended: asyncio.Future[ToCaller] = asyncio.get_running_loop().create_future()

    def deliver(message: ToCaller) -> None:
        if is_last(message) and not ended.done():
            ended.set_result(message)

    call = world[at].parts.calling.client.call(AskCall(1, "name", b"\x80", **asked), deliver)  # type: ignore[arg-type]
    return call, ended


def test_what_is_for_one_person_is_known_to_nobody_else(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        program = await offer(world, "peer1", to=world["peer2"].twin)
        await known(world, "peer2", 1)
        await asyncio.sleep(30)

        for name in ("peer2", "peer3"):
            assert world[name].parts.overlay.records.entries(CAPABILITY_KIND) == []
        assert world["peer3"].parts.calling.capabilities.known() == []
        with pytest.raises(NotFound):
            begin(world, "peer3")
        _, ended = begin(world, "peer2")
        assert await ended == ValuePart(1, b"peer1")
        await world["peer1"].parts.calling.book.withdraw("name")
        await known(world, "peer2", 0)
        assert program.ran == 1

    play(story)


def test_an_answer_that_was_lost_is_given_again_and_nothing_runs_twice(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        program = await offer(world, "peer1", is_idempotent=True)
        for key, runs in ((b"one", 1), (b"one", 1), (b"two", 2), (b"", 3), (b"", 4)):
            stream = await world["peer2"].parts.overlay.open_stream(world["peer1"].peer, CALLS_PURPOSE)
            async with MessageStream(stream, step="test") as messages:
                messages.post(AskCall(1, "name", b"\x80", key=key))
                payload = await messages.receive()
                assert payload is not None
                assert decode_union(payload, ToCaller, step="test") == ValuePart(1, b"peer1")
            stream.abort()
            assert program.ran == runs

    play(story)


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_a_provider_that_falls_silent_is_replaced_only_where_that_does_no_harm(play: Play, is_idempotent: bool) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        programs = [await offer(world, f"peer{n}", takes_s=5.0, is_idempotent=is_idempotent) for n in (2, 3)]
        await known(world, "peer1", 2)
        _, ended = begin(world, "peer1", key=b"k" if is_idempotent else b"")
        await until(world, lambda: any(program.ran for program in programs), "it runs")
        victim = next(program for program in programs if program.ran)
        await world.crash(victim.name)

        async with asyncio.timeout(30):
            answer = await ended
        if is_idempotent:
            assert answer == ValuePart(1, ({"peer2", "peer3"} - {victim.name}).pop().encode())
        else:
            assert isinstance(answer, CallFailed) and answer.code == "call_lost" and answer.has_begun
            assert sum(program.ran for program in programs) == 1

    play(story)


def test_a_caller_that_vanishes_ends_its_call_within_seconds(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        program = await offer(world, "peer1", takes_s=3600.0)
        await known(world, "peer2", 1)
        begin(world, "peer2")
        await until(world, lambda: program.ran == 1, "it runs")
        await world.crash("peer2")

        # A function that does not listen is ended with its process; the next call has another one.
        async with asyncio.timeout(30):
            await until(world, lambda: _busy(world, "peer1") == 0.0, "the slot is free again")
        program.takes_s = 0.0
        _, ended = begin(world, "peer1")
        assert await ended == ValuePart(1, b"peer1")
        assert world["peer1"].programs.started == 2

    play(story)


def test_a_flood_of_calls_is_bounded_and_answered(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        await offer(world, "peer1", takes_s=1.0)
        stream = await world["peer2"].parts.overlay.open_stream(world["peer1"].peer, CALLS_PURPOSE)
        async with MessageStream(stream, step="test") as messages:
            for number in range(CALLS_OPEN_MAX + 10):
                messages.post(AskCall(number, "name", b"\x80"))
            refused = 0
            while refused < 10:
                payload = await messages.receive()
                assert payload is not None
                message: ToCaller = decode_union(payload, ToCaller, step="test")
                refused += isinstance(message, CallFailed) and message.code == "busy"

    play(story)


@pytest.mark.parametrize(
    "message",
    [
        AskCall(1, "name", bytes(VALUE_PART_BYTES_MAX + 1)),
        AskCall(1, "name", b"\x80", key=bytes(65)),
        ArgumentPart(1, bytes(VALUE_PART_BYTES_MAX + 1), False),
    ],
)
def test_what_is_over_its_bounds_ends_the_stream_and_is_named(play: Play, message: ToProvider) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        stream = await world["peer2"].parts.overlay.open_stream(world["peer1"].peer, CALLS_PURPOSE)
        async with MessageStream(stream, step="test") as messages:
            messages.post(message)
            with pytest.raises(ConnectionLost):
                while await messages.receive() is not None:
                    pass

    play(story)


def test_nobody_tells_of_capabilities_in_the_name_of_others(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        await offer(world, "peer1", to=world["peer2"].twin)
        await known(world, "peer2", 1)
        community = world["peer1"].parts.overlay.communities()[0].community
        made = world["peer1"].parts.calling.capabilities
        await until(world, lambda: bool(made.handed_to(world["peer2"].peer)), "peer1 knows that peer2 has it")
        (record,) = made.handed_to(world["peer2"].peer)

        with pytest.raises(Exception, match="somebody else"):
            await world["peer3"].parts.overlay.call(
                world["peer2"].peer, CALL_TELL, encode(Told([(community, record)])), deadline_s=5.0
            )

    play(story)


def test_a_namesake_that_nobody_trusts_is_listed_last_and_never_stands_in(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        await offer(world, "peer2")
        squatter = await offer(world, "peer3")
        other = json.dumps({"parameters": {"type": "object", "properties": {}}, "returns": {"type": "string"}}).encode()
        source = Source(file="/able.py", function="name", python="/python")
        await world["peer3"].parts.calling.book.offer(source, Terms("name", other), ["members"], Verdict.AUTO, 1)
        await world["peer1"].parts.address_book.trust(world["peer2"].twin, Trust.HIGH)
        await known(world, "peer1", 2)

        board = world["peer1"].parts.calling.capabilities
        candidates, _ = board.candidates("name", b"", "")
        assert [one.peer for one in candidates] == [world["peer2"].peer]
        pinned, _ = board.candidates("name", b"", world["peer3"].twin)
        assert [one.peer for one in pinned] == [world["peer3"].peer]
        await world.crash("peer2")
        _, ended = begin(world, "peer1", signature=candidates[0].signature)
        answer = await ended
        assert isinstance(answer, CallFailed) and squatter.ran == 0

    play(story)


def test_whoever_is_kept_out_offers_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        for name in ("peer1", "peer2"):
            await offer(world, name)
        await known(world, "peer3", 2)
        overlay = world["peer3"].parts.overlay
        overlay.door.revoke(world["peer1"].peer, world["peer1"].twin, 0.0)
        await known(world, "peer3", 1)
        await world["peer3"].parts.address_book.block(world["peer2"].twin)
        await known(world, "peer3", 0)

        with pytest.raises(NotFound):
            begin(world, "peer3")

    play(story)


def _busy(world: World, name: str) -> float:
    book = world[name].parts.calling.book
    return book.host(book.get("name")).load
