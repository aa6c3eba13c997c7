"""Durable jobs in whole simulated communities: whatever dies, each task is recorded once."""

from __future__ import annotations

import asyncio
from random import Random

from croft.sim.jobs import hand_over
from croft.sim.world import World
from support.durable import over, results
from support.worlds import IS_CAMPAIGN, Play, double, lasting

KILLS, TASKS = (50, 10_000) if IS_CAMPAIGN else (12, 1_500)
TASK_S = 0.05


def test_a_submitter_that_is_killed_again_and_again_loses_and_doubles_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        job = await hand_over(world[names[0]].parts.jobs, lasting(TASK_S, double), range(TASKS))
        chance = Random(f"{world.seed}/kills")
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.05, 2 * TASKS * TASK_S / 6 / KILLS))
            await world.crash(names[0], is_loud=chance.random() < 0.5)
            await world.start(names[0])
        await over(world, names[0], job, within_s=600)

        assert await results(world, names[0], job) == [2 * number for number in range(TASKS)]

    play(story)


def test_a_job_whose_program_dies_before_it_is_sealed_is_not_there_after_a_restart(play: Play) -> None:
    async def story(world: World) -> None:
        [name] = await world.unite(1)
        durable = world[name].parts.jobs.durable
        job = await hand_over(world[name].parts.jobs, double, range(3))
        filling = await durable.open((await durable.find(job)).spec)
        await filling.add_function(b"f", b"")
        await durable.journal.settle()
        await world.restart(name)
        await over(world, name, job, within_s=60)

        assert [entry.id for entry in await world[name].parts.jobs.durable.journal.entries()] == [job]

    play(story)


def test_a_job_waits_for_peers_as_long_as_it_takes(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(2, slots=1)
        for name in names:
            await world[name].parts.lending.pause(300.0)
        job = await hand_over(world[names[0]].parts.jobs, double, range(5))
        await asyncio.sleep(200)
        shown = await world[names[0]].parts.jobs.shown(job)
        assert shown.state == "running" and shown.done == 0 and shown.reason
        await over(world, names[0], job, within_s=300)

        assert await results(world, names[0], job) == [0, 2, 4, 6, 8]

    play(story)


def test_a_cancelled_job_leaves_its_lenders_and_keeps_what_is_done(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        jobs = world[names[0]].parts.jobs
        job = await hand_over(jobs, lasting(1.0, double), range(100))
        await asyncio.sleep(5)
        ended = await jobs.cancel(job)

        assert ended.state == "cancelled" and 0 < ended.done < 100
        await world.until(
            lambda: "busy" if any(world[name].parts.lender.slots_busy for name in names) else "", within_s=5
        )
        await world.restart(names[0])
        assert (await world[names[0]].parts.jobs.shown(job)).done == ended.done

    play(story)


def test_a_thousand_queued_jobs_all_end(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        jobs = world[names[0]].parts.jobs
        submitted = [await hand_over(jobs, double, [number]) for number in range(1_000 if IS_CAMPAIGN else 120)]
        for number, job in enumerate(submitted):
            await over(world, names[0], job, within_s=600)
            assert await results(world, names[0], job) == [2 * number]

    play(story)
