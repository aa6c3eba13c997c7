"""Values of tasks stay where they were made, and are made again when their keeper dies, at whatever moment that is."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from croft.client.async_tasks import AsyncTaskFuture, await_done
from croft.client.task_session import TaskSession
from croft.model.kept import Held
from croft.sim.world import World
from support.programs import program
from support.worlds import IS_CAMPAIGN, Play, lasting

VALUE_BYTES = 1_200_000
MOMENTS = [step / (20 if IS_CAMPAIGN else 4) for step in range(60 if IS_CAMPAIGN else 14)]
TASK_S = 0.5


def make(number: int) -> bytes:
    return bytes([number]) * VALUE_BYTES


def more(data: Any) -> bytes:
    return bytes([data[0] + 1]) * len(data)


def both(one: Any) -> bytes:
    return bytes([one[0][0] + one[1][0]]) * len(one[0])


def length(data: Any) -> int:
    return len(data)


def submit(session: TaskSession, function: Any, *arguments: object) -> Any:
    return session.submit(lasting(TASK_S, function), arguments, {}, stays=True)


def kept_bytes(world: World) -> dict[str, int]:
    kept = {machine.name: machine.parts.calling.values.kept_bytes for machine in world.up()}
    return {name: size for name, size in kept.items() if size}


def test_what_is_not_asked_for_stays_and_goes_with_the_last_that_stands_for_it(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3, slots=2)
        async with program(world, "peer1") as session:
            first = submit(session, make, 1)
            await await_done(first)
            assert sum(kept_bytes(world).values()) >= VALUE_BYTES
            second = submit(session, more, first)
            await await_done(second)
            assert first.brought is not None and not first.brought.done()
            assert await AsyncTaskFuture(submit(session, length, second)) == VALUE_BYTES
            data = await AsyncTaskFuture(second)
            assert data == bytes([2]) * VALUE_BYTES

            del first, second
            gc.collect()
            await world.until(lambda: str(kept_bytes(world) or ""), within_s=60)

    play(story)


@pytest.mark.parametrize("victim", ["peer2", "peer3"])
def test_a_death_at_any_moment_costs_time_and_nothing_else(play: Play, victim: str) -> None:
    async def story(world: World) -> None:
        await world.unite(4, slots=1)
        for at_s in MOMENTS:
            async with program(world, "peer1", on=("peer2", "peer3", "peer4")) as session:
                first, other = submit(session, make, 1), submit(session, make, 40)
                left, right = submit(session, more, first), submit(session, more, first)
                top = submit(session, both, [left, submit(session, both, [right, other])])
                await asyncio.sleep(at_s)
                await world.restart(victim)
                async with asyncio.timeout(300):
                    assert await AsyncTaskFuture(top) == bytes([44]) * VALUE_BYTES
                    assert await AsyncTaskFuture(left) == bytes([2]) * VALUE_BYTES
            await world.until(world.disunity, within_s=60)
        await world.until(lambda: str(kept_bytes(world) or ""), within_s=300)

    play(story, limit_virtual_s=40_000)


def test_a_chain_whose_every_value_is_lost_is_made_again_from_its_beginning(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(4, slots=1)
        async with program(world, "peer1", on=("peer2", "peer3", "peer4")) as session:
            chain = submit(session, make, 1)
            for _ in range(6):
                chain = submit(session, more, chain)
            await await_done(chain)
            for name in names[1:]:
                await world.restart(name)
            async with asyncio.timeout(600):
                assert await AsyncTaskFuture(submit(session, length, chain)) == VALUE_BYTES
                assert await AsyncTaskFuture(chain) == bytes([7]) * VALUE_BYTES

    play(story, limit_virtual_s=10_000)


def test_a_value_that_cannot_be_made_again_fails_whatever_needs_it(play: Play) -> None:
    def fail(_: Any) -> Any:
        raise ValueError("no more")

    async def story(world: World) -> None:
        await world.unite(2, slots=1)
        async with program(world, "peer1", on=("peer2",)) as session:
            first = submit(session, make, 1)
            await await_done(first)
            await world.restart("peer2")
            world["peer2"].sandbox.lie = fail
            with pytest.raises(ValueError, match="no more"):
                async with asyncio.timeout(300):
                    await AsyncTaskFuture(submit(session, length, submit(session, more, first)))

    play(story, limit_virtual_s=10_000)


def test_a_peer_that_gives_another_value_than_it_was_to_keep_is_noticed_and_keeps_no_more(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3, slots=1)
        liar = world["peer2"].parts.calling.values

        async def read(held: Held) -> AsyncIterator[bytes]:
            yield bytes(held.size)

        async with program(world, "peer1", on=("peer2",)) as session:
            first = submit(session, make, 1)
            await await_done(first)
            liar.read = read  # type: ignore[method-assign]  # the peer is changed, and not the test's expectation
            async with asyncio.timeout(300):
                assert await AsyncTaskFuture(first) == bytes([1]) * VALUE_BYTES
                assert await AsyncTaskFuture(submit(session, length, submit(session, more, first))) == VALUE_BYTES

    play(story, limit_virtual_s=10_000)
