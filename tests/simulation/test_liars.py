"""G8: peers that lie about results, in worlds of whole peers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from croft.compute.worker_messages import Status
from croft.errors import Refused
from croft.model.ids import PeerId
from croft.sim.jobs import SimulatedJob
from croft.sim.world import World
from croft.wire.values import decode_value
from support.worlds import Play, double, lasting

TASKS = 200
LIAR = "peer3"


def sometimes(seed: int = 0, share: float = 0.2) -> Callable[[Any], Any]:
    """A lie about a share of results, another one each time."""
    random = Random(seed)
    return lambda value: -random.randrange(1, 1 << 30) if random.random() < share else value


def peer_id(world: World, name: str) -> PeerId:
    return world[name].parts.overlay.own.peer


def wrong(job: SimulatedJob) -> list[int]:
    return [task for task in range(TASKS) if decode_value(job.outcomes[task][2]) != 2 * task]


def test_votes_let_no_lie_through_and_the_liar_is_named_and_credited_with_nothing(play: Play) -> None:
    """One of five lies about a fifth: 0 of 200 results wrong."""

    async def story(world: World) -> None:
        await world.unite(5)
        world[LIAR].sandbox.lie = sometimes()
        job = world.submit("peer1", lasting(0.1, double), range(TASKS), verify="vote:3")
        await job.values()

        liar = peer_id(world, LIAR)
        assert wrong(job) == []
        assert list(job.tasks.liars) == [liar]
        assert liar not in job.tasks.done_by

        again = world.submit("peer1", lasting(0.1, double), range(TASKS))
        await again.values()
        assert again.done_by(liar) == 0, "it is not asked again"

    play(story)


def test_spot_checks_find_the_liar_and_tell_what_it_had_done_unchecked(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        world[LIAR].sandbox.lie = sometimes()
        job = world.submit("peer1", lasting(0.1, double), range(TASKS), verify="spot:10%")
        await job.values()

        liar = peer_id(world, LIAR)
        assert list(job.tasks.liars) == [liar]
        assert set(wrong(job)) <= set(job.tasks.liars[liar])

    play(story)


def test_honest_peers_cost_little_once_they_have_a_record(play: Play) -> None:
    async def story(world: World) -> list[int]:
        names = await world.unite(5)
        done = []
        for _ in range(4):
            before = sum(sum(world[name].parts.lender.tasks_done.values()) for name in names)
            await world.submit("peer1", lasting(0.1, double), range(TASKS), verify="spot:10%").values()
            done.append(sum(sum(world[name].parts.lender.tasks_done.values()) for name in names) - before)
        return done

    done = play(story)
    assert done[0] > done[-1] and done[-1] < TASKS * 1.3, done


def test_votes_go_on_when_lenders_die(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        world[LIAR].sandbox.lie = sometimes()
        job = world.submit("peer1", lasting(0.2, double), range(TASKS), verify="vote:3")
        await asyncio.sleep(2)
        await world.crash("peer5")
        await job.values()
        assert wrong(job) == []

    play(story)


def test_a_job_that_nobody_can_verify_says_so(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        job = world.submit("peer1", lasting(0.1, double), range(5), only=["peer2"], verify="vote:3")
        with pytest.raises(Refused, match="verified") as caught:
            await job.values()
        assert "different people" in caught.value.remedy

    play(story)


def test_a_function_that_is_never_the_same_is_disputed_and_nobody_blamed(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(4)
        for number, name in enumerate(names):
            world[name].sandbox.lie = sometimes(number, share=1.0)
        job = world.submit("peer1", lasting(0.1, double), range(10), verify="vote:3")
        await asyncio.shield(job.running)

        assert {status for _, status, _ in job.outcomes.values()} == {Status.DISPUTED}
        assert not job.tasks.liars

    play(story)
