"""Links to stored files among whole peers: who reads by them, until when, and on which devices they are known."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from croft.errors import CroftError, Refused, Usage
from croft.sim.world import Machine, World
from croft.storage.links import read_link, write_link
from croft.storage.service import SYNC_EVERY_S
from croft.storage.sharing import Named
from support.linked import line_of, make, read_by_link
from support.stored import get, put, rule
from support.worlds import Play, add_device

AHEAD_S = 300.0


def content(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


def test_whom_a_link_names_reads_what_it_leads_to_until_it_is_revoked(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, reader, other = world["peer1"], world["peer2"], world["peer3"]
        await put(owner, "album/one", content(1, 400_000))
        await put(owner, "album/two", b"two")
        sharing, expires_at = owner.parts.links.sharing, owner.clock.now() + 86_400
        link = await sharing.make(b"album", Named([bytes.fromhex(reader.twin)]), Named(), expires_at)
        line = link.line(bytes.fromhex(owner.twin))

        assert await read_by_link(reader, line) == {"one": content(1, 400_000), "two": b"two"}
        with pytest.raises(Refused, match="does not let you"):
            await read_by_link(other, line)
        with pytest.raises(Usage, match="damaged"):
            await read_by_link(reader, line[:-9])
        forged = write_link(replace(read_link(line), key=bytes(32)))
        with pytest.raises(Usage, match="damaged"):
            await read_by_link(reader, forged)
        await put(owner, "album/two", b"changed")
        await asyncio.sleep(10)
        assert (await read_by_link(reader, line))["two"] == b"changed"
        everybody = await sharing.make(b"album/two", Named([], [bytes.fromhex(world.community)]), Named(), expires_at)
        assert await read_by_link(other, everybody.line(bytes.fromhex(owner.twin))) == {"": b"changed"}

        await sharing.revoke(link.made.id.hex()[:6])
        await put(owner, "album/two", b"secret")
        await asyncio.sleep(10)
        with pytest.raises(Refused, match="revoked"):
            await read_by_link(reader, line)
        await owner.parts.upkeep.collect()
        assert await get(owner, "album/two") == b"secret"

    play(story)


async def two_devices(world: World) -> tuple[Machine, Machine, Machine]:
    """A desk and a laptop of one owner, and somebody else; the clock of the desk is ahead."""
    await world.unite(5)
    desk = world["peer1"]
    desk.clock.skew_s += AHEAD_S
    await put(desk, "page", b"first")
    await add_device(world, "laptop", "peer1")
    await world.until(world.missing_link, within_s=60)
    assert await get(world["laptop"], "page") == b"first"
    return desk, world["laptop"], world["peer2"]


def test_a_link_is_listed_renewed_and_revoked_by_any_device_of_its_owner(play: Play) -> None:
    async def story(world: World) -> None:
        desk, laptop, reader = await two_devices(world)
        link = await make(desk, "page", reader)
        line = line_of(desk, link)
        await world.crash("peer1")
        await asyncio.sleep(SYNC_EVERY_S)

        (seen,) = await laptop.parts.links.sharing.links()
        assert seen == link
        await put(laptop, "page", b"second")
        await asyncio.sleep(10)
        assert await read_by_link(reader, line) == {"": b"second"}
        await laptop.parts.links.sharing.revoke(link.made.id.hex()[:6])
        with pytest.raises(Refused, match="revoked"):
            await read_by_link(reader, line)

        await world.restart("peer1")
        await world.until(world.missing_link, within_s=60)
        (seen,) = await desk.parts.links.sharing.links()
        assert seen.is_revoked
        await put(desk, "page", b"third")
        await asyncio.sleep(10)
        with pytest.raises(Refused, match="revoked"):
            await read_by_link(reader, line)

    play(story)


def test_a_link_that_one_device_revokes_while_another_renews_it_stays_revoked(play: Play) -> None:
    async def story(world: World) -> None:
        desk, laptop, reader = await two_devices(world)
        link = await make(desk, "page", reader)
        await asyncio.sleep(SYNC_EVERY_S)
        await laptop.parts.links.sharing.links()
        world.partition(["peer1", "peer2", "peer3"], ["laptop", "peer4", "peer5"])
        await asyncio.sleep(40)
        await laptop.parts.links.sharing.revoke(link.made.id.hex())
        await put(desk, "page", b"second")
        await asyncio.sleep(10)
        world.heal()
        await world.until(world.disunity, within_s=120)
        for machine in (desk, laptop, desk):
            await machine.parts.storage.sync()
        await asyncio.sleep(10)

        for machine in (desk, laptop):
            assert [one.is_revoked for one in await machine.parts.links.sharing.links()] == [True]
        with pytest.raises(Refused, match="revoked"):
            await read_by_link(reader, line_of(desk, link))

    play(story)


def test_links_are_listed_while_no_holder_is_up(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, reader = world["peer1"], world["peer2"]
        await put(owner, "page", b"first")
        link = await make(owner, "page", reader)
        for name in ("peer2", "peer3", "peer4"):
            await world.crash(name)

        assert await owner.parts.links.sharing.links() == [link]
        with pytest.raises(CroftError):
            await owner.parts.links.sharing.revoke(link.made.id.hex())
        assert await owner.parts.links.sharing.links() == [link], "what nobody else keeps is not revoked"

    play(story)


def test_a_link_outlives_the_peers_that_kept_it(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("croft.storage.sharing.GONE_S", 120.0)

    async def story(world: World) -> None:
        await world.unite(7)
        owner, reader = world["peer1"], world["peer7"]
        await put(owner, "page", b"first", rule(world, keep="copies=6"))
        await put(owner, "other", b"other", rule(world, on=["peer2", "peer3"], keep="copies=2"))
        link = await make(owner, "page", reader)
        assert set(link.peers) == {bytes.fromhex(world[name].peer) for name in ("peer2", "peer3")}
        for name in ("peer2", "peer3", "peer4"):
            await world.crash(name)
        await asyncio.sleep(180)
        await world.restart("peer4")  # somebody comes: it is time to look
        await world.until(world.missing_link, within_s=60)
        await asyncio.sleep(30)
        await world.crash("peer1")

        assert await read_by_link(reader, line_of(owner, link)) == {"": b"first"}

    play(story)
