"""Environments in whole simulated communities: wheels go from peer to peer, and whoever sends wrong ones is found."""

from __future__ import annotations

import asyncio

import pytest

from croft.compute.environment import Environment, Wheel
from croft.errors import Refused
from croft.model.ids import JobId
from croft.sim.jobs import hand_over
from croft.sim.sandbox import PYTHON
from croft.sim.world import World
from support.durable import over
from support.worlds import Play, double, lasting

DATA = b"a wheel" * 1000
NAME = "tiny-1.0-py3-none-any.whl"
NOT_NOW = Refused("not now", remedy="Later.")


def put(world: World, name: str, file_name: str = NAME) -> Environment:
    """An environment of one wheel, which a program of that machine has put into its peer's cache."""
    return Environment(PYTHON, [Wheel(file_name, len(DATA), world[name].environments.put(DATA))])


async def holds(world: World, name: str) -> None:
    """Returns once a machine has the wheel."""
    async with asyncio.timeout(60):
        while DATA not in world[name].environments.held.values():
            await asyncio.sleep(0.5)


def test_each_lender_fetches_and_builds_once_and_the_later_ones_from_the_earlier(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(4)
        environment = put(world, names[0])
        world[names[3]].policy.refusal = NOT_NOW
        job = world.submit(names[0], lasting(0.5, double), range(200), never=[names[0]], environment=environment)
        await holds(world, names[1])
        await holds(world, names[2])
        # The submitter's cache has run full meanwhile; those that work have the wheel.
        world[names[0]].environments.held.clear()
        world[names[3]].policy.refusal = None
        await holds(world, names[3])

        assert await job.values() == [2 * number for number in range(200)]
        assert [len(world[name].environments.built) for name in names] == [0, 1, 1, 1]

    play(story)


def test_a_lender_that_passes_on_something_else_is_passed_over_for_the_submitter(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        environment = put(world, names[0])
        world[names[2]].policy.refusal = NOT_NOW
        job = world.submit(names[0], lasting(0.5, double), range(100), never=[names[0]], environment=environment)
        await holds(world, names[1])
        world[names[1]].environments.held[environment.wheels[0].digest] = b"evil" * len(DATA)
        world[names[2]].policy.refusal = None
        await holds(world, names[2])

        assert await job.values() == [2 * number for number in range(100)]
        assert f"peer {names[1]} " in caplog.text and "broke the protocol" in caplog.text

    play(story)


def test_lenders_that_do_not_fit_are_passed_over_and_named_if_none_does(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        environment = put(world, names[0], "tiny-1.0-cp311-cp311-win_amd64.whl")
        world[names[2]].policy.tags = ("cp311-cp311-win_amd64",)

        fits = world.submit(names[0], double, range(10), environment=environment)
        fits_not = world.submit(names[0], double, range(10), only=[names[1]], environment=environment)

        assert await fits.values() == [2 * number for number in range(10)]
        assert fits.done_by(world[names[2]].peer) == 10
        with pytest.raises(Refused, match=f"{names[1]}: tiny is there as a wheel for cp311-cp311-win_amd64"):
            await fits_not.values()

    play(story)


def test_a_delegate_has_the_wheels_when_the_submitter_is_gone(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        environment = put(world, names[0])
        world[names[2]].policy.refusal = NOT_NOW
        jobs = world[names[0]].parts.jobs
        job: JobId = await hand_over(
            jobs, lasting(2.0, double), range(50), delegates=[world[names[1]].peer], environment=environment
        )
        assert DATA in world[names[1]].environments.held.values()
        await world.crash(names[0])
        world[names[2]].policy.refusal = None
        await over(world, names[1], job, within_s=200)

        assert len(world[names[2]].environments.built) == 1

    play(story)


def test_a_lender_that_crashes_while_it_fetches_costs_nothing_but_time(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        environment = put(world, names[0])
        job = world.submit(names[0], lasting(0.5, double), range(100), never=[names[0]], environment=environment)
        await holds(world, names[1])
        await world.crash(names[1])
        await world.start(names[1])

        assert await job.values() == [2 * number for number in range(100)]
        assert len(world[names[1]].environments.built) <= 1

    play(story)
