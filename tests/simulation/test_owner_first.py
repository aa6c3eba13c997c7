"""Lenders whose owners come first, in a world on virtual time."""

from __future__ import annotations

import asyncio

from croft.compute.owners_rules import MOVE_AFTER_S, Rules
from croft.sim.world import World
from support.worlds import Play, double, lasting


def test_work_of_others_stands_still_while_its_owner_is_busy_and_then_goes_on(play: Play) -> None:
    async def story(world: World) -> None:
        world.add("peer1", slots=0)
        await world.start("peer1")
        await world.found("peer1")
        world.add("peer2").rules = Rules(busy_max=0.25)
        await world.start("peer2")
        await world.admit("peer2", by="peer1")
        await world.until(world.disunity, within_s=30)
        job = world.submit("peer1", lasting(0.5, double), range(60), only=["peer2"])
        await asyncio.sleep(3)
        done = world["peer2"].parts.lender.tasks_done
        assert sum(done.values()) > 0
        world["peer2"].owner.share = 0.9
        await asyncio.sleep(3)
        assert "90%" in world["peer2"].parts.lending.reason
        before = len(world["peer2"].sandbox.boxes)
        usage = world["peer2"].parts.lender.slots_busy
        await asyncio.sleep(5)
        assert before == 1 and usage == world["peer2"].parts.lender.slots_busy == 2, "it waits where it is"
        world["peer2"].owner.share = 0.0

        assert await job.values() == [2 * number for number in range(60)]
        assert world["peer2"].parts.lending.reason == ""

    play(story)


def test_work_of_others_goes_elsewhere_where_its_owner_stays_busy_or_pulls_the_plug(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        for name, rules in (("peer2", Rules(busy_max=0.25)), ("peer3", Rules(on_battery=False))):
            world[name].rules = rules
            await world.restart(name)
        await world.until(world.disunity, within_s=30)
        job = world.submit("peer1", lasting(0.5, double), range(200), only=names)
        await asyncio.sleep(3)
        world["peer2"].owner.share = 0.9
        world["peer3"].owner.has_mains = False
        await asyncio.sleep(MOVE_AFTER_S + 5)

        assert world["peer2"].parts.lender.slots_busy == world["peer3"].parts.lender.slots_busy == 0
        assert world["peer3"].parts.lending.reason == "it runs on battery"
        assert await job.values() == [2 * number for number in range(200)]

    play(story)
