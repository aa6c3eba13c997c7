"""The list of files outlives what it meets: a death between two steps, the holders that had it, an old disk."""

from __future__ import annotations

import asyncio

import pytest

from croft.errors import CroftError, Failed
from croft.sim.machine import SimulatedDisk
from croft.sim.world import Machine, World
from croft.storage.contents import BytesSource
from croft.storage.formats import Version
from croft.storage.service import UNSEEN_S
from support.stored import get, held, names, put, rule
from support.worlds import Play, add_device

PATIENCE_S = 120.0


def heads_at(machine: Machine) -> list[int]:
    """The numbers of the heads that a machine's disk keeps for others."""
    return [sequence for (sequence,) in machine.disk.connection.execute("SELECT sequence FROM held_head")]


def forget_heads(machine: Machine) -> None:
    """Its disk has lost the heads of others."""
    machine.disk.connection.execute("DELETE FROM held_head")


async def come_back(world: World, name: str) -> None:
    """Starts a machine, and waits until it knows again who lends disk."""
    await world.start(name)
    others = len(world.up()) - 1

    def missing() -> str:
        lending = sum(place.is_alive for place in world[name].parts.storage.places())
        return "" if lending == others else f"{lending} of {others} lend"

    await world.until(lambda: world.missing_link() or missing(), within_s=60)


async def burn(world: World, name: str) -> Machine:
    """The owner's machine is gone for good; another one knows the words."""
    root = world[name].root
    if world[name].run is not None:
        await world.crash(name)
    world.add("phoenix").root = root
    await world.start("phoenix")
    await world.admit("phoenix", by="peer2")
    await world.until(lambda: world.missing_link(), within_s=60)
    return world["phoenix"]


def test_a_death_after_peers_were_told_of_a_list_takes_nothing_from_later_ones(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        await put(world["peer1"], "first", b"first", rule(world, keep="copies=3"))
        (before,) = heads_at(world["peer2"])
        putting = asyncio.create_task(
            put(world["peer1"], "second", b"second", rule(world, keep="copies=3")), name="put"
        )
        while heads_at(world["peer2"]) == [before]:
            await asyncio.sleep(0.0005)
        await world.crash("peer1")
        await asyncio.wait({putting})
        assert putting.cancelled() or putting.exception() is not None, "it was not acknowledged"
        await come_back(world, "peer1")

        await put(world["peer1"], "third", b"third", rule(world, keep="copies=3"))
        await world["peer1"].parts.upkeep.collect()
        phoenix = await burn(world, "peer1")

        assert {"first", "third"} <= set(await names(phoenix))
        for name in await names(phoenix):
            assert await get(phoenix, name) == name.encode()

    play(story)


def test_what_only_a_list_needs_that_never_counted_is_not_collected_before_that_list_is_superseded(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, where = world["peer1"], rule(world, keep="copies=3")
        await put(owner, "first", b"first", where)
        heads = owner.parts.storage.heads
        tell = heads.tell

        async def tell_one(record: bytes, peers: list[str], needed: int) -> None:
            await tell(record, [world["peer2"].peer], 1)
            raise Failed("the others cannot be reached")

        heads.tell = tell_one  # type: ignore[assignment, method-assign]
        with pytest.raises(Failed, match="cannot be reached"):
            await put(owner, "second", b"second", where)
        heads.tell = tell  # type: ignore[method-assign]
        await world.crash("peer2")
        await world.until(lambda: "" if world.dead_to("peer1") else "not noticed", within_s=60)
        await owner.parts.upkeep.collect()
        await world.start("peer2")
        await world.until(lambda: world.disunity(), within_s=PATIENCE_S)
        await owner.parts.upkeep.collect()

        async def check(machine: Machine) -> None:
            assert await names(machine) == ["first"]
            assert await get(machine, "first") == b"first"

        await check(owner)
        await check(await burn(world, "peer1"))

    play(story)


@pytest.mark.parametrize("is_owner_away", [False, True])
def test_lists_are_copied_to_others_when_those_that_had_them_lose_them(play: Play, is_owner_away: bool) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        await put(world["peer1"], "film", b"film", rule(world, keep="copies=2"))
        await asyncio.sleep(10)
        if is_owner_away:
            await world.crash("peer1")
        had = [machine for machine in world.up() if heads_at(machine)]
        assert len(had) == 2
        forget_heads(had[0])
        if is_owner_away:
            await world.until(lambda: "" if heads_at(had[0]) else "not copied", within_s=PATIENCE_S)
        else:
            await world["peer1"].parts.upkeep.tend()
        forget_heads(had[1])
        phoenix = await burn(world, "peer1")

        assert await names(phoenix) == ["film"] and await get(phoenix, "film") == b"film"

    play(story)


def test_a_device_whose_disk_is_an_old_copy_takes_in_what_it_once_knew_before_anything_counts(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, where = world["peer1"], rule(world, keep="copies=3")
        await put(owner, "first", b"first", where)
        await world.crash("peer1")
        copy = SimulatedDisk()
        owner.disk.connection.backup(copy.connection)
        await come_back(world, "peer1")
        for number in range(3):
            await put(owner, f"later{number}", b"later", where)
        await world.crash("peer1")
        owner.disk = copy
        await come_back(world, "peer1")

        with pytest.raises(CroftError, match="newer list of files of this device"):
            await put(owner, "after", b"after", where)
        await put(owner, "after", b"after", where)

        async def check(machine: Machine) -> None:
            assert await names(machine) == ["after", "first", "later0", "later1", "later2"]
            assert await get(machine, "later1") == b"later"

        await check(owner)
        await check(await burn(world, "peer1"))

    play(story)


def test_what_took_days_to_put_counts_only_if_holders_still_have_it(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner = world["peer1"]
        await put(owner, "old", b"old", rule(world, keep="copies=2"))
        await add_device(world, "laptop", "peer1")
        await world.until(world.missing_link, within_s=60)
        storage = world["laptop"].parts.storage
        async with storage.putting(rule(world, on=["peer2", "peer3"], keep="copies=2")) as putting:
            pending = await putting.add(BytesSource(bytes(300_000)))
            await putting.finish()
            version = Version(0, b"", 0.0, pending.size, pending.content)
            await storage.commit({b"new": version}, putting)
            putting.began_at -= 2 * UNSEEN_S
            await storage.commit({b"newer": version}, putting)
            for name in ("peer2", "peer3"):
                held(world[name], owner).clear()
            with pytest.raises(Failed, match="too long to put"):
                await storage.commit({b"newest": version}, putting)

    play(story)


def test_a_share_that_went_elsewhere_is_waited_for_where_it_is_now(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(8)
        owner = world["peer1"]
        took = await put(owner, "film", bytes(range(256)) * 2_000, rule(world, keep="2of4"))
        first = world.machine_of(next(iter(took)))
        before = {machine.name: set(held(machine, owner)) for machine in world.up()}
        lost = set(held(first, owner))
        held(first, owner).clear()
        first.chunks.capacity_bytes = 0
        assert (await owner.parts.upkeep.tend()).rebuilt
        now = next(m for m in world.up() if m is not owner and lost & (set(held(m, owner)) - before[m.name]))

        await world.crash(now.name)
        await world.until(lambda: "" if world.dead_to("peer1") else "not noticed", within_s=60)
        assert not (await owner.parts.upkeep.tend()).rebuilt

    play(story)
