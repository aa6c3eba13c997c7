"""Members on one local network, as whole simulated peers: found although no address is right any more."""

from __future__ import annotations

import asyncio

from croft.overlay.lan_beacon import Beacon, unseal
from croft.sim.world import World
from support.worlds import Play, add_device


async def moved(world: World) -> None:
    """peer1 to peer3 in one community, all off, and then each somewhere else."""
    await world.unite(3)
    for name in ("peer1", "peer2", "peer3"):
        await world.crash(name)
        world[name].host = f"elsewhere-{name}"
    await asyncio.sleep(60)


def test_members_find_each_other_although_all_have_moved(play: Play) -> None:
    async def story(world: World) -> None:
        await moved(world)
        for name in ("peer1", "peer2", "peer3"):
            world[name].lan = "home"
            await world.start(name)
        await world.until(world.disunity, within_s=5)

    play(story)


def test_without_a_network_in_common_nobody_is_found(play: Play) -> None:
    async def story(world: World) -> None:
        await moved(world)
        for name in ("peer1", "peer2"):
            await world.start(name)
        await asyncio.sleep(60)
        assert world["peer1"].parts.overlay.links.all() == []

    play(story)


def test_strangers_on_the_network_hear_noise(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        world.add("stranger").lan = "home"
        await world.start("stranger")
        for name in ("peer1", "peer2"):
            world[name].lan = "home"
            await world.restart(name)
        await asyncio.sleep(5)
        shown = world.lans["home"].beacons
        assert len(shown) == 2
        everything = b"".join(name.encode() + sealed for name, sealed in shown.items())
        for told in (world.community, world["peer1"].peer, world["peer2"].twin, "peer1"):
            assert told.encode() not in everything
        assert not any(len(told) == 64 and bytes.fromhex(told) in everything for told in (world.community,))
        assert world["stranger"].parts.overlay.links.all() == []

    play(story)


def test_a_revoked_device_learns_nothing_from_what_members_show_after_that(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(3)
        lost = "phone"
        await add_device(world, lost, by=names[1])
        for name in (*names, lost):
            world[name].lan = "home"
            await world.restart(name)
        await asyncio.sleep(5)
        assert world[names[0]].peer in heard_by(world, lost)

        await world[names[1]].parts.devices.revoke(world[lost].peer)
        await asyncio.sleep(5)

        assert heard_by(world, lost) == {world[lost].peer}, "it understands its own beacon alone"
        assert heard_by(world, names[2]) >= {world[name].peer for name in names}, "members understand each other"
        late = await world.restart(names[2])
        await asyncio.sleep(5)
        assert late.overlay.links.get(world[names[0]].peer) is not None

    play(story)


def heard_by(world: World, name: str) -> set[str]:
    """Who is named by the beacons on the local network, as far as that peer understands them."""
    core = world[name].parts.lan._core
    understood = (unseal(core._keys, Beacon(*shown)) for shown in world.lans["home"].beacons.items())
    return {found[0] for found in understood if found is not None}
