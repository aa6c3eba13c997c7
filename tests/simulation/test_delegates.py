"""Delegates in whole simulated communities: a job goes on while its submitter is away, and comes home."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from croft.errors import NotFound, Refused
from croft.model.ids import JobId
from croft.sim.jobs import hand_over
from croft.sim.world import World
from support.durable import over, results
from support.worlds import Play, double, lasting


def test_a_job_is_finished_by_a_delegate_and_comes_home(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(5)
        jobs = world[names[0]].parts.jobs
        job = await hand_over(jobs, lasting(1.0, double), range(200), delegates=2)
        held = [world.machine_of(peer).name for peer in (await jobs.durable.find(job)).delegates]
        await asyncio.sleep(5)
        await world.crash(names[0])
        victim = next(name for name in names[1:] if name not in held)
        await world.crash(victim)
        await over(world, held[0], job, within_s=200)
        carried_by = await world[held[0]].parts.jobs.durable.journal.find(job)
        assert carried_by is not None and carried_by.carrier == world[held[0]].peer
        await over(world, held[1], job, within_s=60)

        await world.start(names[0])
        await over(world, names[0], job, within_s=60)
        assert await results(world, names[0], job) == [2 * number for number in range(200)]
        # The submitter has everything: the copies go.
        async with asyncio.timeout(60):
            while [n for n in held if await world[n].parts.jobs.durable.journal.find(job)]:
                await asyncio.sleep(1)

    play(story)


def test_a_submitter_that_returns_midway_takes_its_job_back(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(4)
        jobs = world[names[0]].parts.jobs
        job = await hand_over(jobs, lasting(1.0, double), range(1_200), delegates=[world[names[1]].peer])
        await asyncio.sleep(5)
        await world.crash(names[0])
        await asyncio.sleep(60)
        delegate = world[names[1]].parts.jobs.durable
        by_delegate = (await delegate.find(job, world[names[0]].twin)).done
        assert by_delegate > 50 and delegate.tasks_of((await delegate.journal.entries())[0].number) is not None
        await world.start(names[0])
        await asyncio.sleep(20)
        here = await world[names[0]].parts.jobs.durable.find(job)
        assert here.carrier == world[names[0]].peer and here.epoch >= 3
        assert delegate.tasks_of((await delegate.journal.entries())[0].number) is None
        await over(world, names[0], job, within_s=300)

        assert await results(world, names[0], job) == [2 * number for number in range(1_200)]

    play(story)


def test_holders_that_die_and_return_at_random_lose_and_double_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(5)
        jobs = world[names[0]].parts.jobs
        job = await hand_over(jobs, lasting(0.5, double), range(600), delegates=2)
        chance = Random(f"{world.seed}/faults")
        for _ in range(10):
            await asyncio.sleep(chance.uniform(1, 25))
            name = chance.choice(names)
            if chance.random() < 0.3:
                world.partition(names[:2], names[2:])
                await asyncio.sleep(chance.uniform(1, 40))
                world.heal()
            elif world[name].run is None:
                await world.start(name)
            else:
                await world.crash(name, is_loud=chance.random() < 0.5)
        for name in names:
            if world[name].run is None:
                await world.start(name)
        await over(world, names[0], job, within_s=900)

        assert await results(world, names[0], job) == [2 * number for number in range(600)]

    play(story)


def test_a_job_without_enough_delegates_is_refused_and_says_why(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(2)
        jobs = world[names[0]].parts.jobs
        world[names[1]].policy.refusal = Refused("the owner says no")
        with pytest.raises(Refused) as refused:
            await hand_over(jobs, double, range(3), delegates=1)
        assert "peer2" in refused.value.message and "the owner says no" in refused.value.message

    play(story)


def test_nobody_else_reads_or_ends_a_job_that_is_held_for_another(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        job = await hand_over(world[names[0]].parts.jobs, lasting(5.0, double), range(50), delegates=1)
        for stranger in names[1:]:
            book = world[stranger].parts.jobs
            with pytest.raises(NotFound):
                await book.shown(job)
            with pytest.raises(NotFound):
                await book.cancel(job)
            with pytest.raises(NotFound):
                async for _ in book.outcomes(job, is_in_order=True, after=0):
                    pass

    play(story)


def test_four_submitters_share_six_peers_whichever_is_killed(play: Play) -> None:
    """D5: four submitters of 50 tasks on six peers, any one killed: all finish; no peer did over 40 % of the work."""

    async def story(world: World) -> None:
        names = await world.unite(6, slots=2)
        victim = names[world.seed % 6]
        submitted = {}
        for name in names[:4]:
            book = world[name].parts.jobs
            submitted[name] = await hand_over(book, lasting(0.5, double), range(50), delegates=1)
        await asyncio.sleep(2)
        await world.crash(victim)
        done_by: Counter[str] = Counter()
        for name, job in submitted.items():
            holder = name
            if name == victim:
                # Its delegate carries the job on.
                holder = await holder_of(world, job)
            await over(world, holder, job, within_s=120)
            assert await results(world, holder, job) == [2 * number for number in range(50)]
            journal = world[holder].parts.jobs.durable.journal
            entry = await journal.find(job)
            assert entry is not None
            done_by.update(await journal.done_by(entry.number))
        assert sum(done_by.values()) == 200
        assert max(done_by.values()) <= 0.4 * 200, done_by

    play(story)


async def holder_of(world: World, job: JobId) -> str:
    """A machine that is up and holds a copy."""
    for machine in world.up():
        if await machine.parts.jobs.durable.journal.find(job) is not None:
            return machine.name
    raise AssertionError("nobody holds it")
