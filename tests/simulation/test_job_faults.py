"""What goes wrong around jobs: peers that never start, deaths at any moment, storms of cancelling, clocks that jump."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from croft.sim.jobs import hand_over
from croft.sim.world import World
from support.durable import over, results
from support.worlds import IS_CAMPAIGN, Play, double, lasting

DAY_S = 86_400.0
PHASES = [step / (20 if IS_CAMPAIGN else 5) for step in range(60 if IS_CAMPAIGN else 15)]


def test_a_peer_that_accepts_and_never_starts_costs_nothing_but_a_little_time(play: Play) -> None:
    async def story(world: World) -> float:
        await world.unite(4, slots=2)
        world["peer3"].sandbox.slowness = 1e9
        job = world.submit("peer1", lasting(0.5, double), range(60))
        assert await job.values() == [2 * number for number in range(60)]
        assert job.done_by(world["peer3"].peer) == 0
        return job.ended_at - job.started_at

    # Three peers of two slots do it in 5 s.
    assert play(story) < 10


def test_a_peer_that_answers_when_others_have_changes_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3, slots=1)
        job = world.submit("peer1", lasting(0.2, double), range(30))
        await asyncio.sleep(1)
        # It will be done after all the others, and long after its tasks were copied.
        world["peer2"].sandbox.slowness = 100.0
        assert await job.values() == [2 * number for number in range(30)]
        await asyncio.sleep(30)
        assert not job.doubt()

    play(story)


@pytest.mark.parametrize("victim", ["peer1", "peer2", "peer3"])
def test_a_job_on_disk_outlives_a_death_at_any_moment(play: Play, victim: str) -> None:
    """The submitter, its delegate or a lender dies at every phase of submitting, sharing, dealing and recording."""

    async def story(world: World) -> None:
        names = await world.unite(4, slots=2)
        assert victim in names
        for at_s in PHASES:
            book = world["peer1"].parts.jobs
            delegates = [world["peer2"].peer]
            submitting = asyncio.create_task(hand_over(book, lasting(0.2, double), range(30), delegates=delegates))
            await asyncio.sleep(at_s)
            if victim == "peer2" and not submitting.done():
                await submitting  # without its delegate there would be no job, and it says so
            if victim == "peer1" and not submitting.done():
                submitting.cancel()
                await asyncio.gather(submitting, return_exceptions=True)
                await world.restart(victim)
            else:
                job = await submitting
                await world.restart(victim)
                await over(world, "peer1", job, within_s=120)
                assert await results(world, "peer1", job) == [2 * number for number in range(30)]
            await world.until(world.disunity, within_s=60)

    play(story, limit_virtual_s=40_000)


def test_a_storm_of_cancelling_leaves_the_rest_right_and_the_peers_free(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(4, slots=2)
        job = world.submit("peer1", lasting(0.1, double), range(400))
        chance = Random(f"{world.seed}/storm")
        cancelled: set[int] = set()
        for _ in range(200):
            await asyncio.sleep(chance.uniform(0, 0.02))
            chosen = [chance.randrange(400) for _ in range(chance.randrange(1, 5))]
            job.tasks.cancel(chosen)
            cancelled.update(chosen)
        async with asyncio.timeout(120):
            while job.tasks.open_tasks:
                await asyncio.sleep(0.1)
        for task in range(400):
            assert job.records[task] == 1 or (task in cancelled and job.records[task] == 0)
        await world.until(
            lambda: "busy" if any(world[name].parts.lender.slots_busy for name in names) else "", within_s=10
        )
        job.running.cancel()

    play(story)


def test_clocks_that_jump_do_not_touch_a_job(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(4)
        job = await hand_over(world["peer1"].parts.jobs, lasting(0.5, double), range(200), delegates=2)
        chance = Random(f"{world.seed}/clocks")
        for _ in range(10):
            await asyncio.sleep(1)
            world[chance.choice(names)].clock.skew_s = chance.choice([-3 * DAY_S, -3_600.0, 0.0, 3_600.0, 3 * DAY_S])
        for name in names:
            world[name].clock.skew_s = 0.0
        await over(world, "peer1", job, within_s=300)

        assert await results(world, "peer1", job) == [2 * number for number in range(200)]

    play(story)
